package also

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/micro/go-micro/v2/registry"
)

// informer keeps the instances of one service in memory: it reads them at the beginning, after each
// beginning of a watch, and once a minute, and applies the events of the watch in between.
type informer struct {
	*Registry
	service  string
	publish  func([]*registry.Service, error)
	nodes    map[string]*registry.Service // by id, each with one node
	results  chan *registry.Result
	watching chan struct{} // receives at each beginning of a watch
}

// Follow passes the instances of a service to publish, each as a service with one node, at once and
// after each change, until stop. If they cannot be read, publish gets those last known, and an error.
// publish is called by one goroutine, for which stop waits.
func (r *Registry) Follow(service string, publish func([]*registry.Service, error)) (stop func()) {
	ctx, cancel := context.WithCancel(r.ctx)
	f := &informer{Registry: r, service: service, publish: publish, results: make(chan *registry.Result), watching: make(chan struct{}, 1)}
	var running sync.WaitGroup
	go f.watch(ctx) // stop does not wait for it: only the registry can end Next
	running.Go(func() { f.run(ctx) })
	return func() {
		cancel()
		running.Wait()
		r.forget(f.reading(), f.watchingName())
	}
}

func (f *informer) reading() string      { return "Reading service \"" + f.service + "\" from" }
func (f *informer) watchingName() string { return "Watching service \"" + f.service + "\" in" }

func (f *informer) run(ctx context.Context) {
	failures := 0
	var again <-chan time.Time
	read := true
	for ctx.Err() == nil {
		if read {
			if f.read(ctx) {
				failures, again = 0, time.After(readAgain+rand.N(readAgain/10))
			} else {
				failures++
				again = time.After(backoff(failures))
			}
		}
		read = true
		select {
		case result := <-f.results:
			read = f.apply(result)
		case <-f.watching:
		case <-again:
		case <-ctx.Done():
		}
	}
}

// read reads all instances and reports whether it succeeded.
func (f *informer) read(ctx context.Context) bool {
	failed := func(err error) {
		if ctx.Err() == nil {
			f.report(f.reading(), err)
			f.publish(f.all(), err)
		}
	}
	all, err := call(ctx, func() ([]*registry.Service, error) { return f.old.GetService(f.service) }, failed)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		failed(err)
		return false
	}
	if ctx.Err() != nil {
		return false
	}
	f.report(f.reading(), nil)
	f.nodes = map[string]*registry.Service{}
	for _, s := range all {
		f.add(s)
	}
	f.publish(f.all(), nil)
	return true
}

func (f *informer) all() []*registry.Service { return slices.Collect(maps.Values(f.nodes)) }

func (f *informer) add(s *registry.Service) {
	if s == nil || s.Name != f.service {
		return
	}
	for _, n := range s.Nodes {
		if n == nil || n.Address == "" {
			continue
		}
		one := *s
		one.Nodes = []*registry.Node{n}
		f.nodes[n.Id] = &one
	}
}

// apply applies an event. It reports whether all instances must be read, because the event does not say
// which have changed, or nothing was read yet.
func (f *informer) apply(r *registry.Result) (read bool) {
	if r == nil || r.Service == nil || r.Service.Name != f.service {
		return false
	}
	if f.nodes == nil || len(r.Service.Nodes) == 0 {
		return true
	}
	if r.Action == "delete" {
		for _, n := range r.Service.Nodes {
			if n != nil {
				delete(f.nodes, n.Id)
			}
		}
	} else {
		f.add(r.Service)
	}
	f.publish(f.all(), nil)
	return false
}

// watch passes on the events of the old registry, whose watch it begins again when it has ended.
func (f *informer) watch(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		began := time.Now()
		err := f.watchOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		f.report(f.watchingName(), err)
		if failures++; time.Since(began) > maxBackoff {
			failures = 1
		}
		select {
		case <-time.After(backoff(failures)):
		case <-ctx.Done():
		}
	}
}

// watchOnce passes on the events of one watch, and returns why it has ended.
func (f *informer) watchOnce(ctx context.Context) error {
	late := func(err error) { f.report(f.watchingName(), err) }
	w, err := call(ctx, func() (registry.Watcher, error) {
		w, err := f.old.Watch(registry.WatchService(f.service))
		if err == nil && ctx.Err() != nil { // nobody waits for it any more
			w.Stop()
		}
		return w, err
	}, late)
	if err != nil {
		return err
	}
	stop := sync.OnceFunc(w.Stop)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	select {
	case f.watching <- struct{}{}:
	default:
	}
	works := time.AfterFunc(callTimeout, func() { f.report(f.watchingName(), nil) }) // a watch that fails ends sooner
	defer works.Stop()
	for {
		r, err := w.Next()
		if err != nil {
			return err
		}
		select {
		case f.results <- r:
		case <-ctx.Done():
			return nil
		}
	}
}

// List returns the names of all services in the old registry, or the last ones known if it fails or has
// not answered in time.
func (r *Registry) List() []*registry.Service {
	const operation = "Listing the services of"
	r.mu.Lock()
	last := r.listed
	skip := r.listing || r.closed
	r.listing = true
	r.mu.Unlock()
	if skip {
		return last
	}
	answered := make(chan []*registry.Service, 1)
	go func() {
		all, err := call(r.ctx, func() ([]*registry.Service, error) { return r.old.ListServices() }, func(err error) {
			r.report(operation, err)
			answered <- last
		})
		r.report(operation, err)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.listing = false
		if err != nil {
			all = last
		}
		r.listed = all
		select {
		case answered <- all:
		default: // late
		}
	}()
	return <-answered
}
