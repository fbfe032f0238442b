package pod

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// standing is a registry that knows n ready pods and follows nothing.
func standing(t testing.TB, n int) (*Registry, *follower) {
	t.Helper()
	r := newRegistry(apiserver.ProcessEnvironment, nil)
	f := newFollower(&apiserver.Connection{}, apiserver.Selector{}, "greeter")
	f.stopping = func() {}
	var all []any
	for i := range n {
		all = append(all, readyPod(t, i))
	}
	if err := f.Replace(all, ""); err != nil {
		t.Fatal(err)
	}
	r.api, r.followers["greeter"] = &apiserver.Connection{}, f
	return r, f
}

func readyPod(t testing.TB, i int) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p-", i),
		Annotations: map[string]string{annotationPrefix + "greeter": string(annotation(t, fmt.Sprint("p-", i), "greeter", fmt.Sprint("v", i%2), fmt.Sprint("10.0.0.1:", i+1)))}}}
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	return p
}

func choose(t testing.TB, s *Selector, opts ...selector.SelectOption) *registry.Node {
	t.Helper()
	next, err := s.Select("greeter", opts...)
	if err != nil {
		t.Fatal(err)
	}
	n, err := next()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var timeout = errors.Timeout("go.micro.client", "too late")

func TestTheLessBusyOfTwoIsChosen(t *testing.T) {
	r, _ := standing(t, 4)
	s := NewSelector(r)
	stuck := choose(t, s) // and never marked: its call hangs
	counts := map[string]int{}
	for range 4000 {
		n := choose(t, s)
		counts[n.Address]++
		s.Mark("greeter", n, nil)
	}
	for address, n := range counts {
		if address == stuck.Address && n > 4000/16*2 { // both of two: 1 in 16
			t.Errorf("the busy node was chosen %d times of 4000", n)
		}
		if address != stuck.Address && (n < 800 || n > 1800) {
			t.Errorf("node %s was chosen %d times of 4000", address, n)
		}
	}
}

func TestFailingNodeIsSetAsideForLongerEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := standing(t, 3)
		s := NewSelector(r)
		first := choose(t, s)
		s.Mark("greeter", first, nil)
		bad := first.Address
		fail := func() (tried bool) {
			for range 100 {
				n := choose(t, s)
				if n.Address == bad {
					s.Mark("greeter", n, timeout)
					return true
				}
				s.Mark("greeter", n, nil)
			}
			return false
		}
		for _, aside := range []time.Duration{5, 20, 80, 80} {
			if !fail() {
				t.Fatalf("not tried before it is set aside for %d s", aside)
			}
			if fail() {
				t.Fatalf("tried at once after a failure")
			}
			time.Sleep(aside*time.Second - time.Millisecond)
			if fail() {
				t.Fatalf("tried before %d s were over", aside)
			}
			time.Sleep(2 * time.Millisecond)
		}
		s.Reset("greeter")
		if !fail() {
			t.Error("not tried after Reset")
		}
		if fail() {
			t.Error("tried at once after a failure after Reset")
		}
	})
}

func TestASilentNodeGetsNoMoreCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := standing(t, 4)
		s := NewSelector(r)
		frozen := choose(t, s) // and never marked: its call hangs
		time.Sleep(silence + time.Millisecond)
		for range 1000 { // as many at once as there are others
			var busy []*registry.Node
			for range 3 {
				n := choose(t, s)
				if n == frozen {
					t.Fatal("a node that answers nothing got another call")
				}
				busy = append(busy, n)
			}
			time.Sleep(time.Millisecond)
			for _, n := range busy {
				s.Mark("greeter", n, nil)
			}
		}
		s.Mark("greeter", frozen, nil)
		seen := map[*registry.Node]bool{}
		for range 1000 {
			n := choose(t, s)
			seen[n] = true
			s.Mark("greeter", n, nil)
		}
		if !seen[frozen] {
			t.Error("the node was not chosen again after its answer")
		}
	})
}

func TestOneCallTriesANodeThatWasSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, f := standing(t, 3)
		s := NewSelector(r)
		bad := choose(t, s)
		for range 8 { // calls that fail together
			s.Mark("greeter", bad, timeout)
		}
		if n := f.current.Load().nodes; n[0].failures.Load()+n[1].failures.Load()+n[2].failures.Load() != 1 {
			t.Error("8 calls that fail together were not one failure")
		}
		time.Sleep(firstAside + time.Millisecond)
		tries := 0
		for range 1000 {
			if n := choose(t, s); n == bad {
				tries++
			} else {
				s.Mark("greeter", n, nil)
			}
		}
		if tries != 1 {
			t.Errorf("%d calls at once tried it, want 1", tries)
		}
	})
}

func TestWhatItsCallerCancelsSaysNothingOfTheNode(t *testing.T) {
	r, f := standing(t, 1)
	s := NewSelector(r)
	for _, err := range []error{context.Canceled, // what go-micro's client makes of it, in two places
		errors.Timeout("go.micro.client", "%v", context.Canceled), errors.InternalServerError("go.micro.client", "context canceled")} {
		if s.Mark("greeter", choose(t, s), err); f.current.Load().nodes[0].failures.Load() != 0 {
			t.Errorf("%v counted as the node's failure", err)
		}
	}
}

func TestARetryGoesToAnotherNode(t *testing.T) {
	for range 100 {
		r, _ := standing(t, 2)
		s := NewSelector(r)
		next, err := s.Select("greeter")
		if err != nil {
			t.Fatal(err)
		}
		first, _ := next()
		s.Mark("greeter", first, errors.InternalServerError("go.micro.client", "connection refused"))
		second, _ := next()
		if second.Address == first.Address {
			t.Fatal("the retry went to the node that failed")
		}
	}
}

func TestWhenAllAreSetAsideAllAreTried(t *testing.T) {
	r, _ := standing(t, 3)
	s := NewSelector(r)
	seen := map[string]bool{}
	for range 200 {
		n := choose(t, s)
		seen[n.Address] = true
		s.Mark("greeter", n, timeout)
	}
	if len(seen) != 3 {
		t.Errorf("tried %v, want all three", seen)
	}
}

func TestWhoseFaultAnErrorIs(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{timeout, true},
		{errors.InternalServerError("go.micro.client", "connection refused"), true},
		{context.DeadlineExceeded, true},
		{context.Canceled, false},
		{errors.InternalServerError("go.micro.srv.greeter", "no such row"), false},
		{errors.NotFound("go.micro.client", "no such method"), false},
		{fmt.Errorf("wrapped: %w", context.DeadlineExceeded), true},
	} {
		if got := atFault(c.err); got != c.want {
			t.Errorf("atFault(%v) = %v", c.err, got)
		}
	}
}

func TestASuccessAndANewProcessBringANodeBack(t *testing.T) {
	r, f := standing(t, 1)
	s := NewSelector(r)
	n := choose(t, s)
	s.Mark("greeter", n, timeout)
	if f.current.Load().nodes[0].failures.Load() != 1 {
		t.Fatal("the failure was not noted")
	}
	s.Mark("greeter", choose(t, s), nil)
	if k := f.current.Load().nodes[0]; k.failures.Load() != 0 || k.asideUntil.Load() != 0 || k.outstanding.Load() != 0 {
		t.Errorf("after a success: %d failures, %d outstanding", k.failures.Load(), k.outstanding.Load())
	}
	s.Mark("greeter", choose(t, s), timeout)
	p := readyPod(t, 0)
	p.Annotations[annotationPrefix+"greeter"] = string(annotation(t, "p-0-restarted", "greeter", "v0", "10.0.0.1:1"))
	if err := f.Update(p); err != nil {
		t.Fatal(err)
	}
	if k := f.current.Load().nodes[0]; k.failures.Load() != 0 {
		t.Error("the new process has the old one's failures")
	}
	// A pod that says the same again, a heartbeat, keeps them.
	s.Mark("greeter", choose(t, s), timeout)
	if err := f.Update(p); err != nil {
		t.Fatal(err)
	}
	if k := f.current.Load().nodes[0]; k.failures.Load() != 1 {
		t.Error("a status update forgave a failure")
	}
	s.Mark("greeter", n, nil)                                     // of a process that is gone
	s.Mark("greeter", &registry.Node{Id: "x", Address: "y"}, nil) // of the caller's own choice
	s.Mark("nobody", n, nil)
}

func TestFiltersAndStrategiesAreHonoured(t *testing.T) {
	r, f := standing(t, 4)
	s := NewSelector(r)
	for range 50 {
		n := choose(t, s, selector.WithFilter(selector.FilterVersion("v1")))
		k, ok := f.given.Load(n)
		if !ok || k.(*node).service.Version != "v1" {
			t.Fatalf("the filter for v1 gave %v", n)
		}
		s.Mark("greeter", n, nil)
	}
	if _, err := s.Select("greeter", selector.WithFilter(selector.FilterVersion("v9"))); err != selector.ErrNoneAvailable {
		t.Errorf("a filter that leaves none: %v", err)
	}
	spoil := func(all []*registry.Service) []*registry.Service { // what it gets is a copy
		for _, v := range all {
			v.Nodes[0].Address, v.Version = "spoilt", "spoilt"
		}
		return all
	}
	choose(t, s, selector.WithFilter(spoil))
	for _, n := range f.current.Load().nodes {
		if n.Address == "spoilt" || n.service.Version == "spoilt" {
			t.Error("a filter wrote to the registry's own")
		}
	}
	only := func([]*registry.Service) selector.Next {
		return func() (*registry.Node, error) { return &registry.Node{Address: "mine"}, nil }
	}
	if n := choose(t, s, selector.WithStrategy(only)); n.Address != "mine" {
		t.Errorf("the call's strategy was not asked: %v", n)
	}
	if err := s.Init(selector.SetStrategy(only)); err != nil {
		t.Fatal(err)
	}
	if n := choose(t, s); n.Address != "mine" {
		t.Errorf("the selector's strategy was not asked: %v", n)
	}
}

func TestWithAnotherRegistry(t *testing.T) {
	m := memory.NewRegistry()
	s := NewSelector(m)
	if _, err := s.Select("greeter"); err != selector.ErrNotFound {
		t.Errorf("Select: %v", err)
	}
	if err := m.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	n := choose(t, s)
	s.Mark("greeter", n, nil)
	if n.Address != "10.0.0.1:1" {
		t.Errorf("%v", n)
	}
	r, _ := standing(t, 1)
	if err := s.Init(selector.Registry(r)); err != nil { // as micro.Registry does
		t.Fatal(err)
	}
	if got := choose(t, s); got.Id == n.Id {
		t.Error("the old registry is still asked")
	}
	if err := s.Close(); err != nil || s.String() != "pod" {
		t.Error(err, s)
	}
}

func TestAPickAllocatesNothingAtAnyNumberOfNodes(t *testing.T) {
	for _, n := range []int{1, 10, 10000} {
		r, _ := standing(t, n)
		s := NewSelector(r)
		choose(t, s)
		if a := testing.AllocsPerRun(1000, func() {
			next, err := s.Select("greeter")
			if err != nil {
				t.Fatal(err)
			}
			k, _ := next()
			s.Mark("greeter", k, nil)
		}); a != 0 {
			t.Errorf("%v allocations at %d nodes", a, n)
		}
	}
}

func TestAClosedRegistryIsNotChosenFrom(t *testing.T) {
	r, _ := standing(t, 1)
	s := NewSelector(r)
	choose(t, s)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Select("greeter"); err == nil {
		t.Error("chosen from a closed registry")
	}
}

// What kube-controller-manager does after an outage of the API server: it takes
// Ready from the pods of each node it has not heard from.
func TestPodsWhoseNodesAreUnseenStandInWhenNoneIsReady(t *testing.T) {
	_, f := standing(t, 3)
	update := func(i int, ready, containersReady corev1.ConditionStatus, also ...func(*corev1.Pod)) int {
		p := readyPod(t, i)
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}, {Type: corev1.ContainersReady, Status: containersReady}}
		for _, do := range also {
			do(p)
		}
		if err := f.Update(reduced(p)); err != nil {
			t.Fatal(err)
		}
		return len(f.current.Load().nodes)
	}
	const yes, no = corev1.ConditionTrue, corev1.ConditionFalse
	gated := func(p *corev1.Pod) {
		p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/in-rotation"}}
	}
	going := func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Now()} }
	for _, step := range []struct {
		what string
		got  func() int
		want int
	}{
		{"one unseen", func() int { return update(0, no, yes) }, 2},
		{"two unseen", func() int { return update(1, no, yes) }, 1},
		{"all unseen", func() int { return update(2, no, yes) }, 3},
		{"one whose probe fails", func() int { return update(2, no, no) }, 2},
		{"one with a readiness gate", func() int { return update(1, no, yes, gated) }, 1},
		{"one that is going", func() int { return update(0, no, yes, going) }, 0},
		{"one seen again", func() int { return update(1, yes, yes) }, 1},
		{"another, unseen", func() int { return update(0, no, yes) }, 1},
	} {
		if got := step.got(); got != step.want {
			t.Errorf("%s: %d nodes, want %d", step.what, got, step.want)
		}
	}
}
