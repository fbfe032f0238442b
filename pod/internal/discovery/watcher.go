package discovery

import (
	"sync"

	"github.com/micro/go-micro/v2/registry"
)

// watcher returns the differences between the snapshot that its reader saw last and
// the informer's current snapshot. It holds no more than one snapshot and its
// differences, however slow its reader is.
type watcher struct {
	informer *Informer
	stopped  chan struct{}
	stopOnce sync.Once

	mu      sync.Mutex
	seen    map[string]*Instance // by service, pod and node id
	results []*registry.Result   // results that Next has not returned yet
}

func newWatcher(i *Informer) *watcher {
	return &watcher{informer: i, stopped: make(chan struct{}), seen: byIdentity(i.Snapshot())}
}

func byIdentity(s *Snapshot) map[string]*Instance {
	m := make(map[string]*Instance, len(s.Instances))
	for _, i := range s.Instances {
		m[i.Service.Name+"\x00"+i.Pod+"\x00"+i.Id] = i
	}
	return m
}

// Next waits for the next change. After Stop it returns registry.ErrWatcherStopped.
func (w *watcher) Next() (*registry.Result, error) {
	for {
		changed := w.informer.changed.Wait()
		if r := w.next(); r != nil {
			return r, nil
		}
		if !w.informer.Running() {
			return nil, registry.ErrWatcherStopped
		}
		select {
		case <-w.stopped:
			return nil, registry.ErrWatcherStopped
		case <-changed:
		}
	}
}

// next returns the next result, and nil when the reader has seen the current snapshot.
func (w *watcher) next() *registry.Result {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.results) == 0 {
		current := byIdentity(w.informer.Snapshot())
		w.results = diffInstances(w.seen, current)
		w.seen = current
	}
	if len(w.results) == 0 {
		return nil
	}
	r := w.results[0]
	w.results = w.results[1:]
	return r
}

// diffInstances returns the changes from before to after. Deletions come first, so that
// the reader never sees two instances of a pod whose process has a new id.
func diffInstances(before, after map[string]*Instance) (results []*registry.Result) {
	add := func(action string, i *Instance) {
		results = append(results, &registry.Result{Action: action, Service: (&Snapshot{[]*Instance{i}}).Services()[0]})
	}
	for k, i := range before {
		if after[k] == nil {
			add("delete", i)
		}
	}
	for k, i := range after {
		switch previous := before[k]; {
		case previous == nil:
			add("create", i)
		case previous != i:
			add("update", i)
		}
	}
	return results
}

// Stop ends Next. Stopping twice is no error.
func (w *watcher) Stop() { w.stopOnce.Do(func() { close(w.stopped) }) }
