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
)

func init() { subprocesses["init"] = initProcess }

// The supervisor and init describe the node to the processes below them in their
// environment.
const (
	envRootless  = "K8S_MICRO_ROOTLESS"  // the node has a user namespace
	envNoCgroups = "K8S_MICRO_NOCGROUPS" // the node has no cgroups of its own
	envMapped    = "K8S_MICRO_MAPPED"    // the user namespace has its id mapping
	envSeccomp   = "K8S_MICRO_SECCOMP"   // the node's runc supports seccomp
)

// initProcess is process 1 of the node. It makes the mounts, starts the node
// manager and reaps orphans. It exits at the end of the supervisor's pipe, file
// descriptor 3; the kernel then kills every other process of the node.
func initProcess(args []string) error {
	parent := inherited(3)
	if os.Getenv(envMapped) == "" {
		if n, err := parent.Read(make([]byte, 1)); n == 0 {
			return fmt.Errorf("waiting for the supervisor: %w", err)
		}
		// A process has root's capabilities only if it was executed after its user was mapped to 0.
		os.Setenv(envMapped, "1")
		_, _, _ = syscall.Syscall(syscall.SYS_FCNTL, parent.Fd(), syscall.F_SETFD, 0)
		return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	}
	syscall.Umask(0o022) // whatever the caller's is: other users of pods read what kubelet mounts
	go func() {
		_, _ = io.Copy(io.Discard, parent)
		os.Exit(0)
	}()
	events, lock, api, registry := inherited(4), inherited(5), inherited(6), inherited(7)
	c, err := newCluster(args[0])
	if err == nil {
		err = c.mountNode()
	}
	if err == nil {
		err = syscall.Sethostname([]byte(nodeName))
	}
	if err != nil {
		_, _ = fmt.Fprintf(events, "error making the node: %v\n", err)
		return err
	}
	manager := exec.Command("/proc/self/exe", "node-manager", c.name)
	manager.Dir, manager.Stdout, manager.Stderr = c.root, os.Stdout, os.Stderr
	manager.ExtraFiles = []*os.File{events, lock, api, registry}
	if err := manager.Start(); err != nil {
		return err
	}
	for { // not manager.Wait: orphans of the node are children of process 1 too
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return err
		}
		if pid == manager.Process.Pid {
			return fmt.Errorf("the node manager ended with status %d", status.ExitStatus())
		}
	}
}

// mountNode gives the node its own /proc, /sys, cgroups, /run and /var, so that
// every component can use its default paths, and makes the host's root file system
// read-only for the node.
func (c *cluster) mountNode() error {
	s, err := c.state()
	if err != nil {
		return err
	}
	rootless, useCgroups := os.Getenv(envRootless) != "", os.Getenv(envNoCgroups) == ""
	hierarchies := c.cgroups()
	var errs []error
	mount := func(src, dst, fs string, flags uintptr, data string) {
		if err := syscall.Mount(src, dst, fs, flags, data); err != nil {
			errs = append(errs, fmt.Errorf("mounting %s (%s): %w", dst, fs, err))
		}
	}
	mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")

	// The new /run and /var hide the host's. What the node needs of these is mounted again.
	needed := map[string]int{}
	for _, p := range []string{c.dir, c.root, filepath.Dir(filepath.Dir(s.Tools.Kube))} {
		if fd, err := syscall.Open(p, syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0); err == nil {
			needed[p] = fd
		}
	}
	mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
	mount("tmpfs", "/var", "tmpfs", 0, "mode=755")
	for _, d := range []string{"/var/lib", "/var/log", "/var/tmp", "/run/tmp"} {
		errs = append(errs, os.MkdirAll(d, 0o755))
	}
	errs = append(errs, os.Symlink("/run", "/var/run"))
	for p, fd := range needed {
		for _, hidden := range []string{"/run/", "/var/"} {
			if strings.HasPrefix(p, hidden) {
				errs = append(errs, os.MkdirAll(p, 0o755))
				mount(fmt.Sprintf("/proc/self/fd/%d", fd), p, "", syscall.MS_BIND, "")
			}
		}
	}
	mount(c.dir, c.dir, "", syscall.MS_BIND, "") // stays writable
	for _, fd := range needed {
		syscall.Close(fd)
	}
	mount("proc", "/proc", "proc", 0, "")
	mount("sysfs", "/sys", "sysfs", 0, "")
	mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755")
	if useCgroups {
		for _, g := range hierarchies {
			errs = append(errs, os.MkdirAll(g.mount, 0o755))
			mount("cgroup", g.mount, g.fs, 0, g.options)
			if g.v2() { // see enterLeaf
				leaf := filepath.Join(g.mount, "init")
				errs = append(errs, os.MkdirAll(leaf, 0o755), os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0))
			}
		}
	} else { // kubelet reads cgroups even when it is told not to use them
		mount("cgroup", "/sys/fs/cgroup", "cgroup2", 0, "")
	}
	if !rootless {
		errs = append(errs, hideSysctls(mount)...)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs("/", &st); err == nil { // a user namespace may not drop these flags
		mount("", "/", "", uintptr(st.Flags)&(syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC|syscall.MS_NOATIME|syscall.MS_NODIRATIME|syscall.MS_RELATIME)|
			syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
	}
	mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, "") // mounts that kubelet makes propagate into pods
	return errors.Join(errs...)
}

// hideSysctls protects the sysctls that belong to the whole machine. Kubelet
// writes some of them and does not start when it cannot; here it reads the values
// that it would write.
func hideSysctls(mount func(src, dst, fs string, flags uintptr, data string)) (errs []error) {
	for _, p := range []string{"/proc/sys/kernel", "/proc/sys/vm", "/proc/sys/fs"} {
		mount(p, p, "", syscall.MS_BIND, "")
		mount("", p, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
	}
	for name, value := range map[string]string{"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10",
		"kernel/panic_on_oops": "1", "kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000"} {
		shown := filepath.Join("/run/sysctl", name)
		errs = append(errs, os.MkdirAll(filepath.Dir(shown), 0o755), os.WriteFile(shown, []byte(value+"\n"), 0o444))
		mount(shown, filepath.Join("/proc/sys", name), "", syscall.MS_BIND, "")
	}
	return errs
}
