package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/cgroups"
)

func (c *cluster) cgroups() cgroups.Set { return cgroups.List("k8s-micro-" + c.id()) }

// removeCgroups removes the cgroups of a cluster whose processes are ending. It
// retries for up to 20 seconds.
func removeCgroups(c *cluster) {
	if os.Getuid() != 0 {
		return
	}
	for end := time.Now().Add(20 * time.Second); !c.cgroups().Remove() && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond) // a killed process leaves its cgroup a moment later
	}
}

// startCgroupCleaner starts the process that removes the cgroups after the
// supervisor has ended. The supervisor cannot remove them, because it runs in them.
func (c *cluster) startCgroupCleaner(lock *os.File) error {
	parent, pipe, err := os.Pipe()
	if err != nil {
		return err
	}
	defer parent.Close()
	cmd := exec.Command("/proc/self/exe", "cgroup-cleaner", c.name)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.root, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{parent, lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the cgroup cleaner: %w", err)
	}
	held = append(held, pipe) // the kernel closes it when the supervisor ends
	return nil
}

// cgroupCleaner waits until the supervisor's pipe (file descriptor 3) closes, and
// then removes the cgroups. It holds the lock (file descriptor 4) until it exits.
func cgroupCleaner(args []string) error {
	c, err := newCluster(args[0])
	if err != nil {
		return err
	}
	parent, _ := inherited(3), inherited(4)
	_, _ = io.Copy(io.Discard, parent)
	removeCgroups(c)
	return nil
}
