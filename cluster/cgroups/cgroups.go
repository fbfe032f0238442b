// Package cgroups makes and removes the cgroups of a cluster, in which the supervisor and all
// processes of the node run. A machine has one hierarchy of version 2, or one of version 1
// for each controller, or both kinds; a cluster has one cgroup in each.
package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Cgroup is a cluster's cgroup in one mounted hierarchy.
type Cgroup struct {
	Mount   string // where the hierarchy is mounted
	FS      string // cgroup or cgroup2
	Options string // mount options that name the controllers of a version 1 hierarchy
	dir     string // the cluster's cgroup, which the node sees as the root of the hierarchy
}

// V2 reports whether the hierarchy is that of version 2.
func (g Cgroup) V2() bool { return g.FS == "cgroup2" }

// Set are the cgroups of one cluster.
type Set []Cgroup

// List lists the cgroups with this name, whether they exist or not.
func List(name string) Set {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	return parseMounts(string(mounts), name)
}

func parseMounts(mounts, name string) (set Set) {
	for l := range strings.Lines(mounts) {
		f := strings.Fields(l)
		if len(f) < 4 || f[2] != "cgroup" && f[2] != "cgroup2" || !strings.HasPrefix(f[1], "/sys/fs/cgroup") {
			continue
		}
		if slices.ContainsFunc(set, func(g Cgroup) bool { return g.Mount == f[1] }) { // in the node, over the mount of the host
			continue
		}
		g := Cgroup{Mount: f[1], FS: f[2], dir: filepath.Join(f[1], name)}
		if !g.V2() {
			var controllers []string
			for _, o := range strings.Split(f[3], ",") {
				switch o {
				case "rw", "ro", "relatime", "noatime", "nosuid", "nodev", "noexec":
				default:
					controllers = append(controllers, o)
				}
			}
			g.Options = strings.Join(controllers, ",")
		}
		set = append(set, g)
	}
	return set
}

// Make creates the cgroups. An error means that cgroups cannot be used here.
func (s Set) Make() error {
	onlyV2 := !slices.ContainsFunc(s, func(g Cgroup) bool { return !g.V2() })
	for _, g := range s {
		if onlyV2 { // delegate the controllers that a kubelet uses
			for _, c := range []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"} {
				_ = os.WriteFile(filepath.Join(g.Mount, "cgroup.subtree_control"), []byte("+"+c), 0)
			}
		}
		if err := os.Mkdir(g.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if onlyV2 {
			b, _ := os.ReadFile(filepath.Join(g.dir, "cgroup.controllers"))
			for _, c := range []string{"cpuset", "cpu", "memory", "pids"} {
				if !strings.Contains(" "+strings.TrimSpace(string(b))+" ", " "+c+" ") {
					return fmt.Errorf("no cgroup controller %q", c)
				}
			}
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // a new cgroup of version 1 has empty values
			if b, err := os.ReadFile(filepath.Join(g.Mount, f)); err == nil {
				_ = os.WriteFile(filepath.Join(g.dir, f), b, 0)
			}
		}
	}
	if len(s) == 0 {
		return errors.New("no cgroups mounted")
	}
	return nil
}

// Enter moves this process into the cgroups.
func (s Set) Enter() error {
	for _, g := range s {
		if err := os.WriteFile(filepath.Join(g.dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return err
		}
	}
	return nil
}

// EnterLeaf moves this process into a child of the version 2 cgroup: a cgroup
// that delegates controllers may not contain processes itself. Without the cgroup it does
// nothing.
func (s Set) EnterLeaf(name string) {
	for _, g := range s {
		if leaf := filepath.Join(g.dir, name); g.V2() {
			_ = os.Mkdir(leaf, 0o755)
			_ = os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0)
		}
	}
}

// Kill sends SIGKILL to every process in the cgroups and in their children, and returns how
// many there were.
func (s Set) Kill() (processes int) {
	seen := map[int]bool{}
	for _, dir := range s.dirs() {
		b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, line := range strings.Fields(string(b)) {
			// A process outside of this process's PID namespace has the id 0, which would mean this process's group.
			if pid, err := strconv.Atoi(line); err == nil && pid > 0 && !seen[pid] {
				seen[pid] = true
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	return len(seen)
}

// Remove removes the cgroups with their children. It returns false when one of
// them still contains a process.
func (s Set) Remove() bool {
	gone := true
	for _, dir := range slices.Backward(s.dirs()) {
		gone = os.Remove(dir) == nil && gone
	}
	return gone
}

// dirs lists the cgroups and their children, parents first.
func (s Set) dirs() (dirs []string) {
	for _, g := range s {
		_ = filepath.WalkDir(g.dir, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
	}
	return dirs
}
