package dashboard

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
)

const (
	minInterval = 100 * time.Millisecond // between two views
	maxRate     = 50 << 20               // bytes per second to all event streams together; large views come less often
	linger      = 10 * time.Second       // observation after the last viewer, so that a reload does not LIST all pods again
)

// source is what the hub needs of a pod.Registry.
type source interface {
	Observe(context.Context) iter.Seq2[[]pod.Instance, error]
	LastContact() time.Time
}

// hub observes the registry while somebody views it and broadcasts the latest
// view. All viewers share one observation. A slow viewer misses views but never
// delays others. It is safe for concurrent use.
type hub struct {
	source  source
	onStart func() // called in a goroutine when an observation starts
	podName string
	linger  time.Duration
	streams streams

	mu      sync.Mutex
	viewers int
	cancel  context.CancelFunc // ends the observation; nil while there is none
	latest  *view              // nil until the registry has been read
	changed chan struct{}      // closed when latest is replaced
}

func newHub(s source, onStart func(), podName string) *hub {
	return &hub{source: s, onStart: onStart, podName: podName, linger: linger, changed: make(chan struct{})}
}

// join adds a viewer until leave is called. The first viewer starts the observation.
func (h *hub) join() (leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.viewers++
	if h.cancel == nil {
		ctx, cancel := context.WithCancel(context.Background())
		h.cancel = cancel
		go h.run(ctx)
		go h.onStart()
	}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.viewers--; h.viewers == 0 {
			time.AfterFunc(h.linger, h.stopIfUnused)
		}
	}
}

// stopIfUnused ends the observation and forgets the view if there is no viewer.
func (h *hub) stopIfUnused() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.viewers == 0 && h.cancel != nil {
		h.cancel()
		h.cancel, h.latest = nil, nil
	}
}

// run publishes a view after each change. Changes within an interval share one view.
func (h *hub) run(ctx context.Context) {
	sleep := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	for ; ctx.Err() == nil; sleep(time.Second) { // the sequence ends early if the registry cannot be used
		for instances, err := range h.source.Observe(ctx) {
			v := newView(h.podName, instances, err, h.source.LastContact())
			h.publish(ctx, v)
			sleep(max(minInterval, time.Duration(h.streams.count()*len(v.json)*1000/maxRate)*time.Millisecond))
		}
	}
}

func (h *hub) publish(ctx context.Context, v *view) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ctx.Err() == nil { // after stopIfUnused another observation may have begun
		h.latest = v
		close(h.changed)
		h.changed = make(chan struct{})
	}
}

// current returns the latest view, nil if there is none yet, and a channel that
// is closed when it is replaced.
func (h *hub) current() (*view, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.latest, h.changed
}

// wait returns the latest view. It waits until there is one, at most 10 s: the
// registry reports an error after 5 s, and the view then shows the error.
func (h *hub) wait(ctx context.Context) (*view, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		v, changed := h.current()
		if v != nil {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errors.New("the registry has not been read yet; try again later")
		}
	}
}
