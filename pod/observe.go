package pod

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podwatch"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

// State says whether an instance can receive calls, and if not, why.
type State string

// The states of an instance. GetService, Watch and clients find only Ready instances, and
// also NodeUnreachable instances while these outnumber the Ready ones of the service.
const (
	Ready           State = "ready"
	NotReady        State = "not ready"        // the pod is not running, or its readiness probe fails
	Terminating     State = "terminating"      // the pod is being deleted, or the instance has deregistered
	NodeUnreachable State = "node unreachable" // the pod was ready when its Kubernetes node stopped reporting
)

// Instance is one instance of a service, as Observe returns it.
type Instance struct {
	Service, Version string
	Endpoints        []*registry.Endpoint // shared with other observers: do not modify
	Address          string               // host:port
	Pod              string
	Created          time.Time // creation of the pod, to the second
	State            State
	Reason           string // why the instance cannot receive calls, from the status of the pod; "" if it is Ready
}

// Deregistered instances that Observe shows until their pod is gone: of one pod, and of all
// pods. The limits bound what a compromised pod can make a display hold.
const (
	maxDeregisteredPerPod = 16
	maxDeregistered       = 1024
)

// observer holds all instances of all services in every state, and keeps deregistered
// instances until their pod is gone. It runs one goroutine from start to stop.
type observer struct {
	podwatch.Watch
	changed broadcast.Broadcast // notified when the instances, the error or running have changed

	mu           sync.Mutex
	table        podTable
	deregistered map[string][]*instance // by pod
	synced       bool                   // the first LIST has succeeded
	err          error                  // of the last attempt to list and watch; nil if it succeeded
}

var _ apiserver.Handler[*corev1.Pod] = (*observer)(nil)

func newObserver() *observer {
	return &observer{table: newPodTable("", nil), deregistered: map[string][]*instance{}}
}

func (o *observer) start(conn *apiserver.Connection) {
	o.Watch.Start(conn, apiserver.Selector{Labels: podmeta.TypeLabel + "=" + podmeta.TypeValue}, "all services", trimmed, o)
}

// stop ends the goroutine and waits for it.
func (o *observer) stop() {
	o.Watch.Stop()
	o.changed.Notify()
}

// instances returns all instances by service, oldest pod first. A non-nil error means
// that they may be out of date. synced is false before the first LIST.
func (o *observer) instances() (all []Instance, synced bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for name, e := range o.table.pods {
		for _, i := range e.instances {
			all = append(all, i.observed(e, e.state(), e.reason))
		}
		for _, i := range o.deregistered[name] {
			all = append(all, i.observed(e, Terminating, cmp.Or(e.reason, "the instance has deregistered")))
		}
	}
	slices.SortFunc(all, func(a, b Instance) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), a.Created.Compare(b.Created), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Address, b.Address))
	})
	return all, o.synced, o.err
}

func (i *instance) observed(e *podEntry, state State, reason string) Instance {
	return Instance{Service: i.service.Name, Version: i.service.Version, Endpoints: i.service.Endpoints,
		Address: i.Address, Pod: i.pod, Created: e.created, State: state, Reason: reason}
}

func (e *podEntry) state() State {
	switch {
	case e.terminating:
		return Terminating
	case e.ready:
		return Ready
	case e.nodeUnreachable:
		return NodeUnreachable
	default:
		return NotReady
	}
}

// Update receives the current state of a pod.
func (o *observer) Update(p *corev1.Pod) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.update(p) {
		o.changed.Notify()
	}
}

// update stores a pod. It also keeps the instances that the pod has deregistered, until
// the pod registers them again.
func (o *observer) update(p *corev1.Pod) (changed bool) {
	var before []*instance
	if o.table.holds(p) {
		before = slices.Concat(o.deregistered[p.Name], o.table.pods[p.Name].instances)
	}
	changed = o.table.update(p)
	registered := o.table.pods[p.Name].annotations
	o.deregistered[p.Name] = slices.DeleteFunc(before, func(i *instance) bool {
		_, ok := registered[i.annotation]
		return ok
	})
	others := -len(o.deregistered[p.Name])
	for _, d := range o.deregistered {
		others += len(d)
	}
	o.deregistered[p.Name] = boundDeregistered(o.deregistered[p.Name], others)
	if len(o.deregistered[p.Name]) == 0 {
		delete(o.deregistered, p.Name)
	}
	return changed
}

// boundDeregistered returns the latest deregistered instances of a pod, as many as the
// limits allow, without the parts that a hostile pod could make large. others is the
// number of deregistered instances of all other pods.
func boundDeregistered(instances []*instance, others int) []*instance {
	room := max(0, min(len(instances), maxDeregisteredPerPod, maxDeregistered-others))
	var kept []*instance
	for _, i := range instances[len(instances)-room:] {
		kept = append(kept, &instance{Node: registry.Node{Id: i.Id, Address: i.Address}, pod: i.pod, annotation: i.annotation,
			service: &registry.Service{Name: i.service.Name, Version: i.service.Version}})
	}
	return kept
}

// Delete receives a pod that is gone.
func (o *observer) Delete(p *corev1.Pod) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.table.holds(p) {
		o.table.remove(p.Name)
		delete(o.deregistered, p.Name)
		o.changed.Notify()
	}
}

// Replace receives the result of a LIST.
func (o *observer) Replace(pods []*corev1.Pod) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.table.removeExcept(pods)
	for _, p := range pods {
		o.update(p)
	}
	for name := range o.deregistered {
		if o.table.pods[name] == nil {
			delete(o.deregistered, name)
		}
	}
	o.synced = true
	o.changed.Notify()
}

// StateChanged receives the error if listing or watching fails, and nil when it works again.
func (o *observer) StateChanged(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = err
	o.changed.Notify()
}

// observers are the running calls of Observe, which share one observer. The first call
// starts it, and the last one stops it.
type observers struct {
	mu     sync.Mutex
	shared *observer // nil while no call of Observe runs
	count  int
}

func (s *observers) join(conn *apiserver.Connection, limits podmeta.Limits, apiError func(string, error)) *observer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared == nil {
		s.shared = newObserver()
		s.shared.table.limits, s.shared.APIError = limits, apiError
		s.shared.start(conn)
	}
	s.count++
	return s.shared
}

func (s *observers) leave(o *observer) {
	s.mu.Lock()
	last := false
	if s.shared == o { // otherwise drop has removed it
		if s.count--; s.count == 0 {
			s.shared, last = nil, true
		}
	}
	s.mu.Unlock()
	if last {
		o.stop()
	}
}

// drop removes the observer and returns it, or nil; the caller must stop it.
func (s *observers) drop() *observer {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.shared
	s.shared, s.count = nil, 0
	return o
}
