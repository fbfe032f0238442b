//go:build e2e

// Package e2e tests the whole project on a real cluster. The tests apply the
// manifests, start the programs, break things, and then check the state that is
// left: labels, annotations, logs and answers.
//
// The package starts its own cluster, named e2e, and removes it at the end, even
// if the test process is killed. `make test` runs these tests. One test:
//
//	go test -tags e2e ./test/e2e -run TestWalkthrough
//	E2E_NODES=3 go test -tags e2e ./test/e2e -run TestNodes
package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
	"github.com/jiangjiancc/go_micro_k8s/test/launch"
)

const (
	namespace  = "go-micro"
	probeImage = "k8s-micro/probe:e2e"
)

var (
	root        = must(filepath.Abs("../.."))
	clusterName = cmp.Or(os.Getenv("E2E_CLUSTER"), "e2e") // another name allows a second run at the same time

	// nodes is how many nodes the cluster has. Tests that need several fail with one.
	nodes = must(strconv.Atoi(cmp.Or(os.Getenv("E2E_NODES"), "1")))

	// networkPolicy is whether the cluster enforces network policies. TestNetworkPolicy fails without.
	networkPolicy = must(strconv.ParseBool(cmp.Or(os.Getenv("E2E_NETWORK_POLICY"), "0")))

	// The environment before TestMain points it to the test cluster.
	originalEnviron, originalPath = os.Environ(), os.Getenv("PATH")
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestMain(m *testing.M) {
	code, err := withCluster(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// withCluster starts a cluster, runs f and removes the cluster. The cluster also
// ends when this process is killed.
func withCluster(f func() int) (code int, err error) {
	kubeconfig, down, err := launch.Up(clusterName, "-nodes", strconv.Itoa(nodes), fmt.Sprintf("-network-policy=%t", networkPolicy))
	if err != nil {
		return 0, err
	}
	os.Setenv("KUBECONFIG", kubeconfig)
	os.Setenv("PATH", filepath.Join(filepath.Dir(kubeconfig), "bin")+":"+os.Getenv("PATH")) // the cluster's own kubectl comes first
	if err = loadImages(clusterName); err == nil {
		code = f()
	}
	return code, errors.Join(err, down())
}

// loadImages builds the images of the four services and of the probe and loads
// them into a cluster. A second run of this package at the same time waits, because
// both build the same files.
func loadImages(cluster string) error {
	lock, err := os.Create(filepath.Join(root, ".cluster", "images.lock"))
	if err != nil {
		return err
	}
	defer lock.Close() // releases the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("locking %q: %w", lock.Name(), err)
	}
	if err := command(15*time.Minute, nil, "make", "--no-print-directory", "build"); err != nil { // compiles every package the first time
		return err
	}
	dir, err := os.MkdirTemp("", "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, c := context.Background(), faults.Cluster{Root: root, Name: cluster}
	probe, err := c.ProbeImage(ctx, probeImage, dir)
	if err != nil {
		return err
	}
	images := []string{probe}
	for _, s := range []string{"go-micro-srv", "go-micro-web", "go-micro-client", "go-micro-config"} {
		images = append(images, "846602483/"+s+":kubernetes="+filepath.Join(root, s))
	}
	return c.LoadImages(ctx, images...)
}
