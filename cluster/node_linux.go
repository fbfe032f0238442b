package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/jiangjiancc/go_micro_k8s/cluster/image"
	"github.com/vishvananda/netlink"
)

const (
	nodeName     = "k8s-micro"
	nodeIP       = "10.10.0.1"
	podCIDR      = "10.244.0.0/16"
	apiPort      = 6443
	registryPort = 5000
	pauseImage   = "docker.io/k8s-micro/pause:1"

	envRootless  = "K8S_MICRO_ROOTLESS"  // the node is a user namespace
	envNoCgroups = "K8S_MICRO_NOCGROUPS" // it has no cgroups of its own
	envMapped    = "K8S_MICRO_MAPPED"    // its users are mapped
	envSeccomp   = "K8S_MICRO_SECCOMP"   // its runc knows seccomp
)

var nodePlatform = v1.Platform{OS: "linux", Architecture: runtime.GOARCH}

// initProcess is process 1 of the node: it makes the mounts, starts the node
// manager and buries orphans. When the lifeline, file descriptor 3, ends, it
// ends, and the kernel ends every process of the node with it.
func initProcess(args []string) error {
	lifeline := inherited(3)
	if os.Getenv(envMapped) == "" {
		if n, err := lifeline.Read(make([]byte, 1)); n == 0 {
			return fmt.Errorf("waiting for the keeper: %w", err)
		}
		// Only a program started with its user mapped to 0 is root here: start over.
		os.Setenv(envMapped, "1")
		_, _, _ = syscall.Syscall(syscall.SYS_FCNTL, lifeline.Fd(), syscall.F_SETFD, 0)
		return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	}
	syscall.Umask(0o022) // not the caller's: what kubelet mounts is for users of pods to read
	go func() {
		_, _ = io.Copy(io.Discard, lifeline)
		os.Exit(0)
	}()
	progress, lock, api, registry := inherited(4), inherited(5), inherited(6), inherited(7)
	c, err := newCluster(args[0])
	if err == nil {
		err = c.nodeMounts()
	}
	if err == nil {
		err = syscall.Sethostname([]byte(nodeName))
	}
	if err != nil {
		_, _ = fmt.Fprintf(progress, "error making the node: %v\n", err)
		return err
	}
	manager := exec.Command("/proc/self/exe", "node-manager", c.name)
	manager.Dir, manager.Stdout, manager.Stderr = c.root, os.Stdout, os.Stderr
	manager.ExtraFiles = []*os.File{progress, lock, api, registry}
	if err := manager.Start(); err != nil {
		return err
	}
	for { // not manager.Wait: orphans are our children too
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

// nodeMounts gives the node its own /proc, /sys, cgroups, /run and /var, so that
// every component can keep its default paths, and makes the rest of the host's
// files read-only to it.
func (c *cluster) nodeMounts() error {
	s, err := c.state()
	if err != nil {
		return err
	}
	rootless, cgroups := os.Getenv(envRootless) != "", os.Getenv(envNoCgroups) == ""
	branches := c.branches()
	var errs []error
	mount := func(src, dst, fs string, flags uintptr, data string) {
		if err := syscall.Mount(src, dst, fs, flags, data); err != nil {
			errs = append(errs, fmt.Errorf("mounting %s (%s): %w", dst, fs, err))
		}
	}
	mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")

	// What the node needs of the host below /run and /var is carried over.
	keep := map[string]int{}
	for _, p := range []string{c.dir, c.root, filepath.Dir(filepath.Dir(s.Tools.Kube))} {
		if fd, err := syscall.Open(p, syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0); err == nil {
			keep[p] = fd
		}
	}
	mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
	mount("tmpfs", "/var", "tmpfs", 0, "mode=755")
	for _, d := range []string{"/var/lib", "/var/log", "/var/tmp", "/run/tmp"} {
		errs = append(errs, os.MkdirAll(d, 0o755))
	}
	errs = append(errs, os.Symlink("/run", "/var/run"))
	for p, fd := range keep {
		for _, hidden := range []string{"/run/", "/var/"} {
			if strings.HasPrefix(p, hidden) {
				errs = append(errs, os.MkdirAll(p, 0o755))
				mount(fmt.Sprintf("/proc/self/fd/%d", fd), p, "", syscall.MS_BIND, "")
			}
		}
	}
	mount(c.dir, c.dir, "", syscall.MS_BIND, "") // stays writable
	for _, fd := range keep {
		syscall.Close(fd)
	}
	mount("proc", "/proc", "proc", 0, "")
	mount("sysfs", "/sys", "sysfs", 0, "")
	if cgroups {
		mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755")
	}
	for _, t := range branches {
		if !cgroups {
			break
		}
		errs = append(errs, os.MkdirAll(t.mount, 0o755))
		mount("cgroup", t.mount, t.fs, 0, t.options)
		if t.v2() { // see enterLeaf
			leaf := filepath.Join(t.mount, "init")
			errs = append(errs, os.MkdirAll(leaf, 0o755), os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0))
		}
	}
	if !cgroups { // kubelet looks at them even when told to leave them alone
		mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755")
		mount("cgroup", "/sys/fs/cgroup", "cgroup2", 0, "")
	}
	if !rootless {
		// These are the whole machine's. Kubelet sets some and refuses to run if it
		// cannot: here it reads the values it wants.
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
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs("/", &st); err == nil { // flags a user namespace may not drop: kept
		mount("", "/", "", uintptr(st.Flags)&(syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC|syscall.MS_NOATIME|syscall.MS_NODIRATIME|syscall.MS_RELATIME)|
			syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
	}
	mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, "") // kubelet's mounts reach the pods
	return errors.Join(errs...)
}

// nodeManager starts the components in the node's namespaces and serves the two
// ports of the host. Its file descriptors: 3 progress, 4 the lock, 5 and 6 the
// listeners of API server and registry.
func nodeManager(args []string) (err error) {
	progress, _, apiFile, registryFile := inherited(3), inherited(4), inherited(5), inherited(6)
	tell := func(kind, text string) {
		fmt.Printf("%s %s %s\n", time.Now().Format(time.RFC3339), kind, text)
		_, _ = fmt.Fprintf(progress, "%s %s\n", kind, strings.ReplaceAll(text, "\n", " "))
	}
	defer func() {
		if err != nil {
			tell("error", err.Error())
		}
	}()
	c, err := newCluster(args[0])
	if err != nil {
		return err
	}
	s, err := c.state()
	if err != nil {
		return err
	}
	apiListener, err := net.FileListener(apiFile)
	if err != nil {
		return err
	}
	registryListener, err := net.FileListener(registryFile)
	if err != nil {
		return err
	}
	if err := network(); err != nil {
		return fmt.Errorf("setting up the node's network: %w", err)
	}
	cp := controlPlane{cluster: c, kube: s.Tools.Kube, ip: nodeIP, port: apiPort, etcdPort: 2379}
	if err := errors.Join(cp.writeFiles(), cp.writeNodeFiles(s.API), cp.writeNodeConfig(s.Tools)); err != nil {
		return fmt.Errorf("writing the node's configuration: %w", err)
	}
	inner, err := net.Listen("tcp", fmt.Sprintf("%s:%d", nodeIP, registryPort))
	if err != nil {
		return err
	}
	requests, err := os.Create(c.path("log", "registry.log"))
	if err != nil {
		return err
	}
	store := registry.New(registry.Logger(log.New(requests, "", log.LstdFlags)))
	for _, l := range []net.Listener{registryListener, inner} {
		go func() { _ = (&http.Server{Handler: store, ReadHeaderTimeout: 10 * time.Second}).Serve(l) }()
	}
	go forward(apiListener, fmt.Sprintf("%s:%d", nodeIP, apiPort))
	socket, done, err := c.forwards()
	if err != nil {
		return err
	}
	asked, err := net.ListenUnix("unix", socket)
	if err != nil {
		return err
	}
	done()
	go takeForwards(asked)

	p := newProcesses(c.path("log"), []string{"PATH=" + nodePath(s.Tools), "HOME=/var/lib", "TMPDIR=/run/tmp"})
	defer p.stop()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	p.start("containerd", filepath.Join(s.Tools.Bin, "containerd"), "--config", cp.etc("containerd.toml"))
	pushed := make(chan error, 1)
	go func() { pushed <- cp.pushPause(ctx, s.Tools.Pause, inner.Addr().String()) }()
	if err := cp.start(ctx, p); err != nil {
		return err
	}
	tell("step", "API server ready")
	if err := errors.Join(<-pushed, p.await(ctx, "containerd", dials("unix", "/run/containerd/containerd.sock"))); err != nil {
		return err
	}
	component := func(name string, args ...string) {
		p.start(name, s.Tools.Kube, append([]string{name}, args...)...)
	}
	component("kube-controller-manager",
		"--kubeconfig="+cp.etc("controller-manager.conf"), "--authentication-kubeconfig="+cp.etc("controller-manager.conf"), "--authorization-kubeconfig="+cp.etc("controller-manager.conf"),
		"--leader-elect=false", "--use-service-account-credentials",
		"--kube-api-qps=500", "--kube-api-burst=500", // its default of 20 a second makes a fresh cluster wait
		"--service-account-private-key-file="+cp.cert("sa.key"), "--root-ca-file="+cp.cert("ca.crt"),
		"--cluster-signing-cert-file="+cp.cert("ca.crt"), "--cluster-signing-key-file="+cp.cert("ca.key"),
		"--service-cluster-ip-range="+serviceCIDR, "--flex-volume-plugin-dir=/var/lib/kubelet/volumeplugins", "--profiling=false")
	component("kube-scheduler", "--kubeconfig="+cp.etc("scheduler.conf"), "--authentication-kubeconfig="+cp.etc("scheduler.conf"),
		"--authorization-kubeconfig="+cp.etc("scheduler.conf"), "--leader-elect=false", "--profiling=false")
	component("kubelet", "--config="+cp.etc("kubelet.yaml"), "--kubeconfig="+cp.etc("kubelet.conf"), "--node-ip="+nodeIP, "--hostname-override="+nodeName)
	component("kube-proxy", "--config="+cp.etc("kube-proxy.yaml"))
	get := cp.client("client-kubeconfig")
	// The cluster role "system:coredns" is not built in; view holds what CoreDNS lists and watches.
	if _, err := get("POST", cp.server()+"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", `{"metadata":{"name":"coredns"},
		"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"view"},
		"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":"coredns"}]}`); err != nil {
		return fmt.Errorf("allowing CoreDNS to read services: %w", err)
	}
	component("coredns", "--conf="+cp.etc("Corefile"))
	if err := p.await(ctx, "the node to be Ready", func() bool { return nodeReady(get, cp.server()) }); err != nil {
		return err
	}
	if err := p.await(ctx, "CoreDNS", func() bool {
		_, err := get("GET", "http://127.0.0.1:8089/health", "")
		return err == nil
	}); err != nil {
		return err
	}
	if err := errors.Join(p.settled(), c.markReady()); err != nil {
		return err
	}
	tell("ready", "")
	select {} // until process 1 ends
}

// nodePath is where the node's programs are looked for.
func nodePath(t tools) string {
	return strings.Join(append([]string{t.Bin, os.Getenv("PATH")}, sbin...), ":")
}

func dials(network, address string) func() bool {
	return func() bool {
		conn, err := net.DialTimeout(network, address, time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
}

func nodeReady(get func(method, url, body string) ([]byte, error), server string) bool {
	var n struct {
		Status struct {
			Conditions []struct{ Type, Status string }
		}
	}
	b, err := get("GET", server+"/api/v1/nodes/"+nodeName, "")
	if err != nil || json.Unmarshal(b, &n) != nil {
		return false
	}
	for _, cond := range n.Status.Conditions {
		if cond.Type == "Ready" {
			return cond.Status == "True"
		}
	}
	return false
}

// network gives the node its address. The route makes it the source of all that
// leaves; there is nowhere to leave to.
func network() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr(nodeIP + "/32")
	if err != nil {
		return err
	}
	return errors.Join(
		netlink.LinkSetUp(lo),
		netlink.AddrAdd(lo, address),
		netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Scope: netlink.SCOPE_LINK, Src: net.ParseIP(nodeIP),
			Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}}),
		os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
}

// takeForwards takes the listeners that the command forward sends, each with the
// Service that it is for, and says where that is reached: at an earlier one, if
// there is one.
func takeForwards(asked *net.UnixListener) {
	open := map[string]string{} // Service -> address on the host
	take := func(conn *net.UnixConn) error {
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		text, rights := make([]byte, 512), make([]byte, syscall.CmsgSpace(4))
		n, m, _, _, err := conn.ReadMsgUnix(text, rights)
		if err != nil {
			return err
		}
		messages, err := syscall.ParseSocketControlMessage(rights[:m])
		if err != nil || len(messages) != 1 {
			return fmt.Errorf("%d messages of control, %w", len(messages), err)
		}
		fds, err := syscall.ParseUnixRights(&messages[0])
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fds[0]), "listener")
		defer f.Close()
		service := string(text[:n])
		if open[service] == "" {
			l, err := net.FileListener(f)
			if err != nil {
				return err
			}
			open[service] = l.Addr().String()
			namespace, rest, _ := strings.Cut(service, "/")
			name, port, _ := strings.Cut(rest, ":")
			go forward(l, fmt.Sprintf("%s.%s.svc.cluster.local.:%s", name, namespace, port))
		}
		_, err = io.WriteString(conn, open[service])
		return err
	}
	for {
		conn, err := asked.AcceptUnix()
		if err != nil {
			return
		}
		if err := take(conn); err != nil {
			fmt.Printf("%s taking a listener: %v\n", time.Now().Format(time.RFC3339), err)
		}
	}
}

// inside dials from the node, and knows the names of Services.
var inside = net.Dialer{Timeout: 5 * time.Second, Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, nodeIP+":53")
}}}

// forward carries connections accepted on the host's loopback to an address of
// the node: the listener still belongs to the host's network namespace.
func forward(l net.Listener, address string) {
	for {
		client, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer client.Close()
			server, err := inside.Dial("tcp", address)
			if err != nil {
				fmt.Printf("%s forwarding: %v\n", time.Now().Format(time.RFC3339), err)
				return
			}
			defer server.Close()
			go func() {
				_, _ = io.Copy(server, client)
				_ = server.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(client, server)
		}()
	}
}

// pushPause makes the image every pod's first process comes from.
func (cp *controlPlane) pushPause(ctx context.Context, program, registry string) error {
	dir := cp.etc("pause")
	b, err := os.ReadFile(program)
	if err == nil {
		err = errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "pause"), b, 0o755),
			os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY --chmod=0755 pause /pause\nUSER 65535:65535\nCMD [\"/pause\"]\n"), 0o644))
	}
	if err != nil {
		return err
	}
	img, err := image.Build(dir, nodePlatform)
	if err != nil {
		return err
	}
	_, err = image.Push(ctx, img, pauseImage, registry)
	return err
}

// writeNodeFiles makes the keys and kubeconfigs a node needs. The user's own
// kubeconfig goes through the host's port.
func (cp *controlPlane) writeNodeFiles(hostAddress string) error {
	p, server := cp.pki, cp.server()
	return errors.Join(
		p.issue("kubelet-serving", nodeName, nil, nodeName, nodeIP),
		p.kubeconfig(cp.path("kubeconfig"), "https://"+hostAddress, "admin", "system:masters"),
		p.kubeconfig(cp.etc("controller-manager.conf"), server, "system:kube-controller-manager"),
		p.kubeconfig(cp.etc("scheduler.conf"), server, "system:kube-scheduler"),
		p.kubeconfig(cp.etc("kubelet.conf"), server, "system:node:"+nodeName, "system:nodes"),
		p.kubeconfig(cp.etc("kube-proxy.conf"), server, "system:kube-proxy"),
		p.kubeconfig(cp.etc("coredns.conf"), server, "coredns"))
}

func (cp *controlPlane) writeNodeConfig(t tools) error {
	cgroups := os.Getenv(envNoCgroups) == ""
	runcPath, err := cp.chooseRunc(t)
	if err != nil {
		return err
	}
	limits := ""
	if !cgroups {
		limits = "cgroupsPerQOS: false\nenforceNodeAllocatable: []\n"
	}
	for name, text := range map[string]string{
		// One host stands for every registry: containerd asks it for docker.io's names and all others.
		"certs.d/_default/hosts.toml": fmt.Sprintf("server = \"http://%[1]s:%[2]d\"\n[host.\"http://%[1]s:%[2]d\"]\n  capabilities = [\"pull\", \"resolve\"]\n", nodeIP, registryPort),
		"containerd.toml": fmt.Sprintf(`version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  disable_apparmor = true
  disable_cgroup = %v
  restrict_oom_score_adj = true # where CAP_SYS_RESOURCE is missing, runc cannot lower the score
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = %q
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = %q
`, pauseImage, !cgroups, cp.etc("certs.d"), t.CNI, cp.etc("cni"), runcPath),
		// One node: a veth pair and a route per pod are network enough, and need no bridge.
		"cni/10-ptp.conflist": fmt.Sprintf(`{"cniVersion":"0.4.0","name":"pods","plugins":[
 {"type":"ptp","ipMasq":false,"ipam":{"type":"host-local","ranges":[[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}
`, podCIDR),
		"Corefile":    fmt.Sprintf(".:53 {\n errors\n health 127.0.0.1:8089 {\n  lameduck 0s\n }\n cache 30\n kubernetes cluster.local in-addr.arpa ip6.arpa {\n  kubeconfig %s k8s-micro\n }\n}\n", cp.etc("coredns.conf")),
		"resolv.conf": "nameserver " + nodeIP + "\n",
		"kubelet.yaml": `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: ` + cp.cert("ca.crt") + `}}
authorization: {mode: Webhook}
tlsCertFile: ` + cp.cert("kubelet-serving.crt") + `
tlsPrivateKeyFile: ` + cp.cert("kubelet-serving.key") + `
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
featureGates: {KubeletInUserNamespace: true} # leave sysctls alone that are the whole machine's
clusterDNS: [` + nodeIP + `]
clusterDomain: cluster.local
resolvConf: ` + cp.etc("resolv.conf") + `
maxPods: 500
registryPullQPS: 0
serializeImagePulls: false
volumePluginDir: /var/lib/kubelet/volumeplugins
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
` + limits,
		"kube-proxy.yaml": `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: ` + nodeName + `
clusterCIDR: ` + podCIDR + `
clientConnection: {kubeconfig: ` + cp.etc("kube-proxy.conf") + `}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s} # the whole machine's too
`,
	} {
		path := cp.etc(name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			return err
		}
	}
	return nil
}

// ---- runc ----

// chooseRunc returns the runc containerd calls: the real one where it can do
// all, else this program under its name.
func (cp *controlPlane) chooseRunc(t tools) (string, error) {
	program := filepath.Join(t.Bin, "runc")
	var features struct {
		Linux struct{ Seccomp struct{ Enabled bool } }
	}
	// runc 1.1's own "features" says whether it was built with libseccomp.
	if out, err := exec.Command(program, "features").Output(); err == nil {
		_ = json.Unmarshal(out, &features)
	}
	if features.Linux.Seccomp.Enabled {
		os.Setenv(envSeccomp, "1")
		if os.Getenv(envNoCgroups) == "" {
			return program, nil
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	path := cp.path("bin", "runc")
	return path, os.WriteFile(path, self, 0o755)
}

// runc stands between containerd and the real runc and takes out of a
// container's configuration what the node cannot give: cgroups where it owns
// none, a seccomp profile where runc was built without libseccomp.
func runc(args []string) error {
	for i, a := range args {
		if a == "--bundle" && i+1 < len(args) {
			if err := reduce(filepath.Join(args[i+1], "config.json")); err != nil {
				return err
			}
		}
	}
	path, err := exec.LookPath("runc")
	if err != nil {
		return err
	}
	return syscall.Exec(path, append([]string{"runc"}, args...), os.Environ())
}

func reduce(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(b, &spec); err != nil {
		return fmt.Errorf("reading %q: %w", path, err)
	}
	if linux, ok := spec["linux"].(map[string]any); ok {
		if os.Getenv(envSeccomp) == "" {
			delete(linux, "seccomp")
		}
		if os.Getenv(envNoCgroups) != "" {
			delete(linux, "cgroupsPath")
			delete(linux, "resources")
		}
	}
	if b, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}
