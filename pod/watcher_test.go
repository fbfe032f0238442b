package pod

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

func TestWatchReturnsChanges(t *testing.T) {
	ns := newNamespace(t)
	r := ns.openRegistry("reader")
	ns.CreateReadyPod("a")
	ns.register("a", "greeter", "v1", "10.0.0.1:1")
	kubetest.Eventually(t, 10*time.Second, "the instance is found", has(r, "greeter", "10.0.0.1:1"))
	for _, opts := range [][]registry.WatchOption{nil, {registry.WatchService("greeter")}} {
		w, err := r.Watch(opts...)
		if err != nil {
			t.Fatal(err)
		}
		step := func(action, address string) {
			t.Helper()
			got, err := w.Next()
			if err != nil || got.Action != action || got.Service.Name != "greeter" || len(got.Service.Nodes) != 1 || got.Service.Nodes[0].Address != address {
				t.Errorf("Next: %v %+v, want %s %s", err, got, action, address)
			}
		}
		ns.CreateReadyPod("b")
		ns.register("b", "greeter", "v1", "10.0.0.2:1")
		step("create", "10.0.0.2:1")
		ns.register("b", "greeter", "v2", "10.0.0.2:1")
		step("update", "10.0.0.2:1")
		ns.SetStatus("b", corev1.PodRunning, corev1.ConditionFalse)
		step("delete", "10.0.0.2:1")
		ns.RemovePod("b")
		ended := make(chan error)
		go func() { _, err := w.Next(); ended <- err }()
		w.Stop()
		w.Stop()
		if err := <-ended; !errors.Is(err, registry.ErrWatcherStopped) {
			t.Errorf("Next after Stop: %v", err)
		}
	}
}

func TestSlowWatcherDelaysNothing(t *testing.T) {
	ns := newNamespace(t)
	r := ns.openRegistry("reader")
	w, err := r.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	ns.CreateReadyPod("a")
	for i := range 300 {
		ns.register("a", "greeter", "v1", fmt.Sprint("10.0.0.1:", i+1))
	}
	kubetest.Eventually(t, 10*time.Second, "the last of 300 changes", has(r, "greeter", "10.0.0.1:300"))
	kubetest.Eventually(t, 10*time.Second, "the last of 300 changes, among all services", func() error {
		for all, err := range r.Observe(t.Context()) {
			if err != nil || len(all) != 1 || all[0].Address != "10.0.0.1:300" {
				return fmt.Errorf("%v %v", err, all)
			}
			break
		}
		return nil
	})
	got, err := w.Next()
	if err != nil || got.Action != "create" || got.Service.Nodes[0].Address != "10.0.0.1:300" {
		t.Errorf("Next: %v %+v, want the current state", err, got)
	}
}
