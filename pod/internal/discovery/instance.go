package discovery

import (
	"context"
	"maps"
	"sync"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/micro/go-micro/v2/registry"
)

// Instance is one instance of a service, on one pod. The instance and the statistics of
// its calls exist as long as the pod's annotation stays the same.
type Instance struct {
	registry.Node                   // what callers receive; nothing writes to it
	Service       *registry.Service // without its nodes; shared by all instances of one version
	Pod           string
	Calls         callstats.Stats

	version    *sharedVersion // the table's entry for Service, which counts its uses
	annotation string         // key of the annotation that describes the instance
	registered context.Context
	leave      context.CancelFunc // ends registered
}

// NewInstance returns an instance of a service, which leaves when leave is called. The
// service of the instance is s without its nodes.
func NewInstance(n registry.Node, s *registry.Service, pod string) (i *Instance, leave func()) {
	i = &Instance{Node: n, Service: s, Pod: pod}
	i.registered, i.leave = context.WithCancel(context.Background())
	return i, i.leave
}

// AfterLeave calls f in a goroutine of its own when the instance has left the registry, at
// once if it has left already, unless stop is called before.
func (i *Instance) AfterLeave(f func()) (stop func() bool) { return context.AfterFunc(i.registered, f) }

// Snapshot is the routable instances of an informer at one moment. It is immutable. The
// contract is at Informer.
type Snapshot struct{ Instances []*Instance }

// Services returns the snapshot in go-micro's form, with one service for each version,
// as the plugin does. Callers may write to the result, which is a copy.
func (s *Snapshot) Services() []*registry.Service {
	byVersion := map[string]*registry.Service{}
	var all []*registry.Service
	for _, i := range s.Instances {
		key := i.Service.Name + "\x00" + i.Service.Version
		merged := byVersion[key]
		if merged == nil {
			merged = copyService(i.Service)
			byVersion[key] = merged
			all = append(all, merged)
		}
		merged.Nodes = append(merged.Nodes, &registry.Node{Id: i.Id, Address: i.Address, Metadata: copyMetadata(i.Metadata)})
	}
	return all
}

func copyService(s *registry.Service) *registry.Service {
	c := *s
	c.Metadata, c.Nodes, c.Endpoints = copyMetadata(s.Metadata), nil, make([]*registry.Endpoint, len(s.Endpoints))
	for i, e := range s.Endpoints {
		c.Endpoints[i] = &registry.Endpoint{Name: e.Name, Request: copyValue(e.Request), Response: copyValue(e.Response), Metadata: copyMetadata(e.Metadata)}
	}
	return &c
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
// name of the service. Its zero value is an empty index.
type index struct{ byNode sync.Map } // *registry.Node -> *Instance

func (x *index) add(i *Instance) { x.byNode.Store(&i.Node, i) }

func (x *index) remove(i *Instance) { x.byNode.Delete(&i.Node) }

// find returns the instance of a node, and nil if the index does not hold the node.
func (x *index) find(n *registry.Node) *Instance {
	if i, ok := x.byNode.Load(n); ok {
		return i.(*Instance)
	}
	return nil
}
