package balancer

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/client/selector"
	corev1 "k8s.io/api/core/v1"
)

// calledBy makes so many calls that each instance among which the selector chooses very likely gets one,
// and returns the addresses.
func calledBy(t testing.TB, s *Selector, o outcome.Outcome, opts ...selector.SelectOption) (addresses []string) {
	t.Helper()
	seen := map[string]bool{}
	for range 400 {
		c := chooseOne(t, s, opts...)
		if !seen[c.Node.Address] {
			seen[c.Node.Address] = true
			addresses = append(addresses, c.Node.Address)
		}
		c.Done(o, refused)
	}
	slices.Sort(addresses)
	return addresses
}

// without returns the elements of a that are not in b.
func without(a, b []string) (rest []string) {
	for _, s := range a {
		if !slices.Contains(b, s) {
			rest = append(rest, s)
		}
	}
	return rest
}

func TestSubsetIsCalledAlone(t *testing.T) {
	r, inf := newStaticRegistry(t, 100)
	r.subset = 10
	s := newSelector(r)
	before := calledBy(t, s, outcome.Answered)
	if n := len(s.Instances("greeter")); len(before) != 10 || n != 10 {
		t.Fatalf("%d instances are called and %d are shown, want 10", len(before), n)
	}
	if services, err := r.GetService("greeter"); err != nil || len(services[0].Nodes)+len(services[1].Nodes) != 100 {
		t.Errorf("the registry returns %v, error %v; want all 100 instances", services, err)
	}
	// An instance of the subset is not ready for a while.
	var left []*corev1.Pod
	for i := range 100 {
		if p := readyPod(t, i); fmt.Sprint("10.0.0.1:", i+1) != before[0] {
			left = append(left, p)
		}
	}
	inf.Replace(left)
	if n := len(s.Instances("greeter")); n != 9 {
		t.Errorf("%d instances are shown before the next call, want 9", n)
	}
	during := calledBy(t, s, outcome.Answered)
	if gone, come := without(before, during), without(during, before); len(gone) != 1 || gone[0] != before[0] || len(come) != 1 {
		t.Errorf("without %s %v leave and %v come, want one for one", before[0], gone, come)
	}
	for i := range 100 {
		inf.Update(readyPod(t, i))
	}
	if after := calledBy(t, s, outcome.Answered); !slices.Equal(after, before) {
		t.Errorf("it is ready again, and %v are called, want %v", after, before)
	}
	inf.Replace(nil)
	if _, err := s.Choose("greeter", nil, nil); err != selector.ErrNotFound {
		t.Errorf("without instances: %v", err)
	}
	if all := s.Instances("greeter"); len(all) != 0 {
		t.Errorf("without instances %v are shown", all)
	}
}

// Two registries of one process, as two processes, take different subsets.
func TestSubsetsDiffer(t *testing.T) {
	var called []string
	for range 2 {
		r, _ := newStaticRegistry(t, 1000)
		r.subset = 10
		called = append(called, calledBy(t, newSelector(r), outcome.Answered)...)
	}
	slices.Sort(called)
	if n := len(slices.Compact(called)); n < 15 {
		t.Errorf("two subsets of 10 of 1,000 instances have %d", n)
	}
}

// A filter sees all instances, and the subset is taken of what it leaves.
func TestSubsetOfVersion(t *testing.T) {
	r, _ := newStaticRegistry(t, 100)
	r.subset = 10
	s := newSelector(r)
	for _, version := range []string{"v0", "v1"} {
		filter := selector.WithFilter(selector.FilterVersion(version))
		called := calledBy(t, s, outcome.Answered, filter)
		if len(called) != 10 {
			t.Errorf("%d instances of version %s are called, want 10", len(called), version)
		}
		for range 20 { // the subset has statistics, and ejects
			c := chooseOne(t, s, filter)
			if c.Instance.Service.Version != version {
				t.Fatalf("%s of version %s is called", c.Node.Address, c.Instance.Service.Version)
			}
			c.Done(outcome.LostConnection, refused)
		}
		ejected := 0
		for _, i := range s.Instances("greeter") {
			if i.EjectedFor > 0 {
				ejected++
			}
		}
		if ejected != 5 {
			t.Errorf("all instances of version %s fail: %d are ejected, want half of the subset", version, ejected)
		}
	}
}

// At most half of the subset is ejected. If none of it answers, calls go to the others until it does.
func TestSubsetThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 100)
		r.subset = 4
		s := newSelector(r)
		members := calledBy(t, s, outcome.Answered)
		instances := map[string]*discovery.Instance{}
		for _, i := range inf.Snapshot().Instances {
			instances[i.Address] = i
		}
		for n, address := range members {
			if called := calledBy(t, s, outcome.Answered); len(called) != len(members)-n {
				t.Fatalf("%d of 4 are unresponsive: %d are called", n, len(called))
			}
			chooseInstance(t, s, instances[address]).Done(outcome.LostConnection, refused)
		}
		ejected := 0
		for _, address := range members {
			if instances[address].Calls.Ejected() {
				ejected++
			}
		}
		if ejected != 2 {
			t.Errorf("%d of 4 instances are ejected, want half", ejected)
		}
		if called := calledBy(t, s, outcome.Answered); len(called) < 80 || len(without(members, called)) != 4 {
			t.Errorf("none of the subset is available: %d instances are called, want the 96 others", len(called))
		}
		time.Sleep(time.Second)
		for range 4 { // they answer their probes
			if p := takeProbe(t, s); p != nil {
				p.Done(nil, true)
			}
		}
		if called := calledBy(t, s, outcome.Answered); !slices.Equal(called, members) {
			t.Errorf("the subset answers again: %v are called, want %v", called, members)
		}
	})
}

// The choice has the same cost as without a subset.
func TestSubsetAllocatesNothing(t *testing.T) {
	r, _ := newStaticRegistry(t, 1000)
	r.subset = 20
	s := newSelector(r)
	chooseOne(t, s)
	if a := testing.AllocsPerRun(1000, func() {
		c, err := s.Choose("greeter", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		c.Done(outcome.Answered, nil)
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

func BenchmarkSubset(b *testing.B) {
	for _, size := range []int{0, 20} {
		b.Run(fmt.Sprint("size=", size), func(b *testing.B) {
			r, _ := newStaticRegistry(b, 10000)
			r.subset = size
			s := newSelector(r)
			chooseAndDone(b, s)
		})
	}
}
