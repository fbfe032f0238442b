package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// cgroup is the cluster's cgroup in one mounted hierarchy. With version 1 there
// is one hierarchy for each controller.
type cgroup struct {
	mount   string // where the hierarchy is mounted
	fs      string // cgroup or cgroup2
	options string // mount options that name the controllers of a version 1 hierarchy
	dir     string // the cluster's cgroup, which the node sees as the root of the hierarchy
}

type cgroups []cgroup

func (g cgroup) v2() bool { return g.fs == "cgroup2" }

// cgroups lists the cluster's cgroups, whether they exist or not.
func (c *cluster) cgroups() (all cgroups) {
	b, _ := os.ReadFile("/proc/self/mounts")
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		if len(f) < 4 || f[2] != "cgroup" && f[2] != "cgroup2" || !strings.HasPrefix(f[1], "/sys/fs/cgroup") {
			continue
		}
		g := cgroup{mount: f[1], fs: f[2], dir: filepath.Join(f[1], "k8s-micro-"+c.id())}
		if !g.v2() {
			var controllers []string
			for _, o := range strings.Split(f[3], ",") {
				switch o {
				case "rw", "ro", "relatime", "noatime", "nosuid", "nodev", "noexec":
				default:
					controllers = append(controllers, o)
				}
			}
			g.options = strings.Join(controllers, ",")
		}
		all = append(all, g)
	}
	return all
}

// make creates the cgroups. An error means that cgroups cannot be used here.
func (all cgroups) make() error {
	v1 := false
	for _, g := range all {
		v1 = v1 || !g.v2()
	}
	for _, g := range all {
		if g.v2() && !v1 { // delegate the controllers that a kubelet uses
			for _, c := range []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"} {
				_ = os.WriteFile(filepath.Join(g.mount, "cgroup.subtree_control"), []byte("+"+c), 0)
			}
		}
		if err := os.Mkdir(g.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if g.v2() && !v1 {
			b, _ := os.ReadFile(filepath.Join(g.dir, "cgroup.controllers"))
			for _, c := range []string{"cpuset", "cpu", "memory", "pids"} {
				if !strings.Contains(" "+strings.TrimSpace(string(b))+" ", " "+c+" ") {
					return fmt.Errorf("no cgroup controller %q", c)
				}
			}
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // a new cgroup of version 1 has empty values
			if b, err := os.ReadFile(filepath.Join(g.mount, f)); err == nil {
				_ = os.WriteFile(filepath.Join(g.dir, f), b, 0)
			}
		}
	}
	if len(all) == 0 {
		return errors.New("no cgroups mounted")
	}
	return nil
}

// enter moves this process into the cgroups.
func (all cgroups) enter() error {
	for _, g := range all {
		if err := os.WriteFile(filepath.Join(g.dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return err
		}
	}
	return nil
}

// enterLeaf moves this process into a child of the version 2 cgroup: a cgroup
// that delegates controllers may not contain processes itself.
func (all cgroups) enterLeaf(name string) {
	for _, g := range all {
		if leaf := filepath.Join(g.dir, name); g.v2() && exists(g.dir) {
			_ = os.Mkdir(leaf, 0o755)
			_ = os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0)
		}
	}
}

// remove removes the cgroups with their children. It returns false when one of
// them still contains a process.
func (all cgroups) remove() bool {
	gone := true
	for _, g := range all {
		var dirs []string
		_ = filepath.WalkDir(g.dir, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			gone = os.Remove(dirs[i]) == nil && gone
		}
	}
	return gone
}

// removeCgroups removes the cgroups of a cluster whose processes are ending. It
// retries for up to 20 seconds.
func removeCgroups(c *cluster) {
	if os.Getuid() != 0 {
		return
	}
	for end := time.Now().Add(20 * time.Second); !c.cgroups().remove() && time.Now().Before(end); {
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
