package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A component that ends at once is restarted less and less often.
func TestRestarts(t *testing.T) {
	dir := t.TempDir()
	p := newComponents(dir, nil)
	p.restart.Store(true)
	starts := filepath.Join(dir, "starts")
	p.start("x", "sh", "-c", `echo >>"$0"`, starts)
	time.Sleep(3 * time.Second)
	p.stop()
	b, err := os.ReadFile(starts)
	if n := strings.Count(string(b), "\n"); err != nil || n > 3 { // after 0, 0.5 and 1.5 s; the next is after 3.5 s
		t.Errorf("%d starts in 3 s, %v", n, err)
	}
	var delays []time.Duration
	for delay := time.Duration(0); len(delays) < 9; delays = append(delays, delay) {
		delay = restartDelay(delay, time.Second)
	}
	if first, last := delays[0], delays[8]; first != 500*time.Millisecond || last != time.Minute || restartDelay(last, time.Hour) != first {
		t.Errorf("the delays are %s", delays)
	}
}

// The node manager restarts a component that ends.
func TestKilledAPIServerIsRestarted(t *testing.T) {
	root := checkout(t)
	up(t, root)
	runPod(t, root)
	if out, err := cli(t, root, "kubectl", "get", "--raw", "/api/v1/nodes/k8s-micro/proxy/configz"); err != nil || !strings.Contains(out, `"imageMaximumGCAge":"30m0s"`) {
		t.Errorf("kubelet would keep the images of earlier loads for ever: %v: %s", err, out)
	}
	if out, err := cli(t, root, "node", "--", "pkill", "-KILL", "-f", "kube-apiserver --etcd"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	eventually(t, time.Minute, "the API server with its data", func() bool {
		out, err := cli(t, root, "kubectl", "--", "get", "pod", "pause", "-o", "jsonpath={.status.phase}")
		return err == nil && out == "Running"
	})
}
