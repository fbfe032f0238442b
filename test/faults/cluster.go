package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
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
	dir := filepath.Join(c.Root, ".cluster", c.Name)
	return c.run(ctx, stdin, filepath.Join(dir, "bin", "kubectl"), append([]string{"--kubeconfig", filepath.Join(dir, "kubeconfig"),
		"--cache-dir", filepath.Join(dir, "kubectl-cache")}, args...)...)
}

// get decodes the output of kubectl get.
func (c Cluster) get(ctx context.Context, into any, args ...string) error {
	out, err := c.Kubectl(ctx, append(append([]string{"get"}, args...), "-o", "json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

// node runs a shell script in the namespaces of the cluster's node and returns its output.
// The arguments are $1, $2 and so on.
func (c Cluster) node(ctx context.Context, script string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return c.run(ctx, "", "go", c.launcher("node", append([]string{"sh", "-euc", script, "sh"}, args...)...)...)
}

// follow copies a growing file of the node, from its beginning, until ctx ends.
func (c Cluster) follow(ctx context.Context, pattern string, lines io.Writer) error {
	cmd := c.command(ctx, "go", c.launcher("node", "sh", "-c", "exec tail -n +1 -F "+pattern)...)
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
	return Eventually(ctx, time.Minute, "readiness of the API server", func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := c.Kubectl(ctx, "get", "--raw", "/readyz")
		return err
	})
}

// Eventually calls check every 250 ms until it returns nil. It returns an error when that
// takes longer than limit, or when ctx ends.
func Eventually(ctx context.Context, limit time.Duration, what string, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
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
		if err := sleep(ctx, 250*time.Millisecond); err != nil {
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
