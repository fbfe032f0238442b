//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

// TestWalkthrough applies the manifests in the order of the README and checks
// what each program does. Each step builds on the steps before it.
func TestWalkthrough(t *testing.T) {
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"apply the manifests in the README's order", applyInOrder},
		{"each registered pod has its labels and annotation", registeredOnPods},
		{"the registry lists the services from inside the cluster", registryListsServices},
		{"the client prints the greeting", clientPrintsGreeting},
		{"both web replicas answer through the Service", webAnswers},
		{"the configuration reader prints environment and ConfigMap", configPrinted},
		{"a deleted pod leaves the registry and the client is still served", deletedPodLeavesRegistry},
		{"a pod without rights reports it and becomes ready once they are granted", podWithoutRights},
		{"without rights the configuration reader exits 1 and names the manifest that grants them", configWithoutRights},
		{"without its ConfigMap the configuration reader exits 1 and names it", configWithoutConfigMap},
		{"undeploy removes everything and deploy brings it back", undeployAndDeploy},
	} {
		if !t.Run(step.name, step.run) {
			t.Fatalf("the next steps need this one; pods:\n%s", kubectl(t, "get", "pods", "-A", "-o", "wide"))
		}
	}
}

// applyInOrder begins without the namespace, in which an earlier test may have left logs.
func applyInOrder(t *testing.T) {
	kubectl(t, "delete", "namespace", namespace, "--ignore-not-found", "--timeout=2m")
	for _, f := range []string{
		"k8s/namespace.yaml", "k8s/configmap-rbac.yaml", "k8s/pod-rbac.yaml", "k8s/pod-admission.yaml",
		"go-micro-srv/k8s/deployment.yaml", "go-micro-srv/k8s/service.yaml", "go-micro-srv/k8s/pdb.yaml",
		"go-micro-web/k8s/deployment.yaml", "go-micro-web/k8s/service.yaml", "go-micro-web/k8s/pdb.yaml",
		"go-micro-client/k8s/deployment.yaml",
		"go-micro-config/k8s/configmap.yaml", "go-micro-config/k8s/pod.yaml",
	} {
		kubectl(t, "apply", "-f", f)
	}
	rolledOut(t)
}

// services lists the registrations that the test expects.
var services = []struct {
	name, version, port string
	endpoints           []string
}{
	{"go-micro-srv", "latest", "9100", []string{"Greeter.Hello"}},
	{"go-micro-web", "latest", "9200", nil},
	{"go-micro-client", "latest", "9300", nil},
}

// registration decodes the registration of a service from a pod's labels and annotation.
func registration(p corev1.Pod, service string) (*registry.Service, error) {
	for label, want := range map[string]string{"micro.mu/type": "service", "micro.mu/selector-" + service: "service"} {
		if got := p.Labels[label]; got != want {
			return nil, fmt.Errorf("pod %q: label %q is %q, want %q", p.Name, label, got, want)
		}
	}
	var s registry.Service
	if err := json.Unmarshal([]byte(p.Annotations["micro.mu/service-"+service]), &s); err != nil {
		return nil, fmt.Errorf("pod %q: annotation %q: %w", p.Name, "micro.mu/service-"+service, err)
	}
	return &s, nil
}

// registeredOnPods waits until two pods of each service have their registration.
func registeredOnPods(t *testing.T) {
	for _, want := range services {
		eventually(t, time.Minute, "registration of "+want.name, func() error {
			running := pods(t, want.name)
			if len(running) != 2 {
				return fmt.Errorf("%d pods of %q are running, want 2", len(running), want.name)
			}
			for _, p := range running {
				s, err := registration(p, want.name)
				if err != nil {
					return err
				}
				if s.Name != want.name || s.Version != want.version {
					return fmt.Errorf("pod %q: registered as %s %s, want %s %s", p.Name, s.Name, s.Version, want.name, want.version)
				}
				var endpoints []string
				for _, e := range s.Endpoints {
					endpoints = append(endpoints, e.Name)
				}
				if want.name != "go-micro-web" && !slices.Equal(endpoints, want.endpoints) {
					return fmt.Errorf("pod %q: endpoints %q, want %q", p.Name, endpoints, want.endpoints)
				}
				if len(s.Nodes) != 1 || !strings.HasPrefix(s.Nodes[0].Address, net.JoinHostPort(p.Status.PodIP, want.port)) {
					return fmt.Errorf("pod %q: nodes %v, want one at %s", p.Name, s.Nodes, net.JoinHostPort(p.Status.PodIP, want.port))
				}
			}
			return nil
		})
	}
}

// registryContents is the output of `probe services`.
type registryContents struct {
	List []*registry.Service
	Get  map[string][]*registry.Service
}

func (c registryContents) addresses(service string) (all []string) {
	for _, v := range c.Get[service] {
		for _, n := range v.Nodes {
			all = append(all, n.Address)
		}
	}
	slices.Sort(all)
	return all
}

func podAddresses(pods []corev1.Pod, port string) (all []string) {
	for _, p := range pods {
		all = append(all, net.JoinHostPort(p.Status.PodIP, port))
	}
	slices.Sort(all)
	return all
}

func registryListsServices(t *testing.T) {
	var contents registryContents
	probe(t, &contents, "services", "go-micro-srv", "go-micro-web", "go-micro-client")
	var names []string
	for _, s := range contents.List {
		names = append(names, s.Name)
	}
	slices.Sort(names)
	if want := []string{"go-micro-client", "go-micro-srv", "go-micro-web"}; !slices.Equal(slices.Compact(names), want) {
		t.Errorf("ListServices: %q, want %q", names, want)
	}
	for _, s := range services {
		if got, want := contents.addresses(s.name), podAddresses(pods(t, s.name), s.port); !slices.Equal(got, want) {
			t.Errorf("GetService %q: addresses %q, the pods have %q", s.name, got, want)
		}
	}
}

// greetings counts the greetings in a client's log since a time. It returns all
// other lines except informational ones.
func greetings(t *testing.T, pod string, since time.Time) (count int, other []string) {
	t.Helper()
	log := kubectl(t, "logs", pod, "-n", namespace, "--since-time="+since.UTC().Format(time.RFC3339Nano))
	for _, l := range strings.Split(strings.TrimSpace(log), "\n") {
		switch {
		case l == "Server Hello XXX!":
			count++
		case l != "" && !strings.Contains(l, "level=info"):
			other = append(other, l)
		}
	}
	return count, other
}

func clientPrintsGreeting(t *testing.T) {
	for _, p := range pods(t, "go-micro-client") {
		eventually(t, time.Minute, "two greetings in the log of "+p.Name, func() error {
			count, other := greetings(t, p.Name, time.Unix(0, 0))
			if len(other) > 0 {
				t.Errorf("client %q printed %q", p.Name, other)
			}
			if count < 2 {
				return fmt.Errorf("%d greetings", count)
			}
			return nil
		})
	}
}

func webAnswers(t *testing.T) {
	var want []string
	for _, p := range pods(t, "go-micro-web") {
		want = append(want, p.Name)
	}
	slices.Sort(want)
	var got []string
	probe(t, &got, "get", "http://go-micro-web."+namespace+".svc.cluster.local:9200/", "40")
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("40 requests to the Service were answered by %q, want answers of both pods %q", got, want)
	}
}

func configPrinted(t *testing.T) {
	log := strings.TrimSpace(kubectl(t, "logs", "go-micro-config", "-n", namespace))
	if strings.Contains(log, "\n") || !strings.HasPrefix(log, "map[DB_HOST:map[192.168.0.1:] DB_NAME:map[MICRO:] ") {
		t.Errorf("go-micro-config printed %q, want one map with DB_HOST and DB_NAME", log)
	}
	if strings.Contains(log, "<nil>") {
		t.Errorf("go-micro-config printed %q, which contains <nil>", log)
	}
	if want := "hostname:go-micro-config"; !strings.Contains(log, want) {
		t.Errorf("go-micro-config printed %q, which lacks %q from the environment", log, want)
	}
}

func deletedPodLeavesRegistry(t *testing.T) {
	before := pods(t, "go-micro-srv")
	kubectl(t, "delete", "pod", before[0].Name, "-n", namespace)
	deleted := time.Now()
	kubectl(t, "rollout", "status", "-n", namespace, "deployment/go-micro-srv", "--timeout=1m")
	registeredOnPods(t)
	var contents registryContents
	probe(t, &contents, "services", "go-micro-srv")
	want := podAddresses(pods(t, "go-micro-srv"), "9100")
	if got := contents.addresses("go-micro-srv"); !slices.Equal(got, want) {
		t.Errorf("after pod %q at %s was deleted the registry lists %q, want the running pods' %q", before[0].Name, before[0].Status.PodIP, got, want)
	}
	for _, p := range pods(t, "go-micro-client") {
		eventually(t, time.Minute, "two greetings after the deletion in the log of "+p.Name, func() error {
			if count, _ := greetings(t, p.Name, deleted); count < 2 {
				return fmt.Errorf("%d greetings", count)
			}
			return nil
		})
	}
}

func podWithoutRights(t *testing.T) {
	apply(t, `{apiVersion: v1, kind: Pod, metadata: {name: no-rights, namespace: go-micro, labels: {app: no-rights}, annotations: {micro.mu/services: go-micro-srv}}, spec: {serviceAccountName: default,
  containers: [{name: main, image: "846602483/go-micro-srv:kubernetes", imagePullPolicy: Always, readinessProbe: {grpc: {port: 9100}, periodSeconds: 1}, `+faults.Restricted+`}]}}`)
	t.Cleanup(func() {
		kubectl(t, "delete", "rolebinding", "no-rights", "-n", namespace, "--ignore-not-found")
		kubectl(t, "delete", "pod", "no-rights", "-n", namespace, "--grace-period=0", "--force")
	})
	eventually(t, time.Minute, "the missing right in the pod's log", func() error {
		var log bytes.Buffer
		if err := command(time.Minute, &log, "kubectl", "logs", "no-rights", "-n", namespace); err != nil {
			return err
		}
		if !strings.Contains(log.String(), "forbidden") || !strings.Contains(log.String(), `k8s/pod-rbac.yaml grants the verb "patch" on pods`) {
			return fmt.Errorf("the log is %q", log.String())
		}
		return nil
	})
	eventually(t, time.Minute, "a failed readiness probe", func() error { return probeFailed(t, "no-rights", "Readiness") })
	for _, p := range pods(t, "no-rights") {
		if s, err := registration(p, "go-micro-srv"); err == nil || faults.IsReady(p) {
			t.Errorf("a pod without rights is ready: %v, or registered: %v", faults.IsReady(p), s)
		}
	}
	kubectl(t, "create", "rolebinding", "no-rights", "-n", namespace, "--role=micro-registry", "--serviceaccount=go-micro:default")
	kubectl(t, "wait", "-n", namespace, "pod/no-rights", "--for=condition=Ready", "--timeout=1m")
	for _, p := range pods(t, "no-rights") {
		if _, err := registration(p, "go-micro-srv"); err != nil || faults.Restarts(p) != 0 {
			t.Errorf("after the rights were granted: %v, %d restarts", err, faults.Restarts(p))
		}
	}
}

// configFails runs go-micro-config with a service account and checks that it
// exits 1 with a message that contains the given texts and names the ConfigMap.
func configFails(t *testing.T, serviceAccount string, want ...string) {
	t.Helper()
	log, err := runPod(t, "config-fails", serviceAccount, "846602483/go-micro-config:kubernetes")
	if err == nil || err.Error() != "exit status 1" {
		t.Errorf("go-micro-config ended with %v, want exit status 1", err)
	}
	for _, w := range append(want, "go-micro-config", "go-micro") {
		if !strings.Contains(log, w) {
			t.Errorf("go-micro-config printed %q, which does not contain %q", log, w)
		}
	}
}

func configWithoutRights(t *testing.T) {
	configFails(t, "default", `verb "get"`, "k8s/configmap-rbac.yaml")
}

func configWithoutConfigMap(t *testing.T) {
	kubectl(t, "delete", "-f", "go-micro-config/k8s/configmap.yaml")
	configFails(t, "micro-config", "not found", "create it")
	kubectl(t, "apply", "-f", "go-micro-config/k8s/configmap.yaml")
}

// undeployAndDeploy deploys with two components, which are opt-in.
func undeployAndDeploy(t *testing.T) {
	for _, args := range [][]string{{"undeploy"}, {"deploy", "COMPONENTS=network-policy laptop"}} {
		if err := command(3*time.Minute, nil, "make", args...); err != nil {
			t.Fatal(err)
		}
		if args[0] == "undeploy" {
			if left := kubectl(t, "get", "namespace", namespace, "--ignore-not-found"); left != "" {
				t.Fatalf("after make undeploy there is still %s", left)
			}
		}
	}
	created := kubectl(t, "get", "networkpolicy,rolebinding", "-n", namespace, "-o", "name")
	for _, want := range []string{"networkpolicy.networking.k8s.io/default\n", "rolebinding.rbac.authorization.k8s.io/micro-laptop\n"} {
		if !strings.Contains(created, want) {
			t.Errorf("make deploy with two components created %q, want %q among them", created, want)
		}
	}
	rolledOut(t)
	registeredOnPods(t)
	configPrinted(t)
}
