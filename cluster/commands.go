package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/private"
	"github.com/jiangjiancc/go_micro_k8s/cluster/programs"
)

var commandStart = time.Now()

// progress prints a line with the seconds since the command was started.
func progress(format string, args ...any) {
	fmt.Printf("[%5.1fs] %s\n", time.Since(commandStart).Seconds(), fmt.Sprintf(format, args...))
}

type upOptions struct {
	controlPlane, foreground bool
	networkPolicy            bool
	apiServer                string // path of another kube-apiserver, "" for the one of cluster/kube
	ipFamily                 string // ipv4, ipv6 or dual
	nodes                    int
}

// up starts the cluster unless it is running.
func (c *cluster) up(o upOptions) error {
	if networks[o.ipFamily] == nil {
		return fmt.Errorf("reading -ip-family %q: no such IP family; use ipv4, ipv6 or dual", o.ipFamily)
	}
	if o.ipFamily != "ipv4" && o.controlPlane {
		return fmt.Errorf("reading -ip-family %q: it needs a node; leave out -control-plane", o.ipFamily)
	}
	if o.nodes < 1 || o.nodes > maxNodes {
		return fmt.Errorf("reading -nodes %d: use 1 to %d", o.nodes, maxNodes)
	}
	if o.nodes > 1 && (o.controlPlane || o.ipFamily != "ipv4") {
		return fmt.Errorf("reading -nodes %d: several nodes need IPv4; leave out -control-plane and -ip-family", o.nodes)
	}
	if o.networkPolicy && (o.controlPlane || o.ipFamily != "ipv4") { // with the others kube-router v2.1.0 writes no rules: "Set KUBE-SRC-… doesn't exist"
		return errors.New("reading -network-policy: it needs a node and IPv4; leave out -control-plane and -ip-family")
	}
	lock, err := c.lockOrReady()
	if errors.Is(err, errRunning) {
		s, err := c.running()
		if err != nil {
			return err
		}
		if want := (state{ControlPlane: o.controlPlane, IPFamily: o.ipFamily, Nodes: o.nodes, NetworkPolicy: o.networkPolicy}); s.kind() != want.kind() {
			return fmt.Errorf("starting cluster %q: it is already running, %s; stop it with `down` or use another -name", c.name, s.kind())
		}
		progress("cluster %q is already running: Kubernetes %s, %s", c.name, s.Version, s.kind())
		fmt.Print(c.hint(s))
		return nil
	} else if err != nil {
		return err
	}
	defer lock.Close()
	// Remove the files of a cluster that ended without cleaning up, such as when the machine
	// restarted. Its old state would mislead other commands.
	if err := errors.Join(removeCgroups(c), os.RemoveAll(c.dir)); err != nil {
		return err
	}
	if o.apiServer != "" && !o.controlPlane {
		return errors.New("reading -kube-apiserver: it needs -control-plane, because a node may not be newer than its API server")
	}
	if err := preflight(o); err != nil {
		return err
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	t, err := c.provide(stop, o)
	if err != nil {
		return err
	}
	if err := errors.Join(private.Dir(c.dir), os.Mkdir(c.path("log"), 0o755)); err != nil {
		return err
	}
	s := state{Version: t.Version, Started: time.Now(), ControlPlane: o.controlPlane, IPFamily: o.ipFamily, Nodes: o.nodes, NetworkPolicy: o.networkPolicy, APIServer: o.apiServer, Tools: t}
	if err := c.save(s); err != nil {
		return err
	}
	usual := 10
	if o.nodes > 1 {
		usual = 5 * (o.nodes + 1)
	}
	progress("starting cluster %q, Kubernetes %s, %s: usually under %d seconds (logs: %s)", c.name, s.Version, s.kind(), usual, c.path("log"))

	process, err := c.startSupervisor(stop, lock)
	if err != nil {
		return fmt.Errorf("starting cluster %q: %w; the logs are in %s", c.name, err, c.path("log"))
	}
	defer process.stop()
	progress("cluster %q is ready", c.name)
	fmt.Print(c.hint(s))
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

// provide finds, downloads or builds the programs of a cluster.
func (c *cluster) provide(ctx context.Context, o upOptions) (programs.Tools, error) {
	return programs.Provide(ctx, c.root, programs.Options{ControlPlane: o.controlPlane, NetworkPolicy: o.networkPolicy, Progress: progress})
}

// lockOrReady locks the cluster. If another process is starting or stopping the cluster,
// lockOrReady waits: it returns errRunning when the cluster is ready, and the lock when
// the cluster has stopped.
func (c *cluster) lockOrReady() (*os.File, error) {
	for waiting := false; ; time.Sleep(50 * time.Millisecond) {
		lock, err := c.lock()
		if !errors.Is(err, errRunning) || c.ready() {
			return lock, err
		}
		if !waiting {
			progress("waiting for another process that is starting or stopping cluster %q", c.name)
			waiting = true
		}
	}
}

// hint returns the shell commands that point kubectl to the cluster.
func (c *cluster) hint(s state) string {
	var b strings.Builder
	dir := c.dir
	b.WriteString("\n")
	if strings.Contains(dir, ":") { // a colon separates the elements of KUBECONFIG and PATH, so use a relative path
		fmt.Fprintf(&b, "  cd %s\n", private.ShellQuote(c.root))
		dir = filepath.Join(".cluster", c.name)
	}
	fmt.Fprintf(&b, "  export KUBECONFIG=%s\n", private.ShellQuote(filepath.Join(dir, "kubeconfig")))
	if !kubectlFits(s.Version) {
		fmt.Fprintf(&b, "  export PATH=%s:$PATH   # kubectl\n", private.ShellQuote(filepath.Join(dir, "bin")))
	}
	b.WriteString("\n")
	return b.String()
}

// kubectlFits reports whether PATH has a kubectl that may be used with this version of
// Kubernetes: it may be one minor version older or newer
// (https://kubernetes.io/releases/version-skew-policy/).
func kubectlFits(version string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "kubectl", "version", "--client", "--output=json").Output()
	var kubectl struct{ ClientVersion struct{ GitVersion string } }
	if err != nil || json.Unmarshal(out, &kubectl) != nil {
		return false
	}
	var major, minor, wantMajor, wantMinor int
	_, err = fmt.Sscanf(kubectl.ClientVersion.GitVersion, "v%d.%d.", &major, &minor)
	_, err2 := fmt.Sscanf(version, "v%d.%d.", &wantMajor, &wantMinor)
	return err == nil && err2 == nil && major == wantMajor && minor >= wantMinor-1 && minor <= wantMinor+1
}

// down stops the cluster and removes its directory. It also succeeds if the cluster
// is not running.
func (c *cluster) down() error {
	lock, err := c.lock()
	if errors.Is(err, errRunning) {
		progress("stopping cluster %q", c.name)
		// Every process of the cluster holds the lock, so a free lock means that all have ended.
		stopped := 0
		for end := time.Now().Add(30 * time.Second); errors.Is(err, errRunning); lock, err = c.lock() {
			s, _ := c.state() // there is no state while up is still building
			if s.Supervisor > 0 && s.Supervisor != stopped {
				stopped = s.Supervisor
				_ = os.Remove(c.path("ready")) // from now on up waits for the end
				_ = syscall.Kill(s.Supervisor, syscall.SIGTERM)
			}
			if time.Now().After(end) && s.Supervisor == 0 {
				return fmt.Errorf("stopping cluster %q: another process is preparing to start it; interrupt that process", c.name)
			}
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
	if err := errors.Join(removeCgroups(c), os.RemoveAll(c.dir)); err != nil {
		return err
	}
	progress("cluster %q is gone", c.name)
	return nil
}

// status prints the cluster's version, start time, address and log directory.
func (c *cluster) status() error {
	s, err := c.running()
	if err != nil {
		return err
	}
	fmt.Printf("cluster     %s, %s, Kubernetes %s, up since %s\n", c.name, s.kind(), s.Version, s.Started.Format(time.DateTime))
	if s.Nodes > 1 {
		fmt.Printf("nodes       %s\n", describeNodes(s.nodes()))
	}
	fmt.Printf("API server  https://%s\n", s.API)
	fmt.Printf("logs        %s\n", c.path("log"))
	fmt.Print(c.hint(s))
	return nil
}

// kubectl runs the kubectl of the cluster's version with the cluster's kubeconfig.
func (c *cluster) kubectl(args []string) error {
	if _, err := c.running(); err != nil {
		return err
	}
	cache := c.path("kubectl-cache") // instead of ~/.kube/cache
	if info, err := os.Stat(c.dir); err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != os.Getuid() { // root runs kubectl in another user's cluster: that user could not remove root's files
			if cache, err = os.MkdirTemp("", "kubectl-cache-"); err != nil {
				return err
			}
			defer os.RemoveAll(cache)
		}
	}
	os.Setenv("KUBECACHEDIR", cache)
	// A flag instead of the variable KUBECONFIG, in which a colon separates two paths.
	return runInTerminal(c.path("bin", "kubectl"), append([]string{"--kubeconfig", c.path("kubeconfig")}, args...)...)
}

// exitStatus is the error of a program that runInTerminal started and that has already
// printed its own message.
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
