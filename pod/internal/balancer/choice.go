package balancer

import (
	"context"
	"maps"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/subset"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/zone"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
)

// Events are callbacks for the events of a balancer; see pod.Events. A field may be nil.
type Events struct {
	Picked     func(service, pod, address string)
	Ejected    func(service, pod, address string, duration time.Duration, cause error)
	Readmitted func(service, pod, address string, after time.Duration)

	AttemptEnded    func(events.Attempt)
	EjectionDecided func(events.Ejection)
}

// Options are what the options of a registry say about choosing.
type Options struct {
	Events []Events
	Subset int           // how many instances of a service to choose among; 0 for all
	Zone   func() string // returns the zone of this process, "" while it is not known; may be nil

	IgnoreZones bool // choose in all zones alike
}

// Choosers choose the instances of the services of one registry. All clients of the registry
// share them.
type Choosers struct {
	services *discovery.Services
	options  func() Options
	mu       sync.Mutex
	running  atomic.Pointer[map[string]*serviceChooser] // by service; immutable, so that a choice takes no lock
}

// NewChoosers returns the choosers of services. options is called at the first choice of each service.
func NewChoosers(s *discovery.Services, options func() Options) *Choosers {
	return &Choosers{services: s, options: options}
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
	if s := c.find(service); s != nil && s.informer == i {
		return s, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	services := map[string]*serviceChooser{}
	if all := c.running.Load(); all != nil {
		maps.Copy(services, *all)
	}
	s := services[service]
	if s == nil || s.informer != i {
		s = newServiceChooser(i, c.options())
		services[service] = s
		c.running.Store(&services)
	}
	return s, nil
}

// serviceChooser chooses the instances of one service.
type serviceChooser struct {
	informer  *discovery.Informer
	instances func() []*discovery.Instance // of the informer, except in simulations
	members   members                      // among which it chooses
	spill     zone.Spill                   // which share of the calls may leave the own zone
	methods   callstats.Methods
	events    []Events
	random    *rand.Rand // nil except in simulations

	// made once, so that Chooser and Select allocate nothing
	choose chooseFunc
	next   selector.Next

	forFilters atomic.Pointer[filterable] // of the last snapshot that was filtered
	filtering  sync.Mutex                 // serializes making it

	ejecting sync.Mutex // serializes ejections, so that two of them together do not exceed the cap
	probes   probes
}

// chooseFunc chooses the instance for an attempt of a call.
type chooseFunc = func(Attempt) (Choice, error)

// Attempt is what a choice has to know of an attempt of a call or stream.
type Attempt struct {
	Method   Method
	Previous *discovery.Instance // called by the attempt before; nil for the first one
	Spare    time.Duration       // time for this attempt and a retry; 0 if there is no retry left
}

func newServiceChooser(i *discovery.Informer, o Options) *serviceChooser {
	c := &serviceChooser{informer: i, instances: func() []*discovery.Instance { return i.Snapshot().Instances }, events: o.Events}
	c.members = members{subset: subset.New(o.Subset), zones: zones{own: o.Zone, of: (*discovery.Instance).Zone, ignored: o.IgnoreZones}}
	c.choose = func(a Attempt) (Choice, error) {
		instances := i.Snapshot().Instances
		if len(instances) == 0 {
			return Choice{}, selector.ErrNotFound
		}
		now := callstats.Clock()
		all, zoned := c.members.of(instances, now)
		return c.choiceOf(c.pickBetter(all, zoned, a, now)), nil
	}
	c.next = nextOf(c.choose)
	return c
}

// Method is the method of a call or stream for which an instance is chosen. Its name is "" if nobody
// knows it.
type Method struct {
	Name     string
	IsStream bool
}

func (s *serviceChooser) selectNext() (selector.Next, error) {
	if len(s.instances()) == 0 {
		return nil, selector.ErrNotFound
	}
	return s.next, nil
}

// Choice is an instance that was chosen for one call or stream. It counts as in flight
// until Done. A choice holds no resources. Done of the zero value does nothing.
type Choice struct {
	Node     *registry.Node
	Instance *discovery.Instance // nil if there are no statistics: for a registry of another package, or a node that a filter or a strategy made
	chooser  *serviceChooser     // nil if the instance is nil
	call     callstats.Call      // its Mark is one of these
}

// choiceOf returns the choice of an instance for a call. pickBetter returns these two, because they stay in registers:
// each function that returns a whole choice copies it in memory, which takes 5 ns.
func (s *serviceChooser) choiceOf(i *discovery.Instance, call callstats.Call) Choice {
	return Choice{Node: &i.Node, Instance: i, chooser: s, call: call}
}

// How a choice was made.
const (
	zoneBlind uint8 = iota // without zones
	stayed                 // the instance is in the own zone
	crossed                // the instance is in another zone
)

// AsStream returns the choice as that of a stream: it counts as in flight until Done, but
// its duration is not a latency, and its silence is not a stall. The client calls AsStream
// once, right after the stream is open, and ends the result with Done.
func (c Choice) AsStream() Choice {
	if c.Instance != nil {
		c.call = c.Instance.Calls.BecomeStream(callstats.Clock(), c.call)
	}
	return c
}

// Answered records that the stream has received its first header or message.
func (c Choice) Answered() {
	if i := c.Instance; i != nil {
		now := callstats.Clock()
		c.chooser.apply(i, i.Calls.StreamAnswered(c.call), now, nil)
	}
}

// Done ends the call or stream, once. The error is only for the log and for Events.
func (c Choice) Done(o outcome.Outcome, err error) {
	now := callstats.Clock()
	c.doneAt(now, o, err)
	if c.chooser == nil {
		return
	}
	for _, e := range c.chooser.events {
		if e.AttemptEnded != nil {
			i := c.Instance
			e.AttemptEnded(events.Attempt{Service: i.Service.Name, Pod: i.Pod, Address: i.Address, Zone: c.chooser.members.zones.relation(i), Outcome: o.String(), Duration: time.Duration(now - c.call.Started), Err: err})
		}
	}
}

func (c Choice) doneAt(now int64, o outcome.Outcome, err error) {
	i := c.Instance
	if i == nil {
		return
	}
	if c.call.Mark != zoneBlind {
		c.reportToSpill(now, o)
	}
	if v := i.Calls.End(now, c.call, o); v != callstats.Unchanged {
		c.chooser.apply(i, v, now, err)
	}
	if (o == outcome.LostConnection || o == outcome.TimedOut) && i.Calls.Unresponsive() {
		c.chooser.addProbe(i, now)
	}
}

// reportToSpill records how long a call has taken, before its method learns of it.
func (c Choice) reportToSpill(now int64, o outcome.Outcome) {
	if o == outcome.Inconclusive {
		return
	}
	if slowness := c.call.Slowness(now); slowness != 0 {
		if o != outcome.Answered {
			slowness = math.Inf(1)
		}
		c.chooser.spill.Ended(now, c.call.Mark == stayed, slowness)
	}
}

// pickBetter chooses the better of two instances taken at random. It passes over ejected,
// unresponsive and stalled instances while there are others. If a trial of an instance is
// due, and the time suffices for a retry by the usual latency, the attempt becomes the trial. It
// chooses the instance of the attempt before only if no other is available.
//
// With zoned, both instances are of the own zone, unless the call may leave it. The attempt after one that has
// failed goes to the other side: the whole zone may have failed.
func (s *serviceChooser) pickBetter(all []*discovery.Instance, zoned *chosen, attempt Attempt, now int64) (picked *discovery.Instance, call callstats.Call) {
	random, canRetry := s.uint64(), attempt.Spare > 0
	from, onlyLocal := all, false
	if zoned != nil {
		if attempt.Previous != nil {
			onlyLocal = !zoned.isLocal(attempt.Previous)
			from = zoned.side(onlyLocal)
		} else if !s.spill.MayLeave(uint32(s.uint64())) { //nolint:gosec // the lower half
			onlyLocal = true
			from = zoned.side(true)
		}
	}
	a, isOfA := s.draw(from, all, uint32(random), nil, attempt.Previous, canRetry, now) //nolint:gosec // the lower half
	b, isOfB := s.draw(from, all, uint32(random>>32), a, attempt.Previous, canRetry, now)
	method := s.methods.Find(attempt.Method.Name)
	kind := callstats.StreamKind
	if !attempt.Method.IsStream {
		kind = method.Kind()
	}
	isTrial := a.Calls.BeginTrial(now, attempt.Spare, method)
	switch {
	case isTrial:
	case b.Calls.BeginTrial(now, attempt.Spare, method):
		a, isOfA, isTrial = b, isOfB, true
	case !b.Calls.Available(now, false):
	case !a.Calls.Available(now, false), b.Calls.IsBetter(&a.Calls, kind, now):
		a, isOfA = b, isOfB
	}
	for _, e := range s.events { // before the call counts: a callback may panic
		if e.Picked != nil {
			e.Picked(a.Service.Name, a.Pod, a.Address)
		}
	}
	call = a.Calls.Begin(now, method, isTrial)
	if zoned != nil {
		call.Mark = crossed
		if onlyLocal && isOfA || zoned.isLocal(a) {
			call.Mark = stayed
		}
	}
	return a, call
}

// draw takes an instance of a part of all at random, and reports whether it is of this part. It avoids, as long
// as other instances are left, first ejected and unresponsive instances, then the instance of the attempt
// before, then stalled instances, and then the instance drawn. random decides about the first try.
//
// An instance that cannot be called is replaced by one of all. So the others of its zone do not get its calls,
// and calls leave a zone that has failed.
func (s *serviceChooser) draw(from, all []*discovery.Instance, random uint32, drawn, previous *discovery.Instance, canRetry bool, now int64) (n *discovery.Instance, isOfPart bool) {
	isOfPart = true
	for range 4 { // the first try usually succeeds
		n = from[below(random, len(from))]
		if !n.Calls.Available(now, canRetry) || n.Calls.Stalled(now) {
			from, isOfPart = all, false
		} else if n != drawn && n != previous {
			return n, isOfPart
		}
		random = uint32(s.uint64()) //nolint:gosec // the lower half
	}
	// Most instances are ejected or stalled: take the best of at most 32 instances,
	// because the time of a choice must not grow with their number.
	first := below(random, len(from))
	best, bestScore := from[first], -1
	for i := range min(len(from), 32) {
		n := from[(first+i)%len(from)]
		score := 0
		if n.Calls.Available(now, canRetry) {
			score += 8
		}
		if n != previous {
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
	return best, isOfPart
}

// below makes a random number one below n, which is less than 2^32, with a bias of at most n/2^32.
func below(random uint32, n int) int { return int(uint64(random) * uint64(n) >> 32) } //nolint:gosec // n is positive

func (s *serviceChooser) uint64() uint64 {
	if s.random != nil {
		return s.random.Uint64()
	}
	return rand.Uint64()
}
