package registration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podwatch"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// errStopped is the error of a Register that Close or Init of the registry interrupts.
var errStopped = errors.New("the registry was closed, or was given another address")

// defaultGracePeriod is Kubernetes' default for terminationGracePeriodSeconds. The
// registrar uses it until it has received its own pod.
const defaultGracePeriod = 30 * time.Second

// registrar keeps the labels and annotations of the process's own pod as they are
// desired. It patches the pod only when the observed metadata differ from the desired
// metadata, for whatever reason. One goroutine reconciles, from the first desired
// registration until stop; a second one watches the pod after the first successful
// patch.
type registrar struct {
	plugin        Plugin
	events        *events.Hub            // may be nil
	statusChanged func()                 // called when the result of registered, pending or lastError may have changed
	wake          chan struct{}          // asks for a reconcile
	watch         podwatch.Watch         // watches the process's own pod
	zone          atomic.Pointer[string] // of the process's own pod, as last observed
	ctx           context.Context        // ends with stop
	cancel        context.CancelFunc
	reconciling   sync.WaitGroup

	changing sync.Mutex       // held while a change is prepared and becomes desired; never while waiting
	parts    map[string]parts // by service; guarded by changing

	mu          sync.Mutex
	pod         Pod  // set before the first desired registration, and never changed then
	running     bool // the goroutine that reconciles was started
	state       registrations
	uid         types.UID // of the process's own pod
	version     uint64    // last observed resource version of the pod
	gracePeriod time.Duration
	terminating time.Time           // when the registrar saw the pod's deletion, by this machine's clock
	attempted   broadcast.Broadcast // an attempt to reconcile has ended
}

func newRegistrar(plugin Plugin, statusChanged func(), apiError func(operation string, err error)) *registrar {
	ctx, cancel := context.WithCancel(context.Background())
	return &registrar{plugin: plugin, statusChanged: statusChanged, wake: make(chan struct{}, 1), ctx: ctx, cancel: cancel,
		watch: podwatch.Watch{APIError: apiError}, parts: map[string]parts{}, state: registrations{desired: map[string]*registration{}}, gracePeriod: defaultGracePeriod}
}

// connected gives the registrar its pod. Only the first call has an effect.
func (r *registrar) connected(pod Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pod.API == nil {
		r.pod = pod
	}
}

// register makes the service's registration desired and waits for at most limit
// until the API server has confirmed it; with a limit of 0 it does not wait. After
// an error the registration stays desired and reconcile retries it, unless the API
// server calls it invalid.
func (r *registrar) register(s *registry.Service, limit time.Duration) error {
	return r.change(s, limit, func(p parts) (parts, error) { return p.with(s) })
}

// deregister makes the absence of the service's nodes desired and waits as register does.
func (r *registrar) deregister(s *registry.Service, limit time.Duration) error {
	return r.change(s, limit, func(p parts) (parts, error) { return p.without(s), nil })
}

// change changes the parts of a service's registration.
func (r *registrar) change(s *registry.Service, limit time.Duration, change func(parts) (parts, error)) error {
	attempted, d, err := func() (<-chan struct{}, *registration, error) {
		r.changing.Lock() // so that the last change is desired in the end
		defer r.changing.Unlock()
		changed, err := change(r.parts[s.Name])
		if err != nil {
			return nil, nil, err
		}
		d, err := r.prepare(s, changed)
		if err != nil {
			return nil, nil, err
		}
		attempted, err := r.setDesired(s.Name, d, limit)
		if err == nil {
			r.parts[s.Name] = changed
		}
		return attempted, d, err
	}()
	if err != nil || attempted == nil {
		return err
	}
	return r.await(s.Name, d, attempted, limit)
}

func (r *registrar) desiredRegistration(service string) *registration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.desired[service]
}

// setDesired replaces the service's desired state. The new state may equal the old one. If the caller
// should await the API server's confirmation, it returns a channel that is closed at the end of the
// next attempt.
func (r *registrar) setDesired(service string, d *registration, limit time.Duration) (attempted <-chan struct{}, err error) {
	r.mu.Lock()
	if r.ctx.Err() != nil {
		r.mu.Unlock()
		return nil, errStopped
	}
	if !r.running {
		r.running = true
		r.reconciling.Go(r.run)
	}
	before := r.state.desired[service]
	if err := r.state.set(service, d); err != nil {
		r.mu.Unlock()
		return nil, err
	}
	if before != nil {
		d.reported = before.reported
	}
	satisfied, contested := r.state.satisfied(service, d), d.contested()
	attempted = r.attempted.Wait()
	switch {
	case satisfied || contested: // a contested registration keeps its delay between patches
	case limit > 0:
		d.err, d.notBefore = nil, time.Time{} // the caller waits for the result of a new attempt
	case before != nil:
		d.err = before.err // remains the last error until a new attempt ends
	}
	r.mu.Unlock()
	r.statusChanged()
	if satisfied {
		return nil, nil
	}
	r.reconcileSoon()
	switch {
	case limit == 0:
		return nil, nil
	case contested:
		return nil, contestedError(r.pod.Name)
	}
	return attempted, nil
}

// await waits until the API server has confirmed the service's desired state d, for at most limit.
// attempted is closed at the end of the next attempt.
func (r *registrar) await(service string, d *registration, attempted <-chan struct{}, limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		timeout := false
		select {
		case <-t.C:
			timeout = true
		case <-attempted:
		case <-r.ctx.Done():
			return errStopped
		}
		r.mu.Lock()
		err, done, written := d.err, r.state.satisfied(service, d), !d.written.IsZero()
		attempted = r.attempted.Wait()
		var status *apierrors.StatusError
		if errors.As(err, &status) && apierrors.IsInvalid(status) && r.state.desired[service] == d { // retrying cannot help
			delete(r.state.desired, service)
		}
		r.mu.Unlock()
		switch {
		case done:
			return nil
		case err != nil:
			return err
		case timeout && written:
			return contestedError(r.pod.Name)
		case timeout:
			return fmt.Errorf("patch pod %q in namespace %q: the API server at %s has not answered for %s", r.pod.Name, r.pod.Namespace, r.pod.Host, limit)
		}
	}
}

func (r *registrar) reconcileSoon() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run reconciles when it is woken, and when a delayed patch is due.
func (r *registrar) run() {
	for r.ctx.Err() == nil {
		next := r.reconcile()
		var due <-chan time.Time
		if !next.IsZero() {
			due = time.After(time.Until(next))
		}
		select {
		case <-r.ctx.Done():
		case <-r.wake:
		case <-due:
		}
	}
}

// reconcile patches the process's own pod once for each service whose pending changes
// are due. It returns when the next pending change is due, and zero if there is none.
func (r *registrar) reconcile() (next time.Time) {
	r.mu.Lock()
	due, tried := r.state.due(time.Now()), maps.Clone(r.state.desired)
	r.state.patching(maps.Clone(due))
	r.mu.Unlock()
	errs := map[string]error{}
	for service, changes := range due {
		errs[service] = r.patch(changes)
		if patched := r.events.Get().Patched; patched != nil {
			patched(service, errs[service])
		}
	}
	if r.ctx.Err() != nil {
		return time.Time{}
	}
	changed := map[string]error{}
	defer func() { // runs after r.mu is unlocked
		if len(errs) > 0 {
			r.statusChanged()
		}
		for service, err := range changed {
			r.watch.ReportAPIError(fmt.Sprintf("writing service %q to the pod", service), err)
		}
	}()
	r.mu.Lock()
	defer r.mu.Unlock()
	written := false
	for service, err := range errs {
		written = written || err == nil
		r.state.patched(service, err)
		d := tried[service]
		if r.ended(service, d, due[service], err); apiserver.Reason(d.err) != apiserver.Reason(d.reported) {
			changed[service], d.reported = d.err, d.err
		}
	}
	if len(errs) > 0 {
		r.attempted.Notify()
	}
	if written && len(r.state.desired) > 0 && !r.watch.Started() { // from now on the registration can be lost
		r.watch.Start(r.pod.API, apiserver.Selector{Fields: "metadata.name=" + r.pod.Name}, "this process's pod", wholePod, ownPod{r})
	}
	return r.state.nextDue(time.Now())
}

// ended records the result of an attempt to write d, and logs a result that differs from
// the one before.
func (r *registrar) ended(service string, d *registration, changes podmeta.Metadata, err error) {
	wasContested := d.contested()
	if err != nil {
		if d.failed(err, r.pod.API.RetryAfter()); apiserver.Reason(d.reported) != apiserver.Reason(err) {
			logger.Errorf("Registry [kubernetes] Writing service %q to the pod: %v; retrying", service, err)
		}
		return
	}
	d.succeeded(r.pod.Name)
	switch {
	case d.contested():
		if !wasContested {
			logger.Errorf("Registry [kubernetes] Registering %q: %v", service, d.err)
		}
	case changes.OnlyRemoves():
		logger.Infof("Registry [kubernetes] Deregistered %q from pod %q", service, r.pod.Name)
	case r.state.satisfied(service, d):
		logger.Infof("Registry [kubernetes] Registered %q on pod %q", service, r.pod.Name)
	}
}

// patch writes changes to the process's own pod.
func (r *registrar) patch(changes podmeta.Metadata) error {
	var p podmeta.Patch
	r.mu.Lock()
	p.Metadata.UID, p.Metadata.Metadata = r.uid, changes
	before := r.version
	r.mu.Unlock()
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	pod, err := r.pod.API.PatchPod(r.ctx, body)
	if err == nil {
		r.observe(pod, versionOf(pod) < before) // older than before the patch: etcd was restored
		return nil
	}
	switch cause := errors.Unwrap(err); {
	case apierrors.IsConflict(cause) || apierrors.IsInvalid(cause) && strings.Contains(cause.Error(), "metadata.uid"):
		return fmt.Errorf("%w: another pod has this name now", err)
	case apierrors.IsInvalid(cause) && strings.Contains(cause.Error(), "metadata.annotations: Too long"):
		return fmt.Errorf("%w: the annotations of the pod are too long together; %s", err, fewerEndpoints)
	}
	return err
}

// registered reports whether the API server has confirmed everything desired.
func (r *registrar) registered() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.state.desired) > 0 && r.state.complete()
}

// registeredAs reports whether the API server has confirmed the registration of one service.
func (r *registrar) registeredAs(service string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.state.desired[service]
	return d != nil && d.service != nil && r.state.satisfied(service, d)
}

// pending reports whether something is desired for one of these services that the API server has
// not yet confirmed.
func (r *registrar) pending(these func(service string) bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for service := range r.state.pendingChanges() {
		if these(service) {
			return true
		}
	}
	return false
}

// lastError returns why the registration of a service is not observed, nil if it is or while the
// reason is not known.
func (r *registrar) lastError(service string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.state.desired[service]; d != nil && !r.state.satisfied(service, d) {
		return d.err
	}
	return nil
}

// services returns the services whose registration is desired.
func (r *registrar) services() []*registry.Service {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*registry.Service
	for _, d := range r.state.desired {
		if d.service != nil {
			all = append(all, d.service)
		}
	}
	return all
}

// podGracePeriod returns how long the process's own pod may take to stop.
func (r *registrar) podGracePeriod() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gracePeriod
}

// podTerminatingSince returns when the registrar saw the deletion of the process's own pod.
func (r *registrar) podTerminatingSince() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.terminating
}

// stop ends the goroutines and waits for them. The pod keeps its registrations.
func (r *registrar) stop() {
	r.mu.Lock()
	r.cancel()
	r.mu.Unlock()
	r.reconciling.Wait()
	r.watch.Stop()
}
