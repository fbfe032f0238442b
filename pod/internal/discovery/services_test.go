package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

// newServices returns services that read pods, and whose errors name namespace "ns" and host "api".
func newServices(pods *kubetest.Pods) *Services {
	return New(func() (API, error) { return API{pods, "ns", "api"}, nil }, func() Settings { return Settings{Timeout: 5 * time.Second} })
}

// bubble runs a test with services and the pods that they read, in a bubble of synctest, which
// fails if a goroutine is left.
func bubble(t *testing.T, f func(t *testing.T, s *Services, pods *kubetest.Pods)) {
	synctest.Test(t, func(t *testing.T) {
		pods := &kubetest.Pods{}
		s := newServices(pods)
		defer s.Stop()
		f(t, s, pods)
	})
}

// addressesOf returns the addresses of services in order.
func addressesOf(all []*registry.Service) string {
	var a []string
	for _, s := range all {
		for _, n := range s.Nodes {
			a = append(a, n.Address)
		}
	}
	slices.Sort(a)
	return strings.Join(a, " ")
}

func TestGetReadsFromMemory(t *testing.T) {
	bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
		check := func(want string) {
			t.Helper()
			all, err := s.Get("greeter")
			if err != nil || addressesOf(all) != want {
				t.Errorf("Get returned %q, %v; want %q", addressesOf(all), err, want)
			}
		}
		other := kubetest.ReadyPod(t, "other", kubetest.OneInstance("adder", "v1", "10.0.0.9:1"))
		pods.Put(other)
		pods.Put(greeterPod(t, 0))
		check("10.0.0.1:1")
		pods.Put(greeterPod(t, 1))
		check("10.0.0.1:1 10.0.0.1:2")
		deregistered := greeterPod(t, 0)
		delete(deregistered.Labels, "micro.mu/selector-greeter")
		pods.Put(deregistered) // the informer's selector does not select it any more
		check("10.0.0.1:2")
		pods.Fail(errors.New("down"))
		check("10.0.0.1:2")
		pods.Fail(nil)
		pods.Delete("p-1")
		check("")
		if lists, watchers := pods.Requests(); lists != 2 || watchers != 1 {
			t.Errorf("%d LISTs and %d watchers, want 2 and 1", lists, watchers)
		}
	})
}

func TestAnotherPodWithTheNameOfAnOldOne(t *testing.T) {
	bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
		first := greeterPod(t, 0)
		first.UID = "1"
		pods.Put(first)
		i, err := s.Synced(t.Context(), "greeter")
		if err != nil {
			t.Fatal(err)
		}
		before := i.Snapshot().Instances[0]
		again := greeterPod(t, 0)
		again.UID = "1"
		pods.Put(again) // nothing has changed
		if got := i.Snapshot().Instances[0]; got != before {
			t.Error("the same annotation makes another instance")
		}
		notReady := greeterPod(t, 0)
		notReady.UID, notReady.Status.Conditions = "1", nil
		pods.Put(notReady)
		if n := len(i.Snapshot().Instances); n != 0 || before.HasLeft() {
			t.Errorf("a pod that is not ready has %d instances in the snapshot, the instance has left: %v", n, before.HasLeft())
		}
		pods.Put(first)
		if got := i.Snapshot().Instances[0]; got != before {
			t.Error("a pod that is ready again has another instance")
		}
		second := greeterPod(t, 0)
		second.UID = "2"
		pods.Put(second)
		if got := i.Snapshot().Instances; len(got) != 1 || got[0] == before || !before.HasLeft() {
			t.Errorf("another pod has the instance of the first one, which has left: %v", before.HasLeft())
		}
		i.Delete(first) // a late event of the first pod
		if n := len(i.Snapshot().Instances); n != 1 {
			t.Errorf("the deletion of the first pod leaves %d instances", n)
		}
	})
}

// The zone of an instance is that of its pod. If the label comes later, the instance is another one.
func TestZoneOfInstance(t *testing.T) {
	bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
		inZone := func(zone string) *corev1.Pod {
			p := greeterPod(t, 0)
			p.UID = "1"
			if zone != "" {
				p.Labels[podmeta.ZoneLabel] = zone
			}
			return p
		}
		pods.Put(inZone(""))
		i, err := s.Synced(t.Context(), "greeter")
		if err != nil {
			t.Fatal(err)
		}
		before := i.Snapshot().Instances[0]
		if got := before.Zone(); got != "" {
			t.Errorf("without the label the zone is %q", got)
		}
		for _, zone := range []string{"a", "b"} {
			pods.Put(inZone(zone))
			got := i.Snapshot().Instances
			if len(got) != 1 || got[0].Zone() != zone || got[0] == before || !before.HasLeft() {
				t.Errorf("with the label %q: %d instances, the first in zone %q", zone, len(got), got[0].Zone())
			}
			before = got[0]
		}
		pods.Put(inZone("b"))
		if got := i.Snapshot().Instances[0]; got != before {
			t.Error("the same zone makes another instance")
		}
		if other, _ := NewInstance(registry.Node{}, &registry.Service{}, ""); other.Zone() != "" {
			t.Errorf("an instance on no pod is in zone %q", other.Zone())
		}
		for all, err := range s.Observe(t.Context()) {
			if err != nil || len(all) != 1 || all[0].Zone != "b" {
				t.Errorf("observed are %v, error %v", all, err)
			}
			break
		}
	})
}

func TestInstanceOfNode(t *testing.T) {
	bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
		pods.Put(greeterPod(t, 0))
		i, err := s.Synced(t.Context(), "greeter")
		if err != nil {
			t.Fatal(err)
		}
		instance := i.Snapshot().Instances[0]
		if s.InstanceOf(&instance.Node) != instance || s.InstanceOf(&registry.Node{Id: instance.Id, Address: instance.Address}) != nil {
			t.Error("a node is found by its value, not by its identity")
		}
		left := make(chan struct{})
		instance.AfterLeave(func() { close(left) })
		stop := instance.AfterLeave(func() { t.Error("a stopped function runs") })
		if !stop() {
			t.Error("the function cannot be stopped")
		}
		pods.Delete("p-0")
		<-left
		again := make(chan struct{})
		instance.AfterLeave(func() { close(again) }) // at once
		<-again
		if s.InstanceOf(&instance.Node) != nil {
			t.Error("the node of an instance that has left is known")
		}
	})
}

func TestFirstReadWaits(t *testing.T) {
	bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
		refused := errors.New("pods is forbidden")
		pods.Fail(refused)
		begin := time.Now()
		if _, err := s.Get("greeter"); !errors.Is(err, refused) || time.Since(begin) != 0 {
			t.Errorf("Get returned %v after %s, want the reason at once", err, time.Since(begin))
		}
		if _, err := s.List(); !errors.Is(err, refused) {
			t.Errorf("List returned %v", err)
		}
		pods.Fail(nil)
		if _, err := s.Get("greeter"); err != nil {
			t.Errorf("after the first LIST Get returned %v", err)
		}
		pods.Fail(refused)
		if _, err := s.Get("greeter"); err != nil {
			t.Errorf("after the first LIST Get returned %v", err)
		}
	})
}

func TestFirstReadEndsWithTimeoutContextAndStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newServiceInformer("greeter") // nothing answers its LIST
		i.api = API{Namespace: "ns", Host: "api"}
		begin := time.Now()
		err := i.Wait(t.Context(), 5*time.Second)
		if want := `list pods in namespace "ns": the API server at api has not answered for 5s`; err == nil || err.Error() != want || time.Since(begin) != 5*time.Second {
			t.Errorf("Wait returned %v after %s", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := i.Wait(ctx, 5*time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait returned %v", err)
		}
		time.AfterFunc(time.Second, i.stop)
		if err := i.Wait(t.Context(), 5*time.Second); err == nil || !strings.Contains(err.Error(), "closed") {
			t.Errorf("Wait returned %v", err)
		}
	})
}

func TestReadsFailWithoutConnection(t *testing.T) {
	none := errors.New("not in a pod")
	s := New(func() (API, error) { return API{}, none }, func() Settings { return Settings{} })
	_, get := s.Get("greeter")
	_, list := s.List()
	_, watch := s.Watch("greeter")
	_, watchAll := s.Watch("")
	for _, err := range []error{get, list, watch, watchAll} {
		if !errors.Is(err, none) {
			t.Errorf("the error is %v", err)
		}
	}
	n := 0
	for _, err := range s.Observe(t.Context()) {
		if n++; !errors.Is(err, none) {
			t.Errorf("Observe yields %v", err)
		}
	}
	if n != 1 {
		t.Errorf("Observe yields %d times", n)
	}
}

// A caller that has lost the name of its service must not call any other.
func TestEmptyNameIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
		pods.Put(greeterPod(t, 0))
		if _, err := s.List(); err != nil { // a watch of all services is there
			t.Fatal(err)
		}
		all, err := s.Get("")
		_, informerErr := s.Synced(t.Context(), "")
		for _, err := range []error{err, informerErr} {
			if err == nil || !strings.Contains(err.Error(), "name of the service is empty") {
				t.Errorf("the error is %v, with the instances %q", err, addressesOf(all))
			}
		}
		synctest.Wait()
		if lists, watchers := pods.Requests(); lists != 1 || watchers != 1 {
			t.Errorf("%d LISTs and %d watchers, want 1 and 1", lists, watchers)
		}
	})
}

func TestListNamesEachServiceOnce(t *testing.T) {
	bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
		pods.Put(greeterPod(t, 0))
		pods.Put(greeterPod(t, 1))
		pods.Put(kubetest.ReadyPod(t, "a", kubetest.OneInstance("adder", "v1", "10.0.0.9:1")))
		for range 2 {
			all, err := s.List()
			var names []string
			for _, s := range all {
				names = append(names, s.Name)
			}
			slices.Sort(names)
			if err != nil || fmt.Sprint(names) != "[adder greeter]" {
				t.Errorf("List returned %v, %v", names, err)
			}
		}
	})
}

func TestOneWatchServesAllReadersOfAllServices(t *testing.T) {
	bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
		pods.Put(greeterPod(t, 0))
		check := func(when string, lists, watchers int) {
			t.Helper()
			synctest.Wait()
			if l, w := pods.Requests(); l != lists || w != watchers {
				t.Errorf("%s: %d LISTs and %d watchers, want %d and %d", when, l, w, lists, watchers)
			}
		}
		observe := func() (end func()) {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for range s.Observe(ctx) { //nolint:errcheck // it only has to be there
				}
			}()
			return func() { cancel(); <-ended }
		}
		first, second := observe(), observe()
		check("two observers", 1, 1)
		first()
		check("one observer is left", 1, 1)
		second()
		check("no observer is left", 1, 0)
		first = observe()
		check("the next observer", 2, 1)
		if all := s.overview.Snapshot().Instances; len(all) != 0 {
			t.Errorf("each change makes a snapshot of %d instances that nobody reads", len(all))
		}
		for range 2 {
			if all, err := s.List(); err != nil || len(all) != 1 {
				t.Errorf("List beside an observer: got %v, %v", all, err)
			}
			w, err := s.Watch("")
			if err != nil {
				t.Fatal(err)
			}
			w.Stop()
		}
		check("List and Watch beside an observer", 2, 1)
		first()
		check("List and Watch keep the watch", 2, 1)
		s.Stop()
		check("after Stop", 2, 0)
		if _, err := s.List(); err != nil {
			t.Error(err)
		}
		check("List after Stop", 3, 1)
		observe()()
		check("an observer has come and gone", 3, 1)
		if _, err := s.Get("greeter"); err != nil {
			t.Error(err)
		}
		check("one service more", 4, 2)
	})
}

func TestObserveEndsWithStopAndReportsErrors(t *testing.T) {
	bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
		pods.Put(greeterPod(t, 0))
		type element struct {
			n   int
			err error
		}
		var seen []element
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for all, err := range s.Observe(t.Context()) {
				seen = append(seen, element{len(all), err})
			}
		}()
		synctest.Wait()
		down := errors.New("down")
		pods.Fail(down)
		synctest.Wait()
		pods.Fail(nil)
		synctest.Wait()
		s.Stop()
		<-ended
		seen = slices.Compact(seen) // after two changes at once, a state is seen once or twice
		if len(seen) != 4 || seen[0] != (element{1, nil}) || seen[1] != (element{1, down}) || seen[2] != (element{1, nil}) || seen[3].err == nil || !strings.Contains(seen[3].err.Error(), "closed") {
			t.Errorf("Observe yields %v", seen)
		}
		for range s.Observe(t.Context()) { //nolint:errcheck // a consumer that breaks
			break
		}
	})
}

func TestWatcherReturnsDifferences(t *testing.T) {
	for _, service := range []string{"", "greeter"} {
		bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
			pods.Put(greeterPod(t, 0))
			w, err := s.Watch(service)
			if err != nil {
				t.Fatal(err)
			}
			next := func(action, address string) {
				t.Helper()
				r, err := w.Next()
				if err != nil || r.Action != action || r.Service.Name != "greeter" || addressesOf([]*registry.Service{r.Service}) != address {
					t.Errorf("Next returned %v, %v; want %s of %s", r, err, action, address)
				}
			}
			pods.Put(greeterPod(t, 1))
			next("create", "10.0.0.1:2")
			changed := kubetest.OneInstance("greeter", "v9", "10.0.0.1:2")
			pods.Put(kubetest.ReadyPod(t, "p-1", changed))
			next("update", "10.0.0.1:2")
			pods.Put(kubetest.ReadyPod(t, "p-1", kubetest.OneInstance("greeter", "v9", "10.0.0.1:3"))) // a restarted process has another id
			next("delete", "10.0.0.1:2")
			next("create", "10.0.0.1:3")
			pods.Delete("p-1")
			pods.Put(greeterPod(t, 2))
			next("delete", "10.0.0.1:3")
			next("create", "10.0.0.1:3") // of another pod
			time.AfterFunc(time.Second, w.Stop)
			if _, err := w.Next(); !errors.Is(err, registry.ErrWatcherStopped) {
				t.Errorf("after Stop Next returned %v", err)
			}
			w.Stop()
			if w, err = s.Watch(service); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(time.Second, s.Stop)
			for err = nil; err == nil; { // the instances leave, then the watcher ends
				_, err = w.Next()
			}
			if !errors.Is(err, registry.ErrWatcherStopped) {
				t.Errorf("after the end of the informer Next returned %v", err)
			}
		})
	}
}

func TestObservedStates(t *testing.T) {
	bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
		table := newAllServices(&index{}, podmeta.Limits{})
		i := newInformer(table)
		o := &overview{Informer: i, all: table}
		observed := func() string {
			var lines []string
			all, _, _ := o.observed()
			for _, n := range all {
				lines = append(lines, fmt.Sprintf("%s/%s %s %s (%s)", n.Service.Name, n.Pod, n.Address, n.State, n.Reason))
			}
			return strings.Join(lines, ", ")
		}
		check := func(want string) {
			t.Helper()
			if got := observed(); got != want {
				t.Errorf("observed %q, want %q", got, want)
			}
		}
		if _, synced, _ := o.observed(); synced {
			t.Error("synced before the first LIST")
		}
		created := func(p *corev1.Pod, age time.Duration) *corev1.Pod {
			p.CreationTimestamp.Time = time.Now().Add(-age)
			return p
		}
		i.Replace([]*corev1.Pod{created(greeterPod(t, 1), time.Minute), created(greeterPod(t, 0), time.Hour),
			created(kubetest.ReadyPod(t, "z", kubetest.OneInstance("adder", "v1", "10.0.0.9:1")), 0)})
		if _, synced, _ := o.observed(); !synced {
			t.Error("not synced after the first LIST")
		}
		check("adder/z 10.0.0.9:1 ready (), greeter/p-0 10.0.0.1:1 ready (), greeter/p-1 10.0.0.1:2 ready ()")
		gone := created(kubetest.ReadyPod(t, "p-0"), time.Hour) // deregistered
		i.Update(gone)
		i.Delete(kubetest.ReadyPod(t, "z"))
		check("greeter/p-0 10.0.0.1:1 terminating (the instance has deregistered), greeter/p-1 10.0.0.1:2 ready ()")
		if got := len(i.Snapshot().Instances); got != 1 {
			t.Errorf("%d routable instances, want 1", got)
		}
		i.Update(created(greeterPod(t, 0), time.Hour)) // registered again
		check("greeter/p-0 10.0.0.1:1 ready (), greeter/p-1 10.0.0.1:2 ready ()")
		i.Update(gone)
		i.Delete(gone)
		check("greeter/p-1 10.0.0.1:2 ready ()")
		lost := greeterPod(t, 1)
		lost.Spec.NodeName = "node-7"
		lost.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: "False"}, {Type: corev1.ContainersReady, Status: "True"}}
		i.Update(lost)
		check(`greeter/p-1 10.0.0.1:2 node unreachable (the Kubernetes node "node-7" stopped reporting)`)
		ended := greeterPod(t, 1)
		ended.Status.Phase, ended.Status.Reason = corev1.PodFailed, "Evicted"
		i.Update(ended)
		check("greeter/p-1 10.0.0.1:2 not ready (the pod has ended: Evicted)")
		i.Replace(nil)
		check("")
		if len(table.reasons)+len(table.deregistered)+len(table.versions)+len(table.index.byNode) != 0 {
			t.Errorf("left of removed pods: %v", table)
		}
	})
}

func TestTableForgetsWhatPodsForget(t *testing.T) {
	x := &index{}
	table := tableOfService("greeter", x)
	for round := range 5 {
		for n := range 1000 {
			table.update(kubetest.ReadyPod(t, fmt.Sprint("p-", n), kubetest.OneInstance("greeter", fmt.Sprint("v", round), "10.0.0.1:1")))
		}
	}
	if len(table.versions) != 1 || len(x.byNode) != 1000 {
		t.Errorf("%d versions and %d instances of 1000 pods", len(table.versions), len(x.byNode))
	}
	for n := range 1000 {
		table.remove(fmt.Sprint("p-", n))
	}
	if len(table.versions)+len(x.byNode)+len(table.pods) != 0 {
		t.Errorf("%d versions, %d instances and %d pods are left", len(table.versions), len(x.byNode), len(table.pods))
	}
}
