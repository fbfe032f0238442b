package pod

import (
	"context"
	"maps"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
)

const (
	// Latencies that differ by less than latencyTolerance are equal to a choice, after
	// adding latencyFloor to both. Peaks of equal instances differ as much, and a
	// scheduler's hiccup of a millisecond says nothing. kratos adds 5 ms.
	latencyTolerance = 2
	latencyFloor     = time.Millisecond
)

// choosers are the choosers of one registry, which all clients of the registry share.
type choosers struct {
	registry *Registry
	mu       sync.Mutex
	services atomic.Pointer[map[string]*serviceChooser] // immutable, so that a choice takes no lock
}

// running returns the chooser of a service, nil before its first use and after Close.
func (c *choosers) running(service string) *serviceChooser {
	if all := c.services.Load(); all != nil {
		if s := (*all)[service]; s != nil && s.informer.Running() {
			return s
		}
	}
	return nil
}

// get returns the chooser of a service. The first call makes it, and waits for the informer's
// first LIST.
func (c *choosers) get(ctx context.Context, service string) (*serviceChooser, error) {
	i, err := c.registry.informer(service)
	if err == nil {
		err = i.waitContext(ctx, c.registry.timeout())
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	services := map[string]*serviceChooser{}
	if all := c.services.Load(); all != nil {
		maps.Copy(services, *all)
	}
	s := services[service]
	if s == nil || s.informer != i {
		s = newServiceChooser(i, observersOf(c.registry.Options()))
		services[service] = s
		c.services.Store(&services)
	}
	return s, nil
}

// serviceChooser chooses the instances of one service.
type serviceChooser struct {
	informer *informer
	events   eventObservers
	next     selector.Next // made once, so that Select allocates nothing
	random   *rand.Rand    // nil except in simulations

	ejecting sync.Mutex // serializes ejections, so that two of them together do not exceed the cap
}

func newServiceChooser(i *informer, e eventObservers) *serviceChooser {
	c := &serviceChooser{informer: i, events: e}
	c.next = nextOf(c.choose)
	return c
}

// choose chooses a routable instance and avoids previous, which may be nil.
func (s *serviceChooser) choose(previous *instance) (choice, error) {
	instances := s.informer.snapshot().instances
	if len(instances) == 0 {
		return choice{}, selector.ErrNotFound
	}
	return s.chooseFrom(instances, previous, clock())
}

func (s *serviceChooser) selectNext() (selector.Next, error) {
	if len(s.informer.snapshot().instances) == 0 {
		return nil, selector.ErrNotFound
	}
	return s.next, nil
}

// instancesOf returns the instances that filters have left. A node that a filter has added
// becomes an instance of which nothing is known.
func (s *serviceChooser) instancesOf(services []*registry.Service) (all []*instance) {
	type key struct{ id, address string } // the id alone is not unique: with a fixed server.Id all instances have the same
	known := map[key]*instance{}
	for _, i := range s.informer.snapshot().instances {
		known[key{i.Id, i.Address}] = i
	}
	for _, v := range services {
		for _, n := range v.Nodes {
			i := known[key{n.Id, n.Address}]
			if i == nil {
				i = &instance{Node: *n, service: v}
			}
			all = append(all, i)
		}
	}
	return all
}

// choice is an instance that was chosen for one call or stream. It counts as in flight
// until done. A choice holds no resources.
type choice struct {
	node     *registry.Node
	instance *instance       // nil if there are no statistics: for a registry of another package, or a node that a filter or a strategy made
	chooser  *serviceChooser // nil if the instance is nil
	started  int64           // result of clock
	isStream bool
	isTrial  bool // the call tries the instance after its ejection
}

// asStream returns the choice as that of a stream: it counts as in flight until done, but
// its duration is not a latency, and its silence is not a stall. The client calls asStream
// once, right after the stream is open, and ends the result with done.
func (c choice) asStream() choice {
	if c.instance != nil {
		c.instance.streams.Add(1)
		c.instance.inFlight.end(clock(), c.started)
	}
	c.isStream = true
	return c
}

// done ends the call or stream, once. The error is only for the log and for Events.
func (c choice) done(o outcome, err error) { c.doneAt(clock(), o, err) }

func (c choice) doneAt(now int64, o outcome, err error) {
	i := c.instance
	if i == nil {
		return
	}
	change := i.ended(now, c, o)
	if change == suspected || change == faultedAgain {
		switch {
		case c.chooser.failsMoreThanOthers(i, now):
			if !i.failed(now) {
				return
			}
			change = failed
		case change == faultedAgain: // no more than the others now
			change = recovered
		}
	}
	switch change {
	case failed:
		c.chooser.eject(i, now, o, err)
	case recovered:
		c.chooser.readmit(i, now)
	}
}

// chooseFrom chooses the better of two instances taken at random. It passes over ejected and
// stalled instances while there are others. An instance whose ejection is over gets the
// one call that tries it at once. It chooses the instance previous, which may be nil, only
// if there is no other.
func (s *serviceChooser) chooseFrom(instances []*instance, previous *instance, now int64) (choice, error) {
	if len(instances) == 0 {
		return choice{}, selector.ErrNoneAvailable
	}
	a := s.draw(instances, nil, previous, now)
	b := s.draw(instances, a, previous, now)
	isTrial := a.beginTrial(now)
	switch {
	case isTrial:
	case b.beginTrial(now):
		a, isTrial = b, true
	case a.ejected(now), !b.ejected(now) && better(b, a, now): // a is ejected if another goroutine has just begun its trial
		a = b
	}
	a.started(now)
	for _, e := range s.events {
		if e.Picked != nil {
			e.Picked(a.service.Name, a.pod, a.Address)
		}
	}
	if a.pod == "" { // a filter has added it
		return choice{node: &a.Node}, nil
	}
	return choice{node: &a.Node, instance: a, chooser: s, started: now, isTrial: isTrial}, nil
}

// better reports whether a call should rather go to a than to b.
//
// The load of an instance is its number of calls in flight, including the new one, times
// the square of its latency, times 2 for each fault since its last good answer. Finagle and
// linkerd2-proxy take the latency itself. With the square, an instance that is ten times
// slower is no alternative to ten calls in flight on a fast one, because servers handle
// calls concurrently. Latencies that do not clearly differ are left out. An instance that
// was never measured counts as fast as the other, so that it fills up like every other
// instance. If the other fails as well, faults count less, and not at all if half of its
// calls fail.
func better(a, b *instance, now int64) bool {
	x, y := a.load(now), b.load(now)
	if x.latency == 0 {
		x.latency = max(y.latency, x.age)
	}
	if y.latency == 0 {
		y.latency = max(x.latency, y.age)
	}
	r := (x.latency + float64(latencyFloor)) / (y.latency + float64(latencyFloor))
	if 1/r < latencyTolerance && r < latencyTolerance {
		r = 1
	}
	l, m := x.calls*r*r, y.calls
	if x.faults > 0 {
		l *= math.Exp2(x.faults * max(0, 1-2*b.history.share()))
	}
	if y.faults > 0 {
		m *= math.Exp2(y.faults * max(0, 1-2*a.history.share()))
	}
	return l < m || l == m && x.calls > 1 && a.lastAnswer.Load() > b.lastAnswer.Load() // the instance that answered last is not stalled
}

// load is what better compares.
type load struct {
	calls   float64 // calls and streams in flight, including the new one
	latency float64 // in nanoseconds, 0 if nothing was measured
	age     float64 // mean age of the calls in flight, in nanoseconds
	faults  float64 // since the last good answer
}

// load returns the load of an instance.
//
// Calls in flight for longer than the estimate raise it before they end. After decayTime
// without an answer, neither the estimate nor the faults count while no call is in flight,
// so that one call tries a slow or failing instance again. While this call is in flight
// they count.
func (c *callStats) load(now int64) load {
	calls, age := c.inFlight.meanAge(now)
	if age > int64(maxEjectionTime) { // calls that are long on purpose, such as long polls
		age = 0
	}
	l := load{calls: float64(calls + c.streams.Load() + 1), age: float64(age)}
	if latency, elapsed := c.latency.load(now); calls > 0 || elapsed < decayTime {
		l.faults = float64(c.history.inARow())
		if latency != 0 {
			l.latency = max(latency, l.age)
		}
	}
	return l
}

// draw takes an instance at random. It avoids, as long as other instances are left, first the
// instance previous, then ejected instances, then stalled instances, and then the instance
// drawn. Both instances may be nil.
func (s *serviceChooser) draw(instances []*instance, drawn, previous *instance, now int64) *instance {
	for range 4 { // the first try usually succeeds
		if n := instances[s.intN(len(instances))]; n != drawn && n != previous && !n.ejected(now) && !n.stalled(now) {
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
		if !n.ejected(now) {
			score += 4
		}
		if !n.stalled(now) {
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

// clock returns a monotonic time in nanoseconds, which is cheaper to read than the
// time of day. It is never 0, which stands for "never" in callStats.
func clock() int64 { return int64(time.Since(epoch)) + 1<<62 }

var epoch = time.Now()
