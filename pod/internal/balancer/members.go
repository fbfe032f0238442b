package balancer

import (
	"slices"
	"sync/atomic"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/subset"
)

// members are the instances of a service among which a client chooses: all of them, or a subset. While
// no instance of the subset is available, the client chooses among all, so that the loss of the whole
// subset, such as that of a zone, costs no calls. Its zero value has all. It is safe for concurrent use and lock-free.
type members struct {
	subset subset.Subset
	latest atomic.Pointer[chosen]                // of a snapshot
	called atomic.Pointer[[]*discovery.Instance] // that the last choice was made among
}

// chosen is the subset of a snapshot. It is immutable.
type chosen struct {
	first     **discovery.Instance // identifies the snapshot
	instances []*discovery.Instance
}

// of returns the instances of a snapshot among which a call chooses. The subset is made once for each
// snapshot, by the first call.
func (m *members) of(snapshot []*discovery.Instance, now int64) []*discovery.Instance {
	if m.subset.Size == 0 {
		return snapshot
	}
	c := m.latest.Load()
	if c == nil || c.first != &snapshot[0] {
		c = &chosen{&snapshot[0], subset.Choose(m.subset, snapshot, addressOf)}
		m.latest.Store(c)
	}
	if m.called.Load() != &c.instances {
		m.called.Store(&c.instances)
	}
	return availableOr(c.instances, snapshot, now)
}

// ofFiltered is of for the instances that filters have left.
func (m *members) ofFiltered(left []*discovery.Instance, now int64) []*discovery.Instance {
	if m.subset.Size == 0 {
		return left
	}
	instances := subset.Choose(m.subset, left, addressOf)
	m.called.Store(&instances)
	return availableOr(instances, left, now)
}

// last returns the instances that are compared with one another: all of them, or the subset of the last
// choice, some of which may have left since.
func (m *members) last(all []*discovery.Instance) []*discovery.Instance {
	if called := m.called.Load(); called != nil {
		return *called
	}
	return all
}

// present returns the instances of which at most half are ejected: all of them, or those of the subset
// of the last choice that are still among them.
func (m *members) present(all []*discovery.Instance) []*discovery.Instance {
	called := m.called.Load()
	if called == nil {
		return all
	}
	return slices.DeleteFunc(slices.Clone(*called), func(i *discovery.Instance) bool { return !slices.Contains(all, i) })
}

// availableOr returns a subset if one of its instances is available, which usually is the first, and
// otherwise all.
func availableOr(subset, all []*discovery.Instance, now int64) []*discovery.Instance {
	for _, i := range subset {
		if i.Calls.Available(now, false) {
			return subset
		}
	}
	return all
}

func addressOf(i *discovery.Instance) string { return i.Address }
