package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Cluster is a running cluster of the launcher in cluster/.
type Cluster struct {
	Root string // the project's root directory
	Name string // of the cluster
}

// command returns a command whose processes all end when ctx ends. The processes have
// a process group of their own: Ctrl-C in a terminal reaches only this program, which
// must be able to run commands afterwards.
func (c Cluster) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = c.Root
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run runs a command and returns its output. The error contains the output.
func (c Cluster) run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := c.command(ctx, name, args...)
	var out, messages bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &messages
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return out.String(), fmt.Errorf("running %s %s: %w: %s%s", filepath.Base(name), strings.Join(args, " "), err, out.String(), messages.String())
	}
	return out.String(), nil
}

// launcher returns the arguments of go that run a command of the launcher.
func (c Cluster) launcher(command string, args ...string) []string {
	return append([]string{"run", "-C", "cluster", ".", command, "-name", c.Name, "--"}, args...)
}

// Kubectl runs the cluster's kubectl as administrator and returns its output.
func (c Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.kubectl(ctx, "", args...)
}

func (c Cluster) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	return c.run(ctx, stdin, filepath.Join(c.dir(), "bin", "kubectl"), append([]string{"--kubeconfig", c.kubeconfig(),
		"--cache-dir", filepath.Join(c.dir(), "kubectl-cache")}, args...)...)
}

func (c Cluster) dir() string        { return filepath.Join(c.Root, ".cluster", c.Name) }
func (c Cluster) kubeconfig() string { return filepath.Join(c.dir(), "kubeconfig") }

// get reads a path of the API server as administrator.
func (c Cluster) get(ctx context.Context, path string, into any) error {
	return Get(ctx, c.kubeconfig(), path, into)
}

// Get reads a path of the API server of a kubeconfig and decodes the JSON, unless into is nil. It is for what is read again
// and again: kubectl needs half a second of processor time each time, which slows the services under test.
func Get(ctx context.Context, kubeconfig, path string, into any) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	transport, err := rest.TransportFor(config) // one for all calls: client-go keeps it
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+path, nil)
	if err != nil {
		return err
	}
	rsp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer rsp.Body.Close()
	body, err := io.ReadAll(rsp.Body)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	if rsp.StatusCode != http.StatusOK {
		return fmt.Errorf("reading %s: %s: %s", path, rsp.Status, body)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

// PodsOf returns the path of the pods of a service.
func PodsOf(namespace, service string) string {
	return "/api/v1/namespaces/" + namespace + "/pods?labelSelector=app%3D" + service
}

// node runs a shell script in the namespaces of the cluster's first node and returns its output. The processes of all
// nodes are visible there, and the packets between nodes go through it. The arguments are $1, $2 and so on.
func (c Cluster) node(ctx context.Context, script string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return c.run(ctx, "", "go", c.launcher("node", append([]string{"sh", "-euc", script, "sh"}, args...)...)...)
}

// follow copies a growing file of a node, from its beginning, until ctx ends.
func (c Cluster) follow(ctx context.Context, node, pattern string, lines io.Writer) error {
	number := "1"
	if further, ok := strings.CutPrefix(node, "k8s-micro-"); ok {
		number = further
	}
	cmd := c.command(ctx, "go", "run", "-C", "cluster", ".", "node", "-name", c.Name, "-n", number, "--", "sh", "-c", "exec tail -n +1 -F "+pattern)
	var messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = lines, &messages
	if err := cmd.Run(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("following %q: %w: %s", pattern, err, messages.String())
	}
	return ctx.Err()
}

// ProbeImage builds the program test/e2e/probe in dir, which it makes unless it exists, and
// returns the argument of LoadImages for an image of this name.
func (c Cluster) ProbeImage(ctx context.Context, name, dir string) (image string, err error) {
	dockerfile, err := os.ReadFile(filepath.Join(c.Root, "test", "e2e", "probe", "Dockerfile"))
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "Dockerfile"), dockerfile, 0o644)); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute) // the first time, every package is compiled
	defer cancel()
	_, err = c.run(ctx, "", "env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "probe"), "./test/e2e/probe")
	return name + "=" + dir, err
}

// LoadImages builds images and loads them into the cluster. Each argument is IMAGE=DIR, where the
// directory contains a Dockerfile and the program.
func (c Cluster) LoadImages(ctx context.Context, images ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	_, err := c.run(ctx, "", "go", append([]string{"run", "-C", "cluster", ".", "load", "-name", c.Name}, images...)...)
	return err
}

// apiServerReady waits until the API server reports that it is ready.
func (c Cluster) apiServerReady(ctx context.Context) error {
	return Eventually(ctx, 2*time.Minute, "readiness of the API server", func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return c.get(ctx, "/readyz", nil)
	})
}

// Eventually calls check until it returns nil, and pauses for 250 ms in between, or for twice the time that check took if that
// is longer: a machine on which it takes long is busy. It returns an error when that takes longer than limit, or when ctx ends.
func Eventually(ctx context.Context, limit time.Duration, what string, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		start := time.Now()
		err := check()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waiting for %s: not within %s: %w", what, limit, err)
		}
		if err := sleep(ctx, max(250*time.Millisecond, 2*time.Since(start))); err != nil {
			return err
		}
	}
}

// sleep returns early with an error when ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
