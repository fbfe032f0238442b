// Package balancer chooses the instance for each call, and ejects instances that fail.
//
// A choice takes the better of two random instances of discovery.Informer. What is known of
// an instance's calls, and when one is better, is package callstats. This package draws, keeps
// at most half of the instances ejected, and reports ejections to the log and to Events.
//
// There is one way of feedback: each choice of an instance is a Choice, whose Done must be called
// with the outcome of the call, as grpc-go's PickResult.Done.
//
//	Selector.Chooser           (selector.go) filters, strategies, registries of other packages
//	filterable                 (filter.go)   what filters get, and the instances that they leave
//	members.of                 (members.go)  the subset of the instances, if the client calls only some; the own zone first
//	serviceChooser.pickBetter  (choice.go)   takes the better of two instances
//	Choice.AsStream            (choice.go)   the call has opened a stream
//	Choice.Answered            (choice.go)   the stream has received its first message
//	Choice.Done                (choice.go)   the call has ended
//	Choice.Probe               (probe.go)    an instance that gave no answer, which the client should probe
//	Probe.Done                 (probe.go)    whether the instance has answered
//	serviceChooser.eject       (ejection.go) unless half of the instances are ejected
//	serviceChooser.readmit     (ejection.go) the instance has answered
//
// A choice reads atomic values only: it takes no lock, allocates nothing, and takes the same
// time at any number of instances.
package balancer

import (
	"context"
	stderrors "errors"
	"sync"
	"sync/atomic"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
)

// Selector chooses the instances for the calls of a client.
//
// As the client's Options().Selector it picks from the same choosers. It does not learn how
// the calls of Select and Next end, so that these calls do not count.
//
// A Selector is safe for concurrent use.
type Selector struct {
	choosersOf func(registry.Registry) *Choosers

	mu    sync.Mutex
	state atomic.Pointer[selectorState]
}

// selectorState is the state of a selector at one moment. It is immutable, so that a
// choice takes no lock.
type selectorState struct {
	options  selector.Options
	choosers *Choosers // of the options' registry; nil for a registry of another package
}

var _ selector.Selector = (*Selector)(nil)

// NewSelector returns a selector that reads a registry; the options micro.Registry and
// selector.Registry replace the registry. With a registry of another package the
// selector chooses at random, as go-micro's does, and no instance is ejected. choosersOf returns
// the choosers of a registry, nil for one of another package.
func NewSelector(r registry.Registry, choosersOf func(registry.Registry) *Choosers) *Selector {
	s := &Selector{choosersOf: choosersOf}
	s.state.Store(&selectorState{})
	_ = s.Init(selector.Registry(r))
	return s
}

// Init applies options, such as another registry or a strategy.
func (s *Selector) Init(opts ...selector.Option) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := &selectorState{options: s.state.Load().options}
	for _, o := range opts {
		o(&state.options)
	}
	state.choosers = s.choosersOf(state.options.Registry)
	s.state.Store(state)
	return nil
}

// Options returns the options of NewSelector and Init.
func (s *Selector) Options() selector.Options { return s.state.Load().options }

// Chooser returns the function that chooses the instance for each attempt of a call. Only the first
// call for a service waits, until its instances are known or the context ends.
//
// The function avoids the instance of the attempt before as long as another one is available. The
// caller must end the choice with Done, and carry out its Probe. It returns selector.ErrNotFound if
// no routable pod carries the service now, selector.ErrNoneAvailable if the filters leave no
// instance, and the errors of a strategy.
func (s *Selector) Chooser(ctx context.Context, service string, opts []selector.SelectOption) (chooseFunc, error) {
	state := s.state.Load()
	if c := state.fastChooser(service, opts); c != nil {
		return c.choose, nil
	}
	if state.choosers != nil {
		if _, err := state.choosers.get(ctx, service); err != nil {
			return nil, err
		}
	}
	return func(a Attempt) (Choice, error) {
		choose, err := s.prepare(state, service, opts)
		if err != nil {
			return Choice{}, err
		}
		return choose(a)
	}, nil
}

// fastChooser returns the chooser of a service if a choice needs nothing but its snapshot, and
// nil otherwise.
func (state *selectorState) fastChooser(service string, opts []selector.SelectOption) *serviceChooser {
	if len(opts) > 0 || state.options.Strategy != nil || state.choosers == nil {
		return nil
	}
	return state.choosers.find(service)
}

// prepare returns the function that chooses instances of a service: for the first use of the
// service, with filters, with a strategy of the caller, and with a registry of another package.
func (s *Selector) prepare(state *selectorState, service string, opts []selector.SelectOption) (chooseFunc, error) {
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
	var forFilters *filterable
	var services []*registry.Service
	var nodes []registry.Node
	var err error
	if chooser != nil {
		forFilters = chooser.filterable()
		services, nodes = forFilters.copies()
	} else {
		services, err = state.options.Registry.GetService(service)
	}
	switch {
	case stderrors.Is(err, registry.ErrNotFound), err == nil && len(services) == 0:
		return nil, selector.ErrNotFound
	case err != nil:
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
		return func(Attempt) (Choice, error) {
			node, err := next()
			return Choice{Node: node}, err
		}, nil
	}
	instances := forFilters.instancesOf(services, nodes)
	if len(instances) == 0 {
		return nil, selector.ErrNoneAvailable
	}
	return func(a Attempt) (Choice, error) {
		now := callstats.Clock()
		all, zoned := chooser.members.ofFiltered(instances, now)
		picked, call := chooser.pickBetter(all, zoned, a, now)
		if picked.Pod == "" { // a filter has added it
			return Choice{Node: &picked.Node}, nil
		}
		return chooser.choiceOf(picked, call), nil
	}, nil
}

// Select returns the function that picks an instance of a service, with the errors of Chooser.
func (s *Selector) Select(service string, opts ...selector.SelectOption) (selector.Next, error) {
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
func nextOf(choose chooseFunc) selector.Next {
	return func() (*registry.Node, error) {
		c, err := choose(Attempt{})
		c.doneAt(c.call.Started, outcome.Inconclusive, nil) // not an attempt that Events report
		return c.Node, err
	}
}

// Mark does nothing: a node does not tell which of its calls has ended. The client ends each
// call with the choice that it has made for the call.
func (s *Selector) Mark(string, *registry.Node, error) {}

// Reset does nothing, as with go-micro's selector.
func (s *Selector) Reset(string) {}

// Close does nothing: the registry owns the goroutines.
func (s *Selector) Close() error { return nil }

// String returns "pod".
func (s *Selector) String() string { return "pod" }

// InstanceCalls is what is known of the calls to one instance.
type InstanceCalls struct {
	Instance           *discovery.Instance
	Pod, Address, Zone string
	callstats.Report
}

// Instances returns what is known about the routable instances of a service, or about those of its
// subset; nil if none was ever chosen.
func (s *Selector) Instances(service string) []InstanceCalls {
	if state := s.state.Load(); state.choosers != nil {
		return state.choosers.Instances(service)
	}
	return nil
}

// Instances returns what is known about the routable instances of a service, nil if none
// was ever chosen.
func (c *Choosers) Instances(service string) []InstanceCalls {
	chooser := c.find(service)
	if chooser == nil {
		return nil
	}
	now := callstats.Clock()
	var all []InstanceCalls
	for _, i := range chooser.members.present(chooser.instances()) {
		all = append(all, InstanceCalls{Instance: i, Pod: i.Pod, Address: i.Address, Zone: i.Zone(), Report: i.Calls.Report(now)})
	}
	return all
}
