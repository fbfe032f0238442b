package pod

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// sight is what somebody who observes has seen last.
type sight struct {
	nodes []Instance
	err   error
}

func (s sight) String() string {
	var all []string
	for _, n := range s.nodes {
		all = append(all, fmt.Sprintf("%s/%s %s %s", n.Service, n.Pod, n.Address, n.State))
	}
	return strings.Join(all, ", ")
}

// observed starts to observe; next returns what comes, and end ends it.
func observed(t *testing.T, r *Registry) (next func() sight, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	seen, ended := make(chan sight), make(chan struct{})
	go func() {
		defer close(ended)
		defer close(seen)
		for nodes, err := range r.Observe(ctx) {
			select {
			case seen <- sight{nodes, err}:
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return func() sight {
		t.Helper()
		select {
		case s, ok := <-seen:
			if !ok {
				t.Fatal("the observation has ended")
			}
			return s
		case <-time.After(15 * time.Second):
			t.Fatal("nothing to see for 15 s")
			return sight{}
		}
	}, func() { cancel(); <-ended }
}

// until reads on until it sees what is wanted.
func until(t *testing.T, next func() sight, want string) sight {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		s := next()
		if s.err == nil && s.String() == want {
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("it shows %q, %v; want %q", s, s.err, want)
		}
	}
}

func (s *space) patch(pod, body string, sub ...string) {
	s.t.Helper()
	if _, err := admin.CoreV1().Pods(s.name).Patch(pod, types.StrategicMergePatchType, []byte(body), sub...); err != nil {
		s.t.Fatal(err)
	}
}

// unregister takes off a pod what the plugin's Deregister takes off.
func (s *space) unregister(pod, service string) {
	s.t.Helper()
	s.patch(pod, fmt.Sprintf(`{"metadata":{"labels":{%q:null},"annotations":{%q:null}}}`, selectorPrefix+service, annotationPrefix+service))
}

func TestObserveShowsANodeFromItsRegistrationToItsEnd(t *testing.T) {
	s := newSpace(t)
	next, _ := observed(t, s.open("observer"))
	if got := next(); got.err != nil || len(got.nodes) != 0 {
		t.Fatalf("of an empty namespace it shows %q, %v", got, got.err)
	}
	created := s.create("a").CreationTimestamp.Time
	const a = "greeter/a 10.0.0.1:9100 "
	for _, step := range []struct {
		what string
		do   func()
		want string
	}{
		{"registered, not running yet", func() { s.register("a", "greeter", "v1", "10.0.0.1:9100") }, a + "not ready"},
		{"running and ready", func() { s.status("a", corev1.PodRunning, corev1.ConditionTrue) }, a + "ready"},
		{"refused by its probe", func() { s.status("a", corev1.PodRunning, corev1.ConditionFalse) }, a + "not ready"},
		{"its machine fell silent", func() {
			s.patch("a", `{"status":{"conditions":[{"type":"Ready","status":"False"},{"type":"ContainersReady","status":"True"}]}}`, "status")
		}, a + "node unreachable"},
		{"heard from again", func() { s.status("a", corev1.PodRunning, corev1.ConditionTrue) }, a + "ready"},
		{"its label taken by hand, so that nobody finds it", func() { s.patch("a", `{"metadata":{"labels":{"micro.mu/selector-greeter":null}}}`) }, a + "terminating"},
		{"and put back", func() { s.patch("a", `{"metadata":{"labels":{"micro.mu/selector-greeter":"service"}}}`) }, a + "ready"},
		{"registered anew at another address", func() { s.register("a", "greeter", "v1", "10.0.0.2:9100") }, "greeter/a 10.0.0.2:9100 ready"},
		{"asked to go", func() {
			if err := admin.CoreV1().Pods(s.name).Delete("a", &metav1.DeleteOptions{}); err != nil { // gracefully: no kubelet confirms
				t.Fatal(err)
			}
		}, "greeter/a 10.0.0.2:9100 stopping"},
		{"deregistered", func() { s.unregister("a", "greeter") }, "greeter/a 10.0.0.2:9100 stopping"},
		{"gone", func() { s.remove("a") }, ""},
		{"another pod under its name", func() { s.pod("a"); s.register("a", "greeter", "v1", "10.0.0.3:9100") }, "greeter/a 10.0.0.3:9100 ready"},
	} {
		t.Log(step.what)
		step.do()
		got := until(t, next, step.want)
		if len(got.nodes) == 1 && step.what == "running and ready" {
			if n := got.nodes[0]; n.Version != "v1" || !n.Created.Equal(created) {
				t.Errorf("it shows version %q, created %s; want v1, %s", n.Version, n.Created, created)
			}
		}
	}
}

func TestObserveShowsAllServicesInOrder(t *testing.T) {
	s := newSpace(t)
	s.pod("b")
	s.register("b", "greeter", "v1", "10.0.0.2:9100")
	s.register("b", "adder", "v1", "10.0.0.2:9101")
	s.pod("broken")
	s.write("broken", "greeter", "{")
	s.pod("a")
	s.register("a", "greeter", "v2", "10.0.0.1:9100")
	next, _ := observed(t, s.open("observer"))
	got := next()
	slices.SortStableFunc(got.nodes, func(a, b Instance) int { return strings.Compare(a.Service+a.Pod, b.Service+b.Pod) }) // a's and b's second may be one
	if want := "adder/b 10.0.0.2:9101 ready, greeter/a 10.0.0.1:9100 ready, greeter/b 10.0.0.2:9100 ready"; got.err != nil || got.String() != want {
		t.Fatalf("it shows %q, %v; want %q", got, got.err, want)
	}
	// A restarted container deregisters one after the other, and registers again.
	s.unregister("b", "adder")
	until(t, next, "adder/b 10.0.0.2:9101 stopping, "+order(got.nodes))
	s.register("b", "adder", "v1", "10.0.0.2:9102")
	until(t, next, "adder/b 10.0.0.2:9102 ready, "+order(got.nodes))
}

// order is the two greeters in Observe's order: by the second of their creation.
func order(nodes []Instance) string {
	var two []Instance
	for _, n := range nodes {
		if n.Service == "greeter" {
			two = append(two, n)
		}
	}
	slices.SortStableFunc(two, func(a, b Instance) int { return a.Created.Compare(b.Created) })
	return sight{nodes: two}.String()
}

func TestObserveCostsWhatOneObserverCostsAndNothingWithoutAny(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	s.register("a", "greeter", "v1", "10.0.0.1:9100")
	f := s.front(true)
	r := s.open("observer", registry.Addrs(f.URL))
	counts := func() string { return fmt.Sprintf("%d LIST, %d WATCH", f.count(http.MethodGet), f.count("WATCH")) }
	if got := counts(); got != "0 LIST, 0 WATCH" {
		t.Errorf("before anybody observes: %s", got)
	}
	var ends []func()
	for range 3 {
		next, end := observed(t, r)
		until(t, next, "greeter/a 10.0.0.1:9100 ready")
		ends = append(ends, end)
	}
	soon(t, 5*time.Second, "one LIST and one WATCH for three", is(counts, "1 LIST, 1 WATCH"))
	for _, end := range ends {
		end()
	}
	r.mu.Lock()
	if r.observed != nil || r.observers != 0 {
		t.Errorf("%d observe still", r.observers)
	}
	r.mu.Unlock()
	s.status("a", corev1.PodRunning, corev1.ConditionFalse)
	next, _ := observed(t, r)
	until(t, next, "greeter/a 10.0.0.1:9100 not ready")
	soon(t, 5*time.Second, "one more of each for the next", is(counts, "2 LIST, 2 WATCH"))
}

func TestASlowObserverGetsTheLatest(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	s.register("a", "greeter", "v1", "10.0.0.1:9100")
	next, _ := observed(t, s.open("observer"))
	until(t, next, "greeter/a 10.0.0.1:9100 ready")
	fast, _ := observed(t, s.open("observer"))
	for i := range 100 {
		s.register("a", "greeter", "v1", fmt.Sprintf("10.0.1.%d:9100", i))
	}
	until(t, fast, "greeter/a 10.0.1.99:9100 ready")
	next() // what was there when it last looked
	if got := next().String(); got != "greeter/a 10.0.1.99:9100 ready" {
		t.Errorf("after 100 changes it gets %q", got)
	}
}

// What deregisters under ever new names must not pile up.
func TestWhatIsRememberedIsBounded(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	next, _ := observed(t, s.open("observer"))
	next()
	for i := range 50 { // the annotation names another service than its key
		s.write("a", "greeter", string(annotation(t, "a", fmt.Sprintf("other-%d", i), "v1", "10.0.0.1:9100")))
	}
	until(t, next, "other-49/a 10.0.0.1:9100 ready")
}

func TestObserveSaysWhenItCannotFollow(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	s.register("a", "greeter", "v1", "10.0.0.1:9100")
	w := newWire(t, strings.TrimPrefix(config.Host, "https://"))
	r := s.openIn(s.inside("observer").through(w))
	next, _ := observed(t, r)
	until(t, next, "greeter/a 10.0.0.1:9100 ready")
	w.cut()
	got := next()
	if got.err == nil || got.String() != "greeter/a 10.0.0.1:9100 ready" {
		t.Errorf("without the API server: %q, %v", got, got.err)
	}
	s.status("a", corev1.PodRunning, corev1.ConditionFalse)
	w.mend()
	until(t, next, "greeter/a 10.0.0.1:9100 not ready")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if got := next(); got.err == nil || !strings.Contains(got.err.Error(), "closed") {
		t.Errorf("of a closed registry: %q, %v", got, got.err)
	}
}

func TestObserveWithoutTheRightSaysWhich(t *testing.T) {
	s := newSpace(t, "patch")
	next, _ := observed(t, s.open("observer"))
	if got := next(); got.err == nil || !strings.Contains(got.err.Error(), `observing services: list pods`) || !strings.Contains(got.err.Error(), "k8s/pod-rbac.yaml grants it") {
		t.Errorf("%q, %v", got, got.err)
	}
}

func TestObserveOutsideACluster(t *testing.T) {
	s := newSpace(t)
	t.Setenv("KUBECONFIG", "/nonexistent")
	r := s.openIn(environment{func(string) string { return "" }, t.TempDir()})
	var errs []error
	for _, err := range r.Observe(context.Background()) {
		errs = append(errs, err)
	}
	if len(errs) != 1 || errs[0] == nil || !strings.Contains(errs[0].Error(), "not in a pod") {
		t.Errorf("it yields %v", errs)
	}
}
