package pod

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

// Attempts to patch the own pod that fail are minPatchDelay apart at first and
// maxPatchDelay at most, less a random part.
const minPatchDelay, maxPatchDelay = 200 * time.Millisecond, 2 * time.Second

// A registration that is lost is restored at once. While something else keeps
// changing it, the delay doubles from minRestoreDelay to maxRestoreDelay, plus a
// random part: at most 10 PATCH in the first minute and then 2 a minute. A
// registration that has stood for steadyTime is restored at once again.
const minRestoreDelay, maxRestoreDelay, steadyTime = time.Second, 30 * time.Second, time.Minute

// registration is the desired state of one service, and how writing it goes.
type registration struct {
	service  *registry.Service // nil: the service is to be deregistered
	json     string            // service as JSON
	metadata podMetadata       // what the pod is to carry
	removal  podMetadata       // what deregistering writes

	err       error     // why the pod does not carry it; nil when it does, or while that is not known
	failures  int       // attempts in a row that failed
	written   time.Time // the last successful patch; zero before the first
	restores  int       // patches in a row that restored it soon after the one before
	notBefore time.Time // the next patch
}

// contested reports whether something else keeps changing the registration.
func (d *registration) contested() bool { return d.restores > 1 }

func contestedError(pod string) error {
	return fmt.Errorf("something else changes or removes its labels or its annotation on pod %q, such as another container with the same service name or an admission webhook; the registry restores them at most every %s", pod, maxRestoreDelay)
}

// failed notes a patch that failed. The next one waits for retryAfter at least.
func (d *registration) failed(err error, retryAfter time.Duration) {
	delay := min(minPatchDelay<<min(d.failures, 10), maxPatchDelay)
	d.err, d.failures = err, d.failures+1
	d.notBefore = time.Now().Add(max(delay/2+rand.N(delay/2), retryAfter))
}

// succeeded notes a patch of the pod that the API server accepted.
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

// registrations are the desired registrations and the observed metadata of the own
// pod. The registrar locks them.
type registrations struct {
	desired  map[string]*registration // by service
	observed *podMetadata             // nil while unknown
}

// set replaces the desired state of a service. It returns an error if the label of
// another registered service has the same key: the two would overwrite each other.
func (s *registrations) set(service string, d *registration) error {
	for other, o := range s.desired {
		if other == service || labelName(other) != labelName(service) {
			continue
		}
		if o.service != nil {
			return fmt.Errorf("service %q is registered under the same label %q: rename one of them", other, selectorPrefix+labelName(service))
		}
		delete(s.desired, other) // a pending deregistration would remove what d writes
	}
	s.desired[service] = d
	s.forgetDeregistered()
	return nil
}

// observe notes the pod's metadata.
func (s *registrations) observe(p *corev1.Pod) {
	s.observed = &podMetadata{Labels: pointers(p.Labels), Annotations: pointers(p.Annotations)}
	s.forgetDeregistered()
}

func pointers(m map[string]string) map[string]*string {
	all := make(map[string]*string, len(m))
	for k, v := range m {
		all[k] = &v
	}
	return all
}

// forgetDeregistered drops deregistrations that the API server has confirmed: what
// another process writes under that name later is left alone.
func (s *registrations) forgetDeregistered() {
	maps.DeleteFunc(s.desired, func(_ string, d *registration) bool { return d.service == nil && s.satisfied(d) })
}

// satisfied reports whether the pod is known to carry what d desires.
func (s *registrations) satisfied(d *registration) bool {
	return s.observed != nil && s.observed.diff(d.metadata).empty()
}

// complete reports whether the pod is known to carry everything desired.
func (s *registrations) complete() bool { return s.observed != nil && len(s.pendingChanges()) == 0 }

// pendingChanges returns, by service, what the pod lacks. Everything is pending while
// the pod is unknown.
func (s *registrations) pendingChanges() map[string]podMetadata {
	pending := map[string]podMetadata{}
	for service, d := range s.desired {
		changes := d.metadata
		if s.observed != nil {
			changes = s.observed.diff(d.metadata)
		}
		if !changes.empty() {
			pending[service] = changes
		}
	}
	return pending
}

// due returns the pending changes that may be written now.
func (s *registrations) due(now time.Time) map[string]podMetadata {
	pending := s.pendingChanges()
	maps.DeleteFunc(pending, func(service string, _ podMetadata) bool { return now.Before(s.desired[service].notBefore) })
	return pending
}

// nextDue returns when the next pending change may be written, zero if there is none.
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

// firstError returns why the pod lacks a desired registration, of the first service by
// name for which that is known.
func (s *registrations) firstError() error {
	for _, service := range slices.Sorted(maps.Keys(s.desired)) {
		if d := s.desired[service]; d.err != nil && !s.satisfied(d) {
			return d.err
		}
	}
	return nil
}
