package pod

import (
	"context"
	stderrors "errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
)

// clientSelector chooses the instances for the calls of a Client; see Client.
//
// As the client's Options().Selector it picks from the same choosers. It does not learn how
// the calls of Select and Next end, so that these calls do not count.
//
// A clientSelector is safe for concurrent use.
type clientSelector struct {
	mu    sync.Mutex
	state atomic.Pointer[selectorState]
}

// selectorState is the state of a selector at one moment. It is immutable, so that a
// choice takes no lock.
type selectorState struct {
	options  selector.Options
	choosers *choosers // of the options' registry; nil for a registry of another package
}

var _ selector.Selector = (*clientSelector)(nil)

// newSelector returns a selector that reads a registry; the options micro.Registry and
// selector.Registry replace the registry. With a registry of another package the
// selector chooses at random, as go-micro's does, and no instance is ejected.
func newSelector(r registry.Registry) *clientSelector {
	s := &clientSelector{}
	s.state.Store(&selectorState{})
	_ = s.Init(selector.Registry(r))
	return s
}

// Init applies options, such as another registry or a strategy.
func (s *clientSelector) Init(opts ...selector.Option) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := &selectorState{options: s.state.Load().options}
	for _, o := range opts {
		o(&state.options)
	}
	if r, ok := state.options.Registry.(*Registry); ok {
		state.choosers = &r.choosers
	}
	s.state.Store(state)
	return nil
}

// Options returns the options of newSelector and Init.
func (s *clientSelector) Options() selector.Options { return s.state.Load().options }

// choose chooses an instance for one call. It avoids previous, which may be nil, as long as
// there is another instance. The caller must end the choice with done. It returns
// selector.ErrNotFound if no routable pod carries the service now,
// selector.ErrNoneAvailable if the filters leave no instance, and the errors of a strategy.
func (s *clientSelector) choose(service string, opts []selector.SelectOption, previous *discovery.Instance) (choice, error) {
	state := s.state.Load()
	if c := state.fastChooser(service, opts); c != nil {
		return c.choose(previous)
	}
	choose, err := s.prepare(state, service, opts)
	if err != nil {
		return choice{}, err
	}
	return choose(previous)
}

// fastChooser returns the chooser of a service if a choice needs nothing but its snapshot, and
// nil otherwise.
func (state *selectorState) fastChooser(service string, opts []selector.SelectOption) *serviceChooser {
	if len(opts) > 0 || state.options.Strategy != nil || state.choosers == nil {
		return nil
	}
	return state.choosers.running(service)
}

// prepare returns the function that chooses instances of a service: for the first use of the
// service, with filters, with a strategy of the caller, and with a registry of another package.
func (s *clientSelector) prepare(state *selectorState, service string, opts []selector.SelectOption) (func(previous *discovery.Instance) (choice, error), error) {
	o := selector.SelectOptions{Strategy: state.options.Strategy}
	for _, opt := range opts {
		opt(&o)
	}
	var chooser *serviceChooser
	if state.choosers != nil {
		var err error
		if chooser, err = state.choosers.get(context.Background(), service); err != nil {
			return nil, err
		}
		if len(o.Filters) == 0 && o.Strategy == nil {
			return chooser.choose, nil
		}
	} else if o.Strategy == nil {
		o.Strategy = selector.Random
	}
	services, err := state.options.Registry.GetService(service)
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
		next := o.Strategy(services)
		return func(*discovery.Instance) (choice, error) {
			node, err := next()
			return choice{node: node}, err
		}, nil
	}
	instances := chooser.instancesOf(services)
	return func(previous *discovery.Instance) (choice, error) {
		return chooser.pickBetter(instances, previous, callstats.Clock())
	}, nil
}

// await waits until the instances of a service are known. Only the first call for a service
// waits; it ends with the context.
func (s *clientSelector) await(ctx context.Context, service string) error {
	c := s.state.Load().choosers
	if c == nil || c.running(service) != nil {
		return nil
	}
	_, err := c.get(ctx, service)
	return err
}

// Select returns the function that picks an instance of a service, with the errors of choose.
func (s *clientSelector) Select(service string, opts ...selector.SelectOption) (selector.Next, error) {
	state := s.state.Load()
	if c := state.fastChooser(service, opts); c != nil {
		return c.selectNext()
	}
	choose, err := s.prepare(state, service, opts)
	if err != nil {
		return nil, err
	}
	if c := s.state.Load().fastChooser(service, opts); c != nil {
		return c.selectNext()
	}
	return nextOf(choose), nil
}

// nextOf returns a function that picks instances for calls whose end nobody reports.
func nextOf(choose func(previous *discovery.Instance) (choice, error)) selector.Next {
	return func() (*registry.Node, error) {
		c, err := choose(nil)
		c.done(outcome.Inconclusive, nil)
		return c.node, err
	}
}

// Mark does nothing: a node does not tell which of its calls has ended. The client ends each
// call with the choice that it has made for the call.
func (s *clientSelector) Mark(string, *registry.Node, error) {}

// Reset does nothing, as with go-micro's selector.
func (s *clientSelector) Reset(string) {}

// Close does nothing: the registry owns the goroutines.
func (s *clientSelector) Close() error { return nil }

// String returns "pod".
func (s *clientSelector) String() string { return "pod" }

// instances returns what is known about the routable instances of a service, nil if none
// was ever chosen.
func (s *clientSelector) instances(service string) []InstanceCalls {
	state := s.state.Load()
	if state.choosers == nil {
		return nil
	}
	c := state.choosers.running(service)
	if c == nil {
		return nil
	}
	now := callstats.Clock()
	var all []InstanceCalls
	for _, i := range c.informer.Snapshot().Instances {
		r := i.Calls.Report(now)
		all = append(all, InstanceCalls{Pod: i.Pod, Address: i.Address, InFlight: r.InFlight, Failures: r.Failures, EjectedFor: r.EjectedFor})
	}
	return all
}

// InstanceCalls is what a Client knows about the calls to one instance.
type InstanceCalls struct {
	Pod, Address string
	InFlight     int           // calls in flight
	Failures     int           // calls in a row that failed by the instance's fault; failures within 5 s count once
	EjectedFor   time.Duration // how long the ejection still lasts; 0 if the instance is not ejected
}
