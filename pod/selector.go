package pod

import (
	stderrors "errors"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
)

// Selector chooses the instance for a call: of two instances taken at random, the
// one with the lower load (the power of two choices, Mitzenmacher 2001, with peak EWMA,
// from Finagle). A choice reads the informer's snapshot and copies nothing: it takes the same
// time and allocates nothing at any number of instances, and it takes no lock.
//
// # Load
//
// The load of an instance is the number of its calls in flight times the square of its
// latency. The latency is an estimate that jumps up with the first slow call, while that
// call is still in flight, and comes down with a mean lifetime of 10 s. Latencies that
// differ by less than a factor of 2 are equal, after adding 1 ms to both. A new instance
// counts as fast as the others. Each fault in a row doubles the load, so that an instance
// that fails at once does not attract calls by looking idle. An instance that got no calls
// for 10 s because of its load gets one: if it is fast again, it gets its share.
//
// # Ejection
//
// An instance is ejected for 5 s when the connection to it fails, or when a call times out
// although the instance had time to answer: it answered no call for twice its usual
// interval between answers. A retry therefore goes to another instance. If the instance
// fails again, the ejection is longer: 20 s, then 80 s, at most 10 s after a failed
// connection. After the ejection one call tries the instance. If it is answered, or the pod
// has a new process, the ejection ends. At most half of a service's instances are ejected,
// so that the others are not overloaded: Envoy's panic threshold is 50 % too, and gRFC A50
// has max_ejection_percent. A stalled instance, which leaves its calls without an answer,
// is passed over before they time out. The log has one line for each ejection and one for
// its end; see also Instances and Events.
//
// With Client, which knows the gRPC status, an instance is also ejected when it answers
// more calls with faults than the other instances do: after 5 faults in a row (Envoy's
// consecutive_5xx), or when a fifth of its last 63 calls were faults, each only if chance
// is no explanation (the test after success_rate_stdev_factor in gRFC A50, see the
// constants in faults.go). Faults are the statuses UNAVAILABLE, RESOURCE_EXHAUSTED,
// INTERNAL, UNKNOWN and DATA_LOSS and go-micro errors with a code from 500 on. If all
// instances fail alike, as with the service's database, nobody is ejected. Other errors of
// handlers do not count, nor does a call that its caller cancels or that began too late to
// be answered.
//
// go-micro's gRPC client hides the gRPC status from a selector, which therefore judges by
// the text of the error: it counts failed connections and timeouts, and no faults.
// This leaves one wrong verdict: if a handler returns the error of its own go-micro client, with
// the id go.micro.client, its instance is blamed for the service that it called. A service
// with Lifecycle avoids this, because Lifecycle replaces the id of such errors.
//
// # Streams
//
// With Client, an open stream counts as in flight. Its length is no latency, and its
// deadline is not the instance's fault. go-micro's client calls Mark when a stream is
// open, not when it ends. So a stream does not count as in flight, and its failures after
// the start do not count either: open streams are spread by the calls in flight at their
// start, which for long-lived streams is close to random.
//
// # Filters and strategies
//
// Filters and strategies given by selector.SelectOption or selector.SetStrategy are
// honoured; a filter sees copies, as with go-micro's own selector. A call is in flight
// from Next to Mark: a caller of Next that never calls Mark, unlike go-micro's clients,
// makes the instance look busier and slower than it is. Mark does not tell which of the
// calls in flight has ended, so each call that ends counts as having begun when they did
// on average.
//
// A Selector is safe for concurrent use.
type Selector struct {
	mu    sync.Mutex
	state atomic.Pointer[selectorState]
}

// selectorState is the state of a selector at one moment. It is immutable, so that a
// choice takes no lock.
type selectorState struct {
	options selector.Options
	pools   map[string]*pool // by service
}

var _ selector.Selector = (*Selector)(nil)

// NewSelector returns a selector that reads a registry; the options micro.Registry and
// selector.Registry replace the registry. With a registry of another package the
// selector chooses in the same way, but each choice costs as much as that registry's
// GetService, and no instance is ejected.
func NewSelector(r registry.Registry, opts ...selector.Option) *Selector {
	s := &Selector{}
	s.state.Store(&selectorState{options: selector.Options{Registry: r}})
	_ = s.Init(opts...)
	return s
}

// pool is the informer of one service and the function that picks from its snapshot.
type pool struct {
	informer *informer
	events   Events
	next     selector.Next // made once, so that Select allocates nothing
	random   *rand.Rand    // nil except in simulations
}

// Init applies options, such as another registry.
func (s *Selector) Init(opts ...selector.Option) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	options := s.state.Load().options
	for _, o := range opts {
		o(&options)
	}
	s.state.Store(&selectorState{options: options, pools: map[string]*pool{}})
	return nil
}

// Options returns the options of NewSelector and Init.
func (s *Selector) Options() selector.Options { return s.state.Load().options }

// Select returns the function that picks an instance of a service. It returns
// selector.ErrNotFound if no routable pod carries the service now, and
// selector.ErrNoneAvailable if the filters leave no instance.
func (s *Selector) Select(service string, opts ...selector.SelectOption) (selector.Next, error) {
	state := s.state.Load()
	if p := state.fastPool(service, opts); p != nil {
		return p.selectNext()
	}
	return s.selectSlow(service, state.options, opts)
}

// fastPool returns the pool of a service if a choice needs nothing but its snapshot, and
// nil otherwise.
func (state *selectorState) fastPool(service string, opts []selector.SelectOption) *pool {
	p := state.pools[service]
	if len(opts) > 0 || state.options.Strategy != nil || p == nil || !p.informer.Running() {
		return nil
	}
	return p
}

func (p *pool) selectNext() (selector.Next, error) {
	if len(p.informer.snapshot().instances) == 0 {
		return nil, selector.ErrNotFound
	}
	return p.next, nil
}

func (p *pool) pick(instances []*instance) (*registry.Node, error) {
	c, err := p.choose(instances, nil, clock())
	return c.node, err
}

// selectSlow is Select without the fast path: for the first use of a service, with
// filters, with a strategy of the caller, and with a registry of another package.
func (s *Selector) selectSlow(service string, options selector.Options, opts []selector.SelectOption) (selector.Next, error) {
	o := selector.SelectOptions{Strategy: options.Strategy}
	for _, opt := range opts {
		opt(&o)
	}
	p := &pool{} // for a registry of another package, whose instances have no statistics
	var known []*instance
	if r, ok := options.Registry.(*Registry); ok {
		var err error
		if p, err = s.pool(service, r); err != nil {
			return nil, err
		}
		if len(o.Filters) == 0 && o.Strategy == nil {
			return p.selectNext()
		}
		known = p.informer.snapshot().instances
	}
	services, err := options.Registry.GetService(service)
	if stderrors.Is(err, registry.ErrNotFound) {
		return nil, selector.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	for _, filter := range o.Filters {
		services = filter(services)
	}
	if len(services) == 0 {
		return nil, selector.ErrNoneAvailable
	}
	if o.Strategy != nil {
		return o.Strategy(services), nil
	}
	type key struct{ id, address string } // the id alone is not unique: with a fixed server.Id all instances have the same
	byKey := map[key]*instance{}
	for _, i := range known {
		byKey[key{i.Id, i.Address}] = i
	}
	var filtered []*instance
	for _, v := range services {
		for _, n := range v.Nodes {
			if i := byKey[key{n.Id, n.Address}]; i != nil {
				filtered = append(filtered, i)
			} else {
				filtered = append(filtered, &instance{Node: *n, service: v})
			}
		}
	}
	return func() (*registry.Node, error) { return p.pick(filtered) }, nil
}

// pool returns the pool of a service. The first call makes the pool, and waits for the
// informer's first LIST.
func (s *Selector) pool(service string, r *Registry) (*pool, error) {
	inf, err := r.informer(service)
	if err != nil {
		return nil, err
	}
	if err := inf.wait(r.timeout()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.state.Load()
	if p := state.pools[service]; p != nil && p.informer == inf {
		return p, nil
	}
	p := &pool{informer: inf, events: eventsOf(r.Options())}
	p.next = func() (*registry.Node, error) { return p.pick(inf.snapshot().instances) }
	if state.options.Registry == registry.Registry(r) {
		pools := maps.Clone(state.pools)
		pools[service] = p
		s.state.Store(&selectorState{options: state.options, pools: pools})
	}
	return p, nil
}

// Mark records how a call to an instance that Next returned has ended. It ignores the
// service name, because go-micro's client passes another name to Mark than to Select if
// MICRO_PROXY or MICRO_NETWORK is set. Mark ignores a node that the registry does not
// know or no longer knows, such as an address that the caller has chosen.
func (s *Selector) Mark(_ string, n *registry.Node, err error) {
	state := s.state.Load()
	r, ok := state.options.Registry.(*Registry)
	if !ok {
		return
	}
	i := r.instanceOf(n)
	if i == nil {
		return
	}
	choice{instance: i, pool: state.pools[i.service.Name], mayBeTrial: true}.doneAt(clock(), outcomeOf(err), err)
}

// Reset ends the ejections of a service's instances and forgets their failures.
func (s *Selector) Reset(service string) {
	if p := s.state.Load().pools[service]; p != nil {
		for _, i := range p.informer.snapshot().instances {
			p.readmit(i, clock())
		}
	}
}

// InstanceCalls is what a selector knows about the calls to one instance.
type InstanceCalls struct {
	Pod, Address string
	InFlight     int           // calls in flight
	Failures     int           // calls in a row that failed by the instance's fault; failures within 5 s count once
	EjectedFor   time.Duration // how long the ejection still lasts; 0 if the instance is not ejected
}

// Instances returns what the selector knows about the routable instances of a service, in
// no particular order. It returns nil for a service that was never selected. The selectors
// of other processes may judge the same instances differently.
func (s *Selector) Instances(service string) []InstanceCalls {
	p := s.state.Load().pools[service]
	if p == nil {
		return nil
	}
	now := clock()
	var all []InstanceCalls
	for _, i := range p.informer.snapshot().instances {
		all = append(all, InstanceCalls{Pod: i.pod, Address: i.Address, InFlight: int(i.inFlight.Load() + i.streams.Load()), Failures: int(i.failures.Load()),
			EjectedFor: max(0, time.Duration(i.ejectedUntil.Load()-now))})
	}
	return all
}

// Close does nothing: the registry owns the goroutines.
func (s *Selector) Close() error { return nil }

// String returns "pod".
func (s *Selector) String() string { return "pod" }
