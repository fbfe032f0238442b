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
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// components runs the processes of a cluster, each with a log file. It restarts a
// process that ends, but not while the cluster starts: then await returns an error.
type components struct {
	logs    string // directory
	env     []string
	files   []*os.File // file descriptors 3 and up of every process
	restart atomic.Bool
	exited  chan error // the error of the first process that ended while the cluster started
	stopped context.Context
	cancel  context.CancelFunc
	wait    sync.WaitGroup
}

// newComponents returns an empty set of components that inherit this process's
// environment, env and files.
func newComponents(logs string, env []string, files ...*os.File) *components {
	// Components connect only to each other, so they must not use the user's proxy.
	env = append(append(os.Environ(), "NO_PROXY=*", "no_proxy=*"), env...)
	p := &components{logs: logs, env: env, files: files, exited: make(chan error, 1)}
	p.stopped, p.cancel = context.WithCancel(context.Background())
	return p
}

// start runs program in the background until stop is called.
func (p *components) start(name, program string, args ...string) {
	p.wait.Go(func() {
		runtime.LockOSThread() // as endWithParent requires
		for {
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
			logLine("%s; restarting it", err)
			select {
			case <-p.stopped.Done():
				return
			case <-time.After(500 * time.Millisecond):
			}
		}
	})
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
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, p.files
	// etcd refuses to start if a variable of its own contradicts a flag.
	cmd.Env = slices.DeleteFunc(slices.Clone(p.env), func(v string) bool { return strings.HasPrefix(v, "ETCD_") })
	endWithParent(cmd)
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
