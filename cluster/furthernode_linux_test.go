package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// podOfNode is the pod of a DaemonSet.
type podOfNode struct{ name, node, zone, ip string }

// runPodOnEachNode runs a DaemonSet and returns its pods in the order of the nodes.
func runPodOnEachNode(t *testing.T, root string, nodes int) (pods []podOfNode) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "daemonset.yaml")
	if err := os.WriteFile(file, []byte(`{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: each}, spec: {selector: {matchLabels: {app: each}}, template: {
  metadata: {labels: {app: each}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: pause, image: "k8s-micro/pause:1", imagePullPolicy: Always}]}}}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := cli(t, root, "kubectl", "--", "apply", "-f", file); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	eventually(t, time.Minute, fmt.Sprintf("the addresses of %d pods", nodes), func() bool { pods = podsOfNodes(t, root); return len(pods) == nodes })
	if out, err := cli(t, root, "kubectl", "--", "rollout", "status", "daemonset/each", "--timeout=2m"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return pods
}

func podsOfNodes(t *testing.T, root string) (pods []podOfNode) {
	t.Helper()
	out, err := cli(t, root, "kubectl", "--", "get", "pods", "-l", "app=each", "--sort-by=.spec.nodeName", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.metadata.labels.topology\.kubernetes\.io/zone} {.status.podIP}{"\n"}{end}`)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for line := range strings.Lines(out) {
		var p podOfNode
		if _, err := fmt.Sscan(line, &p.name, &p.node, &p.zone, &p.ip); err == nil {
			pods = append(pods, p)
		}
	}
	return pods
}

// checkPodOfEachNode checks the zones and addresses of the pods, that the API server reaches their kubelets, and that each
// node reaches each pod and the Services.
func checkPodOfEachNode(t *testing.T, root string, pods []podOfNode) {
	t.Helper()
	for i, p := range pods {
		n := firstNode + node(i)
		subnet := strings.TrimSuffix(ipv4.of(n).PodCIDR, "0.0/16")
		if p.node != n.name() || p.zone != n.zone() || !strings.HasPrefix(p.ip, subnet) {
			t.Errorf("pod %+v, want it on node %s in zone %s with an address in %s", p, n.name(), n.zone(), subnet)
		}
		if out, err := cli(t, root, "kubectl", "--", "logs", p.name); err != nil || out != "" {
			t.Errorf("logs: %v: %s", err, out)
		}
		if out, err := cli(t, root, "kubectl", "--", "exec", p.name, "--", "/none"); err == nil || !strings.Contains(out, "no such file") {
			t.Errorf("exec of a program that the image does not have: %v: %s", err, out)
		}
		if out, err := cli(t, root, "node", fmt.Sprint("-n=", int(n)), "--", "timeout", "5", "bash", "-c", "echo >/dev/tcp/10.96.0.1/443"); err != nil {
			t.Errorf("the Service of the API server from %s: %v: %s", n.name(), err, out)
		}
		for _, other := range pods {
			if out := dialRefused(t, root, n, other.ip); out != "" {
				t.Errorf("pod %+v from %s: %s", other, n.name(), out)
			}
		}
	}
}

// dialRefused returns "" if a connection from a node to a pod, which listens nowhere, is refused, and otherwise what happened.
func dialRefused(t *testing.T, root string, n node, ip string) string {
	t.Helper()
	out, err := cli(t, root, "node", fmt.Sprint("-n=", int(n)), "--", "timeout", "5", "bash", "-c", "echo >/dev/tcp/"+ip+"/9")
	if strings.Contains(out, "Connection refused") {
		return ""
	}
	return fmt.Sprintf("%v: %s, want a refused connection", err, out)
}

// checkNetworkPolicy checks that a network policy ends the connections of the pods, and that they are back without it.
func checkNetworkPolicy(t *testing.T, root string, pods []podOfNode) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte(`{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: isolated}, spec: {podSelector: {matchLabels: {app: each}}, policyTypes: [Egress]}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		args []string
		want bool
	}{{nil, true}, {[]string{"apply", "-f", file}, false}, {[]string{"delete", "-f", file}, true}} {
		if step.args != nil {
			if out, err := cli(t, root, append([]string{"kubectl", "--"}, step.args...)...); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		for i, p := range pods {
			var out string
			eventually(t, 20*time.Second, fmt.Sprintf("connected %t from pod %+v after kubectl %q", step.want, p, step.args), func() bool {
				var err error // the pod has no programs, so those of the node run in its network
				out, err = cli(t, root, "node", fmt.Sprint("-n=", int(firstNode)+i), "--", "sh", "-c",
					`for process in $(pgrep -x pause); do if grep -qsw "$0" /proc/$process/net/fib_trie; then exec nsenter -t $process -n timeout 5 bash -c "echo >/dev/tcp/10.96.0.1/443 && echo connected"; fi; done; echo "no process has the address $0"`, p.ip)
				return (err == nil && out == "connected\n") == step.want
			})
			if strings.Contains(out, "no process") {
				t.Error(out)
			}
		}
	}
}

// checkNodes checks a cluster of three nodes: its pods, what the commands say of the nodes, and that a node that is killed
// loses its pods and its network, and comes back.
func checkNodes(t *testing.T, root string) {
	t.Helper()
	pods := runPodOnEachNode(t, root, 3)
	checkPodOfEachNode(t, root, pods)
	status, err := cli(t, root, "status")
	if err != nil || !strings.Contains(status, "3 nodes") || !strings.Contains(status, "k8s-micro in zone a, k8s-micro-2 in zone b, k8s-micro-3 in zone c\n") {
		t.Errorf("status: %v: %s", err, status)
	}
	if out, err := cli(t, root, "node", "-n", "3", "cat", "/proc/sys/kernel/hostname"); err != nil || out != "k8s-micro-3\n" {
		t.Errorf("entering the third node: %v: %s", err, out)
	}
	for n, want := range map[string]string{"0": "it has 3 nodes", "4": "it has 3 nodes", "x": `invalid value "x"`} {
		if out, err := cli(t, root, "node", "-n", n, "true"); err == nil || !strings.Contains(out, want) {
			t.Errorf("entering node %s: %v: %s, want %q", n, err, out, want)
		}
	}
	for _, variant := range []string{"-nodes=1", "-nodes=2"} {
		if out, err := cli(t, root, "up", variant); err == nil || !strings.Contains(out, "already running, 3 nodes") {
			t.Errorf("up %s: %v: %s", variant, err, out)
		}
	}
	c := demoCluster(root)
	if err := os.WriteFile(c.offFile(2), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := cli(t, root, "node", "sh", "-c", "kill -KILL $(cat "+nodeClusterDir+"/k8s-micro-2.pid)"); err != nil {
		t.Fatalf("killing the second node: %v: %s", err, out)
	}
	eventually(t, 20*time.Second, "the end of the second node", func() bool {
		_, err := os.Stat(c.pidFile(2))
		return os.IsNotExist(err)
	})
	if out, err := cli(t, root, "node", "-n", "2", "true"); err == nil || !strings.Contains(out, "entering node k8s-micro-2") || !strings.Contains(out, "it is not running") {
		t.Errorf("entering a node that has ended: %v: %s", err, out)
	}
	if dialRefused(t, root, firstNode, pods[1].ip) == "" || dialRefused(t, root, 3, pods[1].ip) == "" {
		t.Error("the pod of a node that has ended still answers")
	}
	if out := dialRefused(t, root, 3, pods[0].ip); out != "" {
		t.Errorf("a pod of the first node from the third: %s", out)
	}
	if err := os.Remove(c.offFile(2)); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the pod of the second node", func() bool {
		pods := podsOfNodes(t, root)
		return len(pods) == 3 && dialRefused(t, root, 3, pods[1].ip) == ""
	})
}
