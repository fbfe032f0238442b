package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
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
	lock, err := c.lockOrReady()
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
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	t, err := c.provide(stop, o.controlPlane)
	if err != nil {
		return err
	}
	removeCgroups(c) // of a cluster that ended with the machine
	if err := errors.Join(os.RemoveAll(c.dir), makePrivate(c.dir), os.Mkdir(c.path("log"), 0o755)); err != nil {
		return err
	}
	s := state{Version: t.Version, Started: time.Now(), ControlPlane: o.controlPlane, Tools: t}
	if err := c.save(s); err != nil {
		return err
	}
	progress("starting cluster %q, Kubernetes %s, %s: usually under 10 seconds (logs: %s)", c.name, s.Version, s.kind(), c.path("log"))

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

// lockOrReady locks the cluster. If another process is starting or stopping it,
// lockOrReady waits until the cluster is ready, and returns errRunning, or gone.
func (c *cluster) lockOrReady() (*os.File, error) {
	for waiting := false; ; time.Sleep(50 * time.Millisecond) {
		lock, err := c.lock()
		if !errors.Is(err, errRunning) || exists(c.path("ready")) {
			return lock, err
		}
		if !waiting {
			progress("waiting for another process that is starting or stopping cluster %q", c.name)
			waiting = true
		}
	}
}

// printHint prints the commands that point kubectl to the cluster.
func (c *cluster) printHint() {
	dir := c.dir
	fmt.Println()
	if strings.Contains(dir, ":") { // it separates the elements of KUBECONFIG and PATH
		fmt.Printf("  cd %s\n", shellQuote(c.root))
		dir = filepath.Join(".cluster", c.name)
	}
	fmt.Printf("  export KUBECONFIG=%s\n", shellQuote(filepath.Join(dir, "kubeconfig")))
	if _, err := exec.LookPath("kubectl"); err != nil {
		fmt.Printf("  export PATH=%s:$PATH   # kubectl\n", shellQuote(filepath.Join(dir, "bin")))
	}
	fmt.Println()
}

// shellQuote quotes a word for a POSIX shell if it needs quotes.
func shellQuote(word string) string {
	if regexp.MustCompile(`^[\p{L}\p{N}_@%+=:,./-]+$`).MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
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
	fmt.Printf("logs        %s\n", c.path("log"))
	c.printHint()
	return nil
}

// kubectl runs the kubectl of the cluster's version with the cluster's kubeconfig.
func (c *cluster) kubectl(args []string) error {
	if _, err := c.running(); err != nil {
		return err
	}
	os.Setenv("KUBECACHEDIR", c.path("kubectl-cache")) // not ~/.kube/cache
	// Not the variable KUBECONFIG: a colon in it separates two paths.
	return runInTerminal(c.path("bin", "kubectl"), append([]string{"--kubeconfig", c.path("kubeconfig")}, args...)...)
}

// exitStatus is the error of a program that ran in the terminal and printed its own
// message.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// runInTerminal runs a program with this process's standard input and output. When
// the program exits with a status other than 0, the error is an exitStatus.
func runInTerminal(program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exitStatus(exit.ExitCode())
	}
	return err
}
