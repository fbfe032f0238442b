package balancer

import (
	"slices"
	"sync"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/micro/go-micro/v2/registry"
)

// filterable is a snapshot in the form that filters and strategies take. It is made once for each
// snapshot. It is immutable.
type filterable struct {
	snapshot  *discovery.Snapshot
	services  []*registry.Service
	nodes     []registry.Node       // of all services, in their order
	instances []*discovery.Instance // of the nodes
	byKey     func() map[nodeKey]*discovery.Instance
}

// nodeKey identifies a node. The id alone does not: with a fixed server.Id all instances have the same.
type nodeKey struct{ id, address string }

// filterable returns the present snapshot for filters.
func (s *serviceChooser) filterable() *filterable {
	snapshot := s.informer.Snapshot()
	if f := s.forFilters.Load(); f != nil && f.snapshot == snapshot {
		return f
	}
	s.filtering.Lock() // calls that wait for the same work do not repeat it
	defer s.filtering.Unlock()
	if f := s.forFilters.Load(); f != nil && f.snapshot == snapshot {
		return f
	}
	f := &filterable{snapshot: snapshot, services: snapshot.Services()}
	f.byKey = sync.OnceValue(func() map[nodeKey]*discovery.Instance {
		all := make(map[nodeKey]*discovery.Instance, len(snapshot.Instances))
		for _, i := range snapshot.Instances {
			all[nodeKey{i.Id, i.Address}] = i
		}
		return all
	})
	for _, v := range f.services {
		for _, n := range v.Nodes {
			f.nodes = append(f.nodes, *n)
			f.instances = append(f.instances, f.byKey()[nodeKey{n.Id, n.Address}])
		}
	}
	s.forFilters.Store(f)
	return f
}

// copies returns copies of the services, whose nodes are those of the second result. Filters may
// write to them, but not to their metadata, which is shared as in the copies of go-micro's cache.
func (f *filterable) copies() ([]*registry.Service, []registry.Node) {
	services, versions := make([]*registry.Service, len(f.services)), make([]registry.Service, len(f.services))
	nodes, pointers := slices.Clone(f.nodes), make([]*registry.Node, len(f.nodes))
	for i := range nodes {
		pointers[i] = &nodes[i]
	}
	n := 0
	for i, v := range f.services {
		first := n
		n += len(v.Nodes)
		versions[i] = *v
		versions[i].Nodes, versions[i].Endpoints = pointers[first:n:n], make([]*registry.Endpoint, len(v.Endpoints))
		for k, e := range v.Endpoints {
			endpoint := *e
			versions[i].Endpoints[k] = &endpoint
		}
		services[i] = &versions[i]
	}
	return services, nodes
}

// instancesOf returns the instances of the services that filters have left of copies. A node that a
// filter has added or changed becomes an instance of which nothing is known.
//
// Filters usually keep the order, so that one walk along the copies finds all nodes.
func (f *filterable) instancesOf(services []*registry.Service, copies []registry.Node) []*discovery.Instance {
	count := 0
	for _, v := range services {
		count += len(v.Nodes)
	}
	all := make([]*discovery.Instance, 0, count)
	next := 0
	for _, v := range services {
		for _, n := range v.Nodes {
			for next < len(copies) && &copies[next] != n {
				next++
			}
			var i *discovery.Instance
			if next == len(copies) {
				i = f.byKey()[nodeKey{n.Id, n.Address}]
			} else if original := &f.nodes[next]; original.Id == n.Id && original.Address == n.Address {
				i = f.instances[next]
			}
			if i == nil {
				i, _ = discovery.NewInstance(*n, v, "") // nothing releases it
			}
			all = append(all, i)
		}
	}
	return all
}
