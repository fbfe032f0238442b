package registration

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

// The delay after a failed patch grows from minPatchDelay to maxPatchDelay, less a
// random part, and to apiserver.MaxPermanentDelay if somebody must change something first.
const minPatchDelay, maxPatchDelay = 200 * time.Millisecond, 2 * time.Second

// The registrar restores a lost registration at once. While something else keeps
// changing it, the delay doubles from minRestoreDelay to maxRestoreDelay, plus a
// random part: at most 10 PATCH requests in the first minute and then 2 a minute. A
// registration that was unchanged for steadyTime is restored at once again.
const minRestoreDelay, maxRestoreDelay, steadyTime = time.Second, 30 * time.Second, time.Minute

// registration is the desired state of one service and the progress of writing it.
type registration struct {
	service  *registry.Service // nil if the service should be deregistered
	json     string            // service as JSON
	metadata podmeta.Metadata  // what is desired
	removal  podmeta.Metadata  // what deregistering writes

	err       error     // why the observed metadata are not the desired ones; nil when they are, or while that is not known
	reported  error     // the err that the log and APIError have reported last
	failures  int       // attempts in a row that failed
	written   time.Time // the last successful patch; zero before the first
	restores  int       // consecutive patches that restored the registration, each less than steadyTime after the one before
	notBefore time.Time // earliest time of the next patch
}

// contested reports whether something else keeps changing the registration.
func (d *registration) contested() bool { return d.restores > 1 }

func contestedError(pod string) error {
	return fmt.Errorf("something else changes or removes its labels or its annotation on pod %q, such as another container with the same service name or an admission webhook; the registry restores them at most every %s", pod, maxRestoreDelay)
}

// failed records a failed patch. The next patch waits for retryAfter at least.
func (d *registration) failed(err error, retryAfter time.Duration) {
	limit := maxPatchDelay
	if apiserver.Permanent(err) {
		limit = apiserver.MaxPermanentDelay
	}
	delay := min(minPatchDelay<<min(d.failures, 10), limit)
	d.err, d.failures = err, d.failures+1
	d.notBefore = time.Now().Add(max(delay/2+rand.N(delay/2), retryAfter))
}

// succeeded records a patch that the API server accepted.
func (d *registration) succeeded(pod string) {
	now := time.Now()
	switch {
	case d.written.IsZero(): // the first patch restores nothing
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
	if d.contested() {
		d.err = contestedError(pod)
	}
}

// registrations are the desired registrations and the observed metadata of the process's
// own pod. The caller holds the registrar's lock.
type registrations struct {
	desired    map[string]*registration      // by service
	observed   *podmeta.Metadata             // nil while unknown
	inFlight   map[string]podmeta.Metadata   // by service: what a patch writes that was sent
	unanswered map[string][]podmeta.Metadata // by service: what failed patches have perhaps written, different values each
}

// set replaces the desired state of a service. It returns an error if the label of
// another registered service has the same key: the two would overwrite each other.
func (s *registrations) set(service string, d *registration) error {
	for other, o := range s.desired {
		if other == service || podmeta.LabelName(other) != podmeta.LabelName(service) {
			continue
		}
		if o.service != nil {
			return fmt.Errorf("service %q is registered under the same label %q: rename one of them", other, podmeta.SelectorPrefix+podmeta.LabelName(service))
		}
		delete(s.desired, other) // this pending deregistration would remove what d writes
	}
	s.desired[service] = d
	s.forgetDeregistered()
	return nil
}

// observe records the pod's metadata.
func (s *registrations) observe(p *corev1.Pod) {
	observed := podmeta.Of(p)
	s.observed = &observed
	s.forgetDeregistered()
}

// forgetDeregistered drops deregistrations that the API server has confirmed, so that
// the registrar leaves alone what another process writes under that name later.
func (s *registrations) forgetDeregistered() {
	maps.DeleteFunc(s.desired, func(service string, d *registration) bool { return d.service == nil && s.satisfied(service, d) })
}

// satisfied reports whether what d desires for the service was observed, and no patch is left that may change it.
func (s *registrations) satisfied(service string, d *registration) bool {
	return s.changes(service, d).Empty()
}

// changes returns what must still be written for d. It is everything while the pod's metadata are unknown, and after a patch
// of something else whose effect may come later.
func (s *registrations) changes(service string, d *registration) podmeta.Metadata {
	if s.observed == nil || s.mayChange(service, d.metadata) {
		return d.metadata
	}
	return s.observed.Diff(d.metadata)
}

// mayChange reports whether a patch may still write something else than desired.
func (s *registrations) mayChange(service string, desired podmeta.Metadata) bool {
	return s.inFlight[service].Contradicts(desired) || slices.ContainsFunc(s.unanswered[service], func(m podmeta.Metadata) bool { return m.Contradicts(desired) })
}

// patching records that patches are sent.
func (s *registrations) patching(changes map[string]podmeta.Metadata) { s.inFlight = changes }

// patched records the result of a patch. Without an answer it may still take effect.
func (s *registrations) patched(service string, err error) {
	changes := s.inFlight[service]
	delete(s.inFlight, service)
	switch {
	case err == nil:
		delete(s.unanswered, service)
	case !apiserver.Refused(err):
		s.addUnanswered(service, changes)
	}
	s.forgetDeregistered()
}

func (s *registrations) addUnanswered(service string, changes podmeta.Metadata) {
	if s.unanswered == nil {
		s.unanswered = map[string][]podmeta.Metadata{}
	}
	for i, m := range s.unanswered[service] {
		if !m.Contradicts(changes) {
			s.unanswered[service][i] = m.With(changes)
			return
		}
	}
	s.unanswered[service] = append(s.unanswered[service], changes)
}

// complete reports whether everything desired was observed.
func (s *registrations) complete() bool { return s.observed != nil && len(s.pendingChanges()) == 0 }

// pendingChanges returns the diff of each service that must still be written. Everything
// is pending while the pod's metadata are unknown.
func (s *registrations) pendingChanges() map[string]podmeta.Metadata {
	pending := map[string]podmeta.Metadata{}
	for service, d := range s.desired {
		if changes := s.changes(service, d); !changes.Empty() {
			pending[service] = changes
		}
	}
	return pending
}

// due returns the pending changes that may be written now.
func (s *registrations) due(now time.Time) map[string]podmeta.Metadata {
	pending := s.pendingChanges()
	maps.DeleteFunc(pending, func(service string, _ podmeta.Metadata) bool { return now.Before(s.desired[service].notBefore) })
	return pending
}

// nextDue returns when the next pending change may be written, and zero if there is none.
func (s *registrations) nextDue(now time.Time) (next time.Time) {
	for service := range s.pendingChanges() {
		t := s.desired[service].notBefore
		if t.Before(now) {
			t = now
		}
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	return next
}
