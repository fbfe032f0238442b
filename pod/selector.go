package pod

import (
	"context"
	stderrors "errors"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
)

// A node that fails is set aside for firstAside, four times as long for each
// failure in a row that follows, for mostAside at most. Then one call tries it.
// Calls that fail together, within firstAside, are one failure. A refused call
// costs a retry, not a timeout: after one refusedAside is the most, so that the
// way to a node that is back is not closed by the last connection's error.
const firstAside, refusedAside, mostAside = 5 * time.Second, 10 * time.Second, 80 * time.Second

// A node with calls under way that has answered none for silence, and for much
// longer than it usually takes, gets no more while there are others. So a frozen
// node holds a call or two until they time out, not one of each caller.
const silence, muchLonger = 10 * time.Millisecond, 8

// Selector chooses the node of a call: of two nodes taken at random, the one
// with fewer calls under way (the power of two choices, Mitzenmacher 2001). It
// takes the same time and allocates nothing at any number of nodes, since it
// reads the registry's view and copies nothing.
//
// A node whose call fails in transport or times out is set aside, for longer
// each time it fails again; a retry therefore goes to another node. One that
// leaves its calls without an answer is passed over before they time out. A call
// that is answered, or a new process in the pod, brings it back. When all nodes
// are set aside all are tried. Errors that a handler returns with a service's own
// id are answers; a call that its caller cancels says nothing. A handler's plain
// Go error cannot be told from a failure in transport: return go-micro's errors.
//
// Filters and strategies given by selector.SelectOption or selector.SetStrategy
// are honoured; a filter sees copies, as with go-micro's own selector. A node
// counts as busy from Next to Mark: who calls Next without Mark, unlike
// go-micro's clients, makes it look busier than it is.
//
// Safe for concurrent use.
type Selector struct {
	mu    sync.Mutex
	state atomic.Pointer[selecting]
}

// selecting is a selector's state at one time. It is never changed, so that
// choosing takes no lock.
type selecting struct {
	options  selector.Options
	services map[string]*choice
}

var _ selector.Selector = (*Selector)(nil)

// NewSelector returns a selector that reads a registry; micro.Registry or
// selector.Registry give it another. With one that is not this package's it
// chooses as well, but costs what that registry's GetService costs, and sets no
// node aside.
func NewSelector(r registry.Registry, opts ...selector.Option) *Selector {
	s := &Selector{}
	s.state.Store(&selecting{options: selector.Options{Registry: r}})
	_ = s.Init(opts...)
	return s
}

// choice is one service's nodes and how to choose among them.
type choice struct {
	follower *follower
	next     selector.Next // made once, so that Select allocates nothing
}

// Init takes options, such as another registry.
func (s *Selector) Init(opts ...selector.Option) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	options := s.state.Load().options
	for _, o := range opts {
		o(&options)
	}
	s.state.Store(&selecting{options: options, services: map[string]*choice{}})
	return nil
}

// Options returns what NewSelector and Init were told.
func (s *Selector) Options() selector.Options { return s.state.Load().options }

// Select returns the function that chooses a node. selector.ErrNotFound: no pod
// carries the service now. selector.ErrNoneAvailable: the filters left none.
func (s *Selector) Select(service string, opts ...selector.SelectOption) (selector.Next, error) {
	state := s.state.Load()
	c := state.services[service]
	if len(opts) == 0 && state.options.Strategy == nil && c != nil && c.follower.alive() {
		if len(c.follower.current.Load().nodes) == 0 {
			return nil, selector.ErrNotFound
		}
		return c.next, nil
	}
	return s.slowly(service, state.options, opts)
}

// slowly is Select on first use, with filters, with a strategy of the caller's
// or with somebody else's registry.
func (s *Selector) slowly(service string, options selector.Options, opts []selector.SelectOption) (selector.Next, error) {
	o := selector.SelectOptions{Strategy: options.Strategy}
	for _, opt := range opts {
		opt(&o)
	}
	ours, _ := options.Registry.(*Registry)
	if ours != nil && len(o.Filters) == 0 && o.Strategy == nil {
		if _, err := ours.view(service); err != nil { // waits on first use
			return nil, err
		}
		f, err := ours.follower(service)
		if err != nil {
			return nil, err
		}
		c := &choice{follower: f, next: func() (*registry.Node, error) { return pick(f.current.Load().nodes) }}
		s.mu.Lock()
		if state := s.state.Load(); state.options.Registry == options.Registry {
			services := maps.Clone(state.services)
			services[service] = c
			s.state.Store(&selecting{options: state.options, services: services})
		}
		s.mu.Unlock()
		if len(f.current.Load().nodes) == 0 {
			return nil, selector.ErrNotFound
		}
		return c.next, nil
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
	known := map[string]*node{}
	for _, n := range s.nodes(service) {
		known[n.Id] = n
	}
	var nodes []*node
	for _, v := range services {
		for _, n := range v.Nodes {
			if k := known[n.Id]; k != nil {
				nodes = append(nodes, k)
			} else {
				nodes = append(nodes, &node{Node: *n})
			}
		}
	}
	return func() (*registry.Node, error) { return pick(nodes) }, nil
}

// nodes are what the selector knows of a service.
func (s *Selector) nodes(service string) []*node {
	if f := s.follower(service); f != nil {
		return f.current.Load().nodes
	}
	return nil
}

// follower is what the selector's registry follows a service with, nil when it
// does not, or is not this package's.
func (s *Selector) follower(service string) *follower {
	state := s.state.Load()
	if c := state.services[service]; c != nil {
		return c.follower
	}
	if ours, ok := state.options.Registry.(*Registry); ok { // only ever chosen from with filters
		return ours.following(service)
	}
	return nil
}

// pick chooses the less busy of two nodes taken at random, passing over those
// set aside or silent while there are others.
func pick(nodes []*node) (*registry.Node, error) {
	if len(nodes) == 0 {
		return nil, selector.ErrNoneAvailable
	}
	now := clock()
	a := draw(nodes, nil, now)
	b := draw(nodes, a, now)
	x, y := a.outstanding.Load(), b.outstanding.Load()
	if y < x || y == x && x > 0 && b.since.Load() > a.since.Load() { // a frozen node wins no tie
		a, b = b, a
	}
	// Of a node whose time aside is over one call finds out how it is.
	if until := a.asideUntil.Load(); until != 0 && until <= now && !a.asideUntil.CompareAndSwap(until, now+2*int64(firstAside)) {
		a = b
	}
	if a.outstanding.Add(1) == 1 {
		a.since.Store(now)
	}
	return &a.Node, nil
}

// draw takes a node at random: while there are others none set aside, of those
// none silent, of those not the given one.
func draw(nodes []*node, not *node, now int64) *node {
	for range 4 { // rarely more than one
		if n := nodes[rand.IntN(len(nodes))]; n != not && !n.aside(now) && !n.silent(now) {
			return n
		}
	}
	// Most are set aside or silent: the best of a few, or it would take longer
	// the more nodes there are.
	first := rand.IntN(len(nodes))
	best, most := nodes[first], -1
	for i := range min(len(nodes), 32) {
		n := nodes[(first+i)%len(nodes)]
		worth := 0
		if !n.aside(now) {
			worth += 4
		}
		if !n.silent(now) {
			worth += 2
		}
		if n != not {
			worth++
		}
		if worth > most {
			best, most = n, worth
		}
		if worth == 7 {
			break
		}
	}
	return best
}

// clock counts nanoseconds since long before epoch: monotonic, and cheaper than
// the time of day.
func clock() int64 { return int64(time.Since(epoch)) + 1<<62 }

var epoch = time.Now()

func (n *node) aside(now int64) bool { return n.asideUntil.Load() > now }

// silent says whether a node has let its calls wait for much longer than usual.
// Nobody is silent for longer than mostAside: then somebody forgot a Mark.
func (n *node) silent(now int64) bool {
	if n.outstanding.Load() == 0 {
		return false
	}
	quiet := now - n.since.Load()
	return quiet > max(int64(silence), muchLonger*n.usual.Load()) && quiet < int64(mostAside)
}

// Mark notes how a call ended.
func (s *Selector) Mark(service string, n *registry.Node, err error) {
	k := s.known(service, n)
	if k == nil { // an address of the caller's own, or a node that is gone
		return
	}
	if k.outstanding.Add(-1) < 0 { // chosen by somebody else
		k.outstanding.Add(1)
	}
	now := clock()
	switch {
	case canceled(err):
	case !atFault(err): // answered
		usual := k.usual.Load()
		k.usual.Store(usual + (min(now-k.since.Swap(now), int64(time.Second))-usual)/8)
		if k.failures.Load() != 0 {
			k.forgive()
		}
	default:
		if last := k.failedAt.Load(); now-last >= int64(firstAside) && k.failedAt.CompareAndSwap(last, now) {
			aside, most := firstAside<<(2*min(k.failures.Add(1)-1, 2)), refusedAside
			if timedOut(err) {
				most = mostAside
			}
			k.asideUntil.Store(now + int64(min(aside, most)))
		}
	}
}

func (n *node) forgive() {
	n.failures.Store(0)
	n.failedAt.Store(0)
	n.asideUntil.Store(0)
}

// known finds the node that pick gave away.
func (s *Selector) known(service string, n *registry.Node) *node {
	if f := s.follower(service); f != nil {
		if k, ok := f.given.Load(n); ok {
			return k.(*node)
		}
	}
	return nil
}

// canceled says whether the caller gave up. go-micro's client makes errors of
// its own of that and of a timeout, with the text of the context's.
func canceled(err error) bool { return isContext(err, context.Canceled) }

func timedOut(err error) bool { return isContext(err, context.DeadlineExceeded) }

func isContext(err, ended error) bool {
	if err == nil { // allocates nothing
		return false
	}
	var e *errors.Error
	return stderrors.Is(err, ended) || stderrors.As(err, &e) && e.Id == "go.micro.client" && (e.Detail == ended.Error() || e.Code == 408 && stderrors.Is(ended, context.DeadlineExceeded))
}

// atFault says whether an error is the node's or the way's to it.
func atFault(err error) bool {
	if err == nil {
		return false
	}
	if stderrors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var e *errors.Error
	// go-micro's client gives its own id to what did not come from a handler, 408
	// to a call that ran out of time; and 500, alas, to a handler's plain error too.
	return stderrors.As(err, &e) && (e.Code == 408 || e.Code == 500 && e.Id == "go.micro.client")
}

// Reset forgets the failures of a service's nodes.
func (s *Selector) Reset(service string) {
	for _, n := range s.nodes(service) {
		n.forgive()
	}
}

// Close does nothing: the registry owns what runs.
func (s *Selector) Close() error { return nil }

// String is "pod".
func (s *Selector) String() string { return "pod" }
