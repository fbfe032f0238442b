package pod

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	corev1 "k8s.io/api/core/v1"
)

// informer keeps a snapshot of one service, or of all services, current. It runs
// one goroutine from start to stop.
type informer struct {
	podWatch
	conn    *apiserver.Connection
	current atomic.Pointer[snapshot]
	changed broadcast     // there is a new snapshot or error, or the informer has stopped
	synced  chan struct{} // closed after the first LIST

	mu    sync.Mutex
	table podTable
	err   error // of the last attempt to list and watch; nil while it works
}

var _ apiserver.Handler[*corev1.Pod] = (*informer)(nil)

// newInformer makes an informer of a service, or of all services when the name is
// empty. Its instances are in the index until it stops.
func newInformer(service string, index *instanceIndex) *informer {
	i := &informer{synced: make(chan struct{}), table: newPodTable(service, index)}
	i.current.Store(&snapshot{})
	return i
}

func (i *informer) start(conn *apiserver.Connection) {
	i.conn = conn
	selector, name := apiserver.Selector{Labels: typeLabel + "=" + typeValue}, "all services"
	if service := i.table.service; service != "" {
		selector.Labels, name = selectorPrefix+labelName(service)+"="+typeValue, fmt.Sprintf("service %q", service)
	}
	i.podWatch.start(conn, selector, name, i)
}

// stop ends the goroutine and waits for it. The last snapshot stays.
func (i *informer) stop() {
	i.podWatch.stop()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.table.removeExcept(nil)
	i.changed.notify()
}

// snapshot returns what is known now.
func (i *informer) snapshot() *snapshot { return i.current.Load() }

// wait waits for the first LIST, for at most limit. It returns an error as soon as
// the reason is known why there is none yet. Afterwards it returns at once.
func (i *informer) wait(limit time.Duration) error {
	select {
	case <-i.synced:
		return nil
	default:
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		changed := i.changed.wait()
		if err := i.lastError(); err != nil {
			return err
		}
		if !i.running() {
			return errors.New("using the registry: it is closed")
		}
		select {
		case <-i.synced:
			return nil
		case <-changed:
		case <-t.C:
			return fmt.Errorf("list pods in namespace %q: the API server at %s has not answered for %s", i.conn.Namespace, i.conn.Host, limit)
		}
	}
}

// lastError returns why there was no LIST yet.
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

// Update takes in a pod as it is now.
func (i *informer) Update(p *corev1.Pod) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.table.update(p) {
		i.publish()
	}
}

// Delete takes in that a pod is gone.
func (i *informer) Delete(p *corev1.Pod) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.table.holds(p) {
		i.table.remove(p.Name)
		i.publish()
	}
}

// Replace takes in the result of a LIST.
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

// StateChanged notes why the pods cannot be listed and watched, for wait.
func (i *informer) StateChanged(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.err = err
	i.changed.notify()
}

// publish makes the table's routable instances the snapshot.
//
// An instance whose Kubernetes node is unreachable counts as routable while these
// outnumber the ready instances of its service. It is then more likely that the
// cluster has lost sight of its nodes, as after a long outage of the API server, than
// that most of them are lost; a call finds out. Otherwise all calls would go to the
// few pods whose node reports first.
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
	i.changed.notify()
}
