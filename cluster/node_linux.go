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
	nodeName   = "k8s-micro"
	apiPort    = 6443
	pauseImage = "docker.io/k8s-micro/pause:1"

	// registryAddress is on the node's loopback. Image names must not contain this address:
	// containerd sends the query parameter ns only for images of other registries. It is
	// IPv4 in every cluster, because containerd 1.6 cannot read an IPv6 address in hosts.toml.
	registryAddress = "127.0.0.2:5000"
)

var nodePlatform = v1.Platform{OS: "linux", Architecture: runtime.GOARCH}

// nodeManager starts the components in the node's namespaces and serves the
// host's listeners. It inherits the pipe to which it reports events (file descriptor
// 3), the lock (4) and the host's listener for the API server (5).
func nodeManager(args []string) (err error) {
	events, _, apiFile := inherited(3), inherited(4), inherited(5)
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
	if err := setUpNetwork(network); err != nil {
		return fmt.Errorf("setting up the node's network: %w", err)
	}
	cp := controlPlane{cluster: c, kube: s.Tools.Kube, ip: network[0].NodeIP, network: network, port: apiPort, etcdPort: 2379}
	if err := errors.Join(cp.writeFiles(), cp.writeNodeFiles(s)); err != nil {
		return fmt.Errorf("writing the node's configuration: %w", err)
	}
	if err := c.serveRegistry(); err != nil {
		return fmt.Errorf("starting the image registry: %w", err)
	}
	go forwarder.Run(apiListener, hostPort(cp.ip, apiPort), nodeDialer.Dial, logLine)
	forwards, err := c.listenUnix("forward.sock")
	if err != nil {
		return err
	}
	go receiveForwards(forwards)

	p := newComponents(c.path("log"), []string{"PATH=" + s.Tools.Path(), "HOME=/var/lib", "TMPDIR=/run/tmp"})
	defer p.stop()
	if err := cp.startNode(p, s.Tools, report); err != nil {
		return err
	}
	if err := errors.Join(p.started(), c.markReady()); err != nil {
		return err
	}
	report("ready", "")
	select {} // the kernel ends this process when init exits
}

// serveRegistry starts the image registry. Its reader listens in the node for containerd;
// its writer listens on a socket that only the cluster's owner can reach.
func (c *cluster) serveRegistry() error {
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

// startNode starts the components and returns when the node is ready for pods.
func (cp *controlPlane) startNode(p *components, t programs.Tools, report func(kind, text string)) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	p.start("containerd", filepath.Join(t.Bin, "containerd"), "--config", cp.etc("containerd.toml"))
	pushed := make(chan error, 1)
	go func() { pushed <- cp.pushPause(ctx, t.Pause) }()
	if err := cp.start(ctx, p); err != nil {
		return err
	}
	report("step", "API server ready")
	listens := func() bool {
		conn, err := net.DialTimeout("unix", "/run/containerd/containerd.sock", time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	if err := errors.Join(<-pushed, p.await(ctx, "containerd", listens)); err != nil {
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
	start("kubelet", "--config="+cp.etc("kubelet.yaml"), "--kubeconfig="+cp.etc("kubelet.conf"), "--node-ip="+cp.network.nodeIPs(), "--hostname-override="+nodeName)
	start("kube-proxy", "--config="+cp.etc("kube-proxy.yaml"))
	request := cp.client("client-kubeconfig")
	for _, name := range []string{"coredns", "pod-signer"} {
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
	if err := p.await(ctx, "the node to be Ready", func() bool { return nodeReady(request, cp.server()) }); err != nil {
		return err
	}
	return p.await(ctx, "CoreDNS", cp.probe("client-kubeconfig", "http://127.0.0.1:8089/health"))
}

// nodeReady reports whether the Node object has the condition Ready.
func nodeReady(request func(method, url, body string) ([]byte, error), server string) bool {
	type condition struct{ Type, Status string }
	var n struct {
		Status struct{ Conditions []condition }
	}
	b, err := request("GET", server+"/api/v1/nodes/"+nodeName, "")
	return err == nil && json.Unmarshal(b, &n) == nil && slices.Contains(n.Status.Conditions, condition{"Ready", "True"})
}

// setUpNetwork gives the node its addresses. The route through the loopback makes them the
// source addresses of the connections to Services. No packet leaves the node.
func setUpNetwork(n network) error {
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
	return errors.Join(
		p.Issue("kubelet-serving", nodeName, nil, nodeName, cp.ip),
		p.Issue("pod-signer", signer.User, nil),
		p.Kubeconfig(cp.path("kubeconfig"), "https://"+s.API, "admin", "system:masters"),
		p.Kubeconfig(cp.etc("controller-manager.conf"), server, "system:kube-controller-manager"),
		p.Kubeconfig(cp.etc("scheduler.conf"), server, "system:kube-scheduler"),
		p.Kubeconfig(cp.etc("kubelet.conf"), server, "system:node:"+nodeName, "system:nodes"),
		p.Kubeconfig(cp.etc("kube-proxy.conf"), server, "system:kube-proxy"),
		p.Kubeconfig(cp.etc("coredns.conf"), server, "coredns"),
		writeConfig(cp.etc(""), nodeConfig{
			Etc: cp.etc(""), PKI: cp.cert(""), CNIPlugins: s.Tools.CNI, Runc: runcPath,
			NodeName: nodeName, NodeIP: cp.ip, Network: cp.network, Registry: registryAddress, PauseImage: pauseImage,
			Cgroups: os.Getenv(envNoCgroups) == "",
		}))
}

// node runs a command in the node's namespaces.
func (c *cluster) node(args []string) error {
	s, err := c.running()
	if err != nil {
		return err
	}
	if s.Node == 0 {
		return fmt.Errorf("entering the node of cluster %q: it has no node", c.name)
	}
	if len(args) == 0 {
		return errors.New("entering the node: no command; try `node ip addr`")
	}
	enter := []string{"-t", strconv.Itoa(s.Node), "-m", "-u", "-i", "-n", "-p", "-C", "--wd=/"}
	if os.Getuid() != 0 {
		enter = append(enter, "-U", "--preserve-credentials")
	}
	os.Setenv("PATH", s.Tools.Relocated(nodeCacheDir).Path())
	return runInTerminal("nsenter", append(append(enter, "--"), args...)...)
}
