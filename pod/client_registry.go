package pod

import "slices"

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
