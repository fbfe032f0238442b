package balancer

import (
	"iter"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/micro/go-micro/v2/logger"
)

// others returns the instances with which a suspect is compared: a random part of the
// instances that calls choose among and that are neither ejected nor unresponsive.
func (s *serviceChooser) others(suspect *discovery.Instance, now int64) iter.Seq[*callstats.Stats] {
	return func(yield func(*callstats.Stats) bool) {
		instances := s.members.comparedWith(suspect, s.instances(), s.spill.Share() < 1)
		first := below(uint32(s.uint64()), len(instances)) //nolint:gosec // the lower half
		for i := range min(len(instances), callstats.MaxCompared+1) {
			other := instances[(first+i)%len(instances)]
			if other != suspect && other.Calls.Available(now, false) && !yield(&other.Calls) {
				return
			}
		}
	}
}

// apply carries out a verdict. The error is that of the call or probe.
func (s *serviceChooser) apply(i *discovery.Instance, v callstats.Verdict, now int64, err error) {
	forErrors := v == callstats.Suspected || v == callstats.TrialFailed
	if forErrors {
		v = i.Calls.Resolve(v, now, s.others(i, now))
	}
	switch v {
	case callstats.ShouldEject:
		s.eject(i, now, forErrors, err)
	case callstats.Recovered:
		s.readmit(i, now)
	}
}

// eject ejects an instance for server errors or for no answer, unless too many are ejected already.
func (s *serviceChooser) eject(i *discovery.Instance, now int64, forErrors bool, cause error) {
	duration, refused := s.beginEjection(i, now, forErrors)
	if duration == 0 && !refused {
		return
	}
	for _, e := range s.events {
		if e.EjectionDecided != nil {
			kind := events.NoAnswer
			if forErrors {
				kind = events.ServerErrors
			}
			e.EjectionDecided(events.Ejection{Service: i.Service.Name, Pod: i.Pod, Address: i.Address, Cause: kind, Refused: refused, Duration: duration, Err: cause})
		}
	}
	if refused {
		return
	}
	logger.Warnf("Client [pod] Ejecting instance %s of service %q on pod %q for %s: %v", i.Address, i.Service.Name, i.Pod, duration, cause)
	for _, e := range s.events {
		if e.Ejected != nil {
			e.Ejected(i.Service.Name, i.Pod, i.Address, duration, cause)
		}
	}
}

// beginEjection returns the duration of the ejection, 0 if it is refused because too many instances are ejected
// already, and if the instance has left or has answered since its silence.
func (s *serviceChooser) beginEjection(i *discovery.Instance, now int64, forErrors bool) (d time.Duration, refused bool) {
	s.ejecting.Lock()
	defer s.ejecting.Unlock()
	instances := s.members.present(s.instances())
	exists, ejected := false, 1 // the instance itself
	for _, other := range instances {
		if other == i {
			exists = true
		} else if other.Calls.Ejected() {
			ejected++
		}
	}
	hasAnswered := !forErrors && !i.Calls.Unresponsive()
	switch {
	case !exists || hasAnswered:
		return 0, false
	case ejected*callstats.MinInstancesPerEjection > len(instances):
		return 0, true
	}
	return i.Calls.Eject(now, forErrors), false
}

// readmit ends the ejection of an instance, if it is ejected.
func (s *serviceChooser) readmit(i *discovery.Instance, now int64) {
	since := i.Calls.Readmit()
	if since == 0 {
		return
	}
	after := time.Duration(now - since).Round(time.Millisecond)
	logger.Infof("Client [pod] Instance %s of service %q on pod %q is back, %s after its ejection", i.Address, i.Service.Name, i.Pod, after)
	for _, e := range s.events {
		if e.Readmitted != nil {
			e.Readmitted(i.Service.Name, i.Pod, i.Address, after)
		}
	}
}
