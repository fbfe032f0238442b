package pod

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// brokenRegistry is an old registry that fails.
type brokenRegistry struct{ registry.Registry }

var errBroken = errors.New("broken")

func (brokenRegistry) Register(*registry.Service, ...registry.RegisterOption) error { return errBroken }
func (brokenRegistry) Deregister(*registry.Service, ...registry.DeregisterOption) error {
	return errBroken
}
func (brokenRegistry) GetService(string, ...registry.GetOption) ([]*registry.Service, error) {
	return nil, errBroken
}
func (brokenRegistry) Watch(...registry.WatchOption) (registry.Watcher, error) { return nil, errBroken }

func TestAlsoRegistersInBothAndFindsBoth(t *testing.T) {
	ns := newNamespace(t)
	old := memory.NewRegistry()
	ns.CreateReadyPod("moved")
	ns.CreateReadyPod("client")
	moved := startGreeterOn(t, newRegistry(ns.Environment("moved"), kubernetes.NewRegistry, Also(old)), 0)
	kubetest.Eventually(t, 10*time.Second, "the service is registered in both", func() error {
		if s := moved.registry.Status(); len(s.Services) != 1 || !s.Services[0].Registered || !s.Services[0].AlsoRegistered {
			return errors.New("Status says no")
		}
		return nil
	})
	inOld, err := addresses(old, "greeter")
	onPod, err2 := addresses(moved.registry, "greeter")
	if err != nil || err2 != nil || len(inOld) != 1 || len(onPod) != 1 || inOld[0] != onPod[0] {
		t.Fatalf("the old registry has %q, %v, both have %q, %v", inOld, err, onPod, err2)
	}

	// A service that has not moved.
	notMoved := micro.NewService(micro.Name("adder"), micro.HandleSignal(false), micro.Client(grpcc.NewClient()),
		micro.Server(grpcs.NewServer(server.Name("adder"), server.Address("127.0.0.1:0"))), micro.Registry(old))
	if err := proto.RegisterGreeterHandler(notMoved.Server(), &Greeter{}); err != nil {
		t.Fatal(err)
	}
	if err := notMoved.Server().Start(); err != nil {
		t.Fatal(err)
	}
	stopOther := func() {
		if err := notMoved.Server().Stop(); err != nil {
			t.Error(err)
		}
	}
	caller := ns.openRegistry("client", Also(old))
	c := NewClient(caller, grpcc.NewClient())
	if err := c.Call(context.Background(), c.NewRequest("adder", "Greeter.Hello", &proto.HelloRequest{Name: "x"}), new(proto.HelloResponse)); err != nil {
		t.Error(err)
	}
	if got, err := addresses(caller, "greeter"); err != nil || len(got) != 1 || got[0] != onPod[0] {
		t.Errorf("the caller finds %q, %v", got, err)
	}
	if i := c.Instances("adder"); len(i) != 1 || i[0].Pod != "(memory)" {
		t.Errorf("instances: %v", i)
	}
	for _, called := range caller.Status().Called {
		if want := map[string]int{"adder": 1}[called.Name]; called.AlsoOnly != want {
			t.Errorf("of %s only the old registry has %d instances, want %d", called.Name, called.AlsoOnly, want)
		}
	}
	list, err := caller.ListServices()
	if err != nil || len(list) != 2 {
		t.Errorf("ListServices returned %v, %v", list, err)
	}

	stopOther()
	moved.stop()
	if err, _ := moved.waitForRun(20 * time.Second); err != nil {
		t.Error(err)
	}
	if all, _ := old.GetService("greeter"); len(all) > 0 && len(all[0].Nodes) > 0 {
		t.Errorf("after the stop, the old registry has %v", all[0].Nodes)
	}
	kubetest.Eventually(t, 10*time.Second, "the caller knows no instance", has(caller, "adder"))
}

func TestBrokenOldRegistryConcernsNothing(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("moved")
	begin := time.Now()
	moved := startGreeterOn(t, newRegistry(ns.Environment("moved"), kubernetes.NewRegistry, Also(brokenRegistry{memory.NewRegistry()})), 0)
	kubetest.Eventually(t, 10*time.Second, "the service is ready", func() error {
		if s := moved.registry.Status(); len(s.Services) != 1 || s.Services[0].State != LifecycleReady || s.Services[0].AlsoRegistered || !errors.Is(s.AlsoError, errBroken) {
			return errors.New("Status says no")
		}
		return nil
	})
	if got, err := addresses(moved.registry, "greeter"); err != nil || len(got) != 1 {
		t.Errorf("GetService finds %q, %v", got, err)
	}
	moved.stop()
	if err, _ := moved.waitForRun(20 * time.Second); err != nil {
		t.Error(err)
	}
	if lines := kubetest.LogLines(t, begin, "which pod.Also names"); len(lines) != 1 {
		t.Errorf("%d log lines: %q", len(lines), lines)
	}
	if alsoOf(newRegistry(ns.Environment("moved"), kubernetes.NewRegistry, Also(nil)).Options()) != nil {
		t.Error("Also(nil) is something")
	}
}
