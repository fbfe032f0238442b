package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/private"
	"github.com/jiangjiancc/go_micro_k8s/cluster/programs"
)

// cluster is one named cluster of this checkout.
type cluster struct {
	name string
	root string // the checkout
	dir  string // root/.cluster/name
}

// Names contain no dot, because demo.lock is the lock file of demo.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

// newCluster searches for the checkout from the working directory upwards. It resolves
// symbolic links, so that every path to the checkout leads to the same cluster.
func newCluster(name string) (*cluster, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("naming a cluster %q: want a plain word of letters, digits, - and _, such as demo", name)
	}
	wd, err := os.Getwd()
	if err == nil {
		wd, err = filepath.EvalSymlinks(wd)
	}
	if err != nil {
		return nil, err
	}
	for root := wd; ; root = filepath.Dir(root) {
		if exists(filepath.Join(root, "cluster", "kube", "go.mod")) {
			return &cluster{name, root, filepath.Join(root, ".cluster", name)}, nil
		}
		if root == filepath.Dir(root) {
			return nil, fmt.Errorf("looking for the project above %q: no cluster/kube/go.mod; run it inside the checkout", wd)
		}
	}
}

// path returns a path in the cluster's directory.
func (c *cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// id names the cluster's cgroups. Clusters of other checkouts have other ids.
func (c *cluster) id() string {
	sum := sha256.Sum256([]byte(c.dir))
	return fmt.Sprintf("%x", sum[:4])
}

// errRunning is the error of lock while any process of the cluster is running.
var errRunning = errors.New("the cluster is running")

// lock makes the caller the only process that starts or removes the cluster. The
// supervisor and every process that it starts inherit the lock, so the lock is free
// only when all of them have ended.
func (c *cluster) lock() (*os.File, error) {
	if err := private.Dir(filepath.Dir(c.dir)); err != nil {
		return nil, fmt.Errorf("making the directory of the clusters: %w; the checkout must be writable", err)
	}
	lock, err := private.Lock(c.dir + ".lock")
	if errors.Is(err, private.ErrLocked) {
		err = errRunning
	}
	return lock, err
}

// state describes a cluster to the commands. It is stored in cluster.json.
type state struct {
	Version       string    // of Kubernetes
	Started       time.Time // when up began to start the cluster
	Supervisor    int       // process id
	Node          int       // process id of the first node's init, 0 without a node
	API           string    // address of the API server on the host's loopback
	ControlPlane  bool      // the cluster has no node
	IPFamily      string    // ipv4, ipv6 or dual
	Nodes         int       // how many Kubernetes nodes
	NetworkPolicy bool      // network policies are enforced
	APIServer     string    // path of another kube-apiserver than that of cluster/kube, or ""
	Tools         programs.Tools
}

func (s state) kind() string {
	kind := "one node"
	switch {
	case s.ControlPlane:
		kind = "control plane only"
	case s.IPFamily == "ipv6":
		kind += " with IPv6 addresses"
	case s.IPFamily == "dual":
		kind += " with IPv4 and IPv6 addresses"
	case s.Nodes > 1:
		kind = fmt.Sprintf("%d nodes", s.Nodes)
	}
	if s.NetworkPolicy {
		kind += ", network policies enforced"
	}
	return kind
}

// state reads the state that save has written.
func (c *cluster) state() (s state, err error) {
	b, err := os.ReadFile(c.path("cluster.json"))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("reading the state of cluster %q: %w", c.name, err)
	}
	return s, nil
}

// save replaces the state. Readers see the old state or the new one.
func (c *cluster) save(s state) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	part := c.path("cluster.json.part")
	if err := os.WriteFile(part, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(part, c.path("cluster.json"))
}

// socket returns the address of a Unix socket in the cluster's directory, which host and
// node share. A socket's path has at most 107 bytes, so the address refers to the
// directory by an open file descriptor. The caller calls done after dialing or
// listening, which closes the file descriptor.
func (c *cluster) socket(name string) (address *net.UnixAddr, done func(), err error) {
	dir, err := os.Open(c.dir)
	if err != nil {
		return nil, nil, err
	}
	return &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)}, func() { dir.Close() }, nil
}

// markReady records that the cluster has started.
func (c *cluster) markReady() error { return os.WriteFile(c.path("ready"), nil, 0o644) }

// ready reports whether a cluster whose lock is held has started and does not stop. A
// supervisor that was killed leaves the file of markReady behind.
func (c *cluster) ready() bool {
	s, err := c.state()
	return err == nil && exists(c.path("ready")) && s.Supervisor > 0 && !errors.Is(syscall.Kill(s.Supervisor, 0), syscall.ESRCH)
}

// running returns the state of the cluster, or an error if the cluster is not running or
// not ready yet.
func (c *cluster) running() (state, error) {
	lock, err := c.lock()
	if err == nil {
		lock.Close()
		return state{}, fmt.Errorf("looking for cluster %q: it is not running; start it with `make cluster-up` or `go run -C cluster . up -name %s`", c.name, c.name)
	}
	if !errors.Is(err, errRunning) {
		return state{}, err
	}
	if !c.ready() {
		return state{}, fmt.Errorf("looking for cluster %q: it is starting or stopping; try again", c.name)
	}
	return c.state()
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }
