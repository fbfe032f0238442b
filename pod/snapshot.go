package pod

import (
	"maps"
	"sync"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/micro/go-micro/v2/registry"
)

// instance is one instance of a service, on one pod. The instance and the statistics of
// its calls exist as long as the pod's annotation stays the same.
type instance struct {
	registry.Node                   // what callers receive; nothing writes to it
	service       *registry.Service // without its nodes; shared by all instances of one version
	version       *sharedVersion    // the podTable's entry for service, which counts its uses
	pod           string
	annotation    string // key of the annotation that describes the instance

	calls     callstats.Stats
	departure departure
}

// snapshot is the routable instances of an informer at one moment. It is immutable.
type snapshot struct{ instances []*instance }

// services returns the snapshot in go-micro's form, with one service for each version,
// as the plugin does. Callers may write to the result, which is a copy.
func (s *snapshot) services() []*registry.Service {
	byVersion := map[string]*registry.Service{}
	var all []*registry.Service
	for _, i := range s.instances {
		key := i.service.Name + "\x00" + i.service.Version
		merged := byVersion[key]
		if merged == nil {
			merged = copyService(i.service)
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

// instanceIndex finds the instance to which a node that a caller received belongs,
// without the name of the service. Its zero value is an empty index. A nil index
// ignores what is added.
type instanceIndex struct{ byNode sync.Map } // *registry.Node -> *instance

func (x *instanceIndex) add(i *instance) {
	if x != nil {
		x.byNode.Store(&i.Node, i)
	}
}

func (x *instanceIndex) remove(i *instance) {
	if x != nil {
		x.byNode.Delete(&i.Node)
	}
}

// find returns the instance of a node, and nil if the index does not hold the node.
func (x *instanceIndex) find(n *registry.Node) *instance {
	if i, ok := x.byNode.Load(n); ok {
		return i.(*instance)
	}
	return nil
}
