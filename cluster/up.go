package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/jiangjiancc/go_micro_k8s/cluster/image"
)

type upOptions struct{ controlPlane, foreground bool }

// state is what a running cluster tells the other commands, in cluster.json.
type state struct {
	Version      string    // of Kubernetes
	Started      time.Time // when up was called
	Keeper       int       // process id of the keeper
	Node         int       // process id of the node's process 1, 0 without a node
	API          string    // address of the API server on the host's loopback
	Registry     string    // address of the registry there, "" without a node
	ControlPlane bool
	Tools        tools
}

var began = time.Now()

// say reports progress with the seconds since the command began.
func say(format string, args ...any) {
	fmt.Printf("[%5.1fs] %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}

// up starts the cluster unless it runs.
//
// Three processes carry it. The keeper stays on the host, holds the lock, the
// ports and one end of a pipe, the lifeline. The node's process 1, which reads
// the other end, ends with it, and with process 1 everything in the node's
// namespaces. A janitor outside the cgroup branch removes that once it is empty.
// So there is no way to end the keeper, SIGKILL included, that leaves anything.
func (c *cluster) up(o upOptions) error {
	lock, err := c.lock()
	if errors.Is(err, errRunning) {
		s, err := c.running()
		if err != nil {
			return err
		}
		if s.ControlPlane != o.controlPlane {
			return fmt.Errorf("starting cluster %q: it runs already, %s; stop it with `down` or use another -name", c.name, s.kind())
		}
		say("cluster %q runs already: Kubernetes %s, %s", c.name, s.Version, s.kind())
		c.hint(s)
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
	// What an earlier cluster left when the machine went down under it.
	sweep(c)
	if err := errors.Join(os.RemoveAll(c.dir), os.MkdirAll(c.path("log"), 0o755)); err != nil {
		return err
	}
	s := state{Version: t.Version, Started: time.Now(), ControlPlane: o.controlPlane, Tools: t}
	if err := c.save(s); err != nil {
		return err
	}
	say("starting cluster %q, Kubernetes %s, %s: usually under 10 seconds (logs: %s)", c.name, s.Version, s.kind(), c.path("log"))

	log, err := os.Create(c.path("log", "keeper.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	leash, hold, err := os.Pipe() // the keeper reads: a byte lets it go on alone, the end stops it
	if err != nil {
		return err
	}
	defer hold.Close()
	progress, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer progress.Close()
	cmd := exec.Command("/proc/self/exe", "keeper", c.name)
	if _, err := os.Stat(cmd.Path); err != nil { // not Linux
		if cmd.Path, err = os.Executable(); err != nil {
			return err
		}
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.root, log, log
	cmd.ExtraFiles = []*os.File{leash, tell, lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C in this terminal is not for it
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the keeper: %w", err)
	}
	leash.Close()
	tell.Close()
	lock.Close()

	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	started := make(chan error, 1)
	go func() {
		for lines := bufio.NewScanner(progress); lines.Scan(); {
			switch kind, text, _ := strings.Cut(lines.Text(), " "); kind {
			case "step":
				say("  %s", text)
			case "ready":
				started <- nil
				return
			case "error":
				started <- errors.New(text)
				return
			}
		}
		started <- errors.New("the keeper ended")
	}()
	select {
	case err = <-started:
	case <-stop.Done():
		err = errors.New("interrupted")
	}
	if err != nil {
		hold.Close()
		_ = cmd.Wait()
		return fmt.Errorf("starting cluster %q: %w; the logs are in %s", c.name, err, c.path("log"))
	}
	if s, err = c.state(); err != nil {
		return err
	}
	say("cluster %q is ready", c.name)
	c.hint(s)
	if o.foreground {
		end := make(chan struct{})
		go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(end) }()
		select {
		case <-end:
		case <-stop.Done():
		}
		hold.Close()
		_ = cmd.Wait()
		return c.down()
	}
	_, err = hold.Write([]byte("go on alone"))
	return err
}

func (s state) kind() string {
	if s.ControlPlane {
		return "control plane only"
	}
	return "one node"
}

func (c *cluster) hint(s state) {
	fmt.Printf("\n  export KUBECONFIG=%s\n", c.path("kubeconfig"))
	if _, err := exec.LookPath("kubectl"); err != nil {
		fmt.Printf("  export PATH=%s:$PATH   # kubectl\n", c.path("bin"))
	}
	fmt.Println()
}

// down stops the cluster and removes its directory. It is no error when none runs.
func (c *cluster) down() error {
	s, _ := c.state()
	lock, err := c.lock()
	if errors.Is(err, errRunning) {
		say("stopping cluster %q", c.name)
		if s.Keeper > 0 {
			_ = syscall.Kill(s.Keeper, syscall.SIGTERM)
		}
		// All its processes hold the lock: when it is free, all of them are gone.
		for end := time.Now().Add(30 * time.Second); errors.Is(err, errRunning); lock, err = c.lock() {
			if time.Now().After(end) {
				return fmt.Errorf("stopping cluster %q: process %d or one it started still runs; see %s", c.name, s.Keeper, c.path("log", "keeper.log"))
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	sweep(c)
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	say("cluster %q is gone", c.name)
	return nil
}

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
	c.hint(s)
	return nil
}

// load builds images from Dockerfiles and pushes them to the cluster's registry:
// args are IMAGE=DIR.
func (c *cluster) load(args []string) error {
	s, err := c.running()
	if err != nil {
		return err
	}
	if s.Registry == "" {
		return fmt.Errorf("loading images into cluster %q: it has no node to run them", c.name)
	}
	if len(args) == 0 {
		return errors.New("loading images: none named; want IMAGE=DIR, such as 846602483/go-micro-srv:kubernetes=go-micro-srv")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, a := range args {
		ref, dir, ok := strings.Cut(a, "=")
		if !ok {
			return fmt.Errorf("loading image %q: want IMAGE=DIR", a)
		}
		img, err := image.Build(dir, nodePlatform)
		if err != nil {
			return err
		}
		changed, err := image.Push(ctx, img, ref, s.Registry)
		if err != nil {
			return err
		}
		if !changed {
			say("%s is there already", ref)
			continue
		}
		digest, err := img.Digest()
		if err != nil {
			return err
		}
		size, err := packedSize(img)
		if err != nil {
			return err
		}
		say("loaded %s (%.1f MB, %s)", ref, float64(size)/1e6, digest.String()[:19])
	}
	return nil
}

func packedSize(img v1.Image) (total int64, err error) {
	layers, err := img.Layers()
	for _, l := range layers {
		n, err := l.Size()
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, err
}

// kubectl runs the cluster's kubectl in the caller's place.
func (c *cluster) kubectl(args []string) error {
	if _, err := c.running(); err != nil {
		return err
	}
	return c.exec(c.path("bin", "kubectl"), args)
}

func (c *cluster) exec(program string, args []string) error {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.path("kubeconfig"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

// ---- what runs ----

var errRunning = errors.New("the cluster runs")

// lock makes the caller the only one to start or remove the cluster. The keeper
// and all it starts inherit it, so it is free only when they are all gone.
func (c *cluster) lock() (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(c.dir), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(c.dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errRunning
		}
		return nil, fmt.Errorf("locking %q: %w", f.Name(), err)
	}
	return f, nil
}

// running returns the state of a cluster that runs and is ready to be used.
func (c *cluster) running() (state, error) {
	lock, err := c.lock()
	if err == nil {
		lock.Close()
		return state{}, fmt.Errorf("looking for cluster %q: it does not run; start it with `make cluster-up` or `go run -C cluster . up -name %s`", c.name, c.name)
	}
	if !errors.Is(err, errRunning) {
		return state{}, err
	}
	if !exists(c.path("ready")) {
		return state{}, fmt.Errorf("looking for cluster %q: it is being started or stopped; try again", c.name)
	}
	return c.state()
}

func (c *cluster) markReady() error { return os.WriteFile(c.path("ready"), nil, 0o644) }

// id is short, and unlike that of any other checkout's cluster.
func (c *cluster) id() string {
	sum := sha256.Sum256([]byte(c.dir))
	return fmt.Sprintf("%x", sum[:4])
}

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

func (c *cluster) save(s state) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	part := c.path("cluster.json.part")
	if err := os.WriteFile(part, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(part, c.path("cluster.json"))
}

// ---- the keeper ----

// keeper is the process that stays: it starts the cluster, waits and ends with it.
// Its file descriptors are 3 the leash, 4 where progress goes, 5 the lock.
func keeper(args []string) (err error) {
	c, err := newCluster(args[0])
	if err != nil {
		return err
	}
	leash, progress, lock := inherited(3), inherited(4), inherited(5)
	tell := func(kind, text string) {
		fmt.Printf("%s %s %s\n", time.Now().Format(time.RFC3339), kind, text)
		_, _ = fmt.Fprintf(progress, "%s %s\n", kind, strings.ReplaceAll(text, "\n", " "))
	}
	defer func() {
		if err != nil {
			tell("error", err.Error())
		}
	}()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	go func() {
		if n, _ := leash.Read(make([]byte, 16)); n == 0 { // up has ended before it let go
			cancel()
		}
	}()
	s, err := c.state()
	if err != nil {
		return err
	}
	s.Keeper = os.Getpid()
	if err := c.links(s.Tools); err != nil {
		return err
	}
	if s.ControlPlane {
		return c.keepControlPlane(ctx, s, tell)
	}
	return c.keepNode(ctx, s, tell, progress, lock)
}

// links gives the user a kubectl.
func (c *cluster) links(t tools) error {
	if err := os.MkdirAll(c.path("bin"), 0o755); err != nil {
		return err
	}
	_ = os.Remove(c.path("bin", "kubectl"))
	return os.Symlink(t.Kube, c.path("bin", "kubectl"))
}

// keepControlPlane runs etcd and kube-apiserver as plain processes on free ports.
func (c *cluster) keepControlPlane(ctx context.Context, s state, tell func(kind, text string)) error {
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	cp := controlPlane{cluster: c, kube: s.Tools.Kube, ip: "127.0.0.1", port: ports[0], etcdPort: ports[1]}
	if err := cp.writeFiles(); err != nil {
		return err
	}
	lifeline, hold, err := os.Pipe()
	if err != nil {
		return err
	}
	defer hold.Close()
	p := newProcesses(c.path("log"), []string{"KUBE_LIFELINE=3"}, lifeline)
	defer p.stop()
	if err := cp.start(ctx, p); err != nil {
		return err
	}
	s.API = fmt.Sprintf("127.0.0.1:%d", cp.port)
	if err := errors.Join(c.save(s), p.settled(), c.markReady()); err != nil {
		return err
	}
	tell("ready", "")
	<-ctx.Done()
	return nil
}

// freePorts returns ports of the loopback that nobody listens on now.
func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all are held until all are chosen
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// inherited is a file this process was started with; what it starts must not
// have it. It stays open: the garbage collector closes files nobody refers to,
// and some, like the lock, are only held.
func inherited(fd uintptr) *os.File {
	syscall.CloseOnExec(int(fd))
	f := os.NewFile(fd, fmt.Sprintf("inherited-%d", fd))
	held = append(held, f)
	return f
}

var held []*os.File
