package pod

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// defaultGracePeriod is Kubernetes' default for terminationGracePeriodSeconds. It
// stands in while the own pod is not known.
const defaultGracePeriod = 30 * time.Second

// Attempts to patch the own pod that fail are minPatchDelay apart at first and
// maxPatchDelay at most, less a random part.
const minPatchDelay, maxPatchDelay = 200 * time.Millisecond, 2 * time.Second

// A registration that is lost is restored at once. While something else keeps
// changing it, the delay doubles from minRestoreDelay to maxRestoreDelay, plus a
// random part: that makes at most 10 PATCH in the first minute and then 2 a minute. A
// registration that has stood for steadyTime starts anew.
const minRestoreDelay, maxRestoreDelay, steadyTime = time.Second, 30 * time.Second, time.Minute

// registrar keeps the own pod's labels and annotations as they are desired. It
// patches the pod when the observed metadata lack something, whatever removed it,
// and not otherwise. One goroutine reconciles, from the first desired registration
// until stop; a second one watches the own pod after the first successful patch.
type registrar struct {
	conn          *apiserver.Connection
	plugin        Plugin
	statusChanged func() // called when the result of registered, pending or lastError may have changed
	reconciling   sync.WaitGroup
	wake          chan struct{} // asks for a reconcile
	watch         podWatch      // of the own pod

	patchPod func(context.Context, []byte) (*corev1.Pod, error) // conn's; tests have their own
	watchPod func()                                             // starts watch

	mu          sync.Mutex
	cancel      context.CancelFunc // nil before the first desired registration
	desired     map[string]*registration
	observed    *podMetadata // the own pod's; nil while unknown
	uid         types.UID    // the own pod's
	version     uint64       // the resource version of observed
	gracePeriod time.Duration
	terminating time.Time // when the registrar saw the pod's deletion, by this machine's clock
	attempted   broadcast // an attempt to reconcile has ended
}

// registration is the desired state of one service.
type registration struct {
	service  *registry.Service // nil: the service is to be deregistered
	json     string            // service as JSON
	metadata podMetadata       // what the pod is to carry
	removal  podMetadata       // what deregistering writes

	err       error     // why the pod does not carry it; nil when it does
	failures  int       // attempts in a row that failed
	written   time.Time // the last successful patch; zero before the first
	restores  int       // patches in a row that restored it soon after the one before
	notBefore time.Time // the next patch
}

// contested reports whether something else keeps changing the registration.
func (d *registration) contested() bool { return d.restores > 1 }

func newRegistrar(conn *apiserver.Connection, plugin Plugin, statusChanged func()) *registrar {
	r := &registrar{conn: conn, plugin: plugin, statusChanged: statusChanged, wake: make(chan struct{}, 1),
		desired: map[string]*registration{}, gracePeriod: defaultGracePeriod, patchPod: conn.PatchPod}
	r.watchPod = func() {
		r.watch.start(conn, apiserver.Selector{Fields: "metadata.name=" + conn.PodName}, "the own pod", ownPod{r})
	}
	return r
}

// register makes the service's registration desired and waits for at most limit
// until the API server has confirmed it; with a limit of 0 it does not wait. After
// an error the registration stays desired and is retried, unless the API server
// calls it invalid.
func (r *registrar) register(s *registry.Service, limit time.Duration) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if other := r.sharesLabel(s.Name); other != "" {
		return fmt.Errorf("service %q is registered under the same label %q: rename one of them", other, selectorPrefix+labelName(s.Name))
	}
	d := r.desiredRegistration(s.Name)
	if d == nil || d.json != string(text) {
		d = &registration{json: string(text)}
		if err = json.Unmarshal(text, &d.service); err != nil {
			return err
		}
		// Deregister must work when the process has no file descriptor left, so what
		// it writes is captured now.
		captured, err := capture(r.plugin,
			func(plugin registry.Registry) error { return plugin.Register(s) },
			func(plugin registry.Registry) error { return plugin.Deregister(s) })
		if err != nil {
			return err
		}
		d.metadata, d.removal = captured[0], captured[1]
	}
	return r.setDesired(s.Name, d, limit)
}

// deregister makes the service's absence desired and waits as register does.
func (r *registrar) deregister(s *registry.Service, limit time.Duration) error {
	var removal podMetadata
	if d := r.desiredRegistration(s.Name); d != nil {
		removal = d.removal
	}
	if removal.empty() { // not registered by this process
		captured, err := capture(r.plugin, func(plugin registry.Registry) error { return plugin.Deregister(s) })
		if err != nil {
			return err
		}
		removal = captured[0]
	}
	return r.setDesired(s.Name, &registration{metadata: removal, removal: removal}, limit)
}

func (r *registrar) desiredRegistration(service string) *registration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.desired[service]
}

// sharesLabel returns another registered service whose label has the same key, or "".
// The two would overwrite each other.
func (r *registrar) sharesLabel(service string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, d := range r.desired {
		if other != service && d.service != nil && labelName(other) == labelName(service) {
			return other
		}
	}
	return ""
}

// setDesired replaces the service's desired state, which may be the same as before,
// and waits for the API server's confirmation.
func (r *registrar) setDesired(service string, d *registration, limit time.Duration) error {
	r.mu.Lock()
	if r.cancel == nil {
		ctx, cancel := context.WithCancel(context.Background())
		r.cancel = cancel
		r.reconciling.Go(func() { r.run(ctx) })
	}
	before := r.desired[service]
	r.desired[service] = d
	// A deregistration of the same label key that is pending would remove what d writes.
	maps.DeleteFunc(r.desired, func(other string, o *registration) bool {
		return o != d && o.service == nil && labelName(other) == labelName(service)
	})
	r.forgetDeregistered()
	satisfied, contested, attempted := r.satisfied(d), d.contested(), r.attempted.wait()
	switch {
	case satisfied || d.contested(): // of a contested one the limit of patches stands
	case limit > 0:
		d.err, d.notBefore = nil, time.Time{} // the caller wants to know how a new attempt ends
	case before != nil:
		d.err = before.err // stands until a new attempt ends
	}
	r.mu.Unlock()
	r.statusChanged()
	if satisfied {
		return nil
	}
	r.reconcileSoon()
	if limit == 0 {
		return nil
	}
	if contested {
		return r.contestedError()
	}

	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		timeout := false
		select {
		case <-t.C:
			timeout = true
		case <-attempted:
		}
		r.mu.Lock()
		err, done, written := d.err, r.satisfied(d), !d.written.IsZero()
		attempted = r.attempted.wait()
		var status *apierrors.StatusError
		if errors.As(err, &status) && apierrors.IsInvalid(status) && r.desired[service] == d { // retrying cannot help
			delete(r.desired, service)
		}
		r.mu.Unlock()
		switch {
		case done:
			return nil
		case err != nil:
			return err
		case timeout && written:
			return r.contestedError()
		case timeout:
			return fmt.Errorf("patch pod %q in namespace %q: the API server at %s has not answered for %s", r.conn.PodName, r.conn.Namespace, r.conn.Host, limit)
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
func (r *registrar) run(ctx context.Context) {
	for {
		next := r.reconcile(ctx)
		var due <-chan time.Time
		if !next.IsZero() {
			due = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-due:
		}
	}
}

// reconcile patches the own pod once for each service with pending changes, except
// for those that must wait. It returns when the first of these is due, or zero.
func (r *registrar) reconcile(ctx context.Context) (next time.Time) {
	r.mu.Lock()
	pending, tried := r.pendingChanges(), maps.Clone(r.desired)
	for service := range pending {
		if time.Now().Before(tried[service].notBefore) {
			delete(pending, service)
		}
	}
	r.mu.Unlock()
	errs := map[string]error{}
	for service, changes := range pending {
		errs[service] = r.patch(ctx, changes)
	}
	if ctx.Err() != nil {
		return time.Time{}
	}
	reports := map[string]error{}
	defer func() { // without the lock
		for service, err := range reports {
			r.watch.reportAPIError(fmt.Sprintf("writing service %q to the pod", service), err)
		}
	}()
	changed := map[string]error{}
	defer func() { // without the lock
		for service, err := range changed {
			r.watch.reportAPIError(fmt.Sprintf("writing service %q to the pod", service), err)
		}
	}()
	r.mu.Lock()
	defer r.mu.Unlock()
	written := false
	for service, err := range errs {
		written = written || err == nil
		d := tried[service]
		before := d.err
		if r.ended(service, d, pending[service], err); fmt.Sprint(d.err) != fmt.Sprint(before) {
			changed[service] = d.err
		}
	}
	r.forgetDeregistered()
	if len(errs) > 0 {
		r.attempted.notify()
	}
	if written && len(r.desired) > 0 && !r.watch.started() { // from now on the registration can be lost
		r.watchPod()
	}
	for service := range r.pendingChanges() {
		if t := r.desired[service].notBefore; next.IsZero() || t.Before(next) {
			next = t
			if next.IsZero() {
				next = time.Now()
			}
		}
	}
	return next
}

// ended notes how an attempt to write d ended, and when the next one may begin.
func (r *registrar) ended(service string, d *registration, changes podMetadata, err error) {
	now := time.Now()
	if err != nil {
		if d.err == nil || d.err.Error() != err.Error() {
			logger.Errorf("Registry [kubernetes] Writing service %q to the pod: %v; retrying", service, err)
		}
		delay := min(minPatchDelay<<min(d.failures, 10), maxPatchDelay)
		d.err, d.failures = err, d.failures+1
		d.notBefore = now.Add(max(delay/2+rand.N(delay/2), r.conn.RetryAfter()))
		return
	}
	wasContested := d.contested()
	switch {
	case d.written.IsZero(): // the first
	case now.Sub(d.written) < steadyTime:
		d.restores++
	default:
		d.restores = 1
	}
	d.err, d.failures, d.written, d.notBefore = nil, 0, now, time.Time{}
	if d.restores > 0 {
		delay := min(minRestoreDelay<<min(d.restores-1, 10), maxRestoreDelay)
		d.notBefore = now.Add(delay + rand.N(delay/10))
	}
	switch {
	case d.contested():
		d.err = r.contestedError()
		if !wasContested {
			logger.Errorf("Registry [kubernetes] Registering %q: %v", service, d.err)
		}
	case changes.onlyRemoves():
		logger.Infof("Registry [kubernetes] Deregistered %q from pod %q", service, r.conn.PodName)
	case r.satisfied(d):
		logger.Infof("Registry [kubernetes] Registered %q on pod %q", service, r.conn.PodName)
	}
}

func (r *registrar) contestedError() error {
	return fmt.Errorf("something else changes or removes its labels or its annotation on pod %q, such as another container with the same service name or an admission webhook; the registry restores them at most every %s", r.conn.PodName, maxRestoreDelay)
}

// patch writes changes to the own pod.
func (r *registrar) patch(ctx context.Context, changes podMetadata) error {
	var p podPatch
	r.mu.Lock()
	p.Metadata.UID, p.Metadata.podMetadata = r.uid, changes
	r.mu.Unlock()
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	pod, err := r.patchPod(ctx, body)
	if err == nil {
		r.observe(pod)
		return nil
	}
	if cause := errors.Unwrap(err); apierrors.IsConflict(cause) || apierrors.IsInvalid(cause) && strings.Contains(cause.Error(), "metadata.uid") {
		return fmt.Errorf("%w: another pod has this name now", err)
	}
	return err
}

// satisfied reports whether the own pod is known to carry what d desires.
func (r *registrar) satisfied(d *registration) bool {
	return r.observed != nil && r.observed.diff(d.metadata).empty()
}

// pendingChanges returns, by service, what the own pod lacks. Everything is
// pending while the pod is unknown.
func (r *registrar) pendingChanges() map[string]podMetadata {
	pending := map[string]podMetadata{}
	for service, d := range r.desired {
		changes := d.metadata
		if r.observed != nil {
			changes = r.observed.diff(d.metadata)
		}
		if !changes.empty() {
			pending[service] = changes
		}
	}
	return pending
}

// forgetDeregistered drops deregistrations that the API server has confirmed: what
// another process writes under that name later is left alone.
func (r *registrar) forgetDeregistered() {
	maps.DeleteFunc(r.desired, func(_ string, d *registration) bool { return d.service == nil && r.satisfied(d) })
}

// observe notes the own pod's metadata. The watch may deliver a version that is
// older than the response to the last patch; resource versions of one object are
// numbers that grow (KEP-5504).
func (r *registrar) observe(p *corev1.Pod) {
	version, _ := strconv.ParseUint(p.ResourceVersion, 10, 64)
	r.mu.Lock()
	if r.uid != "" && p.UID != r.uid || version < r.version {
		r.mu.Unlock()
		return
	}
	r.uid, r.version = p.UID, version
	r.observed = &podMetadata{Labels: pointers(p.Labels), Annotations: pointers(p.Annotations)}
	if seconds := cmp.Or(p.DeletionGracePeriodSeconds, p.Spec.TerminationGracePeriodSeconds); seconds != nil {
		r.gracePeriod = time.Duration(*seconds) * time.Second
	}
	if p.DeletionTimestamp != nil && r.terminating.IsZero() {
		r.terminating = time.Now()
	}
	r.forgetDeregistered()
	pending := len(r.pendingChanges()) > 0
	r.mu.Unlock()
	r.statusChanged()
	if pending {
		r.reconcileSoon()
	}
}

func pointers(m map[string]string) map[string]*string {
	all := make(map[string]*string, len(m))
	for k, v := range m {
		all[k] = &v
	}
	return all
}

// ownPod passes the watch of the own pod on to the registrar.
type ownPod struct{ r *registrar }

func (o ownPod) Update(p *corev1.Pod) { o.r.observe(p) }

func (o ownPod) Replace(pods []*corev1.Pod) {
	for _, p := range pods {
		o.r.observe(p)
	}
}

func (ownPod) Delete(*corev1.Pod) {} // a pod that is gone runs no process

func (ownPod) StateChanged(error) {} // a patch that fails says what is wrong

// registered reports whether the API server has confirmed everything desired.
func (r *registrar) registered() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.observed != nil && len(r.desired) > 0 && len(r.pendingChanges()) == 0
}

// pending reports whether the API server has yet to confirm something.
func (r *registrar) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.observed == nil || len(r.pendingChanges()) > 0
}

// lastError returns why the pod does not carry what is desired, nil while that is not known.
func (r *registrar) lastError() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, service := range slices.Sorted(maps.Keys(r.desired)) {
		if d := r.desired[service]; d.err != nil && !r.satisfied(d) {
			return d.err
		}
	}
	return nil
}

// services returns the services that are desired.
func (r *registrar) services() []*registry.Service {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*registry.Service
	for _, d := range r.desired {
		if d.service != nil {
			all = append(all, d.service)
		}
	}
	return all
}

// podGracePeriod returns how long the own pod may take to stop.
func (r *registrar) podGracePeriod() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gracePeriod
}

// podTerminatingSince returns when the registrar saw the own pod's deletion.
func (r *registrar) podTerminatingSince() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.terminating
}

// stop ends the goroutines and waits for them. The pod keeps its registrations.
func (r *registrar) stop() {
	r.mu.Lock()
	cancel := r.cancel
	r.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	r.reconciling.Wait()
	r.watch.stop()
}
