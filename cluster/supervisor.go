package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/programs"
)

// supervisorProcess is the handle with which up controls the supervisor.
type supervisorProcess struct {
	cmd  *exec.Cmd
	pipe *os.File // writing a byte detaches the supervisor, closing the pipe stops it
}

// startSupervisor starts the supervisor, prints its progress, and returns when
// the cluster is ready. On an error, or when ctx ends, it stops the supervisor.
func (c *cluster) startSupervisor(ctx context.Context, lock *os.File) (*supervisorProcess, error) {
	log, err := os.Create(c.path("log", "supervisor.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	parent, pipe, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	events, reports, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer events.Close()
	cmd := exec.Command("/proc/self/exe", "supervisor", c.name)
	if !exists(cmd.Path) { // not Linux
		if cmd.Path, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = c.root, environment(), log, log
	cmd.ExtraFiles = []*os.File{parent, reports, lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C in this terminal must not reach the supervisor
	err = cmd.Start()
	reports.Close()
	if err != nil {
		pipe.Close()
		return nil, fmt.Errorf("starting the supervisor: %w", err)
	}
	lock.Close() // the supervisor has inherited the lock
	p := &supervisorProcess{cmd, pipe}

	started := make(chan error, 1)
	go func() { started <- readReports(events) }()
	select {
	case err = <-started:
	case <-ctx.Done():
		err = errors.New("interrupted")
	}
	if err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// readReports prints the steps of starting and returns when the cluster is ready.
func readReports(events *os.File) error {
	for lines := bufio.NewScanner(events); lines.Scan(); {
		switch kind, text, _ := strings.Cut(lines.Text(), " "); kind {
		case "step":
			progress("  %s", text)
		case "ready":
			return nil
		case "error":
			return errors.New(text)
		}
	}
	return errors.New("the supervisor ended")
}

// detach lets the supervisor outlive this process.
func (p *supervisorProcess) detach() error {
	_, err := p.pipe.Write([]byte("detach"))
	p.pipe = nil
	return err
}

// stop ends the supervisor, which ends the cluster. After detach it does nothing.
func (p *supervisorProcess) stop() {
	if p.pipe != nil {
		p.pipe.Close()
		p.pipe = nil
		_ = p.cmd.Wait()
	}
}

// reporter returns a function that writes one event to this process's log and to the
// pipe, from which up reads. The kinds of events are step, ready and error.
func reporter(pipe *os.File) func(kind, text string) {
	return func(kind, text string) {
		logLine("%s %s", kind, text)
		_, _ = fmt.Fprintf(pipe, "%s %s\n", kind, strings.ReplaceAll(text, "\n", " "))
	}
}

// logLine writes a line to the log of the supervisor and the node manager.
func logLine(format string, args ...any) {
	fmt.Printf("%s %s\n", time.Now().Format(time.RFC3339), fmt.Sprintf(format, args...))
}

// supervisor starts the cluster and stops it on SIGTERM or SIGINT, or when the cluster's
// directory is deleted. It inherits the pipe from up (file descriptor 3), the pipe to which it reports events (4) and the lock (5).
func supervisor(args []string) (err error) {
	c, err := newCluster(args[0])
	if err != nil {
		return err
	}
	parent, events, lock := inherited(3), inherited(4), inherited(5)
	report := reporter(events)
	defer func() {
		if err != nil {
			report("error", err.Error())
		}
	}()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	go func() {
		if n, _ := parent.Read(make([]byte, 16)); n == 0 { // up ended before it detached the supervisor
			cancel()
		}
	}()
	dir, err := os.Open(c.dir)
	if err != nil {
		return err
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				_ = os.Remove(c.path("ready")) // from now on up waits for the end
				return
			case <-time.After(time.Second):
			}
			if deleted(dir) {
				cancel()
				return
			}
		}
	}()
	s, err := c.state()
	if err != nil {
		return err
	}
	inUse, err := s.Tools.Use()
	if err != nil {
		return fmt.Errorf("using %q: %w; is it being cleaned?", s.Tools.Cache, err)
	}
	held = append(held, inUse)
	s.Supervisor = os.Getpid()
	if err := errors.Join(c.save(s), c.linkKubectl(s.Tools)); err != nil {
		return err
	}
	if s.ControlPlane {
		return c.superviseControlPlane(ctx, s, report)
	}
	return c.superviseNode(ctx, s, report, events, lock)
}

// deleted reports whether an open directory was deleted, such as together with its checkout.
// Where the kernel tells the path of an open file, a directory that was renamed still exists.
func deleted(dir *os.File) bool {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil { // not Linux
		path = dir.Name()
	}
	there, err := os.Stat(path)
	here, err2 := dir.Stat()
	return errors.Is(err, os.ErrNotExist) || err == nil && err2 == nil && !os.SameFile(there, here)
}

// linkKubectl creates the link kubectl in the cluster's bin directory.
func (c *cluster) linkKubectl(t programs.Tools) error {
	if err := os.MkdirAll(c.path("bin"), 0o755); err != nil {
		return err
	}
	_ = os.Remove(c.path("bin", "kubectl"))
	return os.Symlink(filepath.Join(t.Kube, "kubectl"), c.path("bin", "kubectl"))
}

// superviseControlPlane runs etcd and kube-apiserver as plain processes on free ports.
func (c *cluster) superviseControlPlane(ctx context.Context, s state, report func(kind, text string)) error {
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	cp := controlPlane{cluster: c, kube: s.Tools.Kube, apiServer: s.APIServer, ip: "127.0.0.1", network: networks["ipv4"], port: ports[0], etcdPort: ports[1]}
	if err := cp.writeFiles(); err != nil {
		return err
	}
	parent, pipe, err := os.Pipe()
	if err != nil {
		return err
	}
	defer pipe.Close()
	p := newComponents(c.path("log"), []string{"KUBE_EXIT_WITH_FD=3"}, parent)
	defer p.stop()
	if err := cp.start(ctx, p); err != nil {
		return err
	}
	s.API = fmt.Sprintf("127.0.0.1:%d", cp.port)
	if err := errors.Join(c.save(s), p.started(), c.markReady()); err != nil {
		return err
	}
	report("ready", "")
	<-ctx.Done()
	return nil
}

// freePorts returns n ports of the loopback on which no process is listening. They are below
// 32768, because the kernel may give a higher port to another process before the caller's
// component listens on it.
func freePorts(n int) (ports []int, err error) {
	const low, high = 10000, 30000
	for range 1000 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", low+rand.IntN(high-low))); err != nil {
			continue
		}
		defer l.Close() // close only after all ports are chosen, so that they differ
		if ports = append(ports, l.Addr().(*net.TCPAddr).Port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, fmt.Errorf("looking for a free port between %d and %d: %w", low, high, err)
}

// inherited returns a file descriptor that this process has inherited, and prevents
// child processes from inheriting it. The file stays open until the process ends: held
// refers to it, because the garbage collector closes files without references.
func inherited(fd uintptr) *os.File {
	syscall.CloseOnExec(int(fd))
	f := os.NewFile(fd, fmt.Sprintf("inherited-%d", fd))
	held = append(held, f)
	return f
}

// held keeps files such as the lock open until the process ends.
var held []*os.File
