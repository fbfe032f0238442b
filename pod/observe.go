package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/micro/go-micro/v2/registry"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// State is what a node is to those who would call it.
type State string

// The states of a node. Only Ready ones are found by GetService, Watch and Select;
// NodeUnreachable ones too, while a service has no other.
const (
	Ready           State = "ready"
	NotReady        State = "not ready"        // its pod does not run, or the readiness probe says no
	Terminating     State = "terminating"      // the pod is being deleted, or the instance has deregistered
	NodeUnreachable State = "node unreachable" // the pod was ready when its Kubernetes node stopped reporting
)

// Instance is an instance of a service as Observe shows it.
type Instance struct {
	Service, Version string
	Endpoints        []*registry.Endpoint // shared by all who observe: not to be written to
	Address          string               // host:port
	Pod              string
	Created          time.Time // when the pod was, to the second
	State            State
}

// Observe yields all nodes of all services, also those that cannot answer, at
// once and after each change: by service, oldest pod first. It is for people who
// look; GetService and Select are for who calls. A reader that is slow misses
// what was in between, and gets what is.
//
// A node that has deregistered is shown as Terminating until its pod is gone, if it
// was registered when the observation began: a pod keeps no trace of it.
//
// With an error come the nodes as they were known last, none at first: the API
// server cannot be followed now. The sequence goes on, and the next element says
// what has changed. It ends with ctx, or with a last error when the registry
// cannot be used or is closed.
//
// One LIST and one WATCH of pods serve all who observe; they begin with the
// first and end with the last. Needs the verbs list and watch on pods.
func (r *Registry) Observe(ctx context.Context) iter.Seq2[[]Instance, error] {
	return func(yield func([]Instance, error) bool) {
		f, err := r.join()
		if err != nil {
			yield(nil, fmt.Errorf("observing services: %w", err))
			return
		}
		defer r.leave(f)
		for {
			changed := f.changed.next()
			if ctx.Err() != nil {
				return
			}
			if !f.alive() {
				yield(nil, errors.New("observing services: the registry was closed, or sent to another address"))
				return
			}
			if nodes, known, err := f.all(); known || err != nil {
				if err != nil {
					err = fmt.Errorf("observing services: %w", err)
				}
				if !yield(nodes, err) {
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}
}

// LastContact returns when the API server last sent anything to this registry, with a
// resolution of 10 s while nothing changes: then the answers to HTTP/2 pings count. It
// is zero before the first answer.
func (r *Registry) LastContact() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.api == nil {
		return time.Time{}
	}
	return r.api.lastRead()
}

// join returns the follower that all who observe share, started for the first.
func (r *Registry) join() (*follower, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, err := r.connected()
	if err != nil {
		return nil, err
	}
	if r.observed == nil {
		r.observed = newFollower(a, metav1.ListOptions{LabelSelector: typeLabel + "=" + typeValue}, "")
		r.observed.remembers = true
		r.observed.start()
	}
	r.observers++
	return r.observed, nil
}

// leave stops the follower with the last who observes.
func (r *Registry) leave(f *follower) {
	r.mu.Lock()
	last := false
	if r.observed == f { // else detach has stopped it
		if r.observers--; r.observers == 0 {
			r.observed, last = nil, true
		}
	}
	r.mu.Unlock()
	if last {
		f.stop()
	}
}

// all is what is known of every node, if anything is, and why that may be old.
func (f *follower) all() (nodes []Instance, known bool, err error) {
	select {
	case <-f.synced:
		known = true
	default:
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.pods {
		state := NotReady
		switch {
		case e.going:
			state = Terminating
		case e.ready:
			state = Ready
		case e.unseen:
			state = NodeUnreachable
		}
		for i, n := range slices.Concat(e.nodes, e.left) {
			if i >= len(e.nodes) {
				state = Terminating
			}
			nodes = append(nodes, Instance{Service: n.service.Name, Version: n.service.Version, Endpoints: n.service.Endpoints,
				Address: n.Address, Pod: n.pod, Created: e.created, State: state})
		}
	}
	slices.SortFunc(nodes, func(a, b Instance) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), a.Created.Compare(b.Created), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Address, b.Address))
	})
	return nodes, known, f.err
}

// remember keeps the nodes that have deregistered until they register again, or
// their pod is gone, and returns those to forget.
func (e *entry) remember(were []*node) (forget []*node) {
	all := slices.Concat(e.left, were)
	e.left = nil
	for _, n := range all {
		if _, again := e.raw[n.mark]; again {
			forget = append(forget, n)
		} else {
			e.left = append(e.left, n)
		}
	}
	return forget
}
