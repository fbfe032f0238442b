// Cluster runs a real Kubernetes cluster on a machine without Kubernetes, with one node or
// several. It needs Linux and Go; it needs neither Docker, nor an image registry, nor root.
//
//	go run -C cluster . up            build what is missing, start the cluster, print how kubectl reaches the cluster
//	go run -C cluster . status        print the version, the start time and the directory of the logs
//	go run -C cluster . load IMAGE=DIR ...   build the image of DIR/Dockerfile and push it to the cluster's registry
//	go run -C cluster . push IMAGE=DIR ...   build for linux/amd64 and linux/arm64, push both and their SBOMs to the registry named in IMAGE
//	go run -C cluster . save FILE IMAGE=DIR ...   build like load, and write the images to a file that other clusters can import
//	go run -C cluster . kubectl ARG ...      run the kubectl of the cluster's Kubernetes version
//	go run -C cluster . forward NAMESPACE/SERVICE:PORT   listen on the host's loopback for a Service until the cluster stops
//	go run -C cluster . node CMD ...  run CMD in the network, process and mount namespaces of the node; node -n 2 CMD enters the second
//	go run -C cluster . down          stop the cluster and remove everything it created
//	go run -C cluster . build         only build and download what up needs
//	go run -C cluster . clean         remove from the cache what this checkout does not need, such as other versions
//	go run -C cluster . sums          write the checksums of the official files to cluster/programs/sums.txt, for maintainers
//
// `make cluster-COMMAND ARGS="..."` runs the same command with the Go flags of the
// Makefile, so that Go compiles no package twice.
//
// Every command takes -name NAME, before its arguments. The default is the environment variable
// CLUSTER, then "demo". Clusters with different names are independent. No
// command reads or writes ~/.kube.
//
// # Where the programs come from
//
// up and build look for the programs of Kubernetes in the cache, then download the official
// release binaries of dl.k8s.io and github.com and compare them with the checksums in
// cluster/programs/sums.txt, and build them from Go modules if that is impossible: no answer
// within 3 seconds, a missing file, a wrong checksum. Both ways give the releases named in cluster/kube/go.mod. A line
// of the output says which way was chosen and why. The environment variable
// K8S_MICRO_SOURCE selects one:
//
//	build        build from Go modules, for which GOPROXY applies
//	download     download, and end with an error instead of building
//	URL          download from a mirror, which has the files under the host's name, as in
//	             URL/dl.k8s.io/release/v1.37.2/bin/linux/amd64/kubelet; refused for
//	             files of which sums.txt has no checksum
//
// containerd, runc, nftables and the CNI plugins are never built. They are those of this
// machine, otherwise those of Debian's packages, otherwise the official binaries, unless
// K8S_MICRO_SOURCE is build. Package programs describes all this.
//
// Downloads use the proxies in HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
//
// # The node
//
// The node is one set of Linux namespaces: network, processes, mounts, hostname,
// IPC and cgroups, and also a user namespace when the caller is not root. It runs
// upstream's etcd, kube-apiserver, kube-controller-manager, kube-scheduler,
// kubelet, kube-proxy, CoreDNS, containerd and runc, and the demo's signer of pod certificates
// (package signer). It keeps its data in memory and its logs in .cluster/NAME/log. Its firewall rules, interfaces, mounts and
// sysctls are private to its namespaces and disappear with them. The node can read the
// host's files, but can write only to .cluster/NAME. In a cluster that root has started, root in
// the node could undo this with mount and mknod: it prevents mistakes, not attacks.
//
// Pods and Services have IPv4 addresses. up -ip-family ipv6 gives them IPv6 addresses
// instead, and up -ip-family dual both.
//
// up -nodes 3 starts further nodes, k8s-micro-2 and k8s-micro-3, each in namespaces of its own inside
// the user namespace of the first node, with a containerd, a kubelet and a kube-proxy. The nodes are in the zones a, b
// and c (label topology.kubernetes.io/zone). A veth pair joins each further node to the first, which has the control
// plane and forwards the packets between the others. The pods of node N have addresses of 10.(243+N).0.0/16, and the
// logs of its components are in .cluster/NAME/log/k8s-micro-N. A further node that is killed starts again.
//
// up -network-policy enforces network policies: on each node it runs the program of cluster/networkpolicy, which is the
// controller of network policies of kube-router, with the tools ipset and iptables. Without the flag the API server accepts
// the policies, and they have no effect.
//
// The cluster has an image registry. containerd pulls every image from this registry, also
// if the image's name contains another one. Only the command load adds images to it. A minute
// after load has replaced an image, the registry forgets the old one. Kubelet removes images
// that no pod has used for half an hour.
//
// # Access
//
// .cluster and the cache belong to the user who started the cluster; other users
// cannot enter them. Two kinds of listeners on the host's loopback are open to every
// user of the machine: the listener of the API server, which requires a client
// certificate or a token, and the listeners of forwarded Services, which have the same
// authentication as the Service. Each listener serves at most 1000 connections at a
// time, so another user can exhaust it.
//
// # Processes
//
//	supervisor        on the host; starts the node and ends it on SIGTERM, on SIGINT, or
//	                  when .cluster/NAME is deleted, such as together with the checkout
//	cgroup cleaner    on the host; removes the cgroups after the supervisor has ended
//	init              process 1 of the node; ends when the supervisor's pipe closes
//	node manager      child of init; runs the components and serves the host's listeners
//	pod signer        child of the node manager; one of the components
//	further init      child of the node manager, which is then that of the first node; process 1 of a further node
//	further manager   child of a further init; runs the components of its node
//
// All of them hold the cluster's lock. When the supervisor ends, even by SIGKILL, the
// kernel closes the supervisor's end of the pipe, init exits, and the kernel kills every
// other process of the node.
//
// These processes and the components have only five of the user's environment variables:
// PATH, HOME, USER, TMPDIR and TZ.
//
// # Files
//
// Built and downloaded programs are cached by version in the user's cache directory
// ($XDG_CACHE_HOME/k8s-micro, by default ~/.cache/k8s-micro). Debian's packages are renewed
// each month. Everything else is in .cluster/NAME of the checkout.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/jiangjiancc/go_micro_k8s/cluster/programs"
)

func main() {
	var err error
	if start := subprocesses[filepath.Base(os.Args[0])]; start != nil {
		err = start(os.Args[1:]) // containerd runs this program under the name runc
	} else if len(os.Args) > 1 && subprocesses[os.Args[1]] != nil {
		err = subprocesses[os.Args[1]](os.Args[2:])
	} else {
		err = run(os.Args[1:])
	}
	var status exitStatus
	if errors.As(err, &status) { // kubectl or the node's command has printed its own error
		os.Exit(int(status))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

const commandNames = "up, status, load, push, save, kubectl, forward, node, down, build, clean or sums"

const help = `usage: cluster COMMAND [-name NAME] [ARGUMENTS]

COMMAND is ` + commandNames + `; ` + "`go doc -C cluster .`" + ` describes them.
` + helpEnvironment

const helpEnvironment = `
Environment:
  CLUSTER           name of the cluster without -name
  K8S_MICRO_SOURCE  the source of a Kubernetes that is not in the cache: build (from Go
                    modules), download (official binaries), or the URL of a mirror of the
                    hosts dl.k8s.io and github.com. Default: download if the hosts answer,
                    otherwise build.
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY
                    proxies for downloads
  XDG_CACHE_HOME    where the programs are cached, by default ~/.cache
`

// ownFlags separates the launcher's own flags from the arguments of kubectl or of a command in
// the node, which may begin with flags of the other program, such as kubectl -n.
func ownFlags(args []string, names ...string) (own, rest []string) {
	for len(args) > 0 {
		flag, _, hasValue := strings.Cut(args[0], "=")
		if name := strings.TrimPrefix(strings.TrimPrefix(flag, "-"), "-"); name == flag || !slices.Contains(names, name) {
			break
		}
		n := 2
		if hasValue {
			n = 1
		}
		n = min(n, len(args))
		own, args = append(own, args[:n]...), args[n:]
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	return own, args
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("no command: use " + commandNames)
	}
	command, args := args[0], args[1:]
	switch command {
	case "help", "-h", "-help", "--help":
		fmt.Print(help)
		return nil
	}
	flags := flag.NewFlagSet("cluster "+command, flag.ExitOnError)
	name := flags.String("name", cmp.Or(os.Getenv("CLUSTER"), "demo"), "name of the cluster; the environment variable CLUSTER changes the default")
	var o upOptions
	if command == "up" {
		flags.BoolVar(&o.controlPlane, "control-plane", false, "start only etcd and kube-apiserver, as plain processes, for tests and for systems that cannot run a kubelet")
		flags.StringVar(&o.ipFamily, "ip-family", "ipv4", "addresses of pods and Services: ipv4, ipv6, or dual for both with IPv4 first")
		flags.IntVar(&o.nodes, "nodes", 1, fmt.Sprintf("number of nodes, 1 to %d; several are in the zones a, b and c in turn", maxNodes))
		flags.BoolVar(&o.networkPolicy, "network-policy", false, "enforce network policies, with kube-router; the first time it is built, in up to 2 minutes")
		flags.StringVar(&o.apiServer, "kube-apiserver", "", "with -control-plane, the path of another kube-apiserver, for tests with other versions")
		flags.BoolVar(&o.foreground, "foreground", false, "stay in the foreground, and stop the cluster at the end of standard input, on SIGINT or on SIGTERM")
	}
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "usage of cluster %s:\n", command)
		flags.PrintDefaults()
		fmt.Fprint(flags.Output(), helpEnvironment)
	}
	arch := ""
	if command == "save" {
		flags.StringVar(&arch, "arch", runtime.GOARCH, "processor architecture of the cluster's nodes: amd64 or arm64")
	}
	n := int(firstNode)
	var rest []string
	switch command {
	case "kubectl":
		args, rest = ownFlags(args, "name")
	case "node":
		flags.IntVar(&n, "n", n, "number of the node")
		args, rest = ownFlags(args, "name", "n")
	}
	_ = flags.Parse(args) // exits on error
	args = append(flags.Args(), rest...)
	c, err := newCluster(*name)
	if err != nil {
		return err
	}
	switch command {
	case "build":
		stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer cancel()
		_, err := c.provide(stop, upOptions{})
		return err
	case "clean":
		return programs.Clean(context.Background(), c.root, progress)
	case "sums":
		return programs.WriteSums(context.Background(), c.root, progress)
	case "up":
		return c.up(o)
	case "down":
		return c.down()
	case "status":
		return c.status()
	case "load":
		return c.load(args)
	case "push":
		return push(args)
	case "save":
		return save(arch, args)
	case "kubectl":
		return c.kubectl(args)
	case "forward":
		return c.forward(args)
	case "node":
		return c.node(node(n), args)
	}
	return fmt.Errorf("running %q: no such command; use %s", command, commandNames)
}
