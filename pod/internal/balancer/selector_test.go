package balancer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	corev1 "k8s.io/api/core/v1"
)

// Choose chooses an instance as the first attempt of a call does, or as one after another attempt.
func (s *Selector) Choose(service string, opts []selector.SelectOption, previous *discovery.Instance) (Choice, error) {
	choose, err := s.Chooser(context.Background(), service, opts)
	if err != nil {
		return Choice{}, err
	}
	return choose(Attempt{Method: Method{Name: "Greeter.Hello"}, Previous: previous})
}

// chooseOne chooses an instance of the greeter.
func chooseOne(t testing.TB, s *Selector, opts ...selector.SelectOption) Choice {
	t.Helper()
	c, err := s.Choose("greeter", opts, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const refusedText = `connection error: desc = "transport: Error while dialing: dial tcp 10.0.0.1:1: connect: connection refused"`

var (
	timeout = errors.Timeout("go.micro.client", "context deadline exceeded")
	refused = errors.InternalServerError("go.micro.client", refusedText)
)

func TestSelectorPicksTheLessBusyOfTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newStaticRegistry(t, 4)
		s := newSelector(r)
		chooseOne(t, s).Done(outcome.Answered, nil) // tells how long the method usually takes
		stuck := chooseOne(t, s)                    // its call hangs
		counts := map[string]int{}
		for range 4000 {
			c := chooseOne(t, s)
			counts[c.Node.Address]++
			c.Done(outcome.Answered, nil)
		}
		for address, n := range counts {
			if address == stuck.Node.Address && n > 4000/16*2 { // expected 1 of 16, when both draws take it
				t.Errorf("the busy instance was picked %d times of 4000", n)
			}
			if address != stuck.Node.Address && (n < 800 || n > 1800) {
				t.Errorf("instance %s was picked %d times of 4000", address, n)
			}
		}
	})
}

func TestSelectorRetriesOnAnotherInstance(t *testing.T) {
	for range 100 {
		r, _ := newStaticRegistry(t, 2)
		s := newSelector(r)
		first := chooseOne(t, s)
		first.Done(outcome.LostConnection, refused)
		if second := chooseOne(t, s); second.Node.Address == first.Node.Address {
			t.Fatal("the retry went to the instance that failed")
		}
	}
}

func TestSelectorHonoursFiltersAndStrategies(t *testing.T) {
	r, inf := newStaticRegistry(t, 4)
	s := newSelector(r)
	for range 50 {
		c := chooseOne(t, s, selector.WithFilter(selector.FilterVersion("v1")))
		if c.Instance == nil || c.Instance.Service.Version != "v1" {
			t.Fatalf("the filter for v1 left %v", c.Node)
		}
		c.Done(outcome.Answered, nil)
	}
	if _, err := s.Choose("greeter", []selector.SelectOption{selector.WithFilter(selector.FilterVersion("v9"))}, nil); err != selector.ErrNoneAvailable {
		t.Errorf("a filter that leaves no instance: %v", err)
	}
	overwrite := func(all []*registry.Service) []*registry.Service { // writes to its argument, which must be a copy
		for _, v := range all {
			v.Nodes[0].Address, v.Version = "overwritten", "overwritten"
		}
		return all
	}
	chooseOne(t, s, selector.WithFilter(overwrite))
	for _, n := range inf.Snapshot().Instances {
		if n.Address == "overwritten" || n.Service.Version == "overwritten" {
			t.Error("a filter wrote to the snapshot of the registry")
		}
	}
	only := func([]*registry.Service) selector.Next {
		return func() (*registry.Node, error) { return &registry.Node{Address: "mine"}, nil }
	}
	if c := chooseOne(t, s, selector.WithStrategy(only)); c.Node.Address != "mine" {
		t.Errorf("the strategy of the call was not used: %v", c.Node)
	}
	broken := func([]*registry.Service) selector.Next {
		return func() (*registry.Node, error) { return nil, errors.New("greeter", "no node", 1) }
	}
	if _, err := s.Choose("greeter", []selector.SelectOption{selector.WithStrategy(broken)}, nil); err == nil {
		t.Error("the error of a strategy is lost")
	}
	if err := s.Init(selector.SetStrategy(only)); err != nil {
		t.Fatal(err)
	}
	if c := chooseOne(t, s); c.Node.Address != "mine" {
		t.Errorf("the strategy of the selector was not used: %v", c.Node)
	}
}

// A node that a filter adds is called, without statistics.
func TestSelectorTakesNodeOfFilter(t *testing.T) {
	r, _ := newStaticRegistry(t, 1)
	s := newSelector(r)
	added := func([]*registry.Service) []*registry.Service {
		return []*registry.Service{{Name: "greeter", Nodes: []*registry.Node{{Id: "x", Address: "y:1"}}}}
	}
	for range 3 {
		c := chooseOne(t, s, selector.WithFilter(added))
		if c.Node.Address != "y:1" || c.Instance != nil {
			t.Errorf("%+v", c)
		}
		c.AsStream().Done(outcome.LostConnection, refused)
	}
	if got := s.Instances("greeter"); len(got) != 1 || got[0].InFlight != 0 || got[0].Failures != 0 {
		t.Errorf("the calls count for the instance of the registry: %+v", got)
	}
}

// With server.Id, or MICRO_SERVER_ID in the Deployment, all instances have the same id.
func TestSelectorFiltersInstancesWithTheSameID(t *testing.T) {
	r, inf := newStaticRegistry(t, 0)
	var pods []*corev1.Pod
	for i := range 4 {
		p, address := readyPod(t, i), fmt.Sprint("10.0.0.1:", i+1)
		p.Annotations[podmeta.AnnotationPrefix+"greeter"] = fmt.Sprintf(`{"name":"greeter","version":"v1","nodes":[{"id":"greeter-fixed","address":%q}]}`, address)
		pods = append(pods, p)
	}
	inf.Replace(pods)
	s := newSelector(r)
	seen := map[string]int{}
	for range 400 {
		c := chooseOne(t, s, selector.WithFilter(selector.FilterVersion("v1")))
		seen[c.Node.Address]++
		if c.Instance == nil {
			t.Fatalf("the selector keeps no statistics for %v", c.Node)
		}
		c.Done(outcome.Answered, nil)
	}
	if len(seen) != 4 {
		t.Errorf("picks by address: %v, want 4 addresses", seen)
	}
}

func TestSelectorWithRegistryOfAnotherPackage(t *testing.T) {
	m := memory.NewRegistry()
	s := newSelector(m)
	if _, err := s.Choose("greeter", nil, nil); err != selector.ErrNotFound {
		t.Errorf("choose: %v", err)
	}
	for i, id := range []string{"a", "b"} {
		if err := m.Register(greeterService(id, fmt.Sprint("10.0.0.1:", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]int{}
	for range 100 {
		c := chooseOne(t, s)
		seen[c.Node.Address]++
		c.Done(outcome.Answered, nil)
		if c.Instance != nil {
			t.Fatalf("%+v", c)
		}
	}
	if seen["10.0.0.1:1"] < 20 || seen["10.0.0.1:2"] < 20 || len(seen) != 2 {
		t.Errorf("picks by address: %v", seen)
	}
	only := selector.WithFilter(func(all []*registry.Service) []*registry.Service {
		all[0].Nodes = all[0].Nodes[:1]
		return all
	})
	if c := chooseOne(t, s, only); c.Node == nil {
		t.Error("no node is left by the filter")
	}
	if s.Instances("greeter") != nil {
		t.Error("instances are known")
	}
	r, _ := newStaticRegistry(t, 1)
	if err := s.Init(selector.Registry(r)); err != nil { // as micro.Registry does
		t.Fatal(err)
	}
	if got := chooseOne(t, s); got.Instance == nil {
		t.Error("the old registry is still used")
	}
	if err := s.Close(); err != nil || s.String() != "pod" {
		t.Error(err, s)
	}
}

// A caller of Options().Selector, such as a selector that wraps it, picks from the same
// choosers. Its calls do not count, whether or not it calls Mark.
func TestSelectorPicksForOtherClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 3)
		s := newSelector(r)
		var picked int
		r.observe(Events{Picked: func(string, string, string) { picked++ }})
		if _, err := s.Select("greeter", selector.WithFilter(selector.FilterVersion("v9"))); err != selector.ErrNoneAvailable {
			t.Errorf("a filter that leaves no instance: %v", err)
		}
		bad := chooseOne(t, s)
		bad.Done(outcome.LostConnection, refused)
		for name, opts := range map[string][]selector.SelectOption{"fast": nil, "with a filter": {selector.WithFilter(func(all []*registry.Service) []*registry.Service { return all })}} {
			seen := map[*registry.Node]int{}
			for range 100 {
				next, err := s.Select("greeter", opts...)
				if err != nil {
					t.Fatal(err)
				}
				n, err := next()
				if err != nil || r.services.InstanceOf(n) == nil {
					t.Fatalf("%s: %v, %v", name, n, err)
				}
				seen[n]++
				s.Mark("greeter", n, refused)
			}
			if len(seen) != 2 || seen[bad.Node] > 0 {
				t.Errorf("%s: %v picked of 3 instances, one of which is ejected", name, seen)
			}
		}
		s.Reset("greeter")
		for _, i := range s.Instances("greeter") {
			if i.InFlight != 0 || (i.EjectedFor > 0) != (i.Address == bad.Node.Address) {
				t.Errorf("%+v", i)
			}
		}
		if picked != 201 {
			t.Errorf("%d picks, want 201", picked)
		}
		inf.Replace(nil)
		if _, err := s.Select("greeter"); err != selector.ErrNotFound {
			t.Errorf("without instances: %v", err)
		}
	})
}

func TestSelectorPickAllocatesNothing(t *testing.T) {
	for _, n := range []int{1, 10, 10000} {
		for name, events := range map[string]Events{"without events": {}, "with events": {Picked: func(string, string, string) {}}} {
			r, _ := newStaticRegistry(t, n)
			r.observe(events)
			s := newSelector(r)
			chooseOne(t, s)
			if a := testing.AllocsPerRun(1000, func() {
				next, err := s.Select("greeter")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := next(); err != nil {
					t.Fatal(err)
				}
			}); a != 0 {
				t.Errorf("Select and Next: %v allocations at %d instances, %s", a, n, name)
			}
			if a := testing.AllocsPerRun(1000, func() {
				c, err := s.Choose("greeter", nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				c.Done(outcome.Answered, nil)
			}); a != 0 {
				t.Errorf("choose and done: %v allocations at %d instances, %s", a, n, name)
			}
		}
	}
}

func TestSelectorReturnsErrorAfterClose(t *testing.T) {
	r, _ := newStaticRegistry(t, 1)
	s := newSelector(r)
	chooseOne(t, s)
	r.close()
	if _, err := s.Choose("greeter", nil, nil); err == nil {
		t.Error("choose uses a closed registry")
	}
	if _, err := s.Select("greeter"); err == nil {
		t.Error("Select uses a closed registry")
	}
}

func TestSelectorChooseCountsCallsUntilDone(t *testing.T) {
	r, inf := newStaticRegistry(t, 2)
	s := newSelector(r)
	if _, err := s.Choose("greeter", []selector.SelectOption{selector.WithFilter(selector.FilterVersion("v9"))}, nil); err != selector.ErrNoneAvailable {
		t.Errorf("a filter that leaves no instance: %v", err)
	}
	for _, opts := range [][]selector.SelectOption{nil, nil, {selector.WithFilter(selector.FilterVersion("v1"))}} {
		c, err := s.Choose("greeter", opts, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.Instance == nil || c.Node != &c.Instance.Node || c.Instance.Calls.Report(callstats.Clock()).InFlight != 1 {
			t.Errorf("with the options %v: %+v", opts, c)
		}
		c.Done(outcome.Answered, nil)
		if n := c.Instance.Calls.Report(callstats.Clock()).InFlight; n != 0 {
			t.Errorf("%d calls in flight after done", n)
		}
	}
	c, err := s.Choose("greeter", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Done(outcome.LostConnection, refused)
	if !c.Instance.Calls.Ejected() {
		t.Error("the instance whose connection failed is not ejected")
	}
	inf.Replace(nil)
	if _, err := s.Choose("greeter", nil, nil); err != selector.ErrNotFound {
		t.Errorf("without instances: %v", err)
	}
	m := memory.NewRegistry()
	if err := m.Register(greeterService("a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	foreign, err := newSelector(m).Choose("greeter", nil, nil)
	if err != nil || foreign.Instance != nil || foreign.Node.Address != "10.0.0.1:1" {
		t.Errorf("from a registry of another package: %+v, %v", foreign, err)
	}
	foreign.Done(outcome.Answered, nil)
}

// A retry passes over the instance that was called before unless the others are ejected, and
// Picked reports only the instance that is called.
func TestSelectorChoosesOtherInstance(t *testing.T) {
	for _, n := range []int{1, 2, 3, 30} {
		for name, opts := range map[string][]selector.SelectOption{"fast": nil, "with a filter": {selector.WithFilter(func(all []*registry.Service) []*registry.Service { return all })}} {
			r, inf := newStaticRegistry(t, n)
			picked := 0
			r.observe(Events{Picked: func(string, string, string) { picked++ }})
			s := newSelector(r)
			first, err := s.Choose("greeter", opts, nil)
			if err != nil {
				t.Fatal(err)
			}
			first.Done(outcome.Answered, nil)
			for _, ejectOthers := range []bool{false, true} {
				for _, i := range inf.Snapshot().Instances {
					if ejectOthers && i != first.Instance {
						i.Calls.Eject(callstats.Clock(), true)
					}
				}
				for range 20 {
					before := picked
					c, err := s.Choose("greeter", opts, first.Instance)
					if err != nil || (c.Instance == first.Instance) != (n == 1 || ejectOthers) || picked != before+1 {
						t.Fatalf("%s, %d instances, others ejected: %v: chose the same instance: %v, %d picks, %v", name, n, ejectOthers, c.Instance == first.Instance, picked-before, err)
					}
					c.Done(outcome.Answered, nil)
				}
			}
		}
	}
}

// A registry with a new address has a new informer, which the next choice uses.
func TestChooserFollowsItsInformer(t *testing.T) {
	r, _ := newStaticRegistry(t, 1)
	s := newSelector(r)
	chooseOne(t, s)
	r.services.Stop()
	if r.choosers.find("greeter") != nil {
		t.Error("the chooser of an informer that has stopped is still used")
	}
	i, err := r.services.Synced(t.Context(), "greeter")
	if err != nil {
		t.Fatal(err)
	}
	i.Replace(readyPodsAt(t, "10.0.0.7:1"))
	if c := chooseOne(t, s); c.Node.Address != "10.0.0.7:1" {
		t.Errorf("chose %v", c.Node)
	}
	if c := r.choosers.find("greeter"); c == nil || c.informer != i {
		t.Error("the new informer has no chooser")
	}
}

// Of two instances that are both ejected, the second draw takes the other one.
func TestDrawTakesAnotherInstanceWhenAllAreEjected(t *testing.T) {
	r, inf := newStaticRegistry(t, 2)
	s := newSelector(r)
	chooseOne(t, s)
	now, instances := callstats.Clock(), inf.Snapshot().Instances
	for _, i := range instances {
		i.Calls.Eject(now, true)
	}
	for range 100 {
		if i, _ := r.choosers.find("greeter").draw(instances, instances, rand.Uint32(), instances[0], nil, false, now); i != instances[1] {
			t.Fatal("the same instance was drawn twice")
		}
	}
}
