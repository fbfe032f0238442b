package pod

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

func TestInformerRecoversFromConnectionLoss(t *testing.T) {
	ns := newNamespace(t)
	w := ns.StartRelay(t)
	r := ns.openRegistryIn(w.Through(ns.Environment("reader")))
	ns.CreateReadyPod("a")
	ns.register("a", "greeter", "v1", "10.0.0.1:1")
	kubetest.Eventually(t, 2*time.Second, "before", has(r, "greeter", "10.0.0.1:1"))
	for i := range 3 {
		w.Cut()
		if err := has(r, "greeter", fmt.Sprint("10.0.0.1:", i+1))(); err != nil {
			t.Errorf("while cut: %v", err)
		}
		ns.register("a", "greeter", "v1", fmt.Sprint("10.0.0.1:", i+2))
		ns.Compact(t) // the watch's version is gone: 410
		w.Restore()
		took := kubetest.Eventually(t, 3*time.Second, "after", has(r, "greeter", fmt.Sprint("10.0.0.1:", i+2)))
		t.Logf("seen %s after the connection is back", took)
		w.CloseConnections()
	}
}

func TestInformerListsAgainAfterExpiredWatch(t *testing.T) {
	ns := newNamespace(t)
	ns.Compact(t)
	ns.KillAndWait(t, nil) // otherwise its watch cache still has the version
	f := ns.StartProxyWithoutCredentials()
	r := ns.openRegistryIn(f.Through(ns.Environment("reader")))
	ns.CreateReadyPod("a")
	ns.register("a", "greeter", "v1", "10.0.0.1:1")
	f.ExpireNextWatch()
	kubetest.Eventually(t, 2*time.Second, "the first LIST", has(r, "greeter", "10.0.0.1:1"))
	kubetest.Eventually(t, 2*time.Second, "a new watch follows the expired one", func() error {
		if f.Count("EXPIRED") != 1 || f.Count("WATCH") == 0 {
			return fmt.Errorf("%d expired, %d others", f.Count("EXPIRED"), f.Count("WATCH"))
		}
		return nil
	})
	ns.register("a", "greeter", "v1", "10.0.0.1:2")
	kubetest.Eventually(t, 2*time.Second, "the change is seen", has(r, "greeter", "10.0.0.1:2"))
	if f.Count("GET") < 2 {
		t.Errorf("%d LIST: the watch was not refused", f.Count("GET"))
	}
}

func TestInformerWithTwoThousandPods(t *testing.T) {
	ns := newNamespace(t)
	const pods, workers = 2000, 16
	r := ns.openRegistry("reader")
	w, err := r.Watch(registry.WatchService("greeter"))
	if err != nil {
		t.Fatal(err)
	}
	each := func(f func(i int)) {
		var wait sync.WaitGroup
		for k := range workers {
			wait.Go(func() {
				for i := k; i < pods; i += workers {
					f(i)
				}
			})
		}
		wait.Wait()
	}
	name := func(i int) string { return fmt.Sprint("p-", i) }
	each(func(i int) {
		ns.CreateReadyPod(name(i))
		ns.register(name(i), "greeter", "v1", fmt.Sprintf("10.1.%d.%d:1", i/250, i%250))
	})
	count := func(want int) func() error {
		return func() error {
			s, err := r.snapshot("greeter")
			if err != nil || len(s.instances) != want {
				return fmt.Errorf("%d instances, want %d, %v", len(s.instances), want, err)
			}
			return nil
		}
	}
	kubetest.Eventually(t, 20*time.Second, "all of them", count(pods))
	each(func(i int) {
		switch i % 4 {
		case 0:
			ns.RemovePod(name(i))
		case 1:
			ns.SetStatus(name(i), corev1.PodRunning, corev1.ConditionFalse)
		case 2:
			ns.register(name(i), "greeter", "v2", fmt.Sprintf("10.1.%d.%d:2", i/250, i%250))
		}
	})
	kubetest.Eventually(t, 20*time.Second, "half of them", count(pods/2))
	seen := map[string]bool{} // the changes add up to the current state
	for len(seen) != pods/2 {
		got, err := w.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range got.Service.Nodes {
			if got.Action == "delete" {
				delete(seen, n.Id)
			} else {
				seen[n.Id] = true
			}
		}
	}
	w.Stop()
	i, err := r.informer("greeter")
	if err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if indexed := r.instances.length(); indexed > 2*pods || len(i.table.versions) > 2 {
		t.Errorf("the registry holds %d instances and %d versions of %d pods", indexed, len(i.table.versions), len(i.table.pods))
	}
}

// length is the number of instances in the index.
func (x *instanceIndex) length() (n int) {
	x.byNode.Range(func(any, any) bool { n++; return true })
	return n
}
