//go:build !linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

var subprocesses = map[string]func(args []string) error{"supervisor": supervisor}

var nodePlatform = v1.Platform{OS: "linux", Architecture: runtime.GOARCH}

// preflight returns an error unless only a control plane is wanted, because a node
// consists of Linux namespaces.
func preflight(o upOptions) error {
	if o.controlPlane {
		return nil
	}
	return fmt.Errorf("preparing a node: %s cannot run a kubelet; use any cluster you have (kind, minikube, Docker Desktop) with `make push` and `make deploy`, or -control-plane for tests that need no pods", runtime.GOOS)
}

func removeCgroups(*cluster) error { return nil }

// endWithParent has nothing to do: the binary of cluster/kube ends with its parent.
func endWithParent(*exec.Cmd) {}

func (c *cluster) node(node, []string) error { return preflight(upOptions{}) }

func (c *cluster) forward([]string) error { return preflight(upOptions{}) }

func (c *cluster) superviseNode(context.Context, state, func(kind, text string), *os.File, *os.File) error {
	return preflight(upOptions{})
}
