package balancer

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
)

// maxProbes is how many probes of a service are in flight at most. Those of instances whose packets
// are lost take as long as the client lets them, 3 s, so that at least 20 instances are probed a second.
const maxProbes = 64

// Probe is the task to find out whether an unresponsive instance answers again, over a new
// connection and without a call of the user. Whoever has taken a probe must call its Done.
type Probe struct {
	Instance *discovery.Instance
	chooser  *serviceChooser
	due      int64 // before it is taken
	started  int64
}

// probes are the probes of the unresponsive instances of a service. Its zero value has none.
type probes struct {
	next atomic.Int64 // when a probe is due; 0 for never

	mu       sync.Mutex
	all      map[*discovery.Instance]*Probe
	waiting  []*Probe // in the order in which they are due
	inFlight int
}

// Probe returns the probe that is due for an instance of the service, and nil if none is. It
// is due at once when a call has ended without an answer, and then as long as the service is called,
// but not earlier than callstats.ProbeInterval after the last one began.
func (c Choice) Probe() *Probe {
	if c.chooser == nil {
		return nil
	}
	p := &c.chooser.probes
	if next := p.next.Load(); next == 0 || next > c.call.Started || !p.mu.TryLock() {
		return nil
	}
	defer p.mu.Unlock()
	return p.take(c.call.Started, c.chooser.instances())
}

// take returns the probe that is due. It drops those of instances that have answered or have left
// the registry. Those of instances that are not ready wait until they are. The caller holds the lock.
func (p *probes) take(now int64, instances []*discovery.Instance) *Probe {
	defer p.schedule()
	for len(p.waiting) > 0 && p.waiting[0].due <= now && p.inFlight < maxProbes {
		first := p.waiting[0]
		p.waiting = slices.Delete(p.waiting, 0, 1)
		switch i := first.Instance; {
		case !i.Calls.Unresponsive() || i.HasLeft():
			delete(p.all, i)
		case slices.Contains(instances, i):
			first.started = now
			p.inFlight++
			return first
		default:
			first.due = now + int64(callstats.ProbeInterval)
			p.wait(first)
		}
	}
	return nil
}

// schedule sets when the next probe is due. The caller holds the lock.
func (p *probes) schedule() {
	var next int64
	if len(p.waiting) > 0 && p.inFlight < maxProbes {
		next = p.waiting[0].due
	}
	p.next.Store(next)
}

// wait makes a probe wait until it is due. The caller holds the lock.
func (p *probes) wait(probe *Probe) {
	i, _ := slices.BinarySearchFunc(p.waiting, probe, func(a, b *Probe) int { return cmp.Compare(a.due, b.due) })
	p.waiting = slices.Insert(p.waiting, i, probe)
	p.schedule()
}

// addProbe makes the first probe of an unresponsive instance due now.
func (s *serviceChooser) addProbe(i *discovery.Instance, now int64) {
	p := &s.probes
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all[i] != nil {
		return
	}
	if p.all == nil {
		p.all = map[*discovery.Instance]*Probe{}
	}
	p.all[i] = &Probe{Instance: i, chooser: s, due: now}
	p.wait(p.all[i])
}

// Done ends the probe: the instance has answered if the error is nil. isConclusive is false if the
// client itself is the reason that it has not.
func (p *Probe) Done(err error, isConclusive bool) { p.doneAt(callstats.Clock(), err, isConclusive) }

func (p *Probe) doneAt(now int64, err error, isConclusive bool) {
	verdict := callstats.Unchanged
	switch {
	case err == nil:
		verdict = p.Instance.Calls.ProbeAnswered(now, p.started)
	case isConclusive:
		verdict = p.Instance.Calls.ProbeFailed(now)
	}
	p.chooser.apply(p.Instance, verdict, now, err)
	all := &p.chooser.probes
	all.mu.Lock()
	defer all.mu.Unlock()
	all.inFlight--
	p.due = p.started + int64(callstats.ProbeInterval)
	all.wait(p)
}
