package balancer

import (
	"context"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
)

// Events are callbacks for the events of a balancer; see pod.Events. A field may be nil.
type Events struct {
	Picked     func(service, pod, address string)
	Ejected    func(service, pod, address string, duration time.Duration, cause error)
	Readmitted func(service, pod, address string, after time.Duration)
}

// Choosers choose the instances of the services of one registry. All clients of the registry
// share them.
type Choosers struct {
	services *discovery.Services
	events   func() []Events
	mu       sync.Mutex
	running  atomic.Pointer[map[string]*serviceChooser] // by service; immutable, so that a choice takes no lock
}

// NewChoosers returns the choosers of services. events returns the callbacks; it is called at the
// first choice of each service.
func NewChoosers(s *discovery.Services, events func() []Events) *Choosers {
	return &Choosers{services: s, events: events}
}

// find returns the chooser of a service, nil before its first use and after its informer has
// stopped.
func (c *Choosers) find(service string) *serviceChooser {
	if all := c.running.Load(); all != nil {
		if s := (*all)[service]; s != nil && s.informer.Running() {
			return s
		}
	}
	return nil
}

// get returns the chooser of a service. The first call makes it, and waits for the informer's
// first LIST.
func (c *Choosers) get(ctx context.Context, service string) (*serviceChooser, error) {
	i, err := c.services.Synced(ctx, service)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	services := map[string]*serviceChooser{}
	if all := c.running.Load(); all != nil {
		maps.Copy(services, *all)
	}
	s := services[service]
	if s == nil || s.informer != i {
		s = newServiceChooser(i, c.events())
		services[service] = s
		c.running.Store(&services)
	}
	return s, nil
}

// serviceChooser chooses the instances of one service.
type serviceChooser struct {
	informer  *discovery.Informer
	instances func() []*discovery.Instance // of the informer, except in simulations
	events    []Events
	random    *rand.Rand // nil except in simulations

	// made once, so that Chooser and Select allocate nothing
	choose func(previous *discovery.Instance) (Choice, error)
	next   selector.Next

	ejecting sync.Mutex // serializes ejections, so that two of them together do not exceed the cap
}

func newServiceChooser(i *discovery.Informer, e []Events) *serviceChooser {
	c := &serviceChooser{informer: i, instances: func() []*discovery.Instance { return i.Snapshot().Instances }, events: e}
	c.choose = c.chooseRoutable
	c.next = nextOf(c.choose)
	return c
}

// chooseRoutable chooses a routable instance and avoids previous, which may be nil.
func (s *serviceChooser) chooseRoutable(previous *discovery.Instance) (Choice, error) {
	instances := s.instances()
	if len(instances) == 0 {
		return Choice{}, selector.ErrNotFound
	}
	return s.pickBetter(instances, previous, callstats.Clock())
}

func (s *serviceChooser) selectNext() (selector.Next, error) {
	if len(s.instances()) == 0 {
		return nil, selector.ErrNotFound
	}
	return s.next, nil
}

// instancesOf returns the instances that filters have left. A node that a filter has added
// becomes an instance of which nothing is known.
func (s *serviceChooser) instancesOf(services []*registry.Service) (all []*discovery.Instance) {
	type key struct{ id, address string } // the id alone is not unique: with a fixed server.Id all instances have the same
	known := map[key]*discovery.Instance{}
	for _, i := range s.instances() {
		known[key{i.Id, i.Address}] = i
	}
	for _, v := range services {
		for _, n := range v.Nodes {
			i := known[key{n.Id, n.Address}]
			if i == nil {
				i, _ = discovery.NewInstance(*n, v, "") // nothing releases it
			}
			all = append(all, i)
		}
	}
	return all
}

// Choice is an instance that was chosen for one call or stream. It counts as in flight
// until Done. A choice holds no resources. Done of the zero value does nothing.
type Choice struct {
	Node     *registry.Node
	Instance *discovery.Instance // nil if there are no statistics: for a registry of another package, or a node that a filter or a strategy made
	chooser  *serviceChooser     // nil if the instance is nil
	call     callstats.Call
}

// AsStream returns the choice as that of a stream: it counts as in flight until Done, but
// its duration is not a latency, and its silence is not a stall. The client calls AsStream
// once, right after the stream is open, and ends the result with Done.
func (c Choice) AsStream() Choice {
	if c.Instance != nil {
		c.call = c.Instance.Calls.BecomeStream(callstats.Clock(), c.call)
	}
	return c
}

// IsTrial reports whether the call tries the instance after its ejection.
func (c Choice) IsTrial() bool { return c.call.IsTrial }

// Done ends the call or stream, once. The error is only for the log and for Events.
func (c Choice) Done(o outcome.Outcome, err error) { c.doneAt(callstats.Clock(), o, err) }

func (c Choice) doneAt(now int64, o outcome.Outcome, err error) {
	i := c.Instance
	if i == nil {
		return
	}
	v := i.Calls.End(now, c.call, o)
	if v == callstats.Suspected || v == callstats.TrialFailed {
		v = i.Calls.Resolve(v, now, c.chooser.others(i, now))
	}
	switch v {
	case callstats.ShouldEject:
		c.chooser.eject(i, now, o, err)
	case callstats.Recovered:
		c.chooser.readmit(i, now)
	}
}

// pickBetter chooses the better of two instances taken at random. It passes over ejected and
// stalled instances while there are others. An instance whose ejection is over gets the
// one call that tries it at once. It chooses the instance previous, which may be nil, only
// if there is no other.
func (s *serviceChooser) pickBetter(instances []*discovery.Instance, previous *discovery.Instance, now int64) (Choice, error) {
	if len(instances) == 0 {
		return Choice{}, selector.ErrNoneAvailable
	}
	a := s.draw(instances, nil, previous, now)
	b := s.draw(instances, a, previous, now)
	isTrial := a.Calls.BeginTrial(now)
	switch {
	case isTrial:
	case b.Calls.BeginTrial(now):
		a, isTrial = b, true
	case a.Calls.Ejected(now), !b.Calls.Ejected(now) && b.Calls.Load(now).Less(a.Calls.Load(now)): // a is ejected if another goroutine has just begun its trial
		a = b
	}
	call := a.Calls.Begin(now, isTrial)
	for _, e := range s.events {
		if e.Picked != nil {
			e.Picked(a.Service.Name, a.Pod, a.Address)
		}
	}
	if a.Pod == "" { // a filter has added it
		return Choice{Node: &a.Node}, nil
	}
	return Choice{Node: &a.Node, Instance: a, chooser: s, call: call}, nil
}

// draw takes an instance at random. It avoids, as long as other instances are left, first the
// instance previous, then ejected instances, then stalled instances, and then the instance
// drawn. Both instances may be nil.
func (s *serviceChooser) draw(instances []*discovery.Instance, drawn, previous *discovery.Instance, now int64) *discovery.Instance {
	for range 4 { // the first try usually succeeds
		if n := instances[s.intN(len(instances))]; n != drawn && n != previous && !n.Calls.Ejected(now) && !n.Calls.Stalled(now) {
			return n
		}
	}
	// Most instances are ejected or stalled: take the best of at most 32 instances,
	// because the time of a choice must not grow with their number.
	first := s.intN(len(instances))
	best, bestScore := instances[first], -1
	for i := range min(len(instances), 32) {
		n := instances[(first+i)%len(instances)]
		score := 0
		if n != previous {
			score += 8
		}
		if !n.Calls.Ejected(now) {
			score += 4
		}
		if !n.Calls.Stalled(now) {
			score += 2
		}
		if n != drawn {
			score++
		}
		if score > bestScore {
			best, bestScore = n, score
		}
		if score == 15 {
			break
		}
	}
	return best
}

func (s *serviceChooser) intN(n int) int {
	if s.random != nil {
		return s.random.IntN(n)
	}
	return rand.IntN(n)
}
