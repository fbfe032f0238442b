package dashboard

import (
	"context"
	"errors"
	"iter"
	"maps"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
)

const (
	minInterval   = 100 * time.Millisecond // between two views
	maxRate       = 50 << 20               // bytes per second to all event streams together; large views come less often
	callsInterval = time.Second            // between two reads of the calls, whose changes cause no notification
	linger        = 10 * time.Second       // observation after the last viewer, so that a reload does not LIST all pods again
)

// source is the part of pod.Registry that the hub uses.
type source interface {
	Observe(context.Context) iter.Seq2[[]pod.Instance, error]
	LastContact() time.Time
}

// hub observes the registry while somebody views it and broadcasts the latest
// view. All viewers share one observation. A slow viewer misses views but never
// delays others. It is safe for concurrent use.
type hub struct {
	source             source
	currentCalls       func() map[callTarget]targetCalls // returns the calls of this pod
	onStart            func()                            // called in a goroutine when an observation starts
	podName, namespace string
	linger             time.Duration
	streams            streams
	changes            changeLog

	building  sync.Mutex     // held while a view is built and published, so that views stay in order
	instances []pod.Instance // of the last observation, with its error
	err       error

	mu      sync.Mutex
	viewers int
	cancel  context.CancelFunc // ends the observation; nil while there is none
	latest  *view              // nil until the registry has been read
	changed chan struct{}      // closed when latest is replaced
}

func newHub(s source, currentCalls func() map[callTarget]targetCalls, onStart func(), podName, namespace string) *hub {
	return &hub{source: s, currentCalls: currentCalls, onStart: onStart, podName: podName, namespace: namespace, linger: linger, changed: make(chan struct{}),
		changes: changeLog{pulse: make(chan struct{}, 1)}}
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
	h.building.Lock()
	h.changes.restart()
	h.building.Unlock()
	go h.watchCalls(ctx)
	for ; ctx.Err() == nil; sleep(ctx, time.Second) { // the sequence ends early if the registry cannot be used
		for instances, err := range h.source.Observe(ctx) {
			h.building.Lock()
			if ctx.Err() != nil { // another observation may have begun
				h.building.Unlock()
				return
			}
			h.instances, h.err = instances, err
			if err == nil {
				h.changes.observe(instances)
			}
			v := h.build(ctx, h.currentCalls())
			h.building.Unlock()
			sleep(ctx, max(minInterval, h.interval(v)))
		}
	}
}

// watchCalls publishes a view when the calls have changed and the registry has not, and
// at once when an instance is ejected or back.
func (h *hub) watchCalls(ctx context.Context) {
	for ctx.Err() == nil {
		pause := time.Duration(0)
		current := h.currentCalls()
		h.building.Lock()
		if v, _ := h.current(); v != nil && (!maps.Equal(current, v.calls) || h.changes.recent().last() != v.recent.last()) {
			pause = max(minInterval, h.interval(h.build(ctx, current)))
		}
		h.building.Unlock()
		sleep(ctx, pause)
		select {
		case <-h.changes.pulse:
		case <-time.After(callsInterval):
		case <-ctx.Done():
		}
	}
}

// build builds and publishes a view of the last observation. The caller holds h.building.
func (h *hub) build(ctx context.Context, byTarget map[callTarget]targetCalls) *view {
	v := newView(h.podName, h.namespace, h.instances, h.err, byTarget)
	v.recent = h.changes.recent()
	h.publish(ctx, v)
	return v
}

// times returns the times of an answer.
func (h *hub) times() times { return times{now(), milliseconds(h.source.LastContact())} }

// interval returns the time that sending a view to all event streams takes at maxRate.
func (h *hub) interval(v *view) time.Duration {
	return time.Duration(h.streams.count()*len(v.json)*1000/maxRate) * time.Millisecond
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
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
// is closed when the view is replaced.
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

// podAt returns the name of the pod of the Greeter at an address, or "" if it is not
// known. The client knows the instances that it chooses from, and the view the others.
func (h *hub) podAt(address string) string {
	for target := range h.currentCalls() {
		if target.address == address {
			return target.pod
		}
	}
	if v, _ := h.current(); v != nil {
		return v.podAt(greeterName, address)
	}
	return ""
}
