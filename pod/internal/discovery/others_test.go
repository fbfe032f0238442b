package discovery

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

// fakeOthers is another registry. A test publishes what it knows.
type fakeOthers struct {
	publish  func([]*registry.Service, error) // of the service that is followed
	first    func()                           // called a second after Follow
	followed int
	names    []*registry.Service
}

func (o *fakeOthers) Follow(_ string, publish func([]*registry.Service, error)) (stop func()) {
	o.publish = publish
	o.followed++
	if o.first != nil {
		time.AfterFunc(time.Second, o.first)
	}
	return func() { o.followed-- }
}
func (o *fakeOthers) List() []*registry.Service { return o.names }
func (o *fakeOthers) String() string            { return "etcd" }

// other returns an instance of the greeter as the other registry knows it.
func other(id, address string) *registry.Service {
	s := kubetest.OneInstance("greeter", "v1", address)
	s.Nodes[0].Id = id
	s.Endpoints = []*registry.Endpoint{{Name: "Greeter.Hello"}}
	return s
}

// bubbleWithOthers runs a test with services that also read another registry.
func bubbleWithOthers(t *testing.T, f func(t *testing.T, s *Services, pods *kubetest.Pods, o *fakeOthers)) {
	synctest.Test(t, func(t *testing.T) {
		pods, o := &kubetest.Pods{}, &fakeOthers{}
		s := New(func() (API, error) { return API{pods, "ns", "api"}, nil }, func() Settings { return Settings{Timeout: 5 * time.Second, Others: o} })
		f(t, s, pods, o)
		s.Stop()
		if o.followed != 0 {
			t.Errorf("after Stop, %d services are followed", o.followed)
		}
	})
}

func TestOthersCompleteThePods(t *testing.T) {
	bubbleWithOthers(t, func(t *testing.T, s *Services, pods *kubetest.Pods, o *fakeOthers) {
		check := func(want string) {
			t.Helper()
			all, err := s.Get("greeter")
			if err != nil || addressesOf(all) != want {
				t.Errorf("Get returned %q, %v; want %q", addressesOf(all), err, want)
			}
		}
		moved := func(i int) *corev1.Pod { // its id is p-i and its address 10.0.0.i+1:1
			s := kubetest.OneInstance("greeter", "v1", fmt.Sprintf("10.0.0.%d:1", i+1))
			s.Nodes[0].Id = fmt.Sprint("id-", i)
			return kubetest.ReadyPod(t, fmt.Sprint("p-", i), s)
		}
		pods.Put(moved(0))
		check("10.0.0.1:1") // without an answer of the other registry

		old := other("old", "10.0.0.9:1")
		o.publish([]*registry.Service{old}, nil)
		check("10.0.0.1:1 10.0.0.9:1")
		inf, _ := s.Informer("greeter")
		find := func(address string) *Instance {
			for _, i := range inf.Snapshot().Instances {
				if i.Address == address {
					return i
				}
			}
			return nil
		}
		before := find("10.0.0.9:1")
		if before.Pod != "(etcd)" || s.InstanceOf(&before.Node) != before || len(before.endpointText().endpoints()) != 1 {
			t.Errorf("pod %q, %d endpoints", before.Pod, len(before.endpointText().endpoints()))
		}

		// The same process in both, and one that is registered twice at one address.
		o.publish([]*registry.Service{other("old", "10.0.0.9:1"), other("id-0", "10.0.0.1:1"), other("killed", "10.0.0.9:1")}, nil)
		check("10.0.0.1:1 10.0.0.9:1")
		if counts := s.OtherCounts(); counts["greeter"] != 1 {
			t.Errorf("only the other registry has %d instances", counts["greeter"])
		}
		o.publish([]*registry.Service{other("old", "10.0.0.9:1"), other("id-0", "10.0.0.1:1"), other("id-1", "10.0.0.2:1")}, nil)
		if find("10.0.0.9:1") != before || before.HasLeft() {
			t.Error("an instance that stays the same lost its statistics")
		}
		check("10.0.0.1:1 10.0.0.2:1 10.0.0.9:1")

		// A pod that is not ready is not called because the other registry has it too.
		p := moved(1)
		p.Status.Conditions[0].Status = corev1.ConditionFalse
		pods.Put(p)
		check("10.0.0.1:1 10.0.0.9:1")
		pods.Put(moved(1))
		check("10.0.0.1:1 10.0.0.2:1 10.0.0.9:1")

		// One that has left its pod, before the other registry drops it, and a process that takes its address.
		pods.Delete("p-1")
		check("10.0.0.1:1 10.0.0.9:1")
		o.publish([]*registry.Service{old, other("id-0", "10.0.0.1:1"), other("rolled back", "10.0.0.2:1")}, nil)
		check("10.0.0.1:1 10.0.0.2:1 10.0.0.9:1")

		// An error changes nothing; the other registry may lose all.
		o.publish(nil, errors.New("down"))
		check("10.0.0.1:1 10.0.0.2:1 10.0.0.9:1")
		o.publish(nil, nil)
		check("10.0.0.1:1")
		if !before.HasLeft() || s.InstanceOf(&before.Node) != nil {
			t.Error("an instance that has left is still known")
		}
		s.Stop()
		if n := len(s.index.byNode); n != 0 {
			t.Errorf("after Stop, the index has %d instances", n)
		}
	})
}

// A process that has registered on its pod too, and could not deregister, as in an outage of the other registry or after SIGKILL.
func TestInstanceOfAPodThatOnlyOthersKeep(t *testing.T) {
	bubbleWithOthers(t, func(t *testing.T, s *Services, pods *kubetest.Pods, o *fakeOthers) {
		of := func(namespace, address string) *registry.Service {
			r := other(namespace+address, address)
			r.Nodes[0].Metadata = map[string]string{podmeta.NamespaceKey: namespace}
			return r
		}
		pods.Fail(errors.New("down"))
		o.first = func() {
			o.publish([]*registry.Service{of("ns", "10.0.0.1:1"), of("elsewhere", "10.0.0.2:1"), other("old", "10.0.0.3:1")}, nil)
		}
		check := func(when, want string) {
			t.Helper()
			if all, err := s.Get("greeter"); err != nil || addressesOf(all) != want {
				t.Errorf("%s, Get returned %q, %v; want %q", when, addressesOf(all), err, want)
			}
		}
		check("while the pods cannot be read", "10.0.0.1:1 10.0.0.2:1 10.0.0.3:1")
		pods.Fail(nil)
		pods.Put(kubetest.ReadyPod(t, "p-4", kubetest.OneInstance("greeter", "v1", "10.0.0.4:1")))
		time.Sleep(time.Minute)
		check("after the pods have been read", "10.0.0.2:1 10.0.0.3:1 10.0.0.4:1")
	})
}

func TestFirstReadWaitsForOthersOnlyWithoutPods(t *testing.T) {
	bubbleWithOthers(t, func(t *testing.T, s *Services, pods *kubetest.Pods, o *fakeOthers) {
		begin := time.Now()
		get := func() (addresses string, err error) {
			all, err := s.Get("greeter")
			return addressesOf(all), err
		}
		o.first = func() { o.publish([]*registry.Service{other("old", "10.0.0.9:1")}, nil) }
		if got, err := get(); got != "10.0.0.9:1" || err != nil || time.Since(begin) != time.Second {
			t.Errorf("Get returned %q, %v after %s", got, err, time.Since(begin))
		}

		s.Stop() // no answer
		o.first = nil
		begin = time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if _, err := s.Synced(ctx, "greeter"); err != nil || time.Since(begin) != 2*time.Second {
			t.Errorf("Synced returned %v after %s", err, time.Since(begin))
		}
		if got, err := get(); got != "" || err != nil || time.Since(begin) != 7*time.Second {
			t.Errorf("Get returned %q, %v after %s", got, err, time.Since(begin))
		}

		s.Stop() // an error
		begin = time.Now()
		o.first = func() { o.publish(nil, errors.New("down")) }
		if got, err := get(); got != "" || err != nil || time.Since(begin) != time.Second {
			t.Errorf("Get returned %q, %v after %s", got, err, time.Since(begin))
		}

		s.Stop() // the pods cannot be read
		pods.Fail(errors.New("forbidden"))
		o.first = func() { o.publish([]*registry.Service{other("old", "10.0.0.9:1")}, nil) }
		if got, err := get(); got != "10.0.0.9:1" || err != nil {
			t.Errorf("Get returned %q, %v", got, err)
		}
		o.publish(nil, nil)
		if _, err := get(); err == nil {
			t.Error("Get returned no error: neither registry has the service, and the pods cannot be read")
		}
	})
}

func TestWatchAndListWithOthers(t *testing.T) {
	bubbleWithOthers(t, func(t *testing.T, s *Services, pods *kubetest.Pods, o *fakeOthers) {
		next := func(w registry.Watcher, action, address string) {
			t.Helper()
			r, err := w.Next()
			if err != nil || r.Action != action || r.Service.Nodes[0].Address != address {
				t.Fatalf("Next returned %v, %v; want %s of %s", r, err, action, address)
			}
		}
		pods.Put(greeterPod(t, 0))
		if _, err := s.Get("greeter"); err != nil {
			t.Fatal(err)
		}
		o.publish([]*registry.Service{other("old", "10.0.0.9:1")}, nil)
		all, err := s.Watch("") // go-micro's cache watches all services
		if err != nil {
			t.Fatal(err)
		}
		one, err := s.Watch("greeter")
		if err != nil {
			t.Fatal(err)
		}
		o.publish([]*registry.Service{other("old", "10.0.0.9:1"), other("older", "10.0.0.8:1")}, nil)
		next(all, "create", "10.0.0.8:1")
		next(one, "create", "10.0.0.8:1")
		o.publish([]*registry.Service{other("older", "10.0.0.8:1")}, nil)
		next(all, "delete", "10.0.0.9:1")
		next(one, "delete", "10.0.0.9:1")

		o.names = []*registry.Service{{Name: "adder"}, {Name: "greeter"}}
		names := map[string]int{}
		list, err := s.List()
		for _, service := range list {
			names[service.Name]++
		}
		if err != nil || len(names) != 2 || names["adder"] != 1 || names["greeter"] != 1 {
			t.Errorf("List returned %v, %v", names, err)
		}
	})
}
