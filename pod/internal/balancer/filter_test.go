package balancer

import (
	"slices"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
)

// Whatever order a filter returns, and whether it returns the nodes that it got or copies, the choice
// keeps its statistics, and only for a node that is unchanged.
func TestFilterFindsInstances(t *testing.T) {
	r, inf := newStaticRegistry(t, 20)
	s := newSelector(r)
	for name, c := range map[string]struct {
		filter selector.Filter
		known  bool
		left   int
	}{
		"all": {func(all []*registry.Service) []*registry.Service { return all }, true, 20},
		"in reverse": {func(all []*registry.Service) []*registry.Service {
			slices.Reverse(all)
			for _, v := range all {
				slices.Reverse(v.Nodes)
			}
			return all
		}, true, 20},
		"copies": {func(all []*registry.Service) []*registry.Service {
			for _, v := range all {
				for i, n := range v.Nodes {
					c := *n
					v.Nodes[i] = &c
				}
			}
			return all
		}, true, 20},
		"the last of each version": {func(all []*registry.Service) []*registry.Service {
			for _, v := range all {
				v.Nodes = v.Nodes[len(v.Nodes)-1:]
			}
			return all
		}, true, 2},
		"with other addresses": {func(all []*registry.Service) []*registry.Service {
			for _, v := range all {
				for _, n := range v.Nodes {
					n.Address += "1"
				}
			}
			return all
		}, false, 20},
	} {
		seen := map[string]bool{}
		for range 400 {
			choice := chooseOne(t, s, selector.WithFilter(c.filter))
			seen[choice.Node.Address] = true
			if (choice.Instance != nil) != c.known || c.known && !slices.Contains(inf.Snapshot().Instances, choice.Instance) {
				t.Fatalf("%s: %+v", name, choice)
			}
			choice.Done(outcome.Answered, nil)
		}
		if len(seen) != c.left {
			t.Errorf("%s: %d instances were chosen, want %d", name, len(seen), c.left)
		}
	}
	inf.Replace(readyPodsAt(t, "10.0.0.9:1"))
	if c := chooseOne(t, s, selector.WithFilter(selector.FilterVersion("v0"))); c.Node.Address != "10.0.0.9:1" {
		t.Errorf("after a change of the instances: %v", c.Node)
	}
	inf.Replace(nil)
	if _, err := s.Choose("greeter", []selector.SelectOption{selector.WithFilter(selector.FilterVersion("v0"))}, nil); err != selector.ErrNotFound {
		t.Errorf("without instances: %v", err)
	}
}

func TestFilterAllocatesLittle(t *testing.T) {
	r, _ := newStaticRegistry(t, 5000)
	s := newSelector(r)
	opts := []selector.SelectOption{selector.WithFilter(selector.FilterVersion("v1"))}
	if a := testing.AllocsPerRun(10, func() {
		c, err := s.Choose("greeter", opts, nil)
		if err != nil {
			t.Fatal(err)
		}
		c.Done(outcome.Answered, nil)
	}); a > 30 {
		t.Errorf("%v allocations among 5,000 instances, want at most 30", a)
	}
}

// BenchmarkFilter compares a choice by version with that of go-micro's selector.
func BenchmarkFilter(b *testing.B) {
	const n = 5000
	r, inf := newStaticRegistry(b, n)
	opts := []selector.SelectOption{selector.WithFilter(selector.FilterVersion("v1"))}
	b.Run("pod", func(b *testing.B) {
		s := newSelector(r)
		b.ReportAllocs()
		for b.Loop() {
			c, err := s.Choose("greeter", opts, nil)
			if err != nil {
				b.Fatal(err)
			}
			c.Done(outcome.Answered, nil)
		}
	})
	b.Run("go-micro", func(b *testing.B) {
		m := memory.NewRegistry()
		for _, v := range inf.Snapshot().Services() {
			if err := m.Register(v); err != nil {
				b.Fatal(err)
			}
		}
		s := selector.NewSelector(selector.Registry(m))
		defer func() { _ = s.Close() }()
		b.ReportAllocs()
		for b.Loop() {
			next, err := s.Select("greeter", opts...)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := next(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
