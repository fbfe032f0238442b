package discovery

import (
	"cmp"
	"slices"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

// State says whether an instance can receive calls, and if not, why.
type State string

// The states of an instance; package pod explains them.
const (
	Ready           State = "ready"
	NotReady        State = "not ready"
	Terminating     State = "terminating"
	NodeUnreachable State = "node unreachable"
)

// Observed is one instance of a service in whatever state.
type Observed struct {
	Service *registry.Service // without its nodes and endpoints; shared by all instances of one version
	Address string
	Pod     string
	Zone    string    // of the pod; "" if it is not known
	Created time.Time // creation of the pod
	State   State
	Reason  string // why the instance cannot receive calls; "" if it is Ready

	endpoints *endpointText
}

// Endpoints returns the endpoints of the instance, which all instances of the version share: do not
// modify them.
func (o Observed) Endpoints() []*registry.Endpoint { return o.endpoints.endpoints() }

// Deregistered instances that Observe shows until their pod is gone: of one pod, and of all
// pods. The limits bound what a compromised pod can make a display hold.
const (
	maxDeregisteredPerPod = 16
	maxDeregistered       = 1024
)

// allServices is the table of all services. It also knows why a pod cannot receive calls, and
// keeps deregistered instances until their pod is gone.
type allServices struct {
	table
	reasons      map[string]string      // by pod
	deregistered map[string][]*Instance // by pod
}

func newAllServices(x *index, l podmeta.Limits) *allServices {
	return &allServices{table: newTable("", x, l), reasons: map[string]string{}, deregistered: map[string][]*Instance{}}
}

// update also keeps the instances that the pod has deregistered, until the pod registers
// them again.
func (t *allServices) update(p *corev1.Pod) (changed bool) {
	var before []*Instance
	if t.holds(p) {
		before = slices.Concat(t.deregistered[p.Name], t.pods[p.Name].instances)
	}
	changed = t.table.update(p)
	t.setDeregistered(p.Name, slices.DeleteFunc(before, func(i *Instance) bool { return t.pods[p.Name].has(i.annotation) }))
	if reason := reasonOf(p); reason != t.reasons[p.Name] {
		t.reasons[p.Name], changed = reason, true
	}
	return changed
}

// setDeregistered stores the latest deregistered instances of a pod, as many as the limits allow,
// without the parts that a hostile pod could make large.
func (t *allServices) setDeregistered(pod string, instances []*Instance) {
	delete(t.deregistered, pod)
	others := 0
	for _, d := range t.deregistered {
		others += len(d)
	}
	room := max(0, min(len(instances), maxDeregisteredPerPod, maxDeregistered-others))
	for _, i := range instances[len(instances)-room:] {
		t.deregistered[pod] = append(t.deregistered[pod], &Instance{Node: registry.Node{Id: i.Id, Address: i.Address}, Pod: i.Pod, annotation: i.annotation,
			Service: &registry.Service{Name: i.Service.Name, Version: i.Service.Version}})
	}
}

func (t *allServices) remove(name string) {
	t.table.remove(name)
	delete(t.reasons, name)
	delete(t.deregistered, name)
}

// observed returns all instances by service, oldest pod first.
func (t *allServices) observed() (all []Observed) {
	for name, e := range t.pods {
		add := func(i *Instance, s State, reason string) {
			all = append(all, Observed{Service: i.Service, Address: i.Address, Pod: name, Zone: e.zone, Created: time.Unix(e.created, 0), State: s, Reason: reason, endpoints: i.endpointText()})
		}
		for _, i := range e.instances {
			add(i, e.state(), t.reasons[name])
		}
		for _, i := range t.deregistered[name] {
			add(i, Terminating, cmp.Or(t.reasons[name], "the instance has deregistered"))
		}
	}
	slices.SortFunc(all, func(a, b Observed) int {
		return cmp.Or(cmp.Compare(a.Service.Name, b.Service.Name), a.Created.Compare(b.Created), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Address, b.Address))
	})
	return all
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

// overview is the informer of all services, with its users. The first user starts it, and the
// last one stops it.
type overview struct {
	*Informer
	all   *allServices // the informer's table
	users int          // guarded by the lock of Services; calls of List and Watch stay users until Stop
}

// observed returns all instances in every state. A non-nil error means that they may be out of
// date. synced is false before the first LIST.
func (o *overview) observed() (all []Observed, synced bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all.observed(), o.isSynced(), o.err
}
