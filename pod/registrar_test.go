package pod

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/registry"
)

func TestPodReplacedUnderSameName(t *testing.T) {
	ns := newNamespace(t)
	r, own := ns.openRegistry("reader"), ns.openRegistry("web-0")
	ns.CreateReadyPod("web-0")
	if err := own.Register(service("web", "v1", "a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 2*time.Second, "the first", has(r, "web", "10.0.0.1:1"))
	ns.RemovePod("web-0")
	ns.CreateReadyPod("web-0")
	ns.register("web-0", "web", "v1", "10.0.0.2:1")
	kubetest.Eventually(t, 2*time.Second, "the second", has(r, "web", "10.0.0.2:1"))
	// The first pod's process runs on for a while and must not remove the second pod's registration.
	err := own.Deregister(service("web", "v1", "a", "10.0.0.1:1"))
	if err == nil || !strings.Contains(err.Error(), "another pod has this name now") {
		t.Errorf("Deregister by the first pod's process: %v", err)
	}
	if err := has(r, "web", "10.0.0.2:1")(); err != nil {
		t.Error(err)
	}
}

func TestRemovedMetadataIsRestoredAndNothingElseIsPatched(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	f := ns.StartProxyWithoutCredentials()
	r := ns.openRegistryIn(f.Through(ns.Environment("a")))
	one, two := service("one", "v1", "a", "10.0.0.1:1"), service("two", "v1", "b", "10.0.0.1:2")
	if err := errors.Join(r.Register(one), r.Register(two)); err != nil {
		t.Fatal(err)
	}
	before := ns.GetPod("a")
	if len(before.Annotations) != 2 || !r.Registered() {
		t.Fatalf("annotations %q, registered %v", before.Annotations, r.Registered())
	}
	kubetest.Eventually(t, 5*time.Second, "the own pod is watched", func() error {
		if f.Count("WATCH") == 0 {
			return errors.New("no watch")
		}
		return nil
	})
	patches := f.Count("PATCH")
	for range 20 { // go-micro registers again every 30 s
		if err := errors.Join(r.Register(one), r.Register(two)); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.Count("PATCH"); n != patches || n != 2 {
		t.Errorf("%d PATCH for two services, %d after 40 repetitions, want 2 and 2", patches, n)
	}
	ns.PatchPod("a", fmt.Sprintf(`{"metadata":{"labels":{%q:null,%q:null},"annotations":{%q:null,%q:"{}"}}}`,
		typeLabel, selectorPrefix+"one", annotationPrefix+"one", annotationPrefix+"two"))
	took := kubetest.Eventually(t, 5*time.Second, "the removed metadata is restored", func() error {
		if p := ns.GetPod("a"); !maps.Equal(p.Labels, before.Labels) || !maps.Equal(p.Annotations, before.Annotations) {
			return fmt.Errorf("%q %q", p.Labels, p.Annotations)
		}
		return nil
	})
	t.Logf("restored after %s", took)
	if err := r.Deregister(one); err != nil {
		t.Fatal(err)
	}
	if p := ns.GetPod("a"); len(p.Annotations) != 1 || p.Labels[selectorPrefix+"one"] != "" || p.Labels[selectorPrefix+"two"] != typeValue {
		t.Errorf("after Deregister of one of two: %q %q", p.Labels, p.Annotations)
	}
	// A deregistered service stays deregistered, and the registrar leaves what another process writes under its name.
	ns.register("a", "one", "v9", "10.0.0.9:9")
	if err := has(r, "two", "10.0.0.1:2")(); err != nil {
		t.Error(err)
	}
	if p := ns.GetPod("a"); !strings.Contains(p.Annotations[annotationPrefix+"one"], "v9") {
		t.Errorf("another process's registration was removed: %q", p.Annotations)
	}
}

func TestNewProcessInSamePodReplacesRegistration(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	reader := ns.openRegistry("reader")
	first := ns.openRegistry("a")
	if err := first.Register(service("greeter", "v1", "before", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 2*time.Second, "the first process", has(reader, "greeter", "10.0.0.1:1"))
	if err := first.Close(); err != nil { // a killed process does not deregister
		t.Fatal(err)
	}
	second := ns.openRegistry("a")
	if err := second.Register(service("greeter", "v2", "after", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 2*time.Second, "only the second process is registered", func() error {
		all, err := reader.GetService("greeter")
		if err != nil || len(all) != 1 || all[0].Version != "v2" || len(all[0].Nodes) != 1 || all[0].Nodes[0].Id != "after" {
			return fmt.Errorf("%v %v", err, all)
		}
		return nil
	})
}

func TestRegistrationIsRetriedUntilRightsAreGranted(t *testing.T) {
	ns := newNamespace(t, "list", "watch")
	ns.CreateReadyPod("a")
	r := ns.openRegistry("a", registry.Timeout(time.Second))
	if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err == nil {
		t.Fatal("Register returned nil without the verb patch")
	}
	ns.GrantVerb("patch")
	kubetest.Eventually(t, 15*time.Second, "the registration is written", func() error {
		if !r.Registered() {
			return errors.New("not registered")
		}
		return nil
	})
}
