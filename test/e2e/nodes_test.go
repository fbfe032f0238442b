//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
	corev1 "k8s.io/api/core/v1"
)

// nodeZones are the zones of the nodes of a cluster that needsNodes accepts.
var nodeZones = map[string]string{"k8s-micro": "a", "k8s-micro-2": "b", "k8s-micro-3": "c"}

// needsNodes fails a test that needs three nodes.
func needsNodes(t *testing.T) {
	t.Helper()
	if nodes != len(nodeZones) {
		t.Fatalf("the cluster has %d nodes, and this test needs 3: set E2E_NODES=3", nodes)
	}
}

// TestNodes runs the services on three nodes in three zones: on each node their pods call those of the other nodes, by
// registration and by the name of a Service, and kubectl reaches the pods of each.
func TestNodes(t *testing.T) {
	needsNodes(t)
	var list corev1.NodeList
	fatal(t, get("/api/v1/nodes", &list))
	for _, n := range list.Items {
		if zone := n.Labels[corev1.LabelZoneFailureDomainStable]; zone == "" || zone != nodeZones[n.Name] {
			t.Errorf("node %q is in zone %q, want %q", n.Name, zone, nodeZones[n.Name])
		}
		if !slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		}) {
			t.Errorf("node %q is not ready", n.Name)
		}
	}
	if len(list.Items) != len(nodeZones) {
		t.Errorf("%d nodes, want %d", len(list.Items), len(nodeZones))
	}

	kubectl(t, "apply", "-k", "k8s")
	t.Cleanup(func() { kubectl(t, "apply", "-k", "k8s"); rolledOut(t) })
	apps := []string{"go-micro-srv", "go-micro-web", "go-micro-client"}
	for _, app := range apps { // one pod on each node: the constraint of the manifest as a condition
		kubectl(t, "patch", "deployment", app, "-n", namespace, "--type=json", "-p", `[{"op": "replace", "path": "/spec/replicas", "value": 3},
  {"op": "replace", "path": "/spec/template/spec/topologySpreadConstraints/0/whenUnsatisfiable", "value": "DoNotSchedule"}]`)
	}
	rolledOut(t)
	onNodes := map[string]map[string]corev1.Pod{} // by app and node
	for _, app := range apps {
		onNodes[app] = map[string]corev1.Pod{}
		eventually(t, time.Minute, "a pod of "+app+" on each node", func() error {
			clear(onNodes[app])
			for _, p := range pods(t, app) {
				onNodes[app][p.Spec.NodeName] = p
				if zone := p.Labels[corev1.LabelZoneFailureDomainStable]; zone != nodeZones[p.Spec.NodeName] {
					t.Errorf("pod %q on node %q has the zone %q", p.Name, p.Spec.NodeName, zone)
				}
			}
			if all := pods(t, app); len(all) != 3 || len(onNodes[app]) != 3 {
				return fmt.Errorf("%d pods on %d nodes", len(all), len(onNodes[app]))
			}
			return nil
		})
	}
	var addresses, names []string
	for node := range nodeZones {
		addresses = append(addresses, faults.Address(onNodes["go-micro-srv"][node]))
		names = append(names, onNodes["go-micro-web"][node].Name)
	}
	slices.Sort(names)
	c := faults.Cluster{Root: root, Name: clusterName}
	for node := range nodeZones {
		calls, err := faults.StartLoad(t.Context(), c, namespace, "calls-from-"+node, node, probeImage, []string{"call", "4", "20ms"}, nil)
		fatal(t, err)
		eventually(t, time.Minute, "calls from "+node+" to the pods of all nodes", func() error { return calls.AnsweredBy(slices.Clone(addresses), time.Time{}) })
		fatal(t, calls.Stop(context.Background()))

		var answers []string // each over a new connection, to the Service
		out, err := runPodOn(t, node, "probe", "micro-services", probeImage, "get", "http://go-micro-web:9200/", "60")
		if err != nil || json.Unmarshal([]byte(out), &answers) != nil {
			t.Fatalf("the Service from %s: %v: %s", node, err, out)
		}
		slices.Sort(answers)
		if got := slices.Compact(answers); !slices.Equal(got, names) {
			t.Errorf("the Service answers on node %s with %q, want %q", node, got, names)
		}
		client := onNodes["go-micro-client"][node].Name
		eventually(t, time.Minute, "a greeting in the log of "+client, func() error {
			if log := kubectl(t, "logs", client, "-n", namespace); !strings.Contains(log, "Server Hello XXX!") {
				return fmt.Errorf("the log is %q", log)
			}
			return nil
		})
		if got, want := forwarded(t, onNodes["go-micro-web"][node].Name), onNodes["go-micro-web"][node].Name; got != want {
			t.Errorf("port-forward to pod %q on node %s: %q", want, node, got)
		}
	}
}

// forwarded returns the answer of a pod of go-micro-web through kubectl port-forward.
func forwarded(t *testing.T, pod string) string {
	t.Helper()
	cmd := exec.Command("kubectl", "port-forward", "-n", namespace, "pod/"+pod, ":9200")
	out, err := cmd.StdoutPipe()
	fatal(t, err)
	fatal(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n') // Forwarding from 127.0.0.1:41111 -> 9200
	fatal(t, err)
	_, rest, _ := strings.Cut(line, " from ")
	address, _, _ := strings.Cut(rest, " ")
	rsp, err := (&http.Client{Timeout: 10 * time.Second}).Get("http://" + address + "/")
	fatal(t, err)
	defer rsp.Body.Close()
	return string(must(io.ReadAll(rsp.Body)))
}
