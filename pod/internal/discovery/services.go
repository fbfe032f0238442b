// Package discovery finds the instances of services: it watches pods and keeps in memory the
// instances that their annotations describe.
//
//	Services    all that a registry reads: Get, List, Watch, Observe
//	Informer    the snapshots of one service, or of all services, and what they promise
//	Instance    one instance, with the statistics of its calls
//	table       pods -> instances; allServices adds what displays show
//	endpoints   what the registrations describe beside the instances, for GetService
//	overview    the instances in every state, for displays
//	watcher     the difference between two snapshots, as go-micro's registry.Watcher
//
// The way of a change: podwatch receives a pod, Informer.Update passes it to the table, the
// table decodes its annotations with podmeta, and publish stores the routable instances as the
// current snapshot. Readers load the snapshot and never wait for the network.
//
// What crosses the wall: a function that connects to the API server, and Settings, in; snapshots,
// instances and go-micro's registry.Service out. The package knows nothing of registration, of
// the choice of instances, or of connections to instances; whoever holds something for
// an instance releases it in Instance.AfterLeave.
package discovery

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podwatch"
	"github.com/micro/go-micro/v2/registry"
)

// API is an API server, and how errors name it.
type API struct {
	podwatch.API
	Namespace, Host string
}

// Settings are what the options of a registry say about reading.
type Settings struct {
	Timeout    time.Duration // how long a first read waits for the API server
	AnyAddress bool          // accept addresses that are not IPs of their pod
	APIError   func(operation string, err error)
	Events     *events.Hub // may be nil
	Others     Others      // may be nil
}

// Services finds the services of the pods in one namespace. It is safe for concurrent use.
type Services struct {
	connect  func() (API, error)
	settings func() Settings
	index    index // the instances of informers, not of overview

	mu        sync.Mutex
	informers map[string]*Informer           // by service
	others    map[string][]*registry.Service // what Settings.Others knows of the services of informers
	overview  *overview                      // nil while nobody reads all services
}

// New returns services that read from the API server that connect returns. connect and
// settings must be safe for concurrent use and must not call Services.
func New(connect func() (API, error), settings func() Settings) *Services {
	return &Services{connect: connect, settings: settings, informers: map[string]*Informer{}, others: map[string][]*registry.Service{}}
}

// Stop stops all informers and waits for them. A later read starts a new one, if connect
// returns an API server then.
func (s *Services) Stop() {
	s.mu.Lock()
	stopped := slices.Collect(maps.Values(s.informers))
	clear(s.informers)
	clear(s.others)
	if s.overview != nil {
		stopped = append(stopped, s.overview.Informer)
		s.overview = nil
	}
	s.mu.Unlock()
	for _, i := range stopped {
		i.stop()
	}
}

// Informer returns the informer of a service. The first call starts it.
func (s *Services) Informer(service string) (*Informer, error) {
	if service == "" {
		return nil, errors.New("the name of the service is empty") // the API server refuses its label
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.informers[service]; i != nil {
		return i, nil
	}
	api, err := s.connect()
	if err != nil {
		return nil, err
	}
	o := s.settings()
	pods := newTable(service, &s.index, podmeta.Limits{AnyAddress: o.AnyAddress})
	pods.events = o.Events
	if o.Others != nil {
		pods.others.registry, pods.others.namespace = o.Others.String(), api.Namespace
	}
	i := newInformer(&pods)
	i.APIError = o.APIError
	i.start(api, podmeta.SelectorPrefix+podmeta.LabelName(service)+"="+podmeta.TypeValue, fmt.Sprintf("service %q", service))
	s.informers[service] = i
	if o.Others != nil {
		s.follow(i, service, o.Others)
	}
	return i, nil
}

// Synced returns the informer of a service after its first LIST, for which the first call
// waits until ctx ends, at most for Settings.Timeout. If the pods have no instance, it also waits for
// the first answer of Settings.Others, whose instances are better than an error.
func (s *Services) Synced(ctx context.Context, service string) (*Informer, error) {
	i, err := s.Informer(service)
	if err != nil {
		return nil, err
	}
	limit := s.settings().Timeout
	err = i.Wait(ctx, limit)
	if i.others == nil {
		return i, err
	}
	if len(i.Snapshot().Instances) == 0 {
		i.others.wait(ctx, limit)
	}
	if len(i.Snapshot().Instances) > 0 {
		err = nil
	}
	return i, err
}

// Counts returns how many instances the services that were looked up have in each state.
func (s *Services) Counts() map[string]map[State]int {
	s.mu.Lock()
	informers := maps.Clone(s.informers)
	s.mu.Unlock()
	all := map[string]map[State]int{}
	for service, i := range informers {
		counts := map[State]int{Ready: 0, NotReady: 0, Terminating: 0, NodeUnreachable: 0}
		i.mu.Lock()
		for _, e := range i.pods.entries() {
			counts[e.state()] += len(e.instances)
		}
		i.mu.Unlock()
		all[service] = counts
	}
	return all
}

// OtherCounts returns how many instances of the services that were looked up only Settings.Others knows.
func (s *Services) OtherCounts() map[string]int {
	s.mu.Lock()
	informers := maps.Clone(s.informers)
	s.mu.Unlock()
	all := map[string]int{}
	for service, i := range informers {
		i.mu.Lock()
		all[service] = len(i.pods.onlyOthers())
		i.mu.Unlock()
	}
	return all
}

// InstanceOf returns the instance to which a node that a caller received belongs, nil if no
// informer knows the node or none does any longer.
func (s *Services) InstanceOf(n *registry.Node) *Instance { return s.index.find(n) }

// Get returns the versions of a service with their routable instances, none if there are no
// such instances. It refuses an empty name: a caller that has lost the name of its service must
// not call any other.
func (s *Services) Get(service string) ([]*registry.Service, error) {
	i, err := s.Synced(context.Background(), service)
	if err != nil {
		return nil, err
	}
	return i.Snapshot().Services(), nil
}

// List returns the names of all services that have a routable instance.
func (s *Services) List() ([]*registry.Service, error) {
	i, err := s.allSynced()
	if err != nil {
		return nil, err
	}
	var all []*registry.Service
	seen := map[string]bool{}
	add := func(name string) {
		if !seen[name] {
			seen[name] = true
			all = append(all, &registry.Service{Name: name})
		}
	}
	for _, n := range i.Snapshot().Instances {
		add(n.Service.Name)
	}
	if others := s.settings().Others; others != nil {
		for _, service := range others.List() {
			add(service.Name)
		}
	}
	return all, nil
}

// Watch returns a watcher of the changes of one service, or of all services if the name is empty.
func (s *Services) Watch(service string) (registry.Watcher, error) {
	i, err := s.synced(service)
	if err != nil {
		return nil, err
	}
	return newWatcher(i), nil
}

// Observe yields all instances of all services in every state, at once and after each change,
// until ctx ends. An error comes with the instances as they were last known. The last one says
// that the API server cannot be connected to, or that Stop was called.
func (s *Services) Observe(ctx context.Context) iter.Seq2[[]Observed, error] {
	return func(yield func([]Observed, error) bool) {
		s.mu.Lock()
		o, err := s.join()
		s.mu.Unlock()
		if err != nil {
			yield(nil, err)
			return
		}
		defer s.leave(o)
		for {
			changed := o.changed.Wait()
			if ctx.Err() != nil {
				return
			}
			all, synced, err := o.observed()
			if !o.Running() { // asked last, because Stop removes the instances
				yield(nil, errors.New("the registry was closed, or was given another address"))
				return
			}
			if (synced || err != nil) && !yield(all, err) {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}
}

// synced returns the informer of a service, or of all services if the name is empty, after its
// first LIST.
func (s *Services) synced(service string) (*Informer, error) {
	if service == "" {
		return s.allSynced()
	}
	return s.Synced(context.Background(), service)
}

// allSynced returns the informer of all services after its first LIST. It is kept until
// Stop.
func (s *Services) allSynced() (*Informer, error) {
	o, err := s.keep()
	if err != nil {
		return nil, err
	}
	return o.Informer, o.Wait(context.Background(), s.settings().Timeout)
}

// keep returns the overview with a snapshot. Its caller never leaves.
func (s *Services) keep() (*overview, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.join()
	if err == nil {
		o.read() // before Stop can remove the instances
	}
	return o, err
}

// join returns the overview for one more user, who must call leave. The caller holds s.mu.
func (s *Services) join() (*overview, error) {
	if s.overview == nil {
		api, err := s.connect()
		if err != nil {
			return nil, err
		}
		settings := s.settings()
		all := newAllServices(&index{}, podmeta.Limits{AnyAddress: settings.AnyAddress})
		all.events = settings.Events
		o := &overview{Informer: newInformer(all), all: all}
		o.APIError, o.unread = settings.APIError, true
		if settings.Others != nil {
			all.others.registry, all.others.namespace = settings.Others.String(), api.Namespace
			for service, instances := range s.others {
				o.setOthers(service, instances)
			}
		}
		o.start(api, podmeta.TypeLabel+"="+podmeta.TypeValue, "all services")
		s.overview = o
	}
	s.overview.users++
	return s.overview, nil
}

func (s *Services) leave(o *overview) {
	s.mu.Lock()
	o.users--
	last := o.users == 0 && s.overview == o // otherwise Stop has removed it
	if last {
		s.overview = nil
	}
	s.mu.Unlock()
	if last {
		o.stop()
	}
}
