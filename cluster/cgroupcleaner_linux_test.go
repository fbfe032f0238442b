package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A process of a cluster whose checkout was deleted holds no lock that a command could find, but it is in the cluster's
// cgroups. down ends it before it says that the cluster is gone.
func TestDownEndsProcessesWithoutALock(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make cgroups")
	}
	root := checkout(t)
	c := demoCluster(root)
	t.Cleanup(func() { c.cgroups().Remove() })
	if err := c.cgroups().Make(); err != nil {
		t.Skipf("cgroups cannot be used here: %v", err)
	}
	left := exec.Command("sh", "-c", "trap '' TERM; exec sleep 1000")
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- left.Wait() }()
	t.Cleanup(func() { _ = left.Process.Kill() })
	for _, g := range c.cgroups() {
		if err := os.WriteFile(filepath.Join(g.Mount, "k8s-micro-"+c.id(), "cgroup.procs"), fmt.Append(nil, left.Process.Pid), 0); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := cli(t, root, "down"); err != nil || !strings.Contains(out, "is gone") {
		t.Errorf("down: %v: %s", err, out)
	}
	if len(ended) == 0 { // the cgroups are only removed when no process is in them
		t.Errorf("down has succeeded, but process %d is still running", left.Process.Pid)
	}
	for _, g := range c.cgroups() {
		if dir := filepath.Join(g.Mount, "k8s-micro-"+c.id()); exists(dir) {
			t.Errorf("%q is left", dir)
		}
	}
}
