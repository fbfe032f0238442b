// Cluster runs a real Kubernetes on a machine that has none: no Docker, no
// image registry outside, no root needed.
//
//	go run -C cluster . up            build what is missing, start, print how to reach it
//	go run -C cluster . status        what runs, since when, where its logs are
//	go run -C cluster . load IMAGE=DIR ...   build DIR/Dockerfile, push it to the cluster's registry
//	go run -C cluster . push IMAGE=DIR ...   the same for linux/amd64 and linux/arm64, each with its SBOM, to the registry IMAGE names
//	go run -C cluster . kubectl ARG ...      the kubectl that belongs to the cluster
//	go run -C cluster . forward NAMESPACE/SERVICE:PORT   reach a Service from this machine, as long as the cluster runs
//	go run -C cluster . node CMD ...  run CMD on the node: in its network, processes and mounts
//	go run -C cluster . down          stop it and remove every trace
//	go run -C cluster . build         only build and fetch what up needs
//
// The node is one set of Linux namespaces on this machine: its own network,
// processes, mounts, hostname and cgroup branch, a user namespace too when the
// caller is not root. In it run upstream's etcd, kube-apiserver,
// kube-controller-manager, kube-scheduler, kubelet and kube-proxy, CoreDNS,
// containerd and runc. All data lives in memory and all logs in .cluster/NAME/log;
// what the node does to firewall, interfaces, mounts or sysctls goes with it.
// Host and node meet in two ports on the host's loopback: the API server and an
// OCI registry that answers for every image name, docker.io's among them; and in
// those that forward adds.
//
// Every command takes -name, by default what the variable CLUSTER says, or demo:
// clusters with different names do not see each other. No command touches ~/.kube.
//
// What is built or fetched is kept in the user's cache directory
// ($XDG_CACHE_HOME/k8s-micro, by default ~/.cache/k8s-micro) by version.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	var err error
	if internal := internals[filepath.Base(os.Args[0])]; internal != nil {
		err = internal(os.Args[1:]) // runc: containerd calls it by its name
	} else if len(os.Args) > 1 && internals[os.Args[1]] != nil {
		err = internals[os.Args[1]](os.Args[2:])
	} else {
		err = run(os.Args[1:])
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 { // kubectl and node have said it themselves
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// internals are the parts that up starts as processes of their own.
var internals = map[string]func(args []string) error{"keeper": keeper}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("no command: use up, status, load, push, kubectl, forward, node, down or build")
	}
	command, args := args[0], args[1:]
	flags := flag.NewFlagSet("cluster "+command, flag.ExitOnError)
	name := flags.String("name", cmp.Or(os.Getenv("CLUSTER"), "demo"), "which cluster; the variable CLUSTER says so too, as for make")
	var o upOptions
	if command == "up" {
		flags.BoolVar(&o.controlPlane, "control-plane", false, "only etcd and kube-apiserver, as processes of this machine: for tests, and for systems that cannot run a kubelet")
		flags.BoolVar(&o.foreground, "foreground", false, "stay, and take the cluster down at the end of standard input, SIGINT or SIGTERM")
	}
	_ = flags.Parse(args) // exits on error
	args = flags.Args()
	c, err := newCluster(*name)
	if err != nil {
		return err
	}
	switch command {
	case "build":
		_, err := c.provide(false)
		return err
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
	case "kubectl":
		return c.kubectl(args)
	case "forward":
		return c.forward(args)
	case "node":
		return c.node(args)
	}
	return fmt.Errorf("running %q: no such command; use up, status, load, push, kubectl, forward, node, down or build", command)
}

// cluster is one named cluster of this checkout.
type cluster struct {
	name string
	root string // the project
	dir  string // root/.cluster/name
}

// newCluster finds the project from the working directory upwards.
func newCluster(name string) (*cluster, error) {
	if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return nil, fmt.Errorf("naming a cluster %q: want a plain word such as demo", name)
	}
	wd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for root := wd; ; root = filepath.Dir(root) {
		if _, err := os.Stat(filepath.Join(root, "cluster", "kube", "go.mod")); err == nil {
			return &cluster{name, root, filepath.Join(root, ".cluster", name)}, nil
		}
		if root == filepath.Dir(root) {
			return nil, fmt.Errorf("looking for the project above %q: no cluster/kube/go.mod; run it inside the checkout", wd)
		}
	}
}

func (c *cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}
