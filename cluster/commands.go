package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

var began = time.Now()

// progress prints a line with the seconds since the command began.
func progress(format string, args ...any) {
	fmt.Printf("[%5.1fs] %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}

type upOptions struct{ controlPlane, foreground bool }

// up starts the cluster unless it is running.
func (c *cluster) up(o upOptions) error {
	lock, err := c.lock()
	if errors.Is(err, errRunning) {
		s, err := c.running()
		if err != nil {
			return err
		}
		if s.ControlPlane != o.controlPlane {
			return fmt.Errorf("starting cluster %q: it is already running, %s; stop it with `down` or use another -name", c.name, s.kind())
		}
		progress("cluster %q is already running: Kubernetes %s, %s", c.name, s.Version, s.kind())
		c.printHint()
		return nil
	} else if err != nil {
		return err
	}
	defer lock.Close()
	if err := preflight(o.controlPlane); err != nil {
		return err
	}
	t, err := c.provide(o.controlPlane)
	if err != nil {
		return err
	}
	removeCgroups(c) // of a cluster that ended with the machine
	if err := errors.Join(os.RemoveAll(c.dir), os.MkdirAll(c.path("log"), 0o755)); err != nil {
		return err
	}
	s := state{Version: t.Version, Started: time.Now(), ControlPlane: o.controlPlane, Tools: t}
	if err := c.save(s); err != nil {
		return err
	}
	progress("starting cluster %q, Kubernetes %s, %s: usually under 10 seconds (logs: %s)", c.name, s.Version, s.kind(), c.path("log"))

	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	process, err := c.startSupervisor(stop, lock)
	if err != nil {
		return fmt.Errorf("starting cluster %q: %w; the logs are in %s", c.name, err, c.path("log"))
	}
	defer process.stop()
	progress("cluster %q is ready", c.name)
	c.printHint()
	if !o.foreground {
		return process.detach()
	}
	end := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(end) }()
	select {
	case <-end:
	case <-stop.Done():
	}
	process.stop()
	return c.down()
}

// printHint prints the commands that point kubectl to the cluster.
func (c *cluster) printHint() {
	fmt.Printf("\n  export KUBECONFIG=%s\n", c.path("kubeconfig"))
	if _, err := exec.LookPath("kubectl"); err != nil {
		fmt.Printf("  export PATH=%s:$PATH   # kubectl\n", c.path("bin"))
	}
	fmt.Println()
}

// down stops the cluster and removes its directory. It succeeds when the cluster
// is not running.
func (c *cluster) down() error {
	s, _ := c.state()
	lock, err := c.lock()
	if errors.Is(err, errRunning) {
		progress("stopping cluster %q", c.name)
		if s.Supervisor > 0 {
			_ = syscall.Kill(s.Supervisor, syscall.SIGTERM)
		}
		// Every process of the cluster holds the lock, so a free lock means that all have ended.
		for end := time.Now().Add(30 * time.Second); errors.Is(err, errRunning); lock, err = c.lock() {
			if time.Now().After(end) {
				return fmt.Errorf("stopping cluster %q: process %d or one of its children is still running; see %s", c.name, s.Supervisor, c.path("log", "supervisor.log"))
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	removeCgroups(c)
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	progress("cluster %q is gone", c.name)
	return nil
}

// status prints what the cluster is and where it is reached.
func (c *cluster) status() error {
	s, err := c.running()
	if err != nil {
		return err
	}
	fmt.Printf("cluster     %s, %s, Kubernetes %s, up since %s\n", c.name, s.kind(), s.Version, s.Started.Format(time.DateTime))
	fmt.Printf("API server  https://%s\n", s.API)
	if s.Registry != "" {
		fmt.Printf("registry    http://%s\n", s.Registry)
	}
	fmt.Printf("logs        %s\n", c.path("log"))
	c.printHint()
	return nil
}

// kubectl runs the kubectl of the cluster's version with the cluster's kubeconfig.
func (c *cluster) kubectl(args []string) error {
	if _, err := c.running(); err != nil {
		return err
	}
	return c.exec(c.path("bin", "kubectl"), args)
}

// exec runs a program with the cluster's kubeconfig and the caller's terminal.
func (c *cluster) exec(program string, args []string) error {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.path("kubeconfig"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
