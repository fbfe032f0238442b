package pod

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
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

// marks are labels and annotations; nil means that there is to be none.
type marks struct {
	Labels      map[string]*string `json:"labels,omitempty"`
	Annotations map[string]*string `json:"annotations,omitempty"`
}

// patch is what the plugin sends, and we. The uid, which nothing may change,
// makes the API server refuse it when another pod has taken our name.
type patch struct {
	Metadata struct {
		UID types.UID `json:"uid,omitempty"`
		marks
	} `json:"metadata"`
}

// writer keeps on the own pod what has been declared. It patches the pod when
// it lacks something, whoever took it away, and not otherwise. It owns one
// goroutine from the first declaration on, which ends with stop.
type writer struct {
	api     *apiserver.Connection
	changed func()    // called when registered may say something else
	own     *informer // of the own pod; nil before the first patch
	ended   sync.WaitGroup
	cancel  context.CancelFunc
	wake    chan struct{}

	mu       sync.Mutex
	declared map[string]marks // by service
	carried  *marks           // the own pod's, nil while unknown
	uid      types.UID
	version  uint64           // of the own pod, as far as known
	failed   map[string]error // by service, of the last try; empty when the pod carries all
	tried    broadcast        // of each try's end
	period   time.Duration    // the pod's grace period
}

func newWriter(a *apiserver.Connection, changed func()) *writer {
	return &writer{api: a, changed: changed, period: defaultGracePeriod, wake: make(chan struct{}, 1), declared: map[string]marks{}, failed: map[string]error{}}
}

// declare states what the pod is to carry for a service, and waits until the
// API server has confirmed it, for limit at most. After an error it goes on
// trying: the declaration stands, unless the API server calls it invalid. With a
// limit of 0 it waits for nothing.
func (w *writer) declare(service string, m marks, limit time.Duration) error {
	w.mu.Lock()
	if w.cancel == nil {
		ctx, cancel := context.WithCancel(context.Background())
		w.cancel = cancel
		w.ended.Go(func() { w.run(ctx) })
	}
	w.declared[service] = m
	if limit > 0 { // only the outcome of a new try is told to who waits; else the last stands until then
		delete(w.failed, service)
	}
	w.changed()
	if w.carried != nil && w.carried.lacks(m) == nil {
		w.mu.Unlock()
		return nil
	}
	tried := w.tried.wait()
	w.mu.Unlock()
	w.nudge()
	if limit == 0 {
		return nil
	}

	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return fmt.Errorf("patch pod %q in namespace %q: the API server at %s has not answered for %s", w.api.PodName, w.api.Namespace, w.api.Host, limit)
		case <-tried:
		}
		w.mu.Lock()
		err, done := w.failed[service], w.carried != nil && w.carried.lacks(m) == nil
		tried = w.tried.wait()
		if done || err != nil {
			var status *apierrors.StatusError
			if errors.As(err, &status) && apierrors.IsInvalid(status) { // it never will be
				delete(w.declared, service)
				delete(w.failed, service)
			}
			w.mu.Unlock()
			return err
		}
		w.mu.Unlock()
	}
}

func (w *writer) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run patches whenever the pod lacks something. Tries that fail are 200 ms apart
// at first and 2 s at most, less a random part.
func (w *writer) run(ctx context.Context) {
	const first, most = 200 * time.Millisecond, 2 * time.Second
	delay := first
	for {
		err := w.reconcile(ctx)
		var retry <-chan time.Time
		if err != nil {
			retry = time.After(delay/2 + rand.N(delay/2))
			delay = min(2*delay, most)
		} else {
			delay = first
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-retry:
		}
	}
}

// reconcile makes one try for each service that lacks something.
func (w *writer) reconcile(ctx context.Context) error {
	w.mu.Lock()
	missing := w.missing()
	w.mu.Unlock()
	errs := map[string]error{}
	for service, m := range missing {
		errs[service] = w.send(ctx, m)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var failed error
	for service, err := range errs {
		was := w.failed[service]
		switch {
		case err == nil:
			delete(w.failed, service)
			if missing[service].gone() {
				logger.Infof("Registry [kubernetes] Deregistered %q from pod %q", service, w.api.PodName)
			} else {
				logger.Infof("Registry [kubernetes] Registered %q on pod %q", service, w.api.PodName)
			}
			continue
		case was == nil || was.Error() != err.Error():
			logger.Errorf("Registry [kubernetes] Writing %q on the pod: %v; trying on", service, err)
		}
		w.failed[service], failed = err, err
	}
	w.tried.notify()
	if failed == nil && w.own == nil && len(w.declared) > 0 { // from now on somebody may take it away
		w.own = newInformer(w.api, apiserver.Selector{Fields: "metadata.name=" + w.api.PodName}, "")
		w.own.seen = w.saw
		w.own.start()
	}
	return failed
}

// send patches the own pod.
func (w *writer) send(ctx context.Context, m marks) error {
	var p patch
	w.mu.Lock()
	p.Metadata.UID, p.Metadata.marks = w.uid, m
	w.mu.Unlock()
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	pod, err := w.api.PatchPod(ctx, body)
	if err == nil {
		w.saw(pod)
		return nil
	}
	if cause := errors.Unwrap(err); apierrors.IsConflict(cause) || apierrors.IsInvalid(cause) && strings.Contains(cause.Error(), "metadata.uid") {
		return fmt.Errorf("%w: another pod has this name now", err)
	}
	return err
}

// missing is what the pod lacks of what is declared, by service.
func (w *writer) missing() map[string]marks {
	all := map[string]marks{}
	for service, m := range w.declared {
		lacks := &m
		if w.carried != nil {
			lacks = w.carried.lacks(m)
		}
		if lacks != nil {
			all[service] = *lacks
		} else if m.gone() {
			delete(w.declared, service) // nothing left to keep away
		}
	}
	return all
}

// saw notes what the own pod carries. What the watch brings may be older than
// the answer to the last patch; versions of one object are numbers that grow (KEP-5504).
func (w *writer) saw(p *corev1.Pod) {
	version, _ := strconv.ParseUint(p.ResourceVersion, 10, 64)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.uid != "" && p.UID != w.uid || version < w.version {
		return
	}
	w.uid, w.version = p.UID, version
	w.carried = &marks{Labels: pointers(p.Labels), Annotations: pointers(p.Annotations)}
	if of := cmp.Or(p.DeletionGracePeriodSeconds, p.Spec.TerminationGracePeriodSeconds); of != nil {
		w.period = time.Duration(*of) * time.Second
	}
	w.changed()
	if len(w.missing()) > 0 {
		w.nudge()
	}
}

func pointers(m map[string]string) map[string]*string {
	all := make(map[string]*string, len(m))
	for k, v := range m {
		all[k] = &v
	}
	return all
}

// lacks returns what of want is not so; nil when all is.
func (m *marks) lacks(want marks) *marks {
	var l marks
	l.Labels, l.Annotations = lacking(m.Labels, want.Labels), lacking(m.Annotations, want.Annotations)
	if l.Labels == nil && l.Annotations == nil {
		return nil
	}
	return &l
}

func lacking(have, want map[string]*string) (l map[string]*string) {
	for k, v := range want {
		if h := have[k]; (h == nil) != (v == nil) || h != nil && *h != *v {
			if l == nil {
				l = map[string]*string{}
			}
			l[k] = v
		}
	}
	return l
}

// gone says whether all of it is absence.
func (m marks) gone() bool {
	for _, all := range []map[string]*string{m.Labels, m.Annotations} {
		for _, v := range all {
			if v != nil {
				return false
			}
		}
	}
	return true
}

// registered says whether the API server has confirmed all that is declared.
func (w *writer) registered() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.carried != nil && len(w.declared) > 0 && len(w.missing()) == 0
}

// lacking says whether the API server has yet to confirm something.
func (w *writer) lacking() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.carried == nil || len(w.missing()) > 0
}

// refused is why the last try failed, nil when it did not.
func (w *writer) refused() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, service := range slices.Sorted(maps.Keys(w.failed)) {
		return w.failed[service]
	}
	return nil
}

// grace is how long the pod may take to stop, the API server's word where it has said one.
func (w *writer) grace() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.period
}

// stop ends the goroutine and waits for it.
func (w *writer) stop() {
	w.mu.Lock()
	cancel := w.cancel
	w.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	w.ended.Wait()
	if w.own != nil {
		w.own.stop()
	}
}

// ---- the plugin's own words ----

// dictate lets the plugin write and returns what it wrote. The plugin's HTTP
// client has no time limit, and reads the service account only once; so it
// writes to a listener of this process, under a path nobody else serves, and what
// it says is carried to the API server by us, within bounds and with the token of the day.
func dictate(plugin Plugin, write func(registry.Registry) error) (marks, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return marks{}, fmt.Errorf("listening for the registry plugin: %w", err)
	}
	secret, said := crand.Text(), make(chan []byte, 1)
	server := &http.Server{ReadHeaderTimeout: apiserver.CallTimeout, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil || r.Method != http.MethodPatch || !strings.HasPrefix(r.URL.Path, "/"+secret+"/") {
			http.NotFound(rw, r)
			return
		}
		select {
		case said <- body:
		default: // it has spoken
		}
		_, _ = rw.Write([]byte("{}"))
	})}
	server.SetKeepAlivesEnabled(false)
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(l) })
	defer served.Wait()
	defer server.Close()

	if err := write(plugin(registry.Addrs("http://" + l.Addr().String() + "/" + secret))); err != nil {
		return marks{}, err
	}
	select {
	case body := <-said:
		var p patch
		if err := json.Unmarshal(body, &p); err != nil {
			return marks{}, fmt.Errorf("reading what the registry plugin writes: %w", err)
		}
		return p.Metadata.marks, nil
	default:
		return marks{}, errors.New("the registry plugin has written nothing: want that of github.com/micro/go-plugins/registry/kubernetes/v2")
	}
}
