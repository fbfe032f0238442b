package pod

import (
	"slices"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/micro/go-micro/v2/registry"
)

// choosersOf returns the choosers of a registry of this package, and nil for any other.
func choosersOf(r registry.Registry) *balancer.Choosers {
	if r, ok := r.(*Registry); ok {
		return r.choosers
	}
	return nil
}

// addClient makes Close of the registry close a client.
func (r *Registry) addClient(c *Client) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clients = append(r.clients, c)
}

func (r *Registry) removeClient(c *Client) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clients = slices.DeleteFunc(r.clients, func(other *Client) bool { return other == c })
}
