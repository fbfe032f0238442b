package programs

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const envRoot = "PROVIDE_ROOT"

// TestMain runs the tests or, in a process that provide has started, Provide.
func TestMain(m *testing.M) {
	root := os.Getenv(envRoot)
	if root == "" {
		os.Exit(m.Run())
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	progress := func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	if _, err := Provide(ctx, root, Options{ControlPlane: true, Progress: progress}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// provide returns a command that provides the programs of a control plane.
func provide(env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), envRoot+"=../.."), env...)
	return cmd
}

// fakeGo puts a program named go into PATH, and makes Provide build with it although
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

// incomplete lists the files of unfinished builds and downloads in the cache.
func incomplete(t *testing.T) (files []string) {
	t.Helper()
	for _, pattern := range []string{"*.part-*", "*/*.part-*", "*/*" + incompleteSuffix} {
		m, err := filepath.Glob(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "k8s-micro", pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, m...)
	}
	return files
}

// eventually waits until ok returns true. After limit it fails the test with description.
func eventually(t *testing.T, limit time.Duration, description string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", description, limit)
		}
	}
}

// startBuild starts Provide and returns when its build is running.
func startBuild(t *testing.T) (cmd *exec.Cmd, output *strings.Builder) {
	t.Helper()
	_ = os.Remove(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "pid"))
	cmd, output = provide(), new(strings.Builder)
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
	fakeGo(t, `echo $$ >"$XDG_CACHE_HOME/pid"; exec sleep 100`)
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		cmd, output := startBuild(t)
		_ = cmd.Process.Signal(signal)
		if err := cmd.Wait(); err == nil || !strings.Contains(output.String(), "interrupted") {
			t.Errorf("Provide after %s: %v: %s", signal, err, output)
		}
		if left := incomplete(t); len(left) > 0 {
			t.Errorf("%s leaves %q", signal, left)
		}
	}
	cmd, _ := startBuild(t)
	other := provide() // waits for the build of cmd
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
				t.Error("a Provide that waits for another process's build does not end on SIGINT")
				_ = other.Process.Kill()
			})
			defer timeout.Stop()
		}
	}
	if err := other.Wait(); err == nil {
		t.Error("the interrupted Provide succeeded")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	pid, err := os.ReadFile(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "pid"))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(pid))); err != nil || syscall.Kill(n, syscall.SIGKILL) != nil {
		t.Fatalf("killing the build %q of the killed Provide: %v", pid, err)
	}
	if len(incomplete(t)) != 2 {
		t.Fatal("SIGKILL left no incomplete files, so this test has nothing to check")
	}
	before := incomplete(t)
	cmd, _ = startBuild(t)
	for _, f := range before {
		if exists(f) {
			t.Errorf("the next build has not removed %q", f)
		}
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
}

// The error of a failed build contains the reason and the path of the log.
func TestFailedBuild(t *testing.T) {
	fakeGo(t, "echo 'x.go:1: no space left on device' >&2; exit 1")
	out, err := provide().CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no space left on device") || !strings.Contains(string(out), "build.log") {
		t.Errorf("%v: %s, want the reason and the log", err, out)
	}
}
