package balancer

import (
	"iter"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/logger"
)

// others returns the instances with which a suspect is compared: a random part of the
// routable instances that are not ejected.
func (s *serviceChooser) others(suspect *discovery.Instance, now int64) iter.Seq[*callstats.Stats] {
	return func(yield func(*callstats.Stats) bool) {
		instances := s.instances()
		first := s.intN(max(1, len(instances)))
		for i := range min(len(instances), callstats.MaxCompared+1) {
			other := instances[(first+i)%len(instances)]
			if other != suspect && !other.Calls.Ejected(now) && !yield(&other.Calls) {
				return
			}
		}
	}
}

// eject ejects an instance whose call has failed, unless too many are ejected already.
func (s *serviceChooser) eject(i *discovery.Instance, now int64, o outcome.Outcome, cause error) {
	duration := s.beginEjection(i, now, o)
	if duration == 0 {
		return
	}
	logger.Warnf("Client [pod] Ejecting instance %s of service %q on pod %q for %s: %v", i.Address, i.Service.Name, i.Pod, duration, cause)
	for _, e := range s.events {
		if e.Ejected != nil {
			e.Ejected(i.Service.Name, i.Pod, i.Address, duration, cause)
		}
	}
}

// beginEjection returns the duration of the ejection, 0 if too many instances are ejected
// already or the instance has left.
func (s *serviceChooser) beginEjection(i *discovery.Instance, now int64, o outcome.Outcome) time.Duration {
	s.ejecting.Lock()
	defer s.ejecting.Unlock()
	instances := s.instances()
	exists, ejected := false, 1 // the instance itself
	for _, other := range instances {
		if other == i {
			exists = true
		} else if other.Calls.Ejected(now) {
			ejected++
		}
	}
	if !exists || ejected*callstats.MinInstancesPerEjection > len(instances) {
		return 0
	}
	return i.Calls.Eject(now, o)
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
