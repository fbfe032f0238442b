package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// components runs the processes of a cluster, each with a log file. It restarts a
// process that ends, with a growing delay, but not while the cluster starts: then await returns an error.
type components struct {
	logs    string // directory
	env     []string
	prepare func(*exec.Cmd) // sets the attributes of every process
	files   []*os.File      // file descriptors 3 and up of every process
	restart atomic.Bool
	exited  chan error // the error of the first process that ended while the cluster started
	stopped context.Context
	cancel  context.CancelFunc
	wait    sync.WaitGroup
}

// environment returns the variables that the processes of a cluster inherit from the user.
// Others are the user's secrets, or change what a component does: GOGC, OTEL_*, SSL_CERT_FILE,
// proxies, or a variable of etcd that contradicts a flag.
func environment() (env []string) {
	for _, name := range []string{"PATH", "HOME", "USER", "TMPDIR", "TZ", "K8S_MICRO_TEST_RUN"} { // test/run.sh finds processes by the last
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// newComponents returns an empty set of components that inherit env, files and the
// variables of environment.
func newComponents(logs string, env []string, files ...*os.File) *components {
	p := &components{logs: logs, env: append(environment(), env...), prepare: endWithParent, files: files, exited: make(chan error, 1)}
	p.stopped, p.cancel = context.WithCancel(context.Background())
	return p
}

// start runs program in the background until stop is called.
func (p *components) start(name, program string, args ...string) {
	p.wait.Go(func() {
		runtime.LockOSThread() // as endWithParent requires
		var delay time.Duration
		for {
			begin := time.Now()
			err := p.run(name, program, args)
			if p.stopped.Err() != nil {
				return
			}
			if !p.restart.Load() {
				select {
				case p.exited <- err:
				default: // another process has ended earlier
				}
				return
			}
			delay = restartDelay(delay, time.Since(begin))
			logLine("%s; restarting it in %s", err, delay)
			select {
			case <-p.stopped.Done():
				return
			case <-time.After(delay):
			}
		}
	})
}

// restartDelay returns how long to wait before a process that has ended starts again: half a
// second, then twice as long each time, up to a minute. A process that ran for a minute starts anew.
func restartDelay(last, ran time.Duration) time.Duration {
	if last == 0 || ran >= time.Minute {
		return 500 * time.Millisecond
	}
	return min(2*last, time.Minute)
}

// run starts a process once and waits until it ends. The error contains the name of the
// process's log and the last line of that log.
func (p *components) run(name, program string, args []string) error {
	path := filepath.Join(p.logs, name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(p.stopped, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 3 * time.Second // then SIGKILL
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles, cmd.Env = log, log, p.files, p.env
	p.prepare(cmd)
	err = cmd.Run()
	if err == nil {
		err = errors.New("exit status 0")
	}
	tail := make([]byte, 4096)
	if end, e := log.Seek(0, io.SeekEnd); e == nil {
		n, _ := log.ReadAt(tail, max(0, end-int64(len(tail))))
		tail = bytes.ToValidUTF8(tail[:n], nil)
	}
	return fmt.Errorf("%s ended (%w), see %s: %s", name, err, filepath.Base(path), lastLine(tail))
}

// await waits until ok returns true. It returns an error after a minute, when ctx
// ends, or when a component ends. The error contains the description.
func (p *components) await(ctx context.Context, description string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for !ok() {
		select {
		case err := <-p.exited:
			return err
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", description, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// started records that the cluster has started: components now restarts a process that
// ends. It returns the error of a process that ended before.
func (p *components) started() error {
	p.restart.Store(true)
	select {
	case err := <-p.exited:
		return err
	default:
		return nil
	}
}

// stop sends SIGINT to every process, SIGKILL 3 seconds later, and waits until all
// have ended.
func (p *components) stop() {
	p.cancel()
	p.wait.Wait()
}

// lastLine returns the last line that is not blank.
func lastLine(b []byte) string {
	b = bytes.TrimSpace(b)
	return string(bytes.TrimSpace(b[bytes.LastIndexByte(b, '\n')+1:]))
}
