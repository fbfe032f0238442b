package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/cgroups"
)

func (c *cluster) cgroups() cgroups.Set { return cgroups.List("k8s-micro-" + c.id()) }

// removeCgroups removes the cgroups of a cluster. The caller holds the cluster's lock or has
// seen its supervisor end, so a process in them is ending, or belongs to a cluster whose
// lock file was deleted together with the checkout: removeCgroups ends it.
func removeCgroups(c *cluster) error {
	if os.Getuid() != 0 {
		return nil
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) { // a killed process leaves its cgroup a moment later
		left := c.cgroups().Kill()
		if c.cgroups().Remove() {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("removing the cgroups of cluster %q: %d of its processes do not end; see the files cgroup.procs in /sys/fs/cgroup/**/k8s-micro-%s", c.name, left, c.id())
		}
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
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP) // whoever ends all processes of a session would leave the cgroups
	_, _ = io.Copy(io.Discard, parent)
	return removeCgroups(c)
}
