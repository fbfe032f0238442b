//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	replicas      = 4
	callers       = 8
	pause         = 20 * time.Millisecond
	baseline      = 5 * time.Second // how long the throughput is measured before each fault
	detectionTime = 3 * time.Second // throughput counts from this long after the start of a fault
)

// TestFaults breaks parts of the cluster one after the other while 8 callers
// call 4 replicas, and counts the calls that fail.
func TestFaults(t *testing.T) {
	kubectl(t, "apply", "-f", "k8s/namespace.yaml", "-f", "k8s/configmap-rbac.yaml", "-f", "k8s/pod-rbac.yaml", "-f", "go-micro-srv/k8s/deployment.yaml")
	scale(t, replicas)
	t.Cleanup(func() { scale(t, 2) })

	var calls *load
	for i, f := range []struct {
		name          string
		maxFailed     int     // calls
		minThroughput float64 // from detectionTime to the end of the fault, as a share of the baseline; 0 accepts any
		newCallers    bool    // callers that have seen no earlier fault
		run           func(*testing.T, *load)
	}{
		// These five faults share their callers, so that the watch that survived one fault must also survive the next.
		{"the API server frozen for 100 s", 0, 0.8, true, freezeAPIServer},
		{"the API server killed and restarted", 0, 0, false, killAPIServer},
		{"a container killed", 0, 0, false, killContainer},
		{"a pod deleted by force", 0, 0, false, forceDeletePod},
		{"scale to 1, 8 and 1", 0, 0, false, scaleDownAndUp},
		// An instance that failed before is ejected for longer, which would hide the detection.
		{"a replica frozen for 30 s", 4, 0.75, true, freezeReplica},
		{"a replica's packets dropped for 30 s", 4, 0.75, true, dropReplicaPackets},
	} {
		if f.newCallers || calls == nil {
			calls.stop(t)
			calls = startLoad(t, fmt.Sprintf("calls-%d", i), "call", strconv.Itoa(callers), pause.String())
		}
		t.Run(f.name, func(t *testing.T) {
			calls.waitForReplicas(t, replicas)
			start := time.Now()
			time.Sleep(baseline)
			begin := time.Now()
			f.run(t, calls)
			end := time.Now()
			scale(t, replicas)
			calls.waitForReplicas(t, replicas)
			restored := time.Now()
			log := calls.secondsUntil(t, restored)

			before := succeededPerSecond(log, start, begin)
			during := succeededPerSecond(log, begin.Add(detectionTime), end) // 0 for a shorter fault
			failed := 0
			var notable []string
			for _, s := range log {
				if s.End.Before(start) {
					continue
				}
				failed += s.Failed
				if s.Failed > 0 || len(s.FailedTries) > 0 {
					notable = append(notable, fmt.Sprintf("%+6.1f s: %s", s.End.Sub(begin).Seconds(), must(json.Marshal(s))))
				}
			}
			t.Logf("%s: lasted %.0f s, all replicas back after %.1f s, %d calls failed; %.0f calls/s before, %.0f calls/s from %s on (%.0f %%)\n%s\n%s",
				f.name, end.Sub(begin).Seconds(), restored.Sub(begin).Seconds(), failed, before, during, detectionTime, 100*during/before,
				strings.Join(notable, "\n"), calls.messages)
			if failed > f.maxFailed {
				t.Errorf("%d calls failed, want at most %d", failed, f.maxFailed)
			}
			if before == 0 || during < f.minThroughput*before {
				t.Errorf("throughput fell from %.0f to %.0f calls/s, want at least %.0f %% of it", before, during, 100*f.minThroughput)
			}
		})
	}
	calls.stop(t)
}

// Each fault function returns when the broken part works again.

// freezeAPIServer resumes the API server before the kubelet. The node's last
// heartbeat is then too old, so kube-controller-manager marks all of its pods not
// ready although they answer. If the kubelet resumed at the same time, this would
// be a race that kube-controller-manager wins only sometimes.
func freezeAPIServer(t *testing.T, _ *load) {
	kubelet := nodeProcess(t, "[k]ubelet --config")
	resume := sync.OnceFunc(func() { onNode(t, "kill", "-CONT", kubelet) })
	t.Cleanup(resume)
	onNode(t, "kill", "-STOP", kubelet)
	freezeProcess(t, nodeProcess(t, "[k]ube-apiserver --"), 100*time.Second)
	apiServerReady(t)
	eventually(t, time.Minute, "all pods marked not ready", func() error {
		for _, p := range pods(t, "go-micro-srv") {
			if isReady(p) {
				return fmt.Errorf("pod %q is still ready", p.Name)
			}
		}
		return nil
	})
	resume()
}

func killAPIServer(t *testing.T, _ *load) {
	old := nodeProcess(t, "[k]ube-apiserver --")
	onNode(t, "kill", "-KILL", old)
	eventually(t, time.Minute, "a new kube-apiserver", func() error {
		if current := nodeProcess(t, "[k]ube-apiserver --"); current == old {
			return fmt.Errorf("process %s still runs", current)
		}
		return nil
	})
	apiServerReady(t)
}

func killContainer(t *testing.T, _ *load) {
	victim := pods(t, "go-micro-srv")[0]
	onNode(t, "kill", "-KILL", podProcess(t, victim))
	eventually(t, time.Minute, "restart of the container of "+victim.Name, func() error {
		for _, p := range pods(t, "go-micro-srv") {
			if p.Name == victim.Name && restarts(p) > restarts(victim) {
				return nil
			}
		}
		return fmt.Errorf("%d restarts", restarts(victim))
	})
}

func forceDeletePod(t *testing.T, _ *load) {
	kubectl(t, "delete", "pod", "-n", namespace, pods(t, "go-micro-srv")[0].Name, "--grace-period=0", "--force")
}

func scaleDownAndUp(t *testing.T, calls *load) {
	for _, n := range []int{1, 8, 1} {
		scale(t, n)
		calls.waitForReplicas(t, n)
	}
}

func freezeReplica(t *testing.T, _ *load) {
	freezeProcess(t, podProcess(t, pods(t, "go-micro-srv")[0]), 30*time.Second)
}

func dropReplicaPackets(t *testing.T, _ *load) {
	ip := pods(t, "go-micro-srv")[0].Status.PodIP
	restore := sync.OnceFunc(func() { onNode(t, "nft", "delete table ip fault") })
	onNode(t, "nft", fmt.Sprintf("add table ip fault; add chain ip fault in { type filter hook prerouting priority -300; }; "+
		"add chain ip fault out { type filter hook output priority -300; }; "+
		"add rule ip fault in ip saddr %[1]s drop; add rule ip fault in ip daddr %[1]s drop; add rule ip fault out ip daddr %[1]s drop", ip))
	t.Cleanup(restore)
	time.Sleep(30 * time.Second)
	restore()
}

// freezeProcess stops a process of the node for the given time.
func freezeProcess(t *testing.T, pid string, duration time.Duration) {
	t.Helper()
	resume := sync.OnceFunc(func() { onNode(t, "sh", "-c", "kill -CONT "+pid+" || true") }) // its liveness probe may have ended the process
	t.Cleanup(resume)
	onNode(t, "kill", "-STOP", pid)
	time.Sleep(duration)
	resume()
}
