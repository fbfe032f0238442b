package main

import (
	"testing"
	"time"
)

// The node manager restarts a component that ends.
func TestKilledAPIServerIsRestarted(t *testing.T) {
	root := checkout(t)
	up(t, root)
	runPod(t, root)
	if out, err := cli(t, root, "node", "--", "pkill", "-KILL", "-f", "kube-apiserver --etcd"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	eventually(t, time.Minute, "the API server with its data", func() bool {
		out, err := cli(t, root, "kubectl", "--", "get", "pod", "pause", "-o", "jsonpath={.status.phase}")
		return err == nil && out == "Running"
	})
}
