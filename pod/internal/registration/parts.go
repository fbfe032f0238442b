package registration

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/registry"
)

// fewerEndpoints is the remedy for a registration that is too large.
const fewerEndpoints = "nearly all of them describe the messages of the endpoints: pass server.InternalHandler(true) when you register handlers, which then serve all calls and are not listed as endpoints"

// parts are what was registered under one name, in the order of their first nodes. go-micro's HTTP
// broker registers each topic of a process by itself, as one node of the service micro.http.broker.
// An annotation holds one service, so it holds the nodes of all parts.
type parts []*registry.Service

// with returns the parts and a service, whose nodes replace those with the same ids.
func (p parts) with(s *registry.Service) (parts, error) {
	all := append(p.without(s), s)
	for _, other := range all {
		if other.Version != s.Version {
			return nil, fmt.Errorf("it is registered with version %q too, and a pod can register one version of a service: use one version, or one queue for all subscribers of go-micro's HTTP broker", other.Version)
		}
	}
	slices.SortStableFunc(all, func(a, b *registry.Service) int { return cmp.Compare(a.Nodes[0].Id, b.Nodes[0].Id) })
	return all, nil
}

// without returns the parts without the nodes of a service.
func (p parts) without(s *registry.Service) (left parts) {
	for _, part := range p {
		c := *part
		c.Nodes = slices.DeleteFunc(slices.Clone(part.Nodes), func(n *registry.Node) bool {
			return slices.ContainsFunc(s.Nodes, func(m *registry.Node) bool { return m.Id == n.Id })
		})
		if len(c.Nodes) > 0 {
			left = append(left, &c)
		}
	}
	return left
}

// merged returns the service with the nodes of all parts. Its metadata and endpoints are those of the
// first part that has any.
func (p parts) merged() *registry.Service {
	c := *p[0]
	c.Nodes = slices.Clone(c.Nodes)
	for _, part := range p[1:] {
		c.Nodes = append(c.Nodes, part.Nodes...)
		if len(c.Metadata) == 0 {
			c.Metadata = part.Metadata
		}
		if len(c.Endpoints) == 0 {
			c.Endpoints = part.Endpoints
		}
	}
	return &c
}

// prepare returns the desired state of a service with these parts.
func (r *registrar) prepare(s *registry.Service, all parts) (*registration, error) {
	d := r.desiredRegistration(s.Name)
	if len(all) == 0 {
		return prepareRemoval(r.plugin, s, d)
	}
	s = all.merged()
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	if d != nil && d.json == string(text) {
		return d, nil
	}
	d = &registration{json: string(text)}
	if err = json.Unmarshal(text, &d.service); err != nil {
		return nil, err
	}
	// Deregister must work even if the process has no file descriptor left then, so
	// register also captures what the plugin's Deregister writes.
	captured, err := capture(r.plugin,
		func(plugin registry.Registry) error { return plugin.Register(s) },
		func(plugin registry.Registry) error { return plugin.Deregister(s) })
	if err != nil {
		return nil, err
	}
	d.metadata, d.removal = captured[0], captured[1]
	if n := d.metadata.AnnotationBytes(); n > podmeta.MaxPodBytes {
		return nil, fmt.Errorf("the registration has %d bytes, and Kubernetes allows %d for all annotations of a pod; %s", n, podmeta.MaxPodBytes, fewerEndpoints)
	}
	return d, nil
}

// prepareRemoval returns the desired absence of a service. d is its desired state until now, nil if
// this process has not registered the service.
func prepareRemoval(plugin Plugin, s *registry.Service, d *registration) (*registration, error) {
	var removal podmeta.Metadata
	if d != nil {
		removal = d.removal
	}
	if removal.Empty() {
		captured, err := capture(plugin, func(plugin registry.Registry) error { return plugin.Deregister(s) })
		if err != nil {
			return nil, err
		}
		removal = captured[0]
	}
	return &registration{metadata: removal, removal: removal}, nil
}
