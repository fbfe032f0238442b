package discovery

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/micro/go-micro/v2/registry"
)

// Instance is one instance of a service, on one pod. The instance and the statistics of
// its calls exist as long as the pod's annotation stays the same.
type Instance struct {
	Calls         callstats.Stats   // first, so that it begins a cache line
	registry.Node                   // what callers receive; nothing writes to it
	Service       *registry.Service // without its nodes and endpoints; shared by all instances of one version
	Pod           string

	version    *sharedVersion // the table's entry for Service, which counts its uses
	annotation string         // key of the annotation that describes the instance
	departure  departure

	entry *podEntry // nil if the instance is on no pod of a table; with it the size is 256, so that all instances begin at a cache line
}

// PodUID returns the uid of the instance's pod, "" if it is not known.
func (i *Instance) PodUID() string {
	if i.entry == nil {
		return ""
	}
	return string(i.entry.uid)
}

// Zone returns the zone of the instance's pod, "" if it is not known.
func (i *Instance) Zone() string {
	if i.entry == nil {
		return ""
	}
	return i.entry.zone
}

// endpointText returns the endpoints of the instance, nil if they are not kept.
func (i *Instance) endpointText() *endpointText {
	if i.version == nil {
		return nil
	}
	return i.version.endpoints
}

// NewInstance returns an instance of a service, which leaves when leave is called. The
// service of the instance is s without its nodes and endpoints.
func NewInstance(n registry.Node, s *registry.Service, pod string) (i *Instance, leave func()) {
	i = &Instance{Node: n, Service: s, Pod: pod}
	return i, i.leave
}

// departure is what happens when an instance leaves. A context for each instance would do the same, but take 100 bytes
// more, and 700 more for each function.
type departure struct {
	happened atomic.Bool
	mu       sync.Mutex
	then     *afterLeave // to call; the last one first
}

type afterLeave struct {
	call func()
	next *afterLeave
}

// leave calls the functions of AfterLeave, each in a goroutine of its own.
func (i *Instance) leave() {
	d := &i.departure
	d.mu.Lock()
	defer d.mu.Unlock()
	d.happened.Store(true)
	for ; d.then != nil; d.then = d.then.next {
		go d.then.call()
	}
}

// AfterLeave calls f in a goroutine of its own when the instance has left the registry, at
// once if it has left already, unless stop is called before. stop reports whether it has kept f from being called.
func (i *Instance) AfterLeave(f func()) (stop func() bool) {
	d, added := &i.departure, &afterLeave{call: f}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.happened.Load() {
		go f()
		return func() bool { return false }
	}
	added.next, d.then = d.then, added
	return func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		for at := &d.then; *at != nil; at = &(*at).next {
			if *at == added {
				*at = added.next
				return true
			}
		}
		return false
	}
}

// HasLeft reports whether the instance has left for good. One that is only not ready has not.
func (i *Instance) HasLeft() bool { return i.departure.happened.Load() }

// Snapshot is the routable instances of an informer at one moment. It is immutable. The
// contract is at Informer.
type Snapshot struct{ Instances []*Instance }

// Services returns the snapshot in go-micro's form, with one service for each version,
// as the plugin does: metadata and endpoints are those of the first pod by name. Callers may write
// to the result, which is a copy.
func (s *Snapshot) Services() []*registry.Service {
	type version struct {
		first *Instance
		nodes []*registry.Node
	}
	byVersion := map[string]*version{}
	var keys []string
	for _, i := range s.Instances {
		key := i.Service.Name + "\x00" + i.Service.Version
		v := byVersion[key]
		if v == nil {
			v = &version{first: i}
			byVersion[key] = v
			keys = append(keys, key)
		}
		if i.Pod < v.first.Pod {
			v.first = i
		}
		v.nodes = append(v.nodes, &registry.Node{Id: i.Id, Address: i.Address, Metadata: copyMetadata(i.Metadata)})
	}
	all := make([]*registry.Service, len(keys))
	for n, key := range keys {
		v := byVersion[key]
		c := *v.first.Service
		c.Metadata, c.Nodes, c.Endpoints = copyMetadata(c.Metadata), v.nodes, copyEndpoints(v.first.endpointText().endpoints())
		all[n] = &c
	}
	return all
}

func copyEndpoints(all []*registry.Endpoint) []*registry.Endpoint {
	c := make([]*registry.Endpoint, len(all))
	for i, e := range all {
		c[i] = &registry.Endpoint{Name: e.Name, Request: copyValue(e.Request), Response: copyValue(e.Response), Metadata: copyMetadata(e.Metadata)}
	}
	return c
}

// copyMetadata returns a copy that is never nil, since callers may write to it.
func copyMetadata(m map[string]string) map[string]string {
	c := make(map[string]string, len(m))
	maps.Copy(c, m)
	return c
}

func copyValue(v *registry.Value) *registry.Value {
	if v == nil {
		return nil
	}
	c := &registry.Value{Name: v.Name, Type: v.Type}
	for _, w := range v.Values {
		c.Values = append(c.Values, copyValue(w))
	}
	return c
}

// index finds the instance to which a node that a caller received belongs, without the
// name of the service. Its zero value is an empty index. The calls of pod.Client read it only through wrappers.
type index struct {
	mu     sync.RWMutex
	byNode map[*registry.Node]*Instance
}

func (x *index) add(i *Instance) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.byNode == nil {
		x.byNode = map[*registry.Node]*Instance{}
	}
	x.byNode[&i.Node] = i
}

func (x *index) remove(i *Instance) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.byNode, &i.Node)
}

// find returns the instance of a node, and nil if the index does not hold the node.
func (x *index) find(n *registry.Node) *Instance {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.byNode[n]
}
