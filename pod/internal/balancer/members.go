package balancer

import (
	"slices"
	"sync/atomic"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/subset"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/zone"
)

// members are the instances of a service among which a client chooses: all of them, or a subset. While
// no instance of the subset is available, the client chooses among all, so that the loss of the whole
// subset costs no calls. Its zero value has all, without zones. It is safe for concurrent use and lock-free.
type members struct {
	subset subset.Subset
	zones  zones
	latest atomic.Pointer[chosen] // of a snapshot
	called atomic.Pointer[chosen] // that the last choice was made among; nil if without a subset and zones
}

// chosen are the members of a snapshot: first the instances of the own zone, then the others. It is immutable.
type chosen struct {
	first  **discovery.Instance // identifies the snapshot
	all    []*discovery.Instance
	local  int    // number of instances of the own zone; 0 to choose in all zones alike
	zone   string // the own zone
	zoneOf func(*discovery.Instance) string
}

// side returns the instances of the own zone, or the others.
func (c *chosen) side(own bool) []*discovery.Instance {
	if own {
		return c.all[:c.local]
	}
	return c.all[c.local:]
}

func (c *chosen) isLocal(i *discovery.Instance) bool { return c.zoneOf(i) == c.zone }

// zones know the zone of this process, and of each instance; "" if it is not known.
type zones struct {
	own     func() string // may be nil
	of      func(*discovery.Instance) string
	ignored bool // by the choice
}

// preferred returns the zone that calls should stay in, "" if there is none.
func (z zones) preferred() string {
	if z.own == nil || z.ignored {
		return ""
	}
	return z.own()
}

// relation returns where an instance is as events name it.
func (z zones) relation(i *discovery.Instance) string {
	if z.own == nil {
		return ""
	}
	own := z.own()
	if own == "" {
		return ""
	}
	switch z.of(i) {
	case own:
		return events.SameZone
	case "":
		return ""
	}
	return events.OtherZone
}

// of returns the instances of a snapshot among which a call chooses, and zoned if it should prefer the own
// zone, nil if not. They are made once for each snapshot, by the first call.
func (m *members) of(snapshot []*discovery.Instance, now int64) (all []*discovery.Instance, zoned *chosen) {
	own := m.zones.preferred()
	if m.subset.Size == 0 && own == "" {
		if m.called.Load() != nil { // the zone was known
			m.called.Store(nil)
		}
		return snapshot, nil
	}
	c := m.latest.Load()
	if c == nil || c.first != &snapshot[0] || c.zone != own {
		c = m.choose(snapshot, own)
		m.latest.Store(c)
	}
	return m.use(c, snapshot, now)
}

// ofFiltered is of for the instances that filters have left.
func (m *members) ofFiltered(left []*discovery.Instance, now int64) (all []*discovery.Instance, zoned *chosen) {
	own := m.zones.preferred()
	if m.subset.Size == 0 && own == "" {
		return left, nil
	}
	return m.use(m.choose(left, own), left, now)
}

func (m *members) choose(from []*discovery.Instance, own string) *chosen {
	all, local := zone.Split(subset.Choose(m.subset, from, addressOf), own, m.zones.of)
	return &chosen{&from[0], all, local, own, m.zones.of}
}

// use returns what a call chooses among: the chosen instances, or all instances if
// none of a subset is available. Usually the first one that it looks at is available.
func (m *members) use(c *chosen, all []*discovery.Instance, now int64) ([]*discovery.Instance, *chosen) {
	if m.called.Load() != c {
		m.called.Store(c)
	}
	if m.subset.Size != 0 && !slices.ContainsFunc(c.all, func(i *discovery.Instance) bool { return i.Calls.Available(now, false) }) {
		return all, nil
	}
	if c.local == 0 {
		return c.all, nil
	}
	return c.all, c
}

// comparedWith returns the instances with which a suspect is compared: those of the last choice, some of
// which may have left since. While calls stay in the own zone, an instance is compared with those on its
// side: the other side gets few calls, so that its last answers may be older than a fault of all. If the own zone
// alone fails, its calls soon go to all zones.
func (m *members) comparedWith(suspect *discovery.Instance, all []*discovery.Instance, staying bool) []*discovery.Instance {
	c := m.called.Load()
	switch {
	case c == nil:
		return all
	case c.local == 0 || !staying:
		return c.all
	}
	return c.side(c.isLocal(suspect))
}

// present returns the instances of which at most half are ejected: all of them, or those of the subset
// of the last choice that are still among them.
func (m *members) present(all []*discovery.Instance) []*discovery.Instance {
	called := m.called.Load()
	if called == nil || m.subset.Size == 0 {
		return all
	}
	return slices.DeleteFunc(slices.Clone(called.all), func(i *discovery.Instance) bool { return !slices.Contains(all, i) })
}

func addressOf(i *discovery.Instance) string { return i.Address }
