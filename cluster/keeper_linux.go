package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func init() {
	internals["janitor"] = janitor
	internals["init"] = initProcess
	internals["node-manager"] = nodeManager
	internals["runc"] = runc
}

// preflight says in one sentence what this machine cannot do, before anything is built.
func preflight(controlPlane bool) error {
	if controlPlane {
		return nil
	}
	fail := func(cause, remedy string) error {
		return fmt.Errorf("preparing a node: %s; %s, %s", cause, remedy, elsewhere)
	}
	if older(kernelRelease(), "5.13") {
		return fail("Linux "+kernelRelease()+" is too old for kube-proxy's nftables mode", "use Linux 5.13 or newer")
	}
	if free := procNumber("/proc/meminfo", "MemAvailable:", 10); free > 0 && free < 3<<19 {
		return fail(fmt.Sprintf("%d MB of memory available, 1.5 GB needed", free>>10), "close something")
	}
	if os.Getuid() == 0 {
		const sysAdmin = 1 << 21
		if procNumber("/proc/self/status", "CapEff:", 16)&sysAdmin == 0 {
			return fail("root here may not make namespaces (no CAP_SYS_ADMIN: a container?)", "run the container with --privileged")
		}
		return nil
	}
	if procNumber("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "", 10) == 1 {
		return fail("AppArmor forbids user namespaces to ordinary users here", "allow them with `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, run as root")
	}
	if procNumber("/proc/sys/user/max_user_namespaces", "", 10) == 0 || procNumber("/proc/sys/kernel/unprivileged_userns_clone", "", 10) == 0 {
		return fail("user namespaces are switched off for ordinary users here", "allow them with `sudo sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1`, run as root")
	}
	if _, err := idMapping(); err != nil {
		return fmt.Errorf("preparing a node as an ordinary user: %w; or run as root, %s", err, elsewhere)
	}
	return nil
}

func kernelRelease() string {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	v, _, _ := strings.Cut(strings.TrimSpace(string(b)), "-")
	return v
}

// procNumber reads the number behind a key, or the file's first; -1 when there is none.
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

func freeBytes(dir string) int64 {
	var s syscall.Statfs_t
	if syscall.Statfs(dir, &s) != nil {
		return -1
	}
	return int64(s.Bavail) * s.Bsize
}

// keepNode starts the node and waits for its end.
func (c *cluster) keepNode(ctx context.Context, s state, tell func(kind, text string), progress, lock *os.File) error {
	api, apiFile, err := listen("0")
	if err != nil {
		return err
	}
	registry, registryFile, err := listen("0")
	if err != nil {
		return err
	}
	lifeline, hold, err := os.Pipe()
	if err != nil {
		return err
	}
	defer hold.Close()

	env := os.Environ()
	cmd := exec.Command("/proc/self/exe", "init", c.name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWCGROUP}
	var ids *mapping
	if os.Getuid() != 0 {
		if ids, err = idMapping(); err != nil {
			return err
		}
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		env = append(env, envRootless+"=1", envNoCgroups+"=1")
	} else if branches := c.branches(); branches.make() == nil {
		if err := c.startJanitor(lock); err != nil {
			return err
		}
		if err := branches.enter(); err != nil {
			return fmt.Errorf("entering the cgroup branch: %w", err)
		}
	} else {
		branches.remove()
		tell("step", "no cgroups to be had here: pods run without limits")
		env = append(env, envNoCgroups+"=1")
	}
	cmd.Dir, cmd.Env = c.root, env
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{lifeline, progress, lock, apiFile, registryFile}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("making the node's namespaces: %w; %s", err, elsewhere)
	}
	for _, f := range []io.Closer{api, registry, apiFile, registryFile, lifeline} {
		f.Close() // the node's now
	}
	if ids != nil {
		if err := ids.apply(cmd.Process.Pid); err != nil {
			return err
		}
	}
	c.branches().enterLeaf("keeper")
	s.Node, s.API, s.Registry = cmd.Process.Pid, api.Addr().String(), registry.Addr().String()
	if err := c.save(s); err != nil {
		return err
	}
	if _, err := hold.Write([]byte{1}); err != nil { // all is set: it may begin
		return err
	}
	go func() {
		<-ctx.Done()
		hold.Close()
	}()
	if err := cmd.Wait(); ctx.Err() == nil {
		return fmt.Errorf("the node ended: %w", err)
	}
	return nil
}

func listen(port string) (net.Listener, *os.File, error) {
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return nil, nil, err
	}
	f, err := l.(*net.TCPListener).File()
	return l, f, err
}

// forward makes a Service's port reachable on the host's loopback until the
// cluster ends, at the same number if that is free, and prints where. Asked
// again it prints the same. Only the listener is the host's: the node manager
// gets it and dials the Service, for each connection anew, from inside.
func (c *cluster) forward(args []string) error {
	s, err := c.running()
	if err != nil {
		return err
	}
	if s.Node == 0 {
		return fmt.Errorf("forwarding to cluster %q: it has no node", c.name)
	}
	want := regexp.MustCompile(`^[a-z0-9-]+/[a-z0-9-]+:([0-9]+)$`)
	if len(args) != 1 || !want.MatchString(args[0]) {
		return fmt.Errorf("forwarding %q: want NAMESPACE/SERVICE:PORT, such as go-micro/go-micro-web:9200", args)
	}
	l, f, err := listen(want.FindStringSubmatch(args[0])[1])
	if err != nil {
		l, f, err = listen("0")
	}
	if err != nil {
		return err
	}
	defer l.Close()
	defer f.Close()
	socket, done, err := c.forwards()
	if err != nil {
		return err
	}
	defer done()
	conn, err := net.DialUnix("unix", nil, socket)
	if err != nil {
		return fmt.Errorf("forwarding %q: %w; was cluster %q started by an older checkout? `make cluster-down`, then start it again", args[0], err, c.name)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := conn.WriteMsgUnix([]byte(args[0]), syscall.UnixRights(int(f.Fd())), nil); err != nil {
		return fmt.Errorf("forwarding %q: %w", args[0], err)
	}
	address, err := io.ReadAll(conn)
	if err == nil && len(address) == 0 {
		err = errors.New("the node manager has refused it")
	}
	if err != nil {
		return fmt.Errorf("forwarding %q: %w; see %s", args[0], err, c.path("log", "keeper.log"))
	}
	fmt.Println(string(address))
	return nil
}

// forwards is the socket on which the node manager takes listeners: host and node
// share the cluster's directory, not the network. It is named by way of the open
// directory, as a socket's path is 107 bytes at most.
func (c *cluster) forwards() (socket *net.UnixAddr, done func(), err error) {
	dir, err := os.Open(c.dir)
	if err != nil {
		return nil, nil, err
	}
	return &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/forwards", dir.Fd())}, func() { dir.Close() }, nil
}

// ---- user namespace ----

// mapping makes the caller root of a user namespace with 65,536 users: himself
// as 0 and his range of /etc/subuid as the rest, so that pods may run as any user.
type mapping struct{ newuidmap, newgidmap, uids, gids string }

func idMapping() (*mapping, error) {
	newuidmap, err1 := exec.LookPath("newuidmap")
	newgidmap, err2 := exec.LookPath("newgidmap")
	if err1 != nil || err2 != nil {
		return nil, errors.New("newuidmap is missing, without which every pod would have to run as root; install it with `sudo apt-get install uidmap` (Fedora: shadow-utils)")
	}
	name := os.Getenv("USER")
	if out, err := exec.Command("id", "-un").Output(); err == nil {
		name = strings.TrimSpace(string(out))
	}
	m := &mapping{newuidmap, newgidmap, subRange("/etc/subuid", name), subRange("/etc/subgid", name)}
	if m.uids == "" || m.gids == "" {
		return nil, fmt.Errorf("user %q has no range of 65,535 ids in /etc/subuid and /etc/subgid; give him one with `sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s`", name, name)
	}
	return m, nil
}

func subRange(file, name string) string {
	b, _ := os.ReadFile(file)
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Split(strings.TrimSpace(l), ":")
		if len(f) == 3 && (f[0] == name || f[0] == strconv.Itoa(os.Getuid())) {
			if n, _ := strconv.Atoi(f[2]); n >= 65535 {
				return f[1]
			}
		}
	}
	return ""
}

func (m *mapping) apply(pid int) error {
	for _, c := range [][]string{
		{m.newuidmap, strconv.Itoa(pid), "0", strconv.Itoa(os.Getuid()), "1", "1", m.uids, "65535"},
		{m.newgidmap, strconv.Itoa(pid), "0", strconv.Itoa(os.Getgid()), "1", "1", m.gids, "65535"},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("mapping users with %q: %w: %s", filepath.Base(c[0]), err, lastLine(out))
		}
	}
	return nil
}

// ---- cgroups ----

// tree is one mounted cgroup hierarchy: with version 1 one for each controller.
type tree struct{ mount, fs, options, branch string }

type trees []tree

func (t tree) v2() bool { return t.fs == "cgroup2" }

// branches are the cluster's own part of every hierarchy.
func (c *cluster) branches() (ts trees) {
	b, _ := os.ReadFile("/proc/self/mounts")
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		if len(f) < 4 || f[2] != "cgroup" && f[2] != "cgroup2" || !strings.HasPrefix(f[1], "/sys/fs/cgroup") {
			continue
		}
		t := tree{mount: f[1], fs: f[2], branch: filepath.Join(f[1], "k8s-micro-"+c.id())}
		if !t.v2() { // which controllers a tree holds is among its mount options
			var keep []string
			for _, o := range strings.Split(f[3], ",") {
				switch o {
				case "rw", "ro", "relatime", "noatime", "nosuid", "nodev", "noexec":
				default:
					keep = append(keep, o)
				}
			}
			t.options = strings.Join(keep, ",")
		}
		ts = append(ts, t)
	}
	return ts
}

// make creates the branches; an error means that cgroups cannot be used here.
func (ts trees) make() error {
	v1 := false
	for _, t := range ts {
		v1 = v1 || !t.v2()
	}
	for _, t := range ts {
		if t.v2() && !v1 { // hand down the controllers a kubelet wants
			for _, c := range []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"} {
				_ = os.WriteFile(filepath.Join(t.mount, "cgroup.subtree_control"), []byte("+"+c), 0)
			}
		}
		if err := os.Mkdir(t.branch, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if t.v2() && !v1 {
			b, _ := os.ReadFile(filepath.Join(t.branch, "cgroup.controllers"))
			for _, c := range []string{"cpuset", "cpu", "memory", "pids"} {
				if !strings.Contains(" "+strings.TrimSpace(string(b))+" ", " "+c+" ") {
					return fmt.Errorf("no cgroup controller %q", c)
				}
			}
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // version 1 starts these empty
			if b, err := os.ReadFile(filepath.Join(t.mount, f)); err == nil {
				_ = os.WriteFile(filepath.Join(t.branch, f), b, 0)
			}
		}
	}
	if len(ts) == 0 {
		return errors.New("no cgroups mounted")
	}
	return nil
}

// enter moves this process into the branches.
func (ts trees) enter() error {
	for _, t := range ts {
		if err := os.WriteFile(filepath.Join(t.branch, "cgroup.procs"), []byte("0"), 0); err != nil {
			return err
		}
	}
	return nil
}

// enterLeaf moves this process out of version 2 branches' roots, which may hold
// no process once they hand controllers down.
func (ts trees) enterLeaf(name string) {
	for _, t := range ts {
		if leaf := filepath.Join(t.branch, name); t.v2() && exists(t.branch) {
			_ = os.Mkdir(leaf, 0o755)
			_ = os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0)
		}
	}
}

// remove takes the branches away; false means that something still lives in them.
func (ts trees) remove() bool {
	gone := true
	for _, t := range ts {
		var dirs []string
		_ = filepath.WalkDir(t.branch, func(p string, d os.DirEntry, err error) error {
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

// startJanitor starts the process that removes the cgroup branches after the
// keeper's end, which the keeper, living in them, cannot do itself.
func (c *cluster) startJanitor(lock *os.File) error {
	end, hold, err := os.Pipe()
	if err != nil {
		return err
	}
	defer end.Close()
	cmd := exec.Command("/proc/self/exe", "janitor", c.name)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.root, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{end, lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the janitor: %w", err)
	}
	held = append(held, hold) // the kernel closes it when the keeper ends, however it ends
	return nil
}

// janitor waits on file descriptor 3 for the keeper's end. It holds the lock, 4,
// until all is gone.
func janitor(args []string) error {
	c, err := newCluster(args[0])
	if err != nil {
		return err
	}
	end, _ := inherited(3), inherited(4)
	_, _ = io.Copy(io.Discard, end)
	sweep(c)
	return nil
}

// sweep removes the cgroup branches of a cluster whose processes are ending.
func sweep(c *cluster) {
	if os.Getuid() != 0 {
		return
	}
	for end := time.Now().Add(20 * time.Second); !c.branches().remove() && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond) // the kernel takes a moment to bury the last processes
	}
}

// node runs a command inside the node's namespaces.
func (c *cluster) node(args []string) error {
	s, err := c.running()
	if err != nil {
		return err
	}
	if s.Node == 0 {
		return fmt.Errorf("entering the node of cluster %q: it has none", c.name)
	}
	if len(args) == 0 {
		return errors.New("entering the node: no command; try `node ip addr`")
	}
	enter := []string{"-t", strconv.Itoa(s.Node), "-m", "-u", "-i", "-n", "-p", "-C", "--wd=/"}
	if os.Getuid() != 0 {
		enter = append(enter, "-U", "--preserve-credentials")
	}
	os.Setenv("PATH", nodePath(s.Tools))
	return c.exec("nsenter", append(append(enter, "--"), args...))
}
