package pod

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

func TestInformerRecoversFromConnectionLoss(t *testing.T) {
	ns := newNamespace(t)
	relay := ns.StartRelay(t)
	r := ns.openRegistryIn(relay.Through(ns.Environment("reader")))
	ns.CreateReadyPod("a")
	ns.register("a", "greeter", "v1", "10.0.0.1:1")
	kubetest.Eventually(t, 10*time.Second, "the instance is found", has(r, "greeter", "10.0.0.1:1"))
	for i := range 3 {
		relay.Cut()
		if err := has(r, "greeter", fmt.Sprint("10.0.0.1:", i+1))(); err != nil {
			t.Errorf("while the connection is cut: %v", err)
		}
		ns.register("a", "greeter", "v1", fmt.Sprint("10.0.0.1:", i+2))
		ns.Compact(t) // the next watch gets 410, because its version is compacted
		relay.Restore()
		took := kubetest.Eventually(t, 10*time.Second, "the change is seen", has(r, "greeter", fmt.Sprint("10.0.0.1:", i+2)))
		t.Logf("seen %s after the connection is back", took)
		relay.CloseConnections()
	}
}

func TestInformerListsAgainAfterExpiredWatch(t *testing.T) {
	ns := newNamespace(t)
	ns.Compact(t)
	ns.KillAndWait(t, nil) // otherwise the API server's watch cache still has the version
	proxy := ns.StartProxyWithoutCredentials()
	r := ns.openRegistryIn(proxy.Through(ns.Environment("reader")))
	ns.CreateReadyPod("a")
	ns.register("a", "greeter", "v1", "10.0.0.1:1")
	proxy.ExpireNextWatch()
	kubetest.Eventually(t, 10*time.Second, "the first LIST", has(r, "greeter", "10.0.0.1:1"))
	kubetest.Eventually(t, 10*time.Second, "a new watch follows the expired one", func() error {
		if proxy.Count("EXPIRED") != 1 || proxy.Count("WATCH") == 0 {
			return fmt.Errorf("%d expired, %d others", proxy.Count("EXPIRED"), proxy.Count("WATCH"))
		}
		return nil
	})
	ns.register("a", "greeter", "v1", "10.0.0.1:2")
	kubetest.Eventually(t, 10*time.Second, "the change is seen", has(r, "greeter", "10.0.0.1:2"))
	if proxy.Count("GET") < 2 {
		t.Errorf("%d LIST: the watch was not refused", proxy.Count("GET"))
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
			a, err := addresses(r, "greeter")
			if err != nil || len(a) != want {
				return fmt.Errorf("%d instances, want %d, %v", len(a), want, err)
			}
			return nil
		}
	}
	kubetest.Eventually(t, 20*time.Second, "all pods are found", count(pods))
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
	kubetest.Eventually(t, 20*time.Second, "half of the pods are left", count(pods/2))
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
}

func TestMalformedAnnotationAffectsOnlyItsPod(t *testing.T) {
	ns := newNamespace(t)
	r := ns.openRegistry("reader")
	for i, text := range []string{"", "{", "null", "[]", `{"name":7}`, `{"name":"greeter","nodes":[null,{}]}`, `{"name":"other","nodes":[{"id":"x","address":"y"}]}`, strings.Repeat("[", 10000)} {
		name := fmt.Sprint("bad-", i)
		ns.CreateReadyPod(name)
		ns.Register(name, "greeter", text)
	}
	ns.CreateReadyPod("good")
	ns.register("good", "greeter", "v1", "10.0.0.1:1")
	kubetest.Eventually(t, 10*time.Second, "the valid registration is found", has(r, "greeter", "10.0.0.1:1"))
	ns.register("bad-1", "greeter", "v1", "10.0.0.2:1")
	kubetest.Eventually(t, 10*time.Second, "a corrected registration is found", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))
	if _, err := r.ListServices(); err != nil {
		t.Error(err)
	}
}

func TestFirstReadFailsAtOnceWithTheReason(t *testing.T) {
	status := func(code int, reason, message string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d,"message":%q}`, reason, code, message)
		})
	}
	_, forbidden := kubetest.StartFake(t, status(http.StatusForbidden, "Forbidden", "pods is forbidden"))
	_, invalid := kubetest.StartFake(t, status(http.StatusBadRequest, "BadRequest", "unable to parse requirement"))
	server, down := kubetest.StartFake(t, http.NotFoundHandler())
	server.Close()
	for _, c := range []struct {
		name, want string
		env        apiserver.Environment
	}{
		{"the verb list is missing", "k8s/pod-rbac.yaml grants it", forbidden},
		{"the name is invalid", "unable to parse requirement", invalid},
		{"the API server is down", "is the API server at", down},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRegistry(c.env, nil)
			defer r.Close()
			s := balancer.NewSelector(r, choosersOf)
			for call := range 3 {
				begin := time.Now()
				_, err := s.Select("greeter")
				if took := time.Since(begin); err == nil || !strings.Contains(err.Error(), c.want) || took > 4*time.Second { // not the timeout of 5 s
					t.Errorf("call %d: %v after %s, want %q at once", call, err, took, c.want)
				}
			}
		})
	}
}
