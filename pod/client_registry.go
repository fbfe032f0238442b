package pod

import (
	"context"
	"slices"
)

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

// await waits until the instances of a service are known. Only the first call for a service
// waits; it ends with the context.
func (s *Selector) await(ctx context.Context, service string) error {
	state := s.state.Load()
	r, ok := state.options.Registry.(*Registry)
	if p := state.pools[service]; !ok || p != nil && p.informer.Running() {
		return nil
	}
	i, err := r.informer(service)
	if err != nil {
		return err
	}
	return i.waitContext(ctx, r.timeout())
}
