// Package test tests run.sh, with programs in its PATH that take the place of the real ones.
package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// checkout returns a directory in which run.sh finds the modules of test/modules, and a PATH in which golangci-lint
// runs the script lint, the runner of the tests sleeps, and the other programs succeed.
func checkout(t *testing.T, lint string) (root, path string) {
	root, bin := t.TempDir(), t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"run.sh", "modules"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		write(filepath.Join(root, "test", name), string(b))
	}
	list, err := os.ReadFile("modules")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		if fields := strings.Fields(line); len(fields) > 0 && !strings.HasPrefix(line, "#") {
			write(filepath.Join(root, fields[0], "go.mod"), "")
		}
	}
	for name, script := range map[string]string{
		"go":            `[ "$1" != tool ] || for last; do :; done; [ "$1" != tool ] || echo "` + bin + `/$last"`,
		"golangci-lint": lint,
		"gotestsum":     `sleep 1000 & echo $$ $! >>"` + root + `/sleeping"; wait`,
		"gofmt":         "",
		"shellcheck":    "",
		"chromium":      "",
		"docker":        "",
	} {
		write(filepath.Join(bin, name), "#!/bin/sh\n"+script+"\n")
	}
	t.Cleanup(func() {
		for _, pid := range sleeping(root) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	if out, err := exec.Command("git", "init", "-q", root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return root, bin + ":" + os.Getenv("PATH")
}

// sleeping returns the processes of the runners of tests, and their children, that still run.
func sleeping(root string) (pids []int) {
	b, _ := os.ReadFile(filepath.Join(root, "sleeping")) // does not exist before the first
	for _, text := range strings.Fields(string(b)) {
		pid, _ := strconv.Atoi(text)
		if b, err := os.ReadFile("/proc/" + text + "/stat"); err == nil && !strings.Contains(string(b), ") Z ") {
			pids = append(pids, pid)
		}
	}
	return pids
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// A step that fails ends those that run beside it, and its message comes last.
func TestFailedStepEndsTheOthers(t *testing.T) {
	root, path := checkout(t, `until [ -e "`+"$(git rev-parse --show-toplevel)"+`/sleeping" ]; do sleep 0.1; done; echo "a finding"; exit 3`)
	cmd := exec.Command("test/run.sh")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+path, "TMPDIR="+t.TempDir())
	cmd.WaitDelay = time.Second // for programs that still run and write to its output
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.HasSuffix(string(out), "\na finding\n") {
		t.Errorf("%v: %s", err, out)
	}
	eventually(t, "the end of the tests", func() bool { return len(sleeping(root)) == 0 })
}

// Nothing that run.sh has started outlives it, whether a terminal or another program ends it.
func TestInterruptedRun(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		root, path := checkout(t, "")
		tmp := t.TempDir()
		cmd := exec.Command("test/run.sh")
		cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+path, "TMPDIR="+tmp)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the unit tests and the documents", func() bool { return len(sleeping(root)) == 4 }) // each has a child
		_ = syscall.Kill(-cmd.Process.Pid, signal)                                                         // as a terminal does
		if err := cmd.Wait(); err == nil {
			t.Errorf("%v: the interrupted run succeeded", signal)
		}
		eventually(t, "the end of the tests", func() bool { return len(sleeping(root)) == 0 })
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("%v: %v is left, %v", signal, left, err)
		}
	}
}

// A module that test/modules does not list would be neither linted nor tested.
func TestEveryModuleIsListed(t *testing.T) {
	root, path := checkout(t, "")
	if err := errors.Join(os.Mkdir(filepath.Join(root, "new"), 0o755), os.WriteFile(filepath.Join(root, "new/go.mod"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("test/run.sh", "check")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+path)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "< new\n") {
		t.Errorf("%v: %s", err, out)
	}
}
