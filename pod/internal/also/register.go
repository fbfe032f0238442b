package also

import (
	"maps"
	"slices"
	"time"

	"github.com/micro/go-micro/v2/registry"
)

// entry is the desired registration of one node, or its absence. It is replaced, not changed, by
// Register and Deregister, so that the worker notices a change during its call.
type entry struct {
	service *registry.Service // with this one node
	options []registry.RegisterOption
	wanted  bool
	due     bool // to be sent

	confirmed bool // the old registry has confirmed the registration
	failures  int  // in a row
}

func keyOf(s *registry.Service, n *registry.Node) string {
	return s.Name + "\x00" + s.Version + "\x00" + n.Id
}

// Register makes the registration desired, and sends it in the background with the options, such as the
// time to live. go-micro's server calls it again before that time ends.
func (r *Registry) Register(s *registry.Service, opts ...registry.RegisterOption) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	for _, n := range s.Nodes {
		one := *s
		one.Nodes = []*registry.Node{n}
		e := &entry{service: &one, options: opts, wanted: true, due: true}
		if before := r.entries[keyOf(s, n)]; before != nil && before.wanted {
			e.confirmed, e.failures = before.confirmed, before.failures
		}
		r.entries[keyOf(s, n)] = e
	}
	r.sendSoon()
}

// Deregister makes the absence of what Register was given desired, and sends it in the background. Wait
// waits for it.
func (r *Registry) Deregister(s *registry.Service) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range s.Nodes {
		r.deregister(keyOf(s, n))
	}
}

// Leave deregisters the services whose names the function accepts.
func (r *Registry) Leave(leaves func(name string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, e := range r.entries {
		if leaves(e.service.Name) {
			r.deregister(key)
		}
	}
}

// deregister is Deregister of one node. The caller holds r.mu.
func (r *Registry) deregister(key string) {
	if e := r.entries[key]; e != nil && e.wanted {
		r.entries[key] = &entry{service: e.service, due: true}
		r.sendSoon()
	}
}

// Wait waits until all deregistrations are confirmed, for at most limit.
func (r *Registry) Wait(limit time.Duration) {
	r.await(limit, func(e *entry) bool { return !e.wanted })
}

// Registered reports whether the old registry has confirmed the registration of a service.
func (r *Registry) Registered(service string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := false
	for _, e := range r.entries {
		if e.service.Name == service {
			found = true
			if !e.confirmed {
				return false
			}
		}
	}
	return found
}

// await waits until no entry is pending, for at most limit.
func (r *Registry) await(limit time.Duration, pending func(*entry) bool) {
	if limit <= 0 {
		return
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		r.mu.Lock()
		changed := r.changed.Wait()
		found := slices.ContainsFunc(slices.Collect(maps.Values(r.entries)), pending)
		r.mu.Unlock()
		if !found {
			return
		}
		select {
		case <-changed:
		case <-t.C:
			return
		case <-r.ctx.Done():
			return
		}
	}
}

// sendSoon wakes the worker, which the first call starts. The caller holds r.mu.
func (r *Registry) sendSoon() {
	if !r.started && r.ctx.Err() == nil {
		r.started = true
		r.worker.Go(r.send)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// send is the worker: it sends what is due, one call after the other.
func (r *Registry) send() {
	for r.ctx.Err() == nil {
		var retry <-chan time.Time
		if failures := r.sendDue(); failures > 0 {
			retry = time.After(backoff(failures))
		}
		select {
		case <-r.wake:
		case <-retry:
		case <-r.ctx.Done():
		}
	}
}

// sendDue sends every entry that is due once, and returns the largest number of failures in a row.
func (r *Registry) sendDue() (failures int) {
	r.mu.Lock()
	keys := slices.Sorted(maps.Keys(r.entries))
	r.mu.Unlock()
	for _, key := range keys {
		r.mu.Lock()
		e := r.entries[key]
		r.mu.Unlock()
		if e == nil || !e.due {
			continue
		}
		register, deregister := "Registering service \""+e.service.Name+"\" in", "Deregistering service \""+e.service.Name+"\" from"
		operation := register
		if !e.wanted {
			operation = deregister
			r.forget(register)
		}
		_, err := call(r.ctx, func() (struct{}, error) {
			if e.wanted {
				return struct{}{}, r.old.Register(e.service, e.options...)
			}
			return struct{}{}, r.old.Deregister(e.service)
		}, func(err error) { r.report(operation, err) })
		if r.ctx.Err() != nil {
			return 0
		}
		r.report(operation, err)
		failures = max(failures, r.sent(key, e, err))
	}
	return failures
}

// sent records the result of sending e, and returns the number of failures in a row. If the entry was
// replaced meanwhile, its successor is still due.
func (r *Registry) sent(key string, e *entry, err error) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.changed.Notify()
	now := r.entries[key]
	if err != nil {
		now.failures++
		now.confirmed = false
		return now.failures
	}
	now.failures = 0
	switch {
	case !e.wanted && now == e:
		delete(r.entries, key)
	case e.wanted:
		now.confirmed = now.wanted
		now.due = now != e
	}
	return 0
}
