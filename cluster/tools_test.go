package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fakeGo puts a program named go into PATH, and makes the launcher build with it although
// this machine may reach the official binaries. `go list` prints two packages; `go build`
// leaves incomplete files and runs the shell command build.
func fakeGo(t *testing.T, build string) {
	t.Helper()
	dir := t.TempDir()
	script := `#!/bin/sh
case $1 in
list) echo a; echo b ;;
build)
	while [ "$1" != -o ]; do shift; done
	echo half >"$2"
	: >"$GOTMPDIR/object"
	` + build + `
esac
`
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv(envSource, "build")
}

// incomplete lists the files of unfinished builds in the cache.
func incomplete(t *testing.T) (files []string) {
	t.Helper()
	for _, pattern := range []string{"*.part-*", "*/*.part-*"} {
		m, err := filepath.Glob(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "k8s-micro", pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, m...)
	}
	return files
}

// startBuild starts the command up and returns when its build is running.
func startBuild(t *testing.T, root string) (cmd *exec.Cmd, output *strings.Builder) {
	t.Helper()
	_ = os.Remove(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "pid"))
	cmd, output = launcher(root, "up", "-control-plane"), new(strings.Builder)
	cmd.Stderr = output
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan() && !strings.Contains(lines.Text(), "downloading its modules"); {
	}
	eventually(t, 30*time.Second, "the build", func() bool {
		return len(incomplete(t)) == 2 && exists(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "pid"))
	})
	return cmd, output
}

// SIGINT and SIGTERM end a build and remove its incomplete files. After SIGKILL the next
// build removes them.
func TestInterruptedBuild(t *testing.T) {
	root := checkout(t)
	fakeGo(t, `echo $$ >"$XDG_CACHE_HOME/pid"; exec sleep 100`)
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		cmd, output := startBuild(t, root)
		_ = cmd.Process.Signal(signal)
		if err := cmd.Wait(); err == nil || !strings.Contains(output.String(), "interrupted") {
			t.Errorf("up after %s: %v: %s", signal, err, output)
		}
		if left := incomplete(t); len(left) > 0 {
			t.Errorf("%s leaves %q", signal, left)
		}
	}
	cmd, _ := startBuild(t, root)
	other := launcher(checkout(t), "up", "-control-plane") // waits for the build of cmd
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), "waiting for another process") {
			_ = other.Process.Signal(syscall.SIGINT)
			timeout := time.AfterFunc(20*time.Second, func() {
				t.Error("an up that waits for another process's build does not end on SIGINT")
				_ = other.Process.Kill()
			})
			defer timeout.Stop()
		}
	}
	if err := other.Wait(); err == nil {
		t.Error("the interrupted up succeeded")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	pid, err := os.ReadFile(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "pid"))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(pid))); err != nil || syscall.Kill(n, syscall.SIGKILL) != nil {
		t.Fatalf("killing the build %q of the killed up: %v", pid, err)
	}
	if len(incomplete(t)) != 2 {
		t.Fatal("SIGKILL left no incomplete files, so this test has nothing to check")
	}
	before := incomplete(t)
	cmd, _ = startBuild(t, root)
	for _, f := range before {
		if exists(f) {
			t.Errorf("the next build has not removed %q", f)
		}
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
}

// The state of a cluster that ended without cleaning up, such as when the machine
// restarted, has no effect while up builds: no command takes it for a running cluster, and
// down does not stop the process that now has the supervisor's id.
func TestStaleState(t *testing.T) {
	root := checkout(t)
	unrelated := exec.Command("sleep", "100")
	if err := unrelated.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unrelated.Process.Kill(); _ = unrelated.Wait() }()
	c := demoCluster(root)
	if err := errors.Join(os.MkdirAll(c.dir, 0o700), c.save(state{Version: "v1.0.0", Supervisor: unrelated.Process.Pid, Node: unrelated.Process.Pid}), c.markReady()); err != nil {
		t.Fatal(err)
	}
	fakeGo(t, `echo $$ >"$XDG_CACHE_HOME/pid"; exec sleep 100`)
	cmd, _ := startBuild(t, root)
	if out, err := cli(t, root, "status"); err == nil || !strings.Contains(out, "starting or stopping") {
		t.Errorf("status: %v: %s", err, out)
	}
	down := launcher(root, "down")
	if err := down.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if err := syscall.Kill(unrelated.Process.Pid, 0); err != nil {
		t.Errorf("the unrelated process: %v", err)
	}
	if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", unrelated.Process.Pid)); strings.Contains(string(line), ") Z ") {
		t.Error("down has stopped a process that does not belong to the cluster")
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
	if err := down.Wait(); err != nil {
		t.Errorf("down after the interrupted build: %v", err)
	}
}

// The error of a failed build contains the reason and the path of the log.
func TestFailedBuild(t *testing.T) {
	root := checkout(t)
	fakeGo(t, "echo 'x.go:1: no space left on device' >&2; exit 1")
	out, err := cli(t, root, "up", "-control-plane")
	if err == nil || !strings.Contains(out, "no space left on device") || !strings.Contains(out, "build.log") {
		t.Errorf("%v: %s, want the reason and the log", err, out)
	}
}
