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

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
	"github.com/jiangjiancc/go_micro_k8s/test/orders"
	corev1 "k8s.io/api/core/v1"
)

// TestLifecycle replaces pods in each way that Kubernetes offers while they are
// called, and expects no call to fail: with go-micro's retry and without it, with
// handlers that take 2 s, with downloads that take 5 s. It uses the manifests of
// go-micro-srv and go-micro-web with the probe as their program, because the
// probe has handlers slow enough to be interrupted. It does the same with test/orders, whose
// callers use pod/ without retries, with and without a filter by version, and grpc-go through the
// Kubernetes Service. How go-micro's client does is only logged.
func TestLifecycle(t *testing.T) {
	kubectl(t, "apply", "-f", "k8s/namespace.yaml", "-f", "k8s/configmap-rbac.yaml", "-f", "k8s/pod-rbac.yaml",
		"-f", "go-micro-srv/k8s/service.yaml", "-f", "go-micro-srv/k8s/pdb.yaml", "-f", "go-micro-web/k8s/service.yaml", "-f", "go-micro-web/k8s/pdb.yaml")
	deployProbe(t, "go-micro-srv", "greeter")
	deployProbe(t, "go-micro-web", "page")
	apply(t, orders.Manifest(namespace, probeImage))
	t.Cleanup(func() {
		kubectl(t, "delete", "-n", namespace, "deployment/orders-1", "deployment/orders-2", "service/orders", "--wait=false")
		kubectl(t, "apply", "-f", "go-micro-srv/k8s/deployment.yaml", "-f", "go-micro-web/k8s/deployment.yaml")
	})
	const page = "http://go-micro-web.go-micro:9200/"
	// The pauses leave a machine with two slow cores idle for half of the time: another test breaks a cluster beside this one.
	loads := map[string]*load{
		"calls":                             startLoad(t, "load-calls", "call", "4", "60ms"),
		"calls without retries":             startLoad(t, "load-no-retry", "call", "-retries=0", "4", "60ms"),
		"calls of 2 s, without retries":     startLoad(t, "load-slow", "call", "-retries=0", "-name=slow", "8", "60ms"),
		"requests over kept connections":    startLoad(t, "load-kept", "fetch", page, "2", "60ms"),
		"downloads of 5 s, new connections": startLoad(t, "load-download", "fetch", "-new-connections", page+"download", "8", "60ms"),
		"requests over new connections":     startLoad(t, "load-new", "fetch", "-new-connections", page, "2", "60ms"),
		"orders":                            startLoad(t, "orders-pod", "order", "-retries=0", "4", "60ms"),
		"orders of version 2":               startLoad(t, "orders-version", "order", "-retries=0", "-version=2", "2", "60ms"),
		"orders through the Service":        startLoad(t, "orders-service", "order", "-client=orders."+namespace+":9100", "4", "20ms"), // its connection is never idle: of 100 calls one takes 2 s
		ordersByMicro:                       startLoad(t, "orders-micro", "order", "-client=go-micro", "2", "60ms"),
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
		{"rolling restart", rollingRestart},
		{"scale to 1 and back", scaleToOneAndBack},
		{"eviction within the disruption budget", evictAll},
		{"a rollout that never becomes ready, and its undo", rolloutNeverReady},
	} {
		t.Run(step.name, func(t *testing.T) {
			ready := func() {
				waitForDeployments(t)
				loads["calls"].waitForReplicas(t, "go-micro-srv", replicas)
				loads["orders"].waitForReplicas(t, orders.Name, replicas)
			}
			ready()
			begin := time.Now()
			step.run(t)
			ready()
			end := time.Now()
			for name, l := range loads {
				log := l.secondsUntil(t, end)
				succeeded, failed, notable := 0, 0, []string(nil)
				for _, s := range log {
					if s.End.Before(begin) {
						continue
					}
					succeeded += s.Succeeded
					if failed += s.Failed; s.Failed > 0 {
						notable = append(notable, fmt.Sprintf("%+6.1f s: %s", s.End.Sub(begin).Seconds(), must(json.Marshal(s))))
					}
				}
				t.Logf("%s, %.0f s: %s: %d succeeded, %d failed", step.name, end.Sub(begin).Seconds(), name, succeeded, failed)
				switch {
				case name == ordersByMicro: // for the record
					t.Log(strings.Join(notable, "\n"))
				case failed > 0 || succeeded == 0:
					t.Errorf("%s: %d succeeded, %d failed, want none to fail\n%s\n%s", name, succeeded, failed, strings.Join(notable, "\n"), l.messages)
				}
			}
		})
	}
	t.Run("every instance receives both topics", topicsArrive)
	t.Run("a frozen process gets no calls and is restarted", func(t *testing.T) { frozenProcessRestarts(t, loads["calls"]) })
}

const ordersByMicro = "orders, go-micro's client and plugin"

// deployProbe deploys a service's own manifest with the probe as its program.
func deployProbe(t *testing.T, service, probeCommand string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, service, "k8s/deployment.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	image := "image: 846602483/" + service + ":kubernetes"
	if !strings.Contains(string(b), image) || !strings.Contains(string(b), "replicas: 2") {
		t.Fatalf("%s: the manifest lacks the lines that this test replaces:\n%s", service, b)
	}
	apply(t, strings.NewReplacer(image, fmt.Sprintf("image: %s\n          args: [%s]", probeImage, probeCommand), "replicas: 2", fmt.Sprintf("replicas: %d", replicas)).Replace(string(b)))
}

var probeDeployments = []string{"go-micro-srv", "go-micro-web"}

// kubectlBoth runs kubectl on both deployments.
func kubectlBoth(t *testing.T, args ...string) {
	t.Helper()
	kubectl(t, append(args, "-n", namespace, "deployment/go-micro-srv", "deployment/go-micro-web")...)
}

// waitForDeployments waits until both deployments are available and no pod of
// an older rollout is left.
func waitForDeployments(t *testing.T) {
	t.Helper()
	for _, d := range slices.Concat(probeDeployments, orders.Deployments) {
		kubectl(t, "rollout", "status", "-n", namespace, "deployment/"+d, "--timeout=3m")
	}
	for _, app := range append([]string{orders.Name}, probeDeployments...) {
		waitForPodCount(t, app, replicas)
	}
}

func waitForPodCount(t *testing.T, app string, n int) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprintf("exactly %d pods of %s", n, app), func() error {
		if all := podNames(t, app); len(all) != n {
			return fmt.Errorf("pods %q", all)
		}
		return nil
	})
}

func rollingRestart(t *testing.T) {
	kubectlBoth(t, "rollout", "restart")
	kubectl(t, "rollout", "restart", "-n", namespace, "deployment/orders-1", "deployment/orders-2")
}

func scaleToOneAndBack(t *testing.T) {
	kubectlBoth(t, "scale", "--replicas=1")
	for _, d := range probeDeployments {
		waitForPodCount(t, d, 1)
	}
	kubectlBoth(t, "scale", fmt.Sprintf("--replicas=%d", replicas))
}

// topicsArrive demands that every instance of test/orders has received events of both of its topics.
func topicsArrive(t *testing.T) {
	for _, p := range pods(t, orders.Name) {
		log := kubectl(t, "logs", "-n", namespace, p.Name)
		for _, topic := range orders.Topics {
			if !strings.Contains(log, "Received the first event of topic "+topic) {
				t.Errorf("pod %q has received no event of topic %s:\n%s", p.Name, topic, log)
			}
		}
	}
}

// evictAll evicts all pods of both deployments at once, as draining their node would.
func evictAll(t *testing.T) {
	left := append(pods(t, "go-micro-srv"), pods(t, "go-micro-web")...)
	refused := 0
	eventually(t, 3*time.Minute, "eviction of all pods", func() error {
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
			return fmt.Errorf("%d pods are left", len(left))
		}
		return nil
	})
	if refused == 0 {
		t.Error("the disruption budgets refused no eviction, want some refused")
	}
	t.Logf("the disruption budgets refused %d evictions", refused)
}

// rolloutNeverReady rolls out a program that runs but never becomes ready, and undoes it.
func rolloutNeverReady(t *testing.T) {
	before := map[string][]corev1.Pod{}
	for _, d := range probeDeployments {
		before[d] = pods(t, d)
		kubectl(t, "patch", "-n", namespace, "deployment/"+d, "--type=json", `-p=[{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": ["never"]}]`)
	}
	for d, old := range before {
		isOld := func(p corev1.Pod) bool {
			return slices.ContainsFunc(old, func(o corev1.Pod) bool { return o.Name == p.Name })
		}
		eventually(t, 2*time.Minute, "a new pod of "+d+" with a failed readiness probe", func() error {
			for _, p := range pods(t, d) {
				if !faults.IsReady(p) && !isOld(p) {
					return probeFailed(t, p.Name, "Readiness")
				}
			}
			return errors.New("no new pod")
		})
		for _, p := range pods(t, d) {
			if isOld(p) != faults.IsReady(p) {
				t.Errorf("pod %q: from before the rollout: %v, ready: %v; want old pods ready and new ones not", p.Name, isOld(p), faults.IsReady(p))
			}
		}
		kubectl(t, "rollout", "undo", "-n", namespace, "deployment/"+d)
	}
}

// frozenProcessRestarts freezes a replica. The readiness probe takes it out of
// rotation, then the liveness probe restarts it.
func frozenProcessRestarts(t *testing.T, calls *load) {
	victim := pods(t, "go-micro-srv")[0]
	current := func() corev1.Pod {
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
	eventually(t, time.Minute, "the frozen pod not ready", func() error {
		if faults.IsReady(current()) {
			return errors.New("it is ready")
		}
		return nil
	})
	notReady := time.Now()
	eventually(t, 3*time.Minute, "the frozen pod restarted and ready", func() error {
		if p := current(); faults.Restarts(p) == 0 || !faults.IsReady(p) {
			return fmt.Errorf("restarts: %d, ready: %v", faults.Restarts(p), faults.IsReady(p))
		}
		return nil
	})
	restarted := current().Status.ContainerStatuses[0].State.Running.StartedAt.Time
	t.Logf("not ready after %.1f s, restarted after %.1f s", notReady.Sub(begin).Seconds(), restarted.Sub(begin).Seconds())
	if err := probeFailed(t, victim.Name, "Liveness"); err != nil {
		t.Error(err)
	}
	calls.waitForReplicas(t, "go-micro-srv", replicas)
	address := victim.Status.PodIP + ":9100"
	for _, s := range calls.seconds(t) {
		if s.Begin.After(notReady.Add(6*time.Second)) && s.End.Before(restarted) && (s.Answered[address] > 0 || s.FailedTries[address] > 0) { // a call in flight may take its whole timeout of 5 s
			t.Errorf("a pod that is not ready is called: %s", must(json.Marshal(s)))
		}
	}
}
