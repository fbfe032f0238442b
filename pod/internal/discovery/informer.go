package discovery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podwatch"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

// Informer keeps the snapshot of one service, or of all services, up to date. It runs one goroutine from start to stop.
//
// The snapshots that Snapshot returns one after the other have these properties:
//
//   - Order: each is a state of the pods, and no snapshot is older than the one before. They
//     are a subsequence of the states: states that follow each other quickly, or that fall into an
//     outage of the watch, may be left out. Pods change independently: two pods
//     in a snapshot need not have been in their states at the same moment.
//   - Staleness: a snapshot is published within microseconds of the arrival of the change
//     that it shows. While the API server cannot be reached, the last snapshot stays; it
//     never empties. The time since the API server last sent anything bounds its age. Before the first LIST
//     the snapshot is empty; Wait waits for the first LIST.
//   - Identity: an instance is the same *Instance in all snapshots until the annotation, the
//     IPs, the zone or the uid of its pod change. When it becomes not ready it leaves the snapshots but
//     is not released: it returns as the same *Instance, with its statistics. AfterLeave runs
//     after it has been released, which is before the first snapshot without it.
//   - Others: with Settings.Others, a snapshot also has the instances that only the other registry
//     knows. An instance that a pod has registered, in whatever state, comes from the pods.
//   - Sharing: a snapshot and everything that it refers to is immutable, except the
//     statistics of calls, which synchronize themselves.
//
// Snapshot takes no lock and costs a load of a pointer.
type Informer struct {
	podwatch.Watch
	api     API
	current atomic.Pointer[Snapshot]
	changed broadcast.Broadcast // notified of a new snapshot or error, and when the informer stops
	synced  chan struct{}       // closed after the first LIST

	mu     sync.Mutex
	pods   podTable
	others *following // of Settings.Others; nil if there are none
	unread bool       // nobody reads snapshots, so that publish makes none
	err    error      // of the last attempt to list and watch; nil if it succeeded
}

// podTable is the pods that an informer holds: a table of one service, or allServices. The informer's lock guards it.
type podTable interface {
	trim(p *corev1.Pod) *corev1.Pod
	dropUnused()                         // after remove, and after the updates with the pods that trim has returned
	update(p *corev1.Pod) (changed bool) // stores the current state of a pod
	holds(p *corev1.Pod) bool
	remove(name string) // of a pod that the table holds
	entries() map[string]*podEntry
	setOthers(service string, all []*registry.Service) (changed bool) // stores what another registry knows of a service
	onlyOthers() []*Instance                                          // that no pod has registered
	dropOthers()
	listed() // a LIST has succeeded
	routable() []*Instance
}

var _ apiserver.Handler[*corev1.Pod] = (*Informer)(nil)

func newInformer(pods podTable) *Informer {
	i := &Informer{synced: make(chan struct{}), pods: pods}
	i.current.Store(&Snapshot{})
	return i
}

// start begins to watch the pods that have the label. The log calls them by the given name.
func (i *Informer) start(api API, label, name string) {
	i.api = api
	i.Watch.Start(api, apiserver.Selector{Labels: label}, name, i.trim, i)
}

// trim returns a pod with only what the informer reads.
func (i *Informer) trim(p *corev1.Pod) *corev1.Pod {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.pods.trim(p)
}

// stop ends the goroutine and waits for it. All instances leave; the last snapshot stays readable.
func (i *Informer) stop() {
	i.Watch.Stop()
	if i.others != nil {
		i.others.stop()
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pods.dropOthers()
	for name := range i.pods.entries() {
		i.pods.remove(name)
	}
	i.pods.dropUnused()
	i.changed.Notify()
}

// Snapshot returns the current snapshot.
func (i *Informer) Snapshot() *Snapshot { return i.current.Load() }

// Wait waits for the first LIST, for at most limit or until ctx ends, and returns an error as soon as the LIST fails. After the first LIST
// it returns at once.
func (i *Informer) Wait(ctx context.Context, limit time.Duration) error {
	select {
	case <-i.synced:
		return nil
	default:
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		changed := i.changed.Wait()
		if err := i.firstError(); err != nil {
			return err
		}
		if !i.Running() {
			return errors.New("using the registry: it is closed")
		}
		select {
		case <-i.synced:
			return nil
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			return fmt.Errorf("list pods in namespace %q: the API server at %s has not answered for %s", i.api.Namespace, i.api.Host, limit)
		}
	}
}

// firstError returns why the first LIST has not succeeded yet, nil if it has.
func (i *Informer) firstError() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.isSynced() {
		return nil
	}
	return i.err
}

func (i *Informer) isSynced() bool {
	select {
	case <-i.synced:
		return true
	default:
		return false
	}
}

// Update receives the current state of a pod.
func (i *Informer) Update(p *corev1.Pod) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.pods.update(p) {
		i.publish()
	}
	i.pods.dropUnused()
}

// Delete receives a pod that is gone.
func (i *Informer) Delete(p *corev1.Pod) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.pods.holds(p) {
		i.pods.remove(p.Name)
		i.pods.dropUnused()
		i.publish()
	}
}

// Replace receives the result of a LIST.
func (i *Informer) Replace(pods []*corev1.Pod) {
	i.mu.Lock()
	defer i.mu.Unlock()
	listed := map[string]bool{}
	for _, p := range pods {
		listed[p.Name] = true
	}
	for name := range i.pods.entries() {
		if !listed[name] {
			i.pods.remove(name)
		}
	}
	for _, p := range pods {
		i.pods.update(p)
	}
	i.pods.dropUnused()
	i.pods.listed()
	i.publish()
	if !i.isSynced() {
		close(i.synced)
	}
}

// StateChanged receives the error if listing or watching fails, and nil when it works again.
func (i *Informer) StateChanged(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.err = err
	i.changed.Notify()
}

// publish stores the table's routable instances as the snapshot, unless nobody reads it. The time grows with the number of pods. The
// caller holds i.mu.
func (i *Informer) publish() {
	if !i.unread {
		i.current.Store(&Snapshot{i.pods.routable()})
	}
	i.changed.Notify()
}

// read makes the informer publish snapshots from now on, the first one at once.
func (i *Informer) read() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.unread {
		i.unread = false
		i.publish()
	}
}
