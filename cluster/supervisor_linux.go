package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"

	"github.com/jiangjiancc/go_micro_k8s/cluster/programs"
)

// superviseNode starts the node's init in new namespaces and waits until init ends.
func (c *cluster) superviseNode(ctx context.Context, s state, report func(kind, text string), events, lock *os.File) error {
	api, apiFile, err := listen("0")
	if err != nil {
		return err
	}
	parent, pipe, err := os.Pipe()
	if err != nil {
		return err
	}
	defer pipe.Close()

	env := os.Environ()
	cmd := exec.Command("/proc/self/exe", "init", c.name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWCGROUP}
	var ids *idMapping
	if os.Getuid() != 0 {
		if ids, err = newIDMapping(); err != nil {
			return err
		}
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		env = append(env, envRootless+"=1", envNoCgroups+"=1")
	} else if cgroups := c.cgroups(); cgroups.Make() == nil {
		if err := c.startCgroupCleaner(lock); err != nil {
			return err
		}
		if err := cgroups.Enter(); err != nil {
			return fmt.Errorf("entering the cluster's cgroups: %w", err)
		}
	} else {
		cgroups.Remove()
		report("step", "cgroups cannot be used here: pods run without resource limits")
		env = append(env, envNoCgroups+"=1")
	}
	cmd.Dir, cmd.Env = c.root, env
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{parent, events, lock, apiFile}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("making the node's namespaces: %w; %s", err, programs.OtherCluster)
	}
	for _, f := range []io.Closer{api, apiFile, parent} {
		f.Close() // the node has inherited them
	}
	if ids != nil {
		if err := ids.apply(cmd.Process.Pid); err != nil {
			return err
		}
	}
	c.cgroups().EnterLeaf("supervisor")
	s.Node, s.API = cmd.Process.Pid, api.Addr().String()
	if err := c.save(s); err != nil {
		return err
	}
	if _, err := pipe.Write([]byte{1}); err != nil { // init waits for the id mapping and the state
		return err
	}
	go func() {
		<-ctx.Done()
		pipe.Close()
	}()
	if err := cmd.Wait(); ctx.Err() == nil {
		return fmt.Errorf("the node ended: %w", err)
	}
	return nil
}

// endWithParent makes the kernel kill the process of cmd when the thread that starts it
// ends, so also when this process ends for any reason.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// listen listens on a port of the host's loopback; port 0 selects a free port. It also
// returns the listener as a file that another process can inherit.
func listen(port string) (net.Listener, *os.File, error) {
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return nil, nil, err
	}
	f, err := l.(*net.TCPListener).File()
	return l, f, err
}
