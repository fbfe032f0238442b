package faults

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/orders"
	corev1 "k8s.io/api/core/v1"
)

const (
	// Namespace contains everything that a run creates. Remove deletes it.
	Namespace = "go-micro-faults"

	// Replicas is the number of replicas of a service, Callers is the number of callers of each client.
	Replicas = 4
	Callers  = 8

	// DefaultPause is how long a caller waits after each call.
	DefaultPause = 20 * time.Millisecond
)

// Target is the service that the faults break: the replicas of go-micro-srv or of test/orders in Namespace.
// Their program is test/e2e/probe, which serves as go-micro-srv does and can be made slow
// or failing by a signal. A Target is not safe for concurrent use.
type Target struct {
	Cluster
	Image   string        // of the probe, already loaded into the cluster
	Orders  bool          // test/orders instead of go-micro-srv
	Pause   time.Duration // of a caller after each call; 0 is DefaultPause
	Samples bool          // the callers of go-micro-srv with package pod print metrics, those of the replicas included
	Load    *Load         // the callers that must find the replicas again after a fault

	victims int // how many replicas have been chosen
}

// Client is a kind of client that calls a Target.
type Client struct {
	Name string
	args []string // of test/e2e/probe
}

// Clients returns the clients of the service: that with package pod is the last one.
func (t *Target) Clients() []Client {
	callers, pause := fmt.Sprint(Callers), cmp.Or(t.Pause, DefaultPause).String()
	if t.Orders {
		return []Client{
			{Plugin, []string{"order", "-client=go-micro", "4", pause}},
			{Service, []string{"order", "-client=" + orders.Name + ":9100", "4", "20ms"}}, // with a call of 2 s in flight nearly always, so that its connection is never idle
			{Pod, []string{"order", "4", pause}},
		}
	}
	withPod := []string{"call", callers, pause}
	if t.Samples {
		withPod = []string{"call", "-samples", callers, pause}
	}
	return []Client{{Plugin, []string{"call", "-upstream", callers, pause}}, {Pod, withPod}}
}

// Start starts a client in a pod whose name begins with a prefix, on the first node. The client with package pod becomes t.Load.
func (t *Target) Start(ctx context.Context, c Client, prefix string, onSecond func(Second)) (*Load, error) {
	l, err := t.StartOn(ctx, firstNode, c, prefix, onSecond)
	if err == nil && c.Name == Pod {
		t.Load = l
	}
	return l, err
}

// StartOn starts a client in a pod on a node.
func (t *Target) StartOn(ctx context.Context, node string, c Client, prefix string, onSecond func(Second)) (*Load, error) {
	pod := prefix + "-" + strings.TrimSuffix(c.Name, "/")
	if t.Orders {
		pod = "orders-" + pod
	}
	return StartLoad(ctx, t.Cluster, Namespace, pod, node, t.Image, c.args, onSecond)
}

// service returns the name of the service and its Deployments.
func (t *Target) service() (name string, deployments []string) {
	if t.Orders {
		return orders.Name, orders.Deployments
	}
	return "go-micro-srv", []string{"go-micro-srv"}
}

// Deploy applies the project's manifests in Namespace and waits until the replicas are ready.
func (t *Target) Deploy(ctx context.Context) error {
	own := regexp.MustCompile(`(?m)(name(?:space)?: )go-micro$`)
	var manifests []string
	for _, file := range []string{"k8s/namespace.yaml", "k8s/pod-rbac.yaml", "go-micro-srv/k8s/deployment.yaml"} {
		b, err := os.ReadFile(filepath.Join(t.Root, file))
		if err != nil {
			return err
		}
		manifests = append(manifests, own.ReplaceAllString(string(b), "${1}"+Namespace))
	}
	deployment := &manifests[2]
	if t.Orders {
		*deployment = orders.Manifest(Namespace, t.Image)
	} else if err := t.useProbe(deployment); err != nil {
		return err
	}
	nodes, err := t.Nodes(ctx)
	if err != nil {
		return err
	}
	if len(nodes) > 2 {
		*deployment = t.onTwoNodes(*deployment)
	}
	if _, err := t.kubectl(ctx, strings.Join(manifests, "\n---\n"), "apply", "-f", "-"); err != nil {
		return err
	}
	return t.rolledOut(ctx)
}

// Nodes returns the nodes.
func (c Cluster) Nodes(ctx context.Context) ([]corev1.Node, error) {
	var list corev1.NodeList
	err := c.get(ctx, "/api/v1/nodes", &list)
	return list.Items, err
}

// constraints put one half of the replicas on each of the nodes that break. A drained node does not count.
const constraints = `      affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [
        {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [` + CutNode + `, ` + LostNode + `]}]}]}}}
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, nodeTaintsPolicy: Honor,
        matchLabelKeys: [pod-template-hash], labelSelector: {matchLabels: {app: %s}}}]
`

var ownConstraints = regexp.MustCompile(`(?m)^      topologySpreadConstraints:.*\n(        .*\n)+`)

// onTwoNodes adds constraints to the manifest of the service.
func (t *Target) onTwoNodes(manifest string) string {
	name, _ := t.service()
	manifest = ownConstraints.ReplaceAllString(manifest, "")
	return strings.ReplaceAll(manifest, "      containers:\n", fmt.Sprintf(constraints, name)+"      containers:\n")
}

// rolledOut waits until the replicas are ready and no old ones are left.
func (t *Target) rolledOut(ctx context.Context) error {
	_, deployments := t.service()
	for _, d := range deployments {
		if _, err := t.Kubectl(ctx, "rollout", "status", "-n", Namespace, "deployment/"+d, "--timeout=2m"); err != nil {
			return err
		}
	}
	return nil
}

// useProbe makes the probe the program of the manifest of go-micro-srv.
func (t *Target) useProbe(deployment *string) error {
	for old, replacement := range map[string]string{
		"image: 846602483/go-micro-srv:kubernetes": "image: " + t.Image + "\n          args: [greeter]",
		"replicas: 2":                    fmt.Sprintf("replicas: %d", Replicas),
		"  template:\n    metadata:\n":   "  template:\n    metadata:\n      annotations: {" + scraped + "}\n",
		"            - name: GOMEMLIMIT": "            - {name: POD_METRICS_ADDRESS, value: \":9464\"}\n            - name: GOMEMLIMIT",
		"          ports:\n":             "          ports:\n            - {containerPort: 9464, name: metrics}\n",
	} {
		if strings.Count(*deployment, old) != 1 {
			return fmt.Errorf("reading go-micro-srv/k8s/deployment.yaml: it does not contain %q once", old)
		}
		*deployment = strings.Replace(*deployment, old, replacement, 1)
	}
	return nil
}

// Remove undoes every fault and deletes Namespace. It does no harm if there is nothing to
// undo, so it also cleans up after a process that was killed.
func (t *Target) Remove(ctx context.Context) error {
	if err := t.Restore(ctx); err != nil {
		return err
	}
	// The owners go first, or they would replace the pods.
	if _, err := t.Kubectl(ctx, "delete", "deployments,replicasets", "-n", Namespace, "--all", "--wait=false"); err != nil {
		return err
	}
	if _, err := t.Kubectl(ctx, "delete", "pods", "-n", Namespace, "--all", "--grace-period=1", "--wait=false"); err != nil {
		return err
	}
	_, err := t.Kubectl(ctx, "delete", "namespace", Namespace, "--ignore-not-found", "--timeout=4m")
	return err
}

// Restore undoes what a fault has changed in the nodes: it resumes every process, removes the
// firewall rules, lets a lost node start again, uncordons nodes and waits for the API server and the kubelets.
func (t *Target) Restore(ctx context.Context) error {
	// SIGCONT has no effect on a process that is not stopped.
	if _, err := t.node(ctx, each+"kill -CONT -1; each sh -c 'nft delete table ip "+table+" 2>/dev/null || true'; rm -f /run/k8s-micro/cluster/*.off"); err != nil {
		return err
	}
	if err := t.apiServerReady(ctx); err != nil {
		return err
	}
	nodes, err := t.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes { // a lost node may still be Ready
		if err := Eventually(ctx, 2*time.Minute, "kubelet of node "+n.Name, func() error { return t.get(ctx, "/api/v1/nodes/"+n.Name+"/proxy/healthz", nil) }); err != nil {
			return err
		}
		if n.Spec.Unschedulable {
			if _, err := t.Kubectl(ctx, "uncordon", n.Name); err != nil {
				return err
			}
		}
	}
	_, err = t.Kubectl(ctx, "wait", "node", "--all", "--for=condition=Ready", "--timeout=2m")
	return err
}

// Scale sets the number of replicas.
func (t *Target) Scale(ctx context.Context, n int) error {
	_, deployments := t.service()
	for i, d := range deployments {
		share := (n + len(deployments) - 1 - i) / len(deployments)
		if _, err := t.Kubectl(ctx, "scale", "-n", Namespace, "deployment/"+d, fmt.Sprintf("--replicas=%d", share)); err != nil {
			return err
		}
	}
	return nil
}

// pods returns all pods of the service, ordered by name.
func (t *Target) pods(ctx context.Context) ([]corev1.Pod, error) {
	var list corev1.PodList
	name, _ := t.service()
	err := t.get(ctx, PodsOf(Namespace, name), &list)
	slices.SortFunc(list.Items, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return list.Items, err
}

// victim returns a ready replica: a different one for each fault, because a client ejects an
// instance for longer that has failed before.
func (t *Target) victim(ctx context.Context) (corev1.Pod, error) {
	all, err := t.pods(ctx)
	if err != nil {
		return corev1.Pod{}, err
	}
	all = slices.DeleteFunc(all, func(p corev1.Pod) bool { return !IsReady(p) || p.DeletionTimestamp != nil })
	if len(all) == 0 {
		return corev1.Pod{}, errors.New("choosing a replica: none is ready")
	}
	t.victims++
	return all[t.victims%len(all)], nil
}

// IsReady reports whether a pod has the condition Ready.
func IsReady(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// Restarts returns how often the containers of a pod have restarted.
func Restarts(p corev1.Pod) (n int32) {
	for _, c := range p.Status.ContainerStatuses {
		n += c.RestartCount
	}
	return n
}

// Address returns the address at which a replica registers.
func Address(p corev1.Pod) string { return p.Status.PodIP + ":9100" }

// AwaitReplicas waits until exactly n pods of the service exist, all are ready and registered,
// and t.Load is answered by all of them and by no other. An ejection can last minutes.
func (t *Target) AwaitReplicas(ctx context.Context, n int) error {
	start := time.Now()
	name, _ := t.service()
	return Eventually(ctx, 5*time.Minute, fmt.Sprintf("%d replicas ready, registered and called", n), func() error {
		all, err := t.pods(ctx)
		if err != nil {
			return err
		}
		if len(all) != n {
			return fmt.Errorf("%d pods", len(all))
		}
		var addresses []string
		for _, p := range all {
			if !IsReady(p) || p.DeletionTimestamp != nil {
				return fmt.Errorf("pod %q is not ready", p.Name)
			}
			if !strings.Contains(p.Annotations["micro.mu/service-"+name], `"address":"`+Address(p)+`"`) {
				return fmt.Errorf("pod %q is not registered at %s", p.Name, Address(p))
			}
			addresses = append(addresses, Address(p))
		}
		return t.Load.AnsweredBy(addresses, start)
	})
}

// processes is a shell function that prints the process IDs of the containers of pods. It finds
// them by the environment variable POD_NAME, which the manifest sets.
const processes = `processes() { for name; do grep -lxzs "POD_NAME=$name" /proc/[0-9]*/environ | cut -d/ -f3 | grep . || { echo "pod $name has no process" >&2; exit 1; }; done; }
`

// signal sends a signal to the processes of pods.
func (t *Target) signal(ctx context.Context, signal string, pods ...corev1.Pod) error {
	args := []string{signal}
	for _, p := range pods {
		args = append(args, p.Name)
	}
	_, err := t.node(ctx, processes+`s=$1; shift; ids=$(processes "$@"); kill -"$s" $ids`, args...)
	return err
}

// AwaitPods waits until every pod of the cluster that should run is ready, as before the faults.
func (t *Target) AwaitPods(ctx context.Context) error {
	return Eventually(ctx, 2*time.Minute, "readiness of all pods", func() error {
		var list corev1.PodList
		if err := t.get(ctx, "/api/v1/pods", &list); err != nil {
			return err
		}
		for _, p := range list.Items {
			if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && !IsReady(p) {
				return fmt.Errorf("pod %q in namespace %q is not ready", p.Name, p.Namespace)
			}
		}
		return nil
	})
}
