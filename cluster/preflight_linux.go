package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/jiangjiancc/go_micro_k8s/cluster/programs"
)

// preflight returns an error of one line if this machine cannot run a node. up calls
// preflight before it builds anything.
func preflight(o upOptions) error {
	if o.controlPlane {
		return nil
	}
	fail := func(cause, remedy string) error {
		return fmt.Errorf("preparing a node: %s; %s, %s", cause, remedy, programs.OtherCluster)
	}
	var major, minor int
	if _, _ = fmt.Sscanf(kernelRelease(), "%d.%d", &major, &minor); major < 5 || major == 5 && minor < 13 {
		return fail("Linux "+kernelRelease()+" is too old for kube-proxy's nftables mode", "use Linux 5.13 or newer")
	}
	if o.ipFamily != "ipv4" && !exists("/proc/net/if_inet6") {
		return fail("this kernel has no IPv6", "leave out -ip-family")
	}
	further := o.nodes - 1
	if free, needed := procNumber("/proc/meminfo", "MemAvailable:", 10), int64(1536+384*further)<<10; free > 0 && free < needed {
		return fail(fmt.Sprintf("%d MB of memory available, %d MB needed", free>>10, needed>>10), "close other programs")
	}
	const files = 1024
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil && limit.Max < files {
		return fail(fmt.Sprintf("a process here may open %d files, %d needed", limit.Max, files), fmt.Sprintf("raise the limit with `ulimit -Hn %d`, as root", files))
	}
	watchers := 24 + 8*further // the components use 19, and 8 in each further node, the rest is a reserve
	if n := inotifyInstances(watchers); n < watchers {
		return fail(fmt.Sprintf("%d inotify instances left to this user, %d needed", n, watchers), "raise the limit with `sudo sysctl fs.inotify.max_user_instances=512`")
	}
	if os.Getuid() == 0 {
		const sysAdmin = 1 << 21
		if procNumber("/proc/self/status", "CapEff:", 16)&sysAdmin == 0 {
			return fail("root cannot create namespaces here (no CAP_SYS_ADMIN, as in a container)", "run the container with --privileged")
		}
		return nil
	}
	if procNumber("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "", 10) == 1 {
		return fail("AppArmor forbids user namespaces for ordinary users here", "allow them with `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, run as root")
	}
	if procNumber("/proc/sys/user/max_user_namespaces", "", 10) == 0 || procNumber("/proc/sys/kernel/unprivileged_userns_clone", "", 10) == 0 {
		return fail("user namespaces are switched off for ordinary users here", "allow them with `sudo sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1`, run as root")
	}
	if _, err := newIDMapping(); err != nil {
		return fmt.Errorf("preparing a node as an ordinary user: %w; or run as root, %s", err, programs.OtherCluster)
	}
	return nil
}

// inotifyInstances returns the number of inotify instances that this user can still
// create, at most limit.
func inotifyInstances(limit int) int {
	for n := range limit {
		fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC)
		if err != nil {
			return n
		}
		defer syscall.Close(fd)
	}
	return limit
}

func kernelRelease() string {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	v, _, _ := strings.Cut(strings.TrimSpace(string(b)), "-")
	return v
}

// procNumber returns the number after key in a file of /proc, or the file's first
// number if key is empty. It returns -1 if there is no such number.
func procNumber(file, key string, base int) int64 {
	b, err := os.ReadFile(file)
	_, rest, found := strings.Cut(string(b), key)
	if fields := strings.Fields(rest); err == nil && found && len(fields) > 0 {
		if n, err := strconv.ParseInt(fields[0], base, 64); err == nil {
			return n
		}
	}
	return -1
}
