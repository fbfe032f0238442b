package pod

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

// observation is one element that Observe yields.
type observation struct {
	instances []Instance
	err       error
}

func (o observation) String() string {
	var all []string
	for _, n := range o.instances {
		all = append(all, fmt.Sprintf("%s/%s %s %s", n.Service, n.Pod, n.Address, n.State))
	}
	return strings.Join(all, ", ")
}

// observe calls Observe in a goroutine. next returns its next element, and end stops it.
func observe(t *testing.T, r *Registry) (next func() observation, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	seen, ended := make(chan observation), make(chan struct{})
	go func() {
		defer close(ended)
		defer close(seen)
		for instances, err := range r.Observe(ctx) {
			select {
			case seen <- observation{instances, err}:
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return func() observation {
		t.Helper()
		select {
		case s, ok := <-seen:
			if !ok {
				t.Fatal("the sequence has ended")
			}
			return s
		case <-time.After(15 * time.Second):
			t.Fatal("Observe has yielded nothing for 15 s")
			return observation{}
		}
	}, func() { cancel(); <-ended }
}

// until reads elements until Observe yields the wanted one.
func until(t *testing.T, next func() observation, want string) observation {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		s := next()
		if s.err == nil && s.String() == want {
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("Observe yields %q, %v; want %q", s, s.err, want)
		}
	}
}

func TestObserveShowsStatesOfInstance(t *testing.T) {
	ns := newNamespace(t)
	next, _ := observe(t, ns.openRegistry("observer"))
	if got := next(); got.err != nil || len(got.instances) != 0 {
		t.Fatalf("in an empty namespace Observe yields %q, %v", got, got.err)
	}
	created := ns.CreatePod("a").CreationTimestamp.Time
	const a = "greeter/a 10.0.0.1:9100 "
	for _, step := range []struct {
		what string
		do   func()
		want string
	}{
		{"registered, not running yet", func() { ns.register("a", "greeter", "v1", "10.0.0.1:9100") }, a + "not ready"},
		{"running and ready", func() { ns.SetStatus("a", corev1.PodRunning, corev1.ConditionTrue) }, a + "ready"},
		{"its readiness probe fails", func() { ns.SetStatus("a", corev1.PodRunning, corev1.ConditionFalse) }, a + "not ready"},
		{"its Kubernetes node stopped reporting", func() {
			ns.PatchPod("a", `{"status":{"conditions":[{"type":"Ready","status":"False"},{"type":"ContainersReady","status":"True"}]}}`, "status")
		}, a + "node unreachable"},
		{"its node reports again", func() { ns.SetStatus("a", corev1.PodRunning, corev1.ConditionTrue) }, a + "ready"},
		{"its label removed by hand, so that no client finds it", func() { ns.PatchPod("a", `{"metadata":{"labels":{"micro.mu/selector-greeter":null}}}`) }, a + "terminating"},
		{"its label restored by hand", func() { ns.PatchPod("a", `{"metadata":{"labels":{"micro.mu/selector-greeter":"service"}}}`) }, a + "ready"},
		{"registered again at another address", func() { ns.register("a", "greeter", "v1", "10.0.0.2:9100") }, "greeter/a 10.0.0.2:9100 ready"},
		{"terminating", func() { ns.TerminatePod("a") }, "greeter/a 10.0.0.2:9100 terminating"},
		{"deregistered", func() { ns.Deregister("a", "greeter") }, "greeter/a 10.0.0.2:9100 terminating"},
		{"removed", func() { ns.RemovePod("a") }, ""},
		{"another pod with the same name", func() { ns.CreateReadyPod("a"); ns.register("a", "greeter", "v1", "10.0.0.3:9100") }, "greeter/a 10.0.0.3:9100 ready"},
	} {
		t.Log(step.what)
		step.do()
		got := until(t, next, step.want)
		for _, n := range got.instances {
			if (n.Reason == "") != (n.State == Ready) {
				t.Errorf("the instance is %s for the reason %q", n.State, n.Reason)
			}
		}
		if len(got.instances) == 1 && step.what == "running and ready" {
			if n := got.instances[0]; n.Version != "v1" || !n.Created.Equal(created) {
				t.Errorf("the instance has version %q, created %s; want v1, %s", n.Version, n.Created, created)
			}
		}
	}
}

func TestObserveOrdersInstances(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("b")
	ns.register("b", "greeter", "v1", "10.0.0.2:9100")
	ns.register("b", "adder", "v1", "10.0.0.2:9101")
	ns.CreateReadyPod("broken")
	ns.Register("broken", "greeter", "{")
	ns.CreateReadyPod("a")
	ns.register("a", "greeter", "v2", "10.0.0.1:9100")
	next, _ := observe(t, ns.openRegistry("observer"))
	got := next()
	slices.SortStableFunc(got.instances, func(a, b Instance) int { return strings.Compare(a.Service+a.Pod, b.Service+b.Pod) }) // a and b may be created in the same second
	if want := "adder/b 10.0.0.2:9101 ready, greeter/a 10.0.0.1:9100 ready, greeter/b 10.0.0.2:9100 ready"; got.err != nil || got.String() != want {
		t.Fatalf("Observe yields %q, %v; want %q", got, got.err, want)
	}
	// A container that restarts deregisters its services one by one and registers them again.
	ns.Deregister("b", "adder")
	until(t, next, "adder/b 10.0.0.2:9101 terminating, "+order(got.instances))
	ns.register("b", "adder", "v1", "10.0.0.2:9102")
	until(t, next, "adder/b 10.0.0.2:9102 ready, "+order(got.instances))
}

// order returns the two greeters in Observe's order, which depends on the second in which
// each was created.
func order(instances []Instance) string {
	var two []Instance
	for _, n := range instances {
		if n.Service == "greeter" {
			two = append(two, n)
		}
	}
	slices.SortStableFunc(two, func(a, b Instance) int { return a.Created.Compare(b.Created) })
	return observation{instances: two}.String()
}

func TestObserversShareOneWatch(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	ns.register("a", "greeter", "v1", "10.0.0.1:9100")
	proxy := ns.StartProxy()
	r := ns.openRegistry("observer", registry.Addrs(proxy.URL))
	counts := func() string {
		return fmt.Sprintf("%d LIST, %d WATCH", proxy.Count(http.MethodGet), proxy.Count("WATCH"))
	}
	if got := counts(); got != "0 LIST, 0 WATCH" {
		t.Errorf("before the first observer: %s", got)
	}
	var ends []func()
	for range 3 {
		next, end := observe(t, r)
		until(t, next, "greeter/a 10.0.0.1:9100 ready")
		ends = append(ends, end)
	}
	kubetest.Eventually(t, 10*time.Second, "three observers share one LIST and one WATCH", equals(counts, "1 LIST, 1 WATCH"))
	for _, end := range ends {
		end()
	}
	ns.SetStatus("a", corev1.PodRunning, corev1.ConditionFalse)
	next, _ := observe(t, r)
	until(t, next, "greeter/a 10.0.0.1:9100 not ready")
	kubetest.Eventually(t, 10*time.Second, "the next observer starts one more of each", equals(counts, "2 LIST, 2 WATCH"))
}

func TestSlowObserverGetsLatestState(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	ns.register("a", "greeter", "v1", "10.0.0.1:9100")
	r := ns.openRegistry("observer")
	next, _ := observe(t, r)
	until(t, next, "greeter/a 10.0.0.1:9100 ready")
	fast, _ := observe(t, r)
	for i := range 100 {
		ns.register("a", "greeter", "v1", fmt.Sprintf("10.0.1.%d:9100", i))
	}
	until(t, fast, "greeter/a 10.0.1.99:9100 ready")
	const latest = "greeter/a 10.0.1.99:9100 ready"
	if got := next().String(); got != latest { // an older state, which Observe has yielded and the test has not read yet
		if got = next().String(); got != latest {
			t.Errorf("after 100 changes Observe yields %q", got)
		}
	}
}

func TestObserveReportsWatchErrors(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	ns.register("a", "greeter", "v1", "10.0.0.1:9100")
	relay := ns.StartRelay(t)
	r := ns.openRegistryIn(relay.Through(ns.Environment("observer")))
	next, _ := observe(t, r)
	until(t, next, "greeter/a 10.0.0.1:9100 ready")
	relay.Cut()
	got := next()
	if got.err == nil || got.String() != "greeter/a 10.0.0.1:9100 ready" {
		t.Errorf("without the API server: %q, %v", got, got.err)
	}
	ns.SetStatus("a", corev1.PodRunning, corev1.ConditionFalse)
	relay.Restore()
	until(t, next, "greeter/a 10.0.0.1:9100 not ready")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if got := next(); got.err == nil || !strings.Contains(got.err.Error(), "closed") {
		t.Errorf("after Close: %q, %v", got, got.err)
	}
}

func TestObserveNamesMissingVerb(t *testing.T) {
	ns := newNamespace(t, "patch")
	next, _ := observe(t, ns.openRegistry("observer"))
	if got := next(); got.err == nil || !strings.Contains(got.err.Error(), `observing services: list pods`) || !strings.Contains(got.err.Error(), "k8s/pod-rbac.yaml grants it") {
		t.Errorf("%q, %v", got, got.err)
	}
}

func TestObserveOutsideCluster(t *testing.T) {
	ns := newNamespace(t)
	t.Setenv("KUBECONFIG", "/nonexistent")
	r := ns.openRegistryIn(apiserver.Environment{Getenv: func(string) string { return "" }, ServiceAccountDir: t.TempDir()})
	var errs []error
	for _, err := range r.Observe(context.Background()) {
		errs = append(errs, err)
	}
	if len(errs) != 1 || errs[0] == nil || !strings.Contains(errs[0].Error(), "not in a pod") {
		t.Errorf("Observe yields %v", errs)
	}
}
