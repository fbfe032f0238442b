package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// The supervisor and init set these environment variables to describe the node to
// their child processes.
const (
	envRootless  = "K8S_MICRO_ROOTLESS"  // the node has a user namespace
	envNoCgroups = "K8S_MICRO_NOCGROUPS" // the node has no cgroups of its own
	envMapped    = "K8S_MICRO_MAPPED"    // the user namespace has its id mapping
)

// Paths of the cluster's directory and of the cache inside the node. Their paths on the
// host may contain characters that configuration files, PATH or sockets do not allow.
const (
	nodeClusterDir = "/run/k8s-micro/cluster"
	nodeCacheDir   = "/run/k8s-micro/cache"
)

// initProcess is process 1 of the node. It makes the mounts, starts the node
// manager and reaps orphans. It exits when the supervisor's pipe (file descriptor 3)
// closes; the kernel then kills every other process of the node.
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
	syscall.Umask(0o022) // regardless of the caller's umask: pods of any user must be able to read what kubelet mounts
	go func() {
		_, _ = io.Copy(io.Discard, parent)
		os.Exit(0)
	}()
	events, lock, api := inherited(4), inherited(5), inherited(6)
	c, err := newCluster(args[0])
	var s state
	if err == nil {
		s, err = c.state()
	}
	if err == nil {
		err = c.mountNode(s.Tools.Cache)
	}
	if err == nil {
		err = syscall.Sethostname([]byte(firstNode.name()))
	}
	if err != nil {
		_, _ = fmt.Fprintf(events, "error making the node: %v\n", err)
		return err
	}
	manager := exec.Command("/proc/self/exe", "node-manager", c.name)
	manager.ExtraFiles = []*os.File{events, lock, api}
	status, err := runManager(manager)
	if err != nil {
		return err
	}
	return fmt.Errorf("the node manager ended with status %d", status)
}

// runManager runs the node manager as the child of process 1, which also reaps the node's orphans, and returns its exit status.
func runManager(manager *exec.Cmd) (status int, err error) {
	manager.Stdout, manager.Stderr = os.Stdout, os.Stderr
	if err := manager.Start(); err != nil {
		return 0, err
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return 0, err
		}
		if pid == manager.Process.Pid {
			return status.ExitStatus(), nil
		}
	}
}

// mountNode gives the node its own /proc, /sys, cgroups, /run and /var, so that
// every component can use its default paths, and makes the file systems of the host, or of the
// first node, read-only for the node. The node sees c.dir and the cache at paths of its own.
func (c *cluster) mountNode(cache string) error {
	rootless, useCgroups := os.Getenv(envRootless) != "", os.Getenv(envNoCgroups) == ""
	hierarchies := c.cgroups()
	var errs []error
	mount := func(src, dst, fs string, flags uintptr, data string) {
		if err := syscall.Mount(src, dst, fs, flags, data); err != nil {
			errs = append(errs, fmt.Errorf("mounting %s (%s): %w", dst, fs, err))
		}
	}
	mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")

	// Open these directories first: they may be below the host's /run or /var, which the
	// node's own /run and /var hide.
	shared := map[string]int{}
	for nodeDir, hostDir := range map[string]string{nodeClusterDir: c.dir, nodeCacheDir: cache} {
		fd, err := syscall.Open(hostDir, syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening %q: %w", hostDir, err)
		}
		shared[nodeDir] = fd
	}
	setReadOnly := func(dst string, flags uint, attr unix.MountAttr) {
		if err := unix.MountSetattr(-1, dst, flags, &attr); err != nil {
			errs = append(errs, fmt.Errorf("setting the read-only attribute of %q: %w", dst, err))
		}
	}
	setReadOnly("/", unix.AT_RECURSIVE, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
	mount("tmpfs", "/var", "tmpfs", 0, "mode=755")
	for _, d := range []string{"/var/lib", "/var/log", "/var/tmp", "/run/tmp"} {
		errs = append(errs, os.MkdirAll(d, 0o755))
	}
	errs = append(errs, os.Symlink("/run", "/var/run"))
	for nodeDir, fd := range shared {
		errs = append(errs, os.MkdirAll(nodeDir, 0o755))
		mount(fmt.Sprintf("/proc/self/fd/%d", fd), nodeDir, "", syscall.MS_BIND, "")
		syscall.Close(fd)
	}
	setReadOnly(nodeClusterDir, 0, unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
	mount("proc", "/proc", "proc", 0, "")
	errs = append(errs, mountDev(mount))
	mount("sysfs", "/sys", "sysfs", 0, "")
	mount("", "/sys", "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, "")
	mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755")
	if useCgroups {
		for _, g := range hierarchies {
			errs = append(errs, os.MkdirAll(g.Mount, 0o755))
			mount("cgroup", g.Mount, g.FS, 0, g.Options)
			if g.V2() { // see EnterLeaf
				leaf := filepath.Join(g.Mount, "init")
				errs = append(errs, os.MkdirAll(leaf, 0o755), os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0))
			}
		}
	} else { // kubelet reads cgroups even when its configuration disables them
		mount("cgroup", "/sys/fs/cgroup", "cgroup2", 0, "")
	}
	if !rootless {
		errs = append(errs, hideSysctls(mount)...)
	}
	mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, "") // so that mounts that kubelet makes later propagate into pods
	return errors.Join(errs...)
}

// mountDev replaces the host's /dev, through which root could write to the host's disks, by one
// with the devices that containers have, and kmsg, which kubelet reads. It has no devices of its own, because a user
// namespace may not create any.
func mountDev(mount func(src, dst, fs string, flags uintptr, data string)) error {
	const dev = "/run/dev"
	errs := []error{os.Mkdir(dev, 0o755)}
	mount("tmpfs", dev, "tmpfs", 0, "mode=755")
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "kmsg"} {
		if !exists(filepath.Join("/dev", name)) {
			continue
		}
		errs = append(errs, os.WriteFile(filepath.Join(dev, name), nil, 0o666))
		mount(filepath.Join("/dev", name), filepath.Join(dev, name), "", syscall.MS_BIND, "")
	}
	errs = append(errs, os.Mkdir(filepath.Join(dev, "pts"), 0o755))
	mount("devpts", filepath.Join(dev, "pts"), "devpts", 0, "newinstance,ptmxmode=0666,mode=620")
	for name, target := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		errs = append(errs, os.Symlink(target, filepath.Join(dev, name)))
	}
	mount(dev, "/dev", "", syscall.MS_MOVE, "")
	mount("", "/dev", "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, "")
	return errors.Join(append(errs, os.Remove(dev))...)
}

// hideSysctls makes the sysctls that belong to the whole machine read-only. Kubelet
// writes some of them unless they already have the values it wants, so hideSysctls
// mounts files with these values over them.
func hideSysctls(mount func(src, dst, fs string, flags uintptr, data string)) (errs []error) {
	for _, p := range []string{"/proc/sys/kernel", "/proc/sys/vm", "/proc/sys/fs"} {
		mount(p, p, "", syscall.MS_BIND, "")
		mount("", p, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
	}
	for name, value := range map[string]string{"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10",
		"kernel/panic_on_oops": "1", "kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000"} {
		file := filepath.Join("/run/sysctl", name)
		errs = append(errs, os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(value+"\n"), 0o444))
		mount(file, filepath.Join("/proc/sys", name), "", syscall.MS_BIND, "")
	}
	return errs
}
