//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestLifecycle replaces pods in each way there is while they are called, and
// wants no call to fail: with go-micro's retry and without, of handlers that take
// 2 s, of downloads that take 5 s. The manifests are the project's own; only the
// programs have time to be interrupted in.
func TestLifecycle(t *testing.T) {
	kubectl(t, "apply", "-f", "k8s/namespace.yaml", "-f", "k8s/configmap-rbac.yaml", "-f", "k8s/pod-rbac.yaml",
		"-f", "go-micro-srv/k8s/service.yaml", "-f", "go-micro-srv/k8s/pdb.yaml", "-f", "go-micro-web/k8s/service.yaml", "-f", "go-micro-web/k8s/pdb.yaml")
	deployProbe(t, "go-micro-srv", "greeter")
	deployProbe(t, "go-micro-web", "page")
	t.Cleanup(func() {
		kubectl(t, "apply", "-f", "go-micro-srv/k8s/deployment.yaml", "-f", "go-micro-web/k8s/deployment.yaml")
	})
	const page = "http://go-micro-web.go-micro:9200/"
	loads := map[string]*load{
		"calls":                          startLoad(t, "life-calls", "call", "4", "20ms"),
		"calls without retries":          startLoad(t, "life-once", "call", "-retries=0", "4", "20ms"),
		"calls of 2 s, without retries":  startLoad(t, "life-slow", "call", "-retries=0", "-name=slow", "8", "20ms"),
		"requests, kept connections":     startLoad(t, "life-kept", "fetch", page, "2", "20ms"),
		"downloads of 5 s, fresh":        startLoad(t, "life-download", "fetch", "-fresh", page+"download", "8", "20ms"),
		"requests, a connection of each": startLoad(t, "life-fresh", "fetch", "-fresh", page, "2", "20ms"),
	}
	t.Cleanup(func() {
		for _, l := range loads {
			l.stop(t)
		}
	})
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"rolling restart", restarted},
		{"scale to 1 and back", scaledDown},
		{"eviction within the disruption budget", evicted},
		{"a rollout that never becomes ready, and its undoing", stuck},
	} {
		t.Run(step.name, func(t *testing.T) {
			settle(t)
			loads["calls"].whole(t, replicas)
			begin := time.Now()
			step.run(t)
			settle(t)
			loads["calls"].whole(t, replicas)
			end := time.Now()
			for name, l := range loads {
				log := l.settled(t, end)
				made, failed, notable := 0, 0, []string(nil)
				for _, s := range log {
					if s.End.Before(begin) {
						continue
					}
					made += s.Succeeded
					if failed += s.Failed; s.Failed > 0 {
						notable = append(notable, fmt.Sprintf("%+6.1f s: %s", s.End.Sub(begin).Seconds(), must(json.Marshal(s))))
					}
				}
				t.Logf("%s, %.0f s: %s: %d made, %d failed", step.name, end.Sub(begin).Seconds(), name, made, failed)
				if failed > 0 || made == 0 {
					t.Errorf("%s: %d made, %d failed, want none\n%s\n%s", name, made, failed, strings.Join(notable, "\n"), l.other)
				}
			}
		})
	}
	t.Run("a frozen process is not called, and started anew", func(t *testing.T) { frozenIsRestarted(t, loads["calls"]) })
}

// deployProbe deploys a service's own manifest with the probe in its place.
func deployProbe(t *testing.T, service, as string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, service, "k8s/deployment.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	image := "image: 846602483/" + service + ":kubernetes"
	if !strings.Contains(string(b), image) || !strings.Contains(string(b), "replicas: 2") {
		t.Fatalf("%s: its manifest is not what this test changes:\n%s", service, b)
	}
	apply(t, strings.NewReplacer(image, fmt.Sprintf("image: %s\n          args: [%s]", probeImage, as), "replicas: 2", fmt.Sprintf("replicas: %d", replicas)).Replace(string(b)))
}

// both runs kubectl on both deployments.
func both(t *testing.T, args ...string) {
	t.Helper()
	kubectl(t, append(args, "-n", namespace, "deployment/go-micro-srv", "deployment/go-micro-web")...)
}

// settle waits until both have all their pods, available, and no other.
func settle(t *testing.T) {
	t.Helper()
	for _, d := range []string{"go-micro-srv", "go-micro-web"} {
		kubectl(t, "rollout", "status", "-n", namespace, "deployment/"+d, "--timeout=3m")
		eventually(t, time.Minute, "only pods of "+d+" that stay", func() error {
			if all := strings.Fields(kubectl(t, "get", "pods", "-n", namespace, "-l", "app="+d, "-o", "name")); len(all) != replicas {
				return fmt.Errorf("%q", all)
			}
			return nil
		})
	}
}

func restarted(t *testing.T) { both(t, "rollout", "restart") }

func scaledDown(t *testing.T) {
	both(t, "scale", "--replicas=1")
	for _, d := range []string{"go-micro-srv", "go-micro-web"} {
		eventually(t, time.Minute, d+" having one pod", func() error {
			if all := strings.Fields(kubectl(t, "get", "pods", "-n", namespace, "-l", "app="+d, "-o", "name")); len(all) != 1 {
				return fmt.Errorf("%q", all)
			}
			return nil
		})
	}
	both(t, "scale", fmt.Sprintf("--replicas=%d", replicas))
}

// evicted drains the node in effect: all pods of both are asked to go, at once.
func evicted(t *testing.T) {
	left := append(pods(t, "go-micro-srv"), pods(t, "go-micro-web")...)
	refused := 0
	eventually(t, 3*time.Minute, "all being evicted", func() error {
		left = slices.DeleteFunc(left, func(p corev1.Pod) bool {
			file := filepath.Join(t.TempDir(), "eviction.json")
			body := fmt.Sprintf(`{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": %q, "namespace": %q}}`, p.Name, namespace)
			if err := os.WriteFile(file, []byte(body), 0o644); err != nil {
				t.Fatal(err)
			}
			err := command(time.Minute, nil, "kubectl", "create", "--raw", "/api/v1/namespaces/"+namespace+"/pods/"+p.Name+"/eviction", "-f", file)
			if err != nil && strings.Contains(err.Error(), "disruption budget") {
				refused++
				return false
			}
			if err != nil {
				t.Fatal(err)
			}
			return true
		})
		if len(left) > 0 {
			return fmt.Errorf("%d are there still", len(left))
		}
		return nil
	})
	if refused == 0 {
		t.Error("the disruption budgets have refused nothing")
	}
	t.Logf("the disruption budgets refused %d evictions", refused)
}

// stuck rolls out what runs and is never ready.
func stuck(t *testing.T) {
	old := map[string][]corev1.Pod{}
	for _, d := range []string{"go-micro-srv", "go-micro-web"} {
		old[d] = pods(t, d)
		kubectl(t, "patch", "-n", namespace, "deployment/"+d, "--type=json", `-p=[{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": ["never"]}]`)
	}
	for d, were := range old {
		eventually(t, time.Minute, "a pod of "+d+" that runs and is refused by its probe", func() error {
			for _, p := range pods(t, d) {
				if isReady(p) || slices.ContainsFunc(were, func(w corev1.Pod) bool { return w.Name == p.Name }) {
					continue
				}
				if events := kubectl(t, "get", "events", "-n", namespace, "--field-selector=involvedObject.name="+p.Name); !strings.Contains(events, "Readiness probe failed") {
					return errors.New(events)
				}
				return nil
			}
			return errors.New("no new pod")
		})
		for _, p := range pods(t, d) {
			was := slices.ContainsFunc(were, func(w corev1.Pod) bool { return w.Name == p.Name })
			if was != isReady(p) {
				t.Errorf("pod %q: an old one: %v, ready: %v", p.Name, was, isReady(p))
			}
		}
		kubectl(t, "rollout", "undo", "-n", namespace, "deployment/"+d)
	}
}

// frozenIsRestarted freezes a replica: its probes take it out of rotation, then
// start it anew.
func frozenIsRestarted(t *testing.T, calls *load) {
	victim := pods(t, "go-micro-srv")[0]
	is := func() corev1.Pod {
		for _, p := range pods(t, "go-micro-srv") {
			if p.Name == victim.Name {
				return p
			}
		}
		t.Fatalf("pod %q is gone", victim.Name)
		return corev1.Pod{}
	}
	begin := time.Now()
	onNode(t, "kill", "-STOP", podProcess(t, victim))
	eventually(t, 20*time.Second, "the frozen one being not ready", func() error {
		if p := is(); isReady(p) {
			return errors.New("it is ready")
		}
		return nil
	})
	unready := time.Now()
	eventually(t, 90*time.Second, "its being started anew, and ready", func() error {
		p := is()
		if c := p.Status.ContainerStatuses[0]; c.RestartCount == 0 || !isReady(p) {
			return fmt.Errorf("restarts: %d, ready: %v", c.RestartCount, isReady(p))
		}
		return nil
	})
	again := is().Status.ContainerStatuses[0].State.Running.StartedAt.Time
	t.Logf("not ready after %.1f s, started anew after %.1f s", unready.Sub(begin).Seconds(), again.Sub(begin).Seconds())
	if events := kubectl(t, "get", "events", "-n", namespace, "--field-selector=involvedObject.name="+victim.Name); !strings.Contains(events, "Liveness probe failed") {
		t.Errorf("the events of %q do not name its liveness probe:\n%s", victim.Name, events)
	}
	calls.whole(t, replicas)
	address := victim.Status.PodIP + ":9100"
	for _, s := range calls.log(t) {
		if s.Begin.After(unready.Add(6*time.Second)) && s.End.Before(again) && (s.Answered[address] > 0 || s.Tries[address] > 0) { // the last call may take its 5 s
			t.Errorf("the one that is not ready is called: %s", must(json.Marshal(s)))
		}
	}
}
