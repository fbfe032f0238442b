package pod

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/cache"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

func TestRegistryWritesSameMetadataAsPlugin(t *testing.T) {
	ns := newNamespace(t)
	for _, name := range []string{"greeter", "go.micro.srv.x/y", "with space, ü and name"} {
		ns.CreateReadyPod("ours")
		ns.CreateReadyPod("theirs")
		t.Setenv("HOSTNAME", "theirs")
		plugin := kubernetes.NewRegistry(registry.Addrs(ns.StartProxy().URL))
		greeter := service(name, "v1", "greeter-1", "10.0.0.1:9100")
		ours := ns.openRegistry("ours")
		compare := func(step string) {
			t.Helper()
			a, b := ns.GetPod("ours"), ns.GetPod("theirs")
			if !maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Annotations, b.Annotations) {
				t.Errorf("%s %q: ours %q %q, theirs %q %q", step, name, a.Labels, a.Annotations, b.Labels, b.Annotations)
			}
		}
		if err := errors.Join(ours.Register(greeter), plugin.Register(greeter)); err != nil {
			t.Fatal(err)
		}
		if len(ns.GetPod("ours").Annotations) != 1 {
			t.Errorf("annotations %q, want one", ns.GetPod("ours").Annotations)
		}
		compare("Register")
		if err := errors.Join(ours.Deregister(greeter), plugin.Deregister(greeter)); err != nil {
			t.Fatal(err)
		}
		compare("Deregister")
		for _, p := range []string{"ours", "theirs"} {
			ns.RemovePod(p)
		}
	}
}

func TestRegistryAndPluginFindEachOther(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("ours")
	ns.CreateReadyPod("theirs")
	t.Setenv("HOSTNAME", "theirs")
	plugin := kubernetes.NewRegistry(registry.Addrs(ns.StartProxy().URL))
	ours := ns.openRegistry("ours")
	if err := errors.Join(ours.Register(service("greeter", "v1", "a", "10.0.0.1:1")), plugin.Register(service("greeter", "v1", "b", "10.0.0.2:1"))); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]registry.Registry{"ours": ours, "theirs": plugin} {
		kubetest.Eventually(t, 10*time.Second, name, has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))
		all, err := r.GetService("greeter")
		if err != nil || len(all) != 1 || all[0].Version != "v1" || len(all[0].Endpoints) != 1 || all[0].Endpoints[0].Request.Values[0].Name != "name" {
			t.Errorf("%s: GetService: %v %+v", name, err, all)
		}
		names, err := r.ListServices()
		if err != nil || len(names) != 1 || names[0].Name != "greeter" {
			t.Errorf("%s: ListServices: %v %v", name, err, names)
		}
	}
	c := cache.New(ours) // go-micro's own cache and selector work with this registry
	defer c.Stop()
	if all, err := c.GetService("greeter"); err != nil || len(all) != 1 || len(all[0].Nodes) != 2 {
		t.Errorf("go-micro's cache: %v %v", err, all)
	}
	theirs := selector.NewSelector(selector.Registry(ours))
	defer theirs.Close()
	if next, err := theirs.Select("greeter"); err != nil {
		t.Errorf("go-micro's selector: %v", err)
	} else if n, err := next(); err != nil || !strings.HasPrefix(n.Address, "10.0.0.") {
		t.Errorf("go-micro's selector: %v %v", err, n)
	}
}

func TestLabelNameEqualsThatOfPlugin(t *testing.T) {
	for _, name := range []string{"greeter", "go.micro.srv.greeter", "a/b", "a:b", "grüße", "\u65e5\u672c", "a b", "\xff", "😀-1"} {
		captured, err := capture(kubernetes.NewRegistry, func(plugin registry.Registry) error { return plugin.Register(service(name, "v1", "a", "10.0.0.1:1")) })
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := captured[0].Labels[podmeta.SelectorPrefix+podmeta.LabelName(name)]; !ok {
			t.Errorf("the plugin's labels of %q are %v, and labelName returns %q", name, slices.Collect(maps.Keys(captured[0].Labels)), podmeta.LabelName(name))
		}
	}
}
