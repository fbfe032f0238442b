package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/cgroups"
	"github.com/jiangjiancc/go_micro_k8s/cluster/forwarder"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// readerSocket is where the registry listens for further nodes. They reach it through the file system, because their
// network can be cut.
const readerSocket = "registry-reader.sock"

// furtherNodes returns the components with which the first node starts the other nodes: each is a process 1 in namespaces of
// its own, inside the user namespace of the first node.
func furtherNodes(c *cluster, lock *os.File) *components {
	var env []string
	for _, name := range []string{envRootless, envNoCgroups} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	p := newComponents(c.path("log"), env, lock)
	p.prepare = func(cmd *exec.Cmd) {
		endWithParent(cmd)
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC
	}
	return p
}

// furtherInit is process 1 of a further node. It joins the network, makes the mounts, starts the node manager and reaps
// orphans. The kernel kills the processes of the node when it ends, and kills it when the node manager of the first node ends.
func furtherInit(args []string) error {
	lock := inherited(3)
	c, n, err := furtherNode(args)
	if err != nil {
		return err
	}
	runtime.LockOSThread() // only this thread enters the cgroup namespace, and the node manager inherits it
	_ = os.Remove(c.pidFile(n))
	for exists(c.offFile(n)) {
		time.Sleep(50 * time.Millisecond)
	}
	pid, err := os.Readlink("/proc/self") // as the first node sees it, whose /proc is still mounted here
	if err != nil {
		return err
	}
	syscall.Umask(0o022) // see initProcess
	if err := joinNetwork(n); err != nil {
		return fmt.Errorf("joining the network of the first node: %w", err)
	}
	if os.Getenv(envNoCgroups) == "" {
		if err := enterCgroups(n); err != nil {
			return fmt.Errorf("entering the cgroups of the node: %w", err)
		}
	}
	if err := errors.Join(syscall.Unshare(syscall.CLONE_NEWCGROUP), c.mountNode(nodeCacheDir), syscall.Sethostname([]byte(n.name()))); err != nil {
		return fmt.Errorf("making the node: %w", err)
	}
	if err := os.WriteFile(c.pidFile(n), []byte(pid), 0o644); err != nil {
		return err
	}
	manager := exec.Command("/proc/self/exe", append([]string{"further-node-manager"}, args...)...)
	manager.ExtraFiles = []*os.File{lock}
	status, err := runManager(manager)
	if err != nil {
		return err
	}
	return exitStatus(max(1, status)) // the node manager has printed its error
}

// furtherNodeManager starts the components of a further node.
func furtherNodeManager(args []string) error {
	inherited(3)
	c, n, err := furtherNode(args)
	if err != nil {
		return err
	}
	s, err := c.state()
	if err != nil {
		return err
	}
	s.Tools = s.Tools.Relocated(nodeCacheDir)
	registry, err := net.Listen("tcp", registryAddress)
	if err != nil {
		return err
	}
	go forwarder.Run(registry, readerSocket, c.dialUnix, logLine)
	p := newComponents(c.nodeLogs(n), nodeEnvironment(s.Tools))
	defer p.stop()
	c.startContainerd(p, s.Tools, n)
	if err := awaitContainerd(p.stopped, p); err != nil {
		return err
	}
	c.startKubelet(p, s, n)
	if err := p.started(); err != nil {
		return err
	}
	select {} // the kernel ends this process when init exits
}

// furtherNode returns the cluster, as the nodes see it, and the node that the arguments of a subprocess name.
func furtherNode(args []string) (*cluster, node, error) {
	n, err := strconv.Atoi(args[1])
	return &cluster{name: args[0], dir: nodeClusterDir}, node(n), err
}

// dialUnix connects to a socket in the cluster's directory.
func (c *cluster) dialUnix(_, name string) (net.Conn, error) {
	address, done, err := c.socket(name)
	if err != nil {
		return nil, err
	}
	defer done()
	return net.DialUnix("unix", nil, address)
}

// enterCgroups moves this process into cgroups inside those of the first node, which sees the kubelets' cgroups side by side.
func enterCgroups(n node) error {
	set := cgroups.List(n.name())
	for end := time.Now().Add(20 * time.Second); !set.Remove(); time.Sleep(20 * time.Millisecond) { // those of the node before it was lost, whose last processes are ending
		if time.Now().After(end) {
			return errors.New("processes of the lost node do not end")
		}
	}
	if err := set.Make(); err != nil {
		return err
	}
	return set.Enter()
}

// joinNetwork connects this process's network namespace to that of the first node, through which all packets to other nodes
// go. The interface in the first node has the name of this node. It runs while the /proc of the first node is mounted.
func joinNetwork(n node) error {
	first, err := netns.GetFromPath("/proc/1/ns/net")
	if err != nil {
		return err
	}
	defer first.Close()
	this, err := netns.GetFromPath("/proc/self/ns/net") // netlink would look for it in /proc/1, the id of this process in its own PID namespace
	if err != nil {
		return err
	}
	defer this.Close()
	router, err := netlink.NewHandleAtFrom(first, this)
	if err != nil {
		return err
	}
	defer router.Close()
	if old, err := router.LinkByName(n.name()); err == nil { // of the node before it was lost; the kernel removes it a moment later
		_ = router.LinkDel(old)
	}
	own := ipv4.of(n)
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: n.name(), PeerNamespace: netlink.NsFd(int(first))})
	if err != nil {
		return err
	}
	lo, err1 := netlink.LinkByName("lo")
	eth0, err2 := netlink.LinkByName("eth0")
	peer, err3 := router.LinkByName(n.name())
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	gateway, ip := net.ParseIP(ipv4.NodeIP), net.ParseIP(own.NodeIP)
	toFirst, toThis, pods := hostRoute(firstNode), hostRoute(n), podRoute(n)
	_, everywhere, err := net.ParseCIDR(ipv4.Unspecified + "/0")
	return errors.Join(err,
		netlink.LinkSetUp(lo), netlink.LinkSetUp(eth0), router.LinkSetUp(peer),
		netlink.AddrAdd(eth0, &netlink.Addr{IPNet: toThis}),
		netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Scope: netlink.SCOPE_LINK, Src: ip, Dst: toFirst}),
		netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gateway, Src: ip, Dst: everywhere}),
		netlink.RouteAdd(&netlink.Route{Type: unix.RTN_BLACKHOLE, Dst: pods, Priority: 1024}), // packets to a pod that is gone would go back and forth
		router.RouteAdd(&netlink.Route{LinkIndex: peer.Attrs().Index, Scope: netlink.SCOPE_LINK, Src: gateway, Dst: toThis}),
		router.RouteAdd(&netlink.Route{LinkIndex: peer.Attrs().Index, Gw: ip, Dst: pods}),
		os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
}

// hostRoute returns the address of a node as a destination.
func hostRoute(n node) *net.IPNet { return netlink.NewIPNet(net.ParseIP(ipv4.of(n).NodeIP)) }

// podRoute returns the addresses of the pods of a node.
func podRoute(n node) *net.IPNet {
	_, pods, _ := net.ParseCIDR(ipv4.of(n).PodCIDR) // valid for every node
	return pods
}
