package pod

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podwatch"
	corev1 "k8s.io/api/core/v1"
)

// informer keeps the snapshot of one service, or of all services, up to date. It runs
// one goroutine from start to stop.
type informer struct {
	podwatch.Watch
	conn    *apiserver.Connection
	current atomic.Pointer[snapshot]
	changed broadcast.Broadcast // notified of a new snapshot or error, and when the informer stops
	synced  chan struct{}       // closed after the first LIST

	mu    sync.Mutex
	table podTable
	err   error // of the last attempt to list and watch; nil if it succeeded
}

var _ apiserver.Handler[*corev1.Pod] = (*informer)(nil)

// newInformer makes an informer of a service, or of all services when the name is
// empty. The index holds the informer's instances until it stops.
func newInformer(service string, index *instanceIndex) *informer {
	i := &informer{synced: make(chan struct{}), table: newPodTable(service, index)}
	i.current.Store(&snapshot{})
	return i
}

func (i *informer) start(conn *apiserver.Connection) {
	i.conn = conn
	selector, name := apiserver.Selector{Labels: podmeta.TypeLabel + "=" + podmeta.TypeValue}, "all services"
	if service := i.table.service; service != "" {
		selector.Labels, name = podmeta.SelectorPrefix+podmeta.LabelName(service)+"="+podmeta.TypeValue, fmt.Sprintf("service %q", service)
	}
	i.Watch.Start(conn, selector, name, trimmed, i)
}

// stop ends the goroutine and waits for it. The last snapshot stays readable.
func (i *informer) stop() {
	i.Watch.Stop()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.table.removeExcept(nil)
	i.changed.Notify()
}

// snapshot returns the current snapshot.
func (i *informer) snapshot() *snapshot { return i.current.Load() }

// wait waits for the first LIST, for at most limit, and returns an error as soon as the
// LIST fails. After the first LIST it returns at once.
func (i *informer) wait(limit time.Duration) error { return i.waitContext(context.Background(), limit) }

// waitContext is wait, which also ends with the context.
func (i *informer) waitContext(ctx context.Context, limit time.Duration) error {
	select {
	case <-i.synced:
		return nil
	default:
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		changed := i.changed.Wait()
		if err := i.lastError(); err != nil {
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
			return fmt.Errorf("list pods in namespace %q: the API server at %s has not answered for %s", i.conn.Namespace, i.conn.Host, limit)
		}
	}
}

// lastError returns why the first LIST has not succeeded yet, nil if it has.
func (i *informer) lastError() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	select {
	case <-i.synced:
		return nil
	default:
		return i.err
	}
}

// Update receives the current state of a pod.
func (i *informer) Update(p *corev1.Pod) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.table.update(p) {
		i.publish()
	}
}

// Delete receives a pod that is gone.
func (i *informer) Delete(p *corev1.Pod) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.table.holds(p) {
		i.table.remove(p.Name)
		i.publish()
	}
}

// Replace receives the result of a LIST.
func (i *informer) Replace(pods []*corev1.Pod) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.table.removeExcept(pods)
	for _, p := range pods {
		i.table.update(p)
	}
	i.publish()
	select {
	case <-i.synced:
	default:
		close(i.synced)
	}
}

// StateChanged records for wait why the pods cannot be listed and watched.
func (i *informer) StateChanged(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.err = err
	i.changed.Notify()
}

// publish stores the table's routable instances as the snapshot.
//
// Instances on unreachable Kubernetes nodes count as routable while they outnumber the
// ready instances of their service. It is then more likely that no node could report,
// as after a long outage of the API server, than that most nodes are lost; a call to a
// lost instance fails and is retried. Otherwise all calls would go to the few pods
// whose node reports first.
func (i *informer) publish() {
	type count struct{ ready, unreachable int }
	counts := map[string]count{} // by service
	for _, e := range i.table.pods {
		for _, instance := range e.instances {
			c := counts[instance.service.Name]
			if e.ready {
				c.ready++
			} else if e.nodeUnreachable {
				c.unreachable++
			}
			counts[instance.service.Name] = c
		}
	}
	s := &snapshot{instances: make([]*instance, 0, len(i.table.pods))}
	for _, e := range i.table.pods {
		for _, instance := range e.instances {
			c := counts[instance.service.Name]
			if e.ready || e.nodeUnreachable && c.unreachable > c.ready {
				s.instances = append(s.instances, instance)
			}
		}
	}
	i.current.Store(s)
	i.changed.Notify()
}
