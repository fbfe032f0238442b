//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
)

// otherNamespace has no network policies.
const otherNamespace = "go-micro-neighbour"

// connector is a pod on a node that tries to connect to others.
type connector struct {
	who       string
	namespace string
	app       string
	reaches   string // what it reaches with the policies, a list of kinds of destination
	node      string
}

func (c connector) pod() string { return "connector-" + c.app + "-" + nodeZones[c.node] }

// destination is where a connector tries to connect to.
type destination struct{ kind, node, address string }

// TestNetworkPolicy applies the policies of k8s/components/network-policy to services on three nodes whose network enforces them: every
// connection that they forbid is made before, refused while they exist, and made again after.
func TestNetworkPolicy(t *testing.T) {
	needsNodes(t)
	if !networkPolicy {
		t.Fatal("the cluster does not enforce network policies, and this test needs it: set E2E_NETWORK_POLICY=1")
	}
	const policies = "k8s/components/network-policy/network-policy.yaml"
	kubectl(t, "apply", "-k", "k8s")
	t.Cleanup(func() { kubectl(t, "apply", "-k", "k8s"); rolledOut(t) })
	spreadOut(t)
	connectors := startConnectors(t)
	destinations := findDestinations(t)

	open := func(connector, destination) bool { return true }
	eventually(t, time.Minute, "all connections without policies", func() error { return compareConnections(t, connectors, destinations, open) })
	kubectl(t, "apply", "-f", policies)
	t.Cleanup(func() { kubectl(t, "delete", "-f", policies, "--ignore-not-found") })
	begin := time.Now()
	allowed := func(c connector, d destination) bool { return strings.Contains(c.reaches, d.kind) }
	eventually(t, time.Minute, "only the allowed connections", func() error { return compareConnections(t, connectors, destinations, allowed) })
	all, made := len(connectors)*len(destinations), 0
	for _, c := range connectors {
		for _, d := range destinations {
			if allowed(c, d) {
				made++
			}
		}
	}
	t.Logf("%d of %d connections are made without policies, and %d with them, %s after kubectl apply", all, all, made, time.Since(begin).Round(100*time.Millisecond))

	// With the policies, new pods register, answer the probes of kubelet, call and are called.
	kubectl(t, "rollout", "restart", "-n", namespace, "deployment")
	kubectl(t, "replace", "--force", "-f", "go-micro-config/k8s/pod.yaml")
	rolledOut(t)
	configPrinted(t)
	servers := podOnEachNode(t, "go-micro-srv")
	for _, p := range servers {
		eventually(t, time.Minute, "the registration of "+p.Name, func() error {
			if err := getPod(p.Name, &p); err != nil {
				return err
			}
			_, err := registration(p, "go-micro-srv")
			return err
		})
	}
	for _, p := range pods(t, "go-micro-client") {
		if strings.HasPrefix(p.Name, "connector-") {
			continue
		}
		eventually(t, time.Minute, "a greeting in the log of "+p.Name, func() error {
			if log := kubectl(t, "logs", p.Name, "-n", namespace); !strings.Contains(log, "Server Hello XXX!") {
				return fmt.Errorf("the log is %q", log)
			}
			return nil
		})
	}
	page := pageURL(t)
	eventually(t, time.Minute, "the three instances of go-micro-srv on the page", func() error {
		var view struct {
			Services []struct {
				Name      string
				Instances []struct{ Pod string }
			}
		}
		if err := getJSON(page+"services.json", &view); err != nil {
			return err
		}
		for _, s := range view.Services {
			if s.Name == "go-micro-srv" && len(s.Instances) == len(servers) {
				return nil
			}
		}
		return fmt.Errorf("it shows %+v", view)
	})
	rsp, err := http.PostForm(page, map[string][]string{"name": {"you"}})
	fatal(t, err)
	rsp.Body.Close()
	if rsp.StatusCode != http.StatusOK {
		t.Errorf("a call from the page: %s", rsp.Status)
	}
	destinations = findDestinations(t)
	eventually(t, time.Minute, "only the allowed connections to the new pods", func() error { return compareConnections(t, connectors, destinations, allowed) })

	kubectl(t, "delete", "-f", policies)
	begin = time.Now()
	eventually(t, time.Minute, "all connections after the policies", func() error { return compareConnections(t, connectors, destinations, open) })
	t.Logf("%d of %d connections are made %s after kubectl delete", all, all, time.Since(begin).Round(100*time.Millisecond))
}

// startConnectors starts, on two nodes, a caller of go-micro-srv as the policies know it, a stranger in the namespace, and a pod of another
// namespace that has the labels of a caller.
func startConnectors(t *testing.T) (all []connector) {
	t.Helper()
	t.Cleanup(func() { kubectl(t, "delete", "namespace", otherNamespace, "--ignore-not-found") })
	manifests := []string{fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", otherNamespace)}
	for _, node := range []string{"k8s-micro", "k8s-micro-2"} {
		for _, c := range []connector{
			{"a caller", namespace, "go-micro-client", "go-micro-srv, API server, DNS", node},
			{"a stranger", namespace, "stranger", "API server, DNS", node},
			{"a neighbour", otherNamespace, "go-micro-client", "go-micro-web, address outside, API server, DNS", node},
		} {
			all = append(all, c)
			manifests = append(manifests, fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %q, namespace: %q, labels: {app: %q}}, spec: {nodeName: %q, terminationGracePeriodSeconds: 1,
  containers: [{name: main, image: %q, args: [never], %s}]}}`, c.pod(), c.namespace, c.app, c.node, probeImage, faults.Restricted))
			t.Cleanup(func() { kubectl(t, "delete", "pod", c.pod(), "-n", c.namespace, "--ignore-not-found", "--wait=false") })
		}
	}
	apply(t, strings.Join(manifests, "\n---\n"))
	for _, c := range all {
		kubectl(t, "wait", "-n", c.namespace, "pod/"+c.pod(), "--for=condition=Ready", "--timeout=1m")
	}
	return all
}

// findDestinations returns the servers and the pages of all nodes, the kubelets, whose addresses and port no policy names, the API server and
// the cluster's DNS.
func findDestinations(t *testing.T) (all []destination) {
	t.Helper()
	for kind, port := range map[string]string{"go-micro-srv": "9100", "go-micro-web": "9200"} {
		for node, p := range podOnEachNode(t, kind) {
			all = append(all, destination{kind, node, net.JoinHostPort(p.Status.PodIP, port)})
			if kubelet := net.JoinHostPort(p.Status.HostIP, "10250"); kind == "go-micro-srv" {
				all = append(all, destination{"address outside", node, kubelet})
			}
		}
	}
	return append(all, destination{"API server", "k8s-micro", "kubernetes.default.svc.cluster.local:443"}, destination{"DNS", "k8s-micro", "10.10.0.1:53"})
}

// compareConnections connects each connector with each destination, and returns an error for each pair that differs from what is wanted.
func compareConnections(t *testing.T, connectors []connector, destinations []destination, want func(connector, destination) bool) error {
	t.Helper()
	var different []error
	for _, c := range connectors {
		args := []string{"exec", "-n", c.namespace, c.pod(), "--", "/probe", "connect"}
		for _, d := range destinations {
			args = append(args, d.address)
		}
		var out bytes.Buffer
		var problems []string
		if err := command(time.Minute, &out, "kubectl", args...); err != nil {
			return err
		}
		if err := json.Unmarshal(out.Bytes(), &problems); err != nil {
			return err
		}
		for i, d := range destinations {
			if got := problems[i] == ""; got != want(c, d) {
				different = append(different, fmt.Errorf("%s on %s to %s on %s: connected %t, want %t: %s", c.who, c.node, d.kind, d.node, got, !got, problems[i]))
			}
		}
	}
	return errors.Join(different...)
}
