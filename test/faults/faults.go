// Package faults breaks parts of a cluster while clients call go-micro-srv or test/orders, and repairs them.
//
// It has two users. `make faults` (test/faults/run) shows every fault to a reader, with go-micro's
// plugin and package pod side by side. TestFaults in test/e2e demands how package pod behaves.
package faults

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Fault is one way in which a cluster breaks.
type Fault struct {
	Name        string        // what the user types
	Title       string        // in tables
	Label       string        // in the picture, at most 22 characters
	Description string        // one sentence
	Hold        time.Duration // from the injection to the repair; 0 if Kubernetes repairs the damage, or if the fault is a change that ends by itself

	// NeedsNodes tells that the cluster must have three nodes.
	NeedsNodes bool

	// inject returns when the fault has its effect. repair ends it and returns when the broken
	// part works again; it may be nil.
	inject func(context.Context, *Target) (victims []corev1.Pod, repair func(context.Context) error, err error)
}

// Span tells when a fault took place.
type Span struct {
	Begin    time.Time // before the injection
	Injected time.Time // the fault is in effect
	End      time.Time // the repair begins
	Repaired time.Time // the broken part works again; pods may still be starting
	Victims  []string  // addresses of the replicas that the fault affects
}

// Run injects a fault and repairs it. After an error, also that of an ended ctx, the caller must
// call Target.Restore.
func (f Fault) Run(ctx context.Context, t *Target) (Span, error) {
	s := Span{Begin: time.Now()}
	victims, repair, err := f.inject(ctx, t)
	if err != nil {
		return s, fmt.Errorf("injecting fault %q: %w", f.Name, err)
	}
	for _, v := range victims {
		s.Victims = append(s.Victims, Address(v))
	}
	s.Injected = time.Now()
	if err := sleep(ctx, f.Hold); err != nil {
		return s, err
	}
	s.End = time.Now()
	if repair != nil {
		if err := repair(ctx); err != nil {
			return s, fmt.Errorf("repairing fault %q: %w", f.Name, err)
		}
	}
	s.Repaired = time.Now()
	return s, nil
}

// All lists the faults in the order in which `make faults` injects them.
var All = []Fault{
	{"api-frozen", "API server frozen", "API server frozen", "The API server stops for 100 s; then every pod is reported as not ready for a while.", 100 * time.Second, false, freezeAPIServer},
	{"api-killed", "API server killed", "API server killed", "The API server is killed and starts again, which ends every watch.", 0, false, killAPIServer},
	{"container-killed", "container killed", "container killed", "One replica is killed, as when it runs out of memory, and restarts at the same address.", 0, false, killContainer},
	{"pod-deleted", "pod deleted by force", "pod deleted by force", "One replica is deleted without a grace period; it cannot deregister.", 0, false, forceDeletePod},
	{"replica-frozen", "replica frozen", "replica frozen", "One replica stops for 30 s; its connections stay open.", 30 * time.Second, false, freezeReplica},
	{"packets-dropped", "packets of a replica dropped", "packets dropped", "The network drops every packet from and to one replica for 30 s.", 30 * time.Second, false, dropPackets},
	{"replica-slow", "replica 100 times slower", "replica is slow", "One replica needs 100 ms instead of about 1 ms for each call, for 30 s; it stays ready.", 30 * time.Second, false, signalReplica("USR1")},
	{"replica-failing", "replica fails every call", "replica fails calls", "One replica answers every call at once with an error, for 30 s; it stays ready.", 30 * time.Second, false, signalReplica("USR2")},
	{"node-lost", "half of the replicas lost", "half of replicas lost", "The node of half of the replicas is lost with its kubelet, its containerd and its network for 90 s, and starts again.", 90 * time.Second, true, loseNode},
	{"zone-cut", "zone cut off", "zone cut off", "The zone of half of the replicas is cut off from the other zones and from the API server for 30 s.", 30 * time.Second, true, cutZone},
	{"drain", "node drained", "node drained", "kubectl drain evicts the replicas of one node.", 0, true, drainNode},
	{"rolling-restart", "rolling restart", "rolling restart", "Every replica is replaced, one after the other.", 0, false, rollingRestart},
	{"scaling", "scaled to 1, 8 and 1", "scaled to 1, 8 and 1", "The Deployment is scaled to 1, 8 and 1 replicas, and back.", 0, false, scaleDownAndUp},
}

// Find returns the fault with the given name.
func Find(name string) (Fault, error) {
	var names []string
	for _, f := range All {
		if f.Name == name {
			return f, nil
		}
		names = append(names, f.Name)
	}
	return Fault{}, fmt.Errorf("looking for fault %q: the faults are %s", name, strings.Join(names, ", "))
}

// Patterns for pgrep -f. The brackets keep a pattern from matching the shell that contains it.
const (
	apiServer = "[k]ube-apiserver --"
	kubelet   = "[k]ubelet --config"
)

// freezeAPIServer also freezes the kubelet, and resumes the API server first. The node's last
// heartbeat is then too old, so kube-controller-manager marks all of its pods not ready although
// they answer. If both resumed at the same time, this would be a race that kube-controller-manager wins only
// sometimes.
func freezeAPIServer(ctx context.Context, t *Target) ([]corev1.Pod, func(context.Context) error, error) {
	_, err := t.node(ctx, `ids=$(pgrep -f -- "$1"; pgrep -f -- "$2"); kill -STOP $ids`, kubelet, apiServer)
	return nil, func(ctx context.Context) error {
		if _, err := t.node(ctx, `pkill -CONT -f -- "$1"`, apiServer); err != nil {
			return err
		}
		if err := t.apiServerReady(ctx); err != nil {
			return err
		}
		if err := t.awaitAllNotReady(ctx); err != nil {
			return err
		}
		return t.Restore(ctx)
	}, err
}

// awaitAllNotReady waits until kube-controller-manager has marked every replica not ready,
// because the heartbeats of their node have stopped.
func (t *Target) awaitAllNotReady(ctx context.Context) error {
	return Eventually(ctx, 90*time.Second, "all pods marked not ready", func() error {
		all, err := t.pods(ctx)
		if err != nil {
			return err
		}
		for _, p := range all {
			if IsReady(p) {
				return fmt.Errorf("pod %q is still ready", p.Name)
			}
		}
		return nil
	})
}

func killAPIServer(ctx context.Context, t *Target) ([]corev1.Pod, func(context.Context) error, error) {
	_, err := t.node(ctx, `old=$(pgrep -f -- "$1"); kill -KILL $old; while [ "$(pgrep -f -- "$1" || echo "$old")" = "$old" ]; do sleep 0.1; done`, apiServer)
	return nil, t.apiServerReady, err
}

func killContainer(ctx context.Context, t *Target) ([]corev1.Pod, func(context.Context) error, error) {
	v, err := t.victim(ctx)
	if err == nil {
		err = t.signal(ctx, "KILL", v)
	}
	return []corev1.Pod{v}, func(ctx context.Context) error {
		return Eventually(ctx, 2*time.Minute, "restart of the container of "+v.Name, func() error {
			all, err := t.pods(ctx)
			if err != nil {
				return err
			}
			for _, p := range all {
				if p.Name == v.Name && Restarts(p) > Restarts(v) {
					return nil
				}
			}
			return fmt.Errorf("%d restarts", Restarts(v))
		})
	}, err
}

func forceDeletePod(ctx context.Context, t *Target) ([]corev1.Pod, func(context.Context) error, error) {
	v, err := t.victim(ctx)
	if err == nil {
		_, err = t.Kubectl(ctx, "delete", "pod", "-n", Namespace, v.Name, "--grace-period=0", "--force")
	}
	return []corev1.Pod{v}, nil, err
}

func freezeReplica(ctx context.Context, t *Target) ([]corev1.Pod, func(context.Context) error, error) {
	v, err := t.victim(ctx)
	if err == nil {
		err = t.signal(ctx, "STOP", v)
	}
	return []corev1.Pod{v}, t.Restore, err // the process may be gone: its liveness probe has failed
}

// table is the name of the firewall table that drops packets.
const table = "k8s_micro_faults"

// each is a shell function that runs a command in the network of every node that is running.
const each = `each() { "$@"; for pid in /run/k8s-micro/cluster/*.pid; do [ ! -e "$pid" ] || nsenter -t "$(cat "$pid")" -n -- "$@"; done; }
`

// drop is a shell function that drops all packets from and to IP addresses.
const drop = each + `drop() { each nft "add table ip ` + table + `; add chain ip ` + table + ` in { type filter hook prerouting priority -300; };
add chain ip ` + table + ` out { type filter hook output priority -300; }"
for ip; do each nft "add rule ip ` + table + ` in ip saddr $ip drop; add rule ip ` + table + ` in ip daddr $ip drop; add rule ip ` + table + ` out ip daddr $ip drop"; done; }
`

func dropPackets(ctx context.Context, t *Target) ([]corev1.Pod, func(context.Context) error, error) {
	v, err := t.victim(ctx)
	if err == nil {
		_, err = t.node(ctx, drop+`drop "$1"`, v.Status.PodIP)
	}
	return []corev1.Pod{v}, t.Restore, err
}

// signalReplica returns a fault in which one replica gets a signal that changes its behaviour.
// SIGHUP makes it normal again. test/e2e/probe/serve.go handles the signals.
func signalReplica(signal string) func(context.Context, *Target) ([]corev1.Pod, func(context.Context) error, error) {
	return func(ctx context.Context, t *Target) ([]corev1.Pod, func(context.Context) error, error) {
		v, err := t.victim(ctx)
		if err == nil {
			err = t.signal(ctx, signal, v)
		}
		return []corev1.Pod{v}, func(ctx context.Context) error { return t.signal(ctx, "HUP", v) }, err
	}
}

// The replicas are on two nodes that break, one half on each, and the callers on the first node, which has the API server.
const (
	firstNode = "k8s-micro"
	CutNode   = "k8s-micro-2" // zone-cut cuts it off, drain drains it
	LostNode  = "k8s-micro-3" // node-lost kills it
)

// onNode returns the replicas of a node, which must be half of them.
func (t *Target) onNode(ctx context.Context, node string) ([]corev1.Pod, error) {
	all, err := t.pods(ctx)
	if err != nil {
		return nil, err
	}
	own := slices.DeleteFunc(slices.Clone(all), func(p corev1.Pod) bool { return p.Spec.NodeName != node })
	if 2*len(own) != len(all) {
		return nil, fmt.Errorf("%d of %d replicas are on node %q, want half; fault rolling-restart moves them", len(own), len(all), node)
	}
	return own, nil
}

// cut is a shell function that drops all packets from and to a node, in the network of the first node, through which they go.
// Taking the link down would also remove routes, and the senders would get errors.
const cut = `cut() { nft "add table ip ` + table + `; add chain ip ` + table + ` in { type filter hook prerouting priority -300; };
add chain ip ` + table + ` through { type filter hook forward priority -300; }; add chain ip ` + table + ` out { type filter hook output priority -300; };
add rule ip ` + table + ` in iifname $1 drop; add rule ip ` + table + ` through oifname $1 drop; add rule ip ` + table + ` out oifname $1 drop"; }
`

func cutZone(ctx context.Context, t *Target) ([]corev1.Pod, func(context.Context) error, error) {
	victims, err := t.onNode(ctx, CutNode)
	if err == nil {
		_, err = t.node(ctx, cut+`cut "$1"`, CutNode)
	}
	return victims, t.Restore, err
}

// loseNode first cuts the node off, because the kernel would otherwise tell the clients of a killed process that its
// connections are closed, which a machine without power does not.
func loseNode(ctx context.Context, t *Target) ([]corev1.Pod, func(context.Context) error, error) {
	victims, err := t.onNode(ctx, LostNode)
	if err == nil {
		_, err = t.node(ctx, cut+`cut "$1"; cd /run/k8s-micro/cluster; touch "$1.off"; kill -KILL "$(cat "$1.pid")"`, LostNode)
	}
	return victims, t.Restore, err
}

func drainNode(ctx context.Context, t *Target) ([]corev1.Pod, func(context.Context) error, error) {
	name, _ := t.service()
	victims, err := t.onNode(ctx, CutNode)
	if err == nil {
		_, err = t.Kubectl(ctx, "drain", CutNode, "--pod-selector=app="+name, "--timeout=2m") // and no pod of another service
	}
	return victims, func(ctx context.Context) error { return errors.Join(t.Restore(ctx), t.rolledOut(ctx)) }, err
}

func rollingRestart(ctx context.Context, t *Target) ([]corev1.Pod, func(context.Context) error, error) {
	_, deployments := t.service()
	for _, d := range deployments {
		if _, err := t.Kubectl(ctx, "rollout", "restart", "-n", Namespace, "deployment/"+d); err != nil {
			return nil, nil, err
		}
	}
	return nil, t.rolledOut, nil
}

func scaleDownAndUp(ctx context.Context, t *Target) ([]corev1.Pod, func(context.Context) error, error) {
	scale := func(ctx context.Context, replicas ...int) error {
		for _, n := range replicas {
			if err := t.Scale(ctx, n); err != nil {
				return err
			}
			if err := t.AwaitReplicas(ctx, n); err != nil {
				return err
			}
		}
		return nil
	}
	err := scale(ctx, 1)
	return nil, func(ctx context.Context) error { return scale(ctx, 8, 1, Replicas) }, err
}
