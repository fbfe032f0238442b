package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/jiangjiancc/go_micro_k8s/cluster/forwarder"
	"github.com/jiangjiancc/go_micro_k8s/cluster/image"
	"github.com/jiangjiancc/go_micro_k8s/cluster/programs"
	"github.com/jiangjiancc/go_micro_k8s/cluster/signer"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	apiPort    = 6443
	policyPort = 8091 // of the health check of network-policy
	pauseImage = "docker.io/k8s-micro/pause:1"

	// registryAddress is on the node's loopback. Image names must not contain this address:
	// containerd sends the query parameter ns only for images of other registries. It is
	// IPv4 in every cluster, because containerd 1.6 cannot read an IPv6 address in hosts.toml.
	registryAddress = "127.0.0.2:5000"
)

var nodePlatform = v1.Platform{OS: "linux", Architecture: runtime.GOARCH}

// nodeManager starts the components of the first node in its namespaces, starts the further
// nodes, and serves the host's listeners. It inherits the pipe to which it reports events (file descriptor
// 3), the lock (4) and the host's listener for the API server (5).
func nodeManager(args []string) (err error) {
	events, lock, apiFile := inherited(3), inherited(4), inherited(5)
	report := reporter(events)
	defer func() {
		if err != nil {
			report("error", err.Error())
		}
	}()
	c := &cluster{name: args[0], dir: nodeClusterDir}
	s, err := c.state()
	if err != nil {
		return err
	}
	s.Tools = s.Tools.Relocated(nodeCacheDir)
	apiListener, err := net.FileListener(apiFile)
	if err != nil {
		return err
	}
	network := networks[s.IPFamily]
	if err := setUpNetwork(network, s.nodes()); err != nil {
		return fmt.Errorf("setting up the node's network: %w", err)
	}
	cp := controlPlane{cluster: c, kube: s.Tools.Kube, ip: network[0].NodeIP, network: network, port: apiPort, etcdPort: 2379}
	if err := errors.Join(cp.writeFiles(), cp.writeNodeFiles(s)); err != nil {
		return fmt.Errorf("writing the node's configuration: %w", err)
	}
	if err := c.serveRegistry(s.Nodes > 1); err != nil {
		return fmt.Errorf("starting the image registry: %w", err)
	}
	go forwarder.Run(apiListener, hostPort(cp.ip, apiPort), nodeDialer.Dial, logLine)
	forwards, err := c.listenUnix("forward.sock")
	if err != nil {
		return err
	}
	go receiveForwards(forwards)

	p := newComponents(c.nodeLogs(firstNode), nodeEnvironment(s.Tools))
	defer p.stop()
	further := furtherNodes(c, lock)
	defer further.stop()
	if err := cp.startNodes(p, further, s, report); err != nil {
		return err
	}
	if err := errors.Join(p.started(), further.started(), c.markReady()); err != nil {
		return err
	}
	report("ready", "")
	select {} // the kernel ends this process when init exits
}

// nodeEnvironment returns the variables of a node's components.
func nodeEnvironment(t programs.Tools) []string {
	return []string{"PATH=" + t.Path(), "HOME=/var/lib", "TMPDIR=/run/tmp"}
}

// serveRegistry starts the image registry. Its reader listens in the node for containerd, and
// for further nodes on a socket; its writer listens on a socket that only the cluster's owner can reach.
func (c *cluster) serveRegistry(further bool) error {
	requests, err := os.Create(c.path("log", "registry.log"))
	if err != nil {
		return err
	}
	reader, err := net.Listen("tcp", registryAddress)
	if err != nil {
		return err
	}
	writer, err := c.listenUnix("registry.sock")
	if err != nil {
		return err
	}
	images := image.NewRegistry(log.New(requests, "", log.LstdFlags))
	serve := func(l net.Listener, h http.Handler) {
		_ = (&http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}).Serve(l)
	}
	if further {
		socket, err := c.listenUnix(readerSocket)
		if err != nil {
			return err
		}
		go serve(socket, images.Reader())
	}
	go serve(reader, images.Reader())
	go serve(writer, images.Writer())
	return nil
}

// listenUnix listens on a socket in the cluster's directory.
func (c *cluster) listenUnix(name string) (*net.UnixListener, error) {
	address, done, err := c.socket(name)
	if err != nil {
		return nil, err
	}
	defer done()
	return net.ListenUnix("unix", address)
}

// startNodes starts the components, and returns when all nodes are ready for pods.
func (cp *controlPlane) startNodes(p, further *components, s state, report func(kind, text string)) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	t := s.Tools
	cp.startContainerd(p, t, firstNode)
	pushed := make(chan error, 1)
	go func() { pushed <- cp.pushPause(ctx, t.Pause) }()
	if err := cp.start(ctx, p); err != nil {
		return err
	}
	report("step", "API server ready")
	nodes := s.nodes()
	for _, n := range nodes[1:] {
		further.start(n.name(), "/proc/self/exe", "further-init", cp.name, strconv.Itoa(int(n)))
	}
	if err := errors.Join(<-pushed, awaitContainerd(ctx, p)); err != nil {
		return err
	}
	start := func(name string, args ...string) {
		p.start(name, filepath.Join(cp.kube, name), args...)
	}
	kubeconfigs := func(path string) []string {
		return []string{"--kubeconfig=" + path, "--authentication-kubeconfig=" + path, "--authorization-kubeconfig=" + path}
	}
	start("kube-controller-manager", append(kubeconfigs(cp.etc("controller-manager.conf")),
		"--leader-elect=false", "--use-service-account-credentials",
		"--kube-api-qps=500", "--kube-api-burst=500", // the default of 20 requests a second would delay a new cluster
		"--service-account-private-key-file="+cp.cert("sa.key"), "--root-ca-file="+cp.cert("ca.crt"),
		"--cluster-signing-cert-file="+cp.cert("ca.crt"), "--cluster-signing-key-file="+cp.cert("ca.key"),
		"--service-cluster-ip-range="+cp.network.serviceCIDRs(), "--flex-volume-plugin-dir=/var/lib/kubelet/volumeplugins", "--profiling=false")...)
	start("kube-scheduler", append(kubeconfigs(cp.etc("scheduler.conf")), "--leader-elect=false", "--profiling=false")...)
	cp.startKubelet(p, s, firstNode)
	request := cp.client("client-kubeconfig")
	granted := []string{"coredns", "pod-signer"}
	if s.NetworkPolicy {
		granted = append(granted, "network-policy")
	}
	for _, name := range granted {
		for file, resource := range map[string]string{"-role.json": "clusterroles", "-binding.json": "clusterrolebindings"} {
			object, err := templates.ReadFile("templates/" + name + file)
			if err != nil {
				return err
			}
			if _, err := request("POST", cp.server()+"/apis/rbac.authorization.k8s.io/v1/"+resource, string(object)); err != nil {
				return fmt.Errorf("granting %s its rights: %w", name, err)
			}
		}
	}
	start("coredns", "--conf="+cp.etc("Corefile"))
	p.start("pod-signer", "/proc/self/exe", "pod-signer", "-server="+cp.server(), "-dir="+cp.path("signer"),
		"-server-ca="+cp.cert("ca.crt"), "-cert="+cp.cert("pod-signer.crt"), "-key="+cp.cert("pod-signer.key"))
	for _, n := range nodes {
		starting := p // await returns the error of a component of these that ends
		if n != firstNode {
			starting = further
		}
		if err := starting.await(ctx, "node "+n.name()+" to be Ready", func() bool { return nodeReady(request, cp.server(), n) }); err != nil {
			return err
		}
		if s.NetworkPolicy {
			url := "http://" + hostPort(ipv4.of(n).NodeIP, policyPort) + "/healthz"
			if err := starting.await(ctx, "the network policies of node "+n.name(), cp.probe("client-kubeconfig", url)); err != nil {
				return err
			}
		}
	}
	return p.await(ctx, "CoreDNS", cp.probe("client-kubeconfig", "http://127.0.0.1:8089/health"))
}

func (c *cluster) startContainerd(p *components, t programs.Tools, n node) {
	p.start("containerd", filepath.Join(t.Bin, "containerd"), "--config", c.nodeEtc(n, "containerd.toml"))
}

// awaitContainerd waits until containerd listens.
func awaitContainerd(ctx context.Context, p *components) error {
	return p.await(ctx, "containerd", func() bool {
		conn, err := net.DialTimeout("unix", "/run/containerd/containerd.sock", time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// startKubelet starts kubelet, kube-proxy and, if the cluster enforces them, network policies. The nodes of a cluster that has several are in zones.
func (c *cluster) startKubelet(p *components, s state, n node) {
	args := []string{"--config=" + c.nodeEtc(n, "kubelet.yaml"), "--kubeconfig=" + c.nodeEtc(n, "kubelet.conf"),
		"--node-ip=" + networks[s.IPFamily].of(n).nodeIPs(), "--hostname-override=" + n.name()}
	if s.Nodes > 1 {
		args = append(args, "--node-labels="+zoneLabel+"="+n.zone())
	}
	p.start("kubelet", filepath.Join(s.Tools.Kube, "kubelet"), args...)
	p.start("kube-proxy", filepath.Join(s.Tools.Kube, "kube-proxy"), "--config="+c.nodeEtc(n, "kube-proxy.yaml"))
	if s.NetworkPolicy {
		p.start("network-policy", s.Tools.Policy, "-kubeconfig="+c.nodeEtc(n, "network-policy.conf"), "-node="+n.name(),
			"-service-cidr="+ipv4.ServiceCIDR, "-health="+hostPort(ipv4.of(n).NodeIP, policyPort))
	}
}

// nodeReady reports whether a Node object has the condition Ready.
func nodeReady(request func(method, url, body string) ([]byte, error), server string, name node) bool {
	type condition struct{ Type, Status string }
	var n struct {
		Status struct{ Conditions []condition }
	}
	b, err := request("GET", server+"/api/v1/nodes/"+name.name(), "")
	return err == nil && json.Unmarshal(b, &n) == nil && slices.Contains(n.Status.Conditions, condition{"Ready", "True"})
}

// setUpNetwork gives the first node its addresses. The route through the loopback makes them the
// source addresses of the connections to Services. No packet leaves the nodes.
func setUpNetwork(n network, nodes []node) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	errs := []error{netlink.LinkSetUp(lo)}
	for _, a := range n {
		ip := net.ParseIP(a.NodeIP)
		destination, kind, forwarding := a.Unspecified+"/0", unix.RTN_UNICAST, "ipv4/ip_forward"
		if ip.To4() == nil { // in IPv6 only routes of the type local may lead through the loopback
			destination, kind, forwarding = a.ServiceCIDR, unix.RTN_LOCAL, "ipv6/conf/all/forwarding"
		}
		_, subnet, err := net.ParseCIDR(destination)
		errs = append(errs, err,
			netlink.AddrAdd(lo, &netlink.Addr{IPNet: netlink.NewIPNet(ip), Flags: unix.IFA_F_NODAD}), // no check for duplicates, because the route needs the address at once
			netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Type: kind, Scope: netlink.SCOPE_LINK, Src: ip, Dst: subnet}),
			os.WriteFile("/proc/sys/net/"+forwarding, []byte("1"), 0))
	}
	for _, further := range nodes[1:] { // joinNetwork adds better routes; without them, packets to its pods vanish, as those to a lost machine
		errs = append(errs, netlink.RouteAdd(&netlink.Route{Type: unix.RTN_UNREACHABLE, Dst: hostRoute(further), Priority: 1024}),
			netlink.RouteAdd(&netlink.Route{Type: unix.RTN_BLACKHOLE, Dst: podRoute(further), Priority: 1024}))
	}
	return errors.Join(errs...)
}

// pushPause builds the image of the pause container, which every pod has, and pushes it
// to the cluster's registry.
func (cp *controlPlane) pushPause(ctx context.Context, program string) error {
	dir := cp.etc("pause")
	b, err := os.ReadFile(program)
	if err == nil {
		err = errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "pause"), b, 0o755),
			os.WriteFile(filepath.Join(dir, "Dockerfile"), pauseDockerfile, 0o644))
	}
	if err != nil {
		return err
	}
	img, err := image.Build(dir, nodePlatform)
	if err != nil {
		return err
	}
	_, err = image.Push(ctx, img, pauseImage, cp.dialRegistry)
	return err
}

// writeNodeFiles writes the keys, kubeconfigs and configuration files of the
// node's components. The user's kubeconfig contains the address of the listener on the host.
func (cp *controlPlane) writeNodeFiles(s state) error {
	runcPath, err := cp.chooseRunc(s.Tools)
	if err != nil {
		return err
	}
	p, server := cp.pki, cp.server()
	errs := []error{
		p.Issue("pod-signer", signer.User, nil),
		p.Kubeconfig(cp.path("kubeconfig"), "https://"+s.API, "admin", "system:masters"),
		p.Kubeconfig(cp.etc("controller-manager.conf"), server, "system:kube-controller-manager"),
		p.Kubeconfig(cp.etc("scheduler.conf"), server, "system:kube-scheduler"),
		p.Kubeconfig(cp.etc("coredns.conf"), server, "coredns"),
	}
	for _, n := range s.nodes() {
		own := cp.network.of(n)
		errs = append(errs,
			os.MkdirAll(cp.nodeEtc(n, ""), 0o755), os.MkdirAll(cp.nodeLogs(n), 0o755),
			p.Issue(n.name(), n.name(), nil, n.name(), own[0].NodeIP),
			p.Kubeconfig(cp.nodeEtc(n, "kubelet.conf"), server, "system:node:"+n.name(), "system:nodes"),
			p.Kubeconfig(cp.nodeEtc(n, "kube-proxy.conf"), server, "system:kube-proxy"),
			writeConfig(cp.nodeEtc(n, ""), nodeConfig{
				Etc: cp.nodeEtc(n, ""), PKI: cp.cert(""), CNIPlugins: s.Tools.CNI, Runc: runcPath,
				NodeName: n.name(), DNS: cp.ip, Network: own, Registry: registryAddress, PauseImage: pauseImage,
				Cgroups: os.Getenv(envNoCgroups) == "",
			}))
		if s.NetworkPolicy {
			errs = append(errs, p.Kubeconfig(cp.nodeEtc(n, "network-policy.conf"), server, "network-policy"))
		}
	}
	return errors.Join(errs...)
}

// node runs a command in the namespaces of a node.
func (c *cluster) node(n node, args []string) error {
	s, err := c.running()
	if err != nil {
		return err
	}
	if s.Node == 0 {
		return fmt.Errorf("entering the node of cluster %q: it has no node", c.name)
	}
	if !slices.Contains(s.nodes(), n) {
		return fmt.Errorf("entering node %d of cluster %q: it has %s", n, c.name, s.kind())
	}
	if len(args) == 0 {
		return errors.New("entering the node: no command; try `node ip addr`")
	}
	namespaces := []string{"-m", "-u", "-i", "-n", "-p", "-C", "--wd=/"}
	enter := append([]string{"-t", strconv.Itoa(s.Node)}, namespaces...)
	if os.Getuid() != 0 {
		enter = append(enter, "-U", "--preserve-credentials")
	}
	enter = append(enter, "--")
	if n != firstNode { // a further node can be entered from the first
		pid, err := os.ReadFile(c.pidFile(n))
		if err != nil {
			return fmt.Errorf("entering node %s of cluster %q: it is not running", n.name(), c.name)
		}
		enter = append(append(append(enter, "nsenter", "-t", string(pid)), namespaces...), "--")
	}
	os.Setenv("PATH", s.Tools.Relocated(nodeCacheDir).Path())
	return runInTerminal("nsenter", append(enter, args...)...)
}
