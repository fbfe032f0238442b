package pod

import (
	"sync"

	"github.com/micro/go-micro/v2/registry"
)

// watcher hands out the differences between the view it saw last and the one
// there is. Its memory is that of one view, however slow its reader.
type watcher struct {
	informer *informer
	changed  chan struct{}
	done     chan struct{}
	once     sync.Once

	mu      sync.Mutex
	seen    map[string]*instance // by service, pod and node
	pending []*registry.Result
}

func newWatcher(f *informer) *watcher {
	w := &watcher{informer: f, changed: make(chan struct{}, 1), done: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers[w] = struct{}{}
	w.seen = index(f.current.Load())
	return w
}

func index(v *snapshot) map[string]*instance {
	m := make(map[string]*instance, len(v.instances))
	for _, n := range v.instances {
		m[n.service.Name+"\x00"+n.pod+"\x00"+n.Id] = n
	}
	return m
}

func (w *watcher) wake() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *watcher) end() { w.once.Do(func() { close(w.done) }) }

// Next waits for the next change; registry.ErrWatcherStopped after Stop.
func (w *watcher) Next() (*registry.Result, error) {
	for {
		w.mu.Lock()
		if len(w.pending) == 0 {
			w.compare()
		}
		if len(w.pending) > 0 {
			r := w.pending[0]
			w.pending = w.pending[1:]
			w.mu.Unlock()
			return r, nil
		}
		w.mu.Unlock()
		select {
		case <-w.done:
			return nil, registry.ErrWatcherStopped
		case <-w.changed:
		}
	}
}

// compare makes results of what differs. What went comes first: a pod that
// serves under a new id is never two.
func (w *watcher) compare() {
	now := index(w.informer.current.Load())
	result := func(action string, n *instance) {
		w.pending = append(w.pending, &registry.Result{Action: action, Service: (&snapshot{instances: []*instance{n}}).services()[0]})
	}
	for k, n := range w.seen {
		if now[k] == nil {
			result("delete", n)
		}
	}
	for k, n := range now {
		switch was := w.seen[k]; {
		case was == nil:
			result("create", n)
		case was != n:
			result("update", n)
		}
	}
	w.seen = now
}

// Stop ends Next. Stopping twice is no error.
func (w *watcher) Stop() {
	w.informer.mu.Lock()
	delete(w.informer.watchers, w)
	w.informer.mu.Unlock()
	w.end()
}
