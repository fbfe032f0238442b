// Package test tests run.sh, with programs in its PATH that take the place of the real ones.
package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sleep is a runner of tests that does not end. Like the launcher it starts a cluster, whose supervisor has a session of its own and ignores the end of its
// parent. Scripts find the checkout in root, and in module the folder of the module in which they run.
const sleep = `sleep 1000 & child=$!; setsid sleep 1000 & mkdir -p "$root/.cluster/e2e-demo"; : >"$root/.cluster/e2e-demo/cluster.json"; echo $$ $child $! >>"$root/sleeping"; wait`

// checkout returns a directory in which run.sh finds the modules of test/modules, and a PATH in which golangci-lint
// and gotestsum, the runner of tests, run scripts and the other programs succeed.
func checkout(t *testing.T, lint, tests string) (root, path string) {
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
		"go":            `[ "$1" != tool ] || for last; do :; done; [ "$1" != tool ] || echo "` + bin + `/$last"; case $* in *" down "*) echo "$*" >>"$root/stopped" ;; *" status -name e2e-demo") exit 1 ;; esac`,
		"golangci-lint": lint,
		"gotestsum":     `for a; do case $before in --jsonfile-timing-events) events=$a; : >"$a" ;; --rerun-fails-report) report=$a ;; esac; before=$a; done` + "\n" + tests,
		"gofmt":         "",
		"make":          "",
		"shellcheck":    "",
		"chromium":      "",
		"docker":        "",
	} {
		write(filepath.Join(bin, name), "#!/bin/sh\nroot='"+root+"' module=${PWD#'"+root+"'}\nmodule=${module#/}\n"+script+"\n")
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

// A step that fails ends those that run beside it with the clusters that they have started, but no other cluster, and its message comes last.
func TestFailedStepEndsTheOthers(t *testing.T) {
	root, path := checkout(t, `until [ -e "$root/sleeping" ]; do sleep 0.1; done; echo "a finding"; exit 3`, sleep)
	mine := filepath.Join(root, ".cluster/demo/cluster.json")
	if err := errors.Join(os.MkdirAll(filepath.Dir(mine), 0o755), os.WriteFile(mine, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("test/run.sh")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+path, "TMPDIR="+t.TempDir())
	cmd.WaitDelay = time.Second // for programs that still run and write to its output
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.HasSuffix(string(out), "\na finding\n") {
		t.Errorf("%v: %s", err, out)
	}
	if left := sleeping(root); len(left) > 0 {
		t.Errorf("the processes %d are left", left)
	}
	if stopped, err := os.ReadFile(filepath.Join(root, "stopped")); string(stopped) != "run -C cluster . down -name e2e-demo\n" {
		t.Errorf("stopped clusters: %q, %v", stopped, err)
	}
}

// Nothing that run.sh has started outlives it, whether a terminal or another program ends it.
func TestInterruptedRun(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		root, path := checkout(t, "", sleep)
		tmp := t.TempDir()
		cmd := exec.Command("test/run.sh")
		cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+path, "TMPDIR="+tmp)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the unit tests and the documents", func() bool { return len(sleeping(root)) == 6 }) // each has two children
		_ = syscall.Kill(-cmd.Process.Pid, signal)                                                         // as a terminal does
		if err := cmd.Wait(); err == nil {
			t.Errorf("%v: the interrupted run succeeded", signal)
		}
		if left := sleeping(root); len(left) > 0 {
			t.Errorf("%v: the processes %d are left", signal, left)
		}
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("%v: %v is left, %v", signal, left, err)
		}
	}
}

// A module that test/modules does not list would be neither linted nor tested.
func TestEveryModuleIsListed(t *testing.T) {
	root, path := checkout(t, "", "")
	if err := errors.Join(os.Mkdir(filepath.Join(root, "new"), 0o755), os.WriteFile(filepath.Join(root, "new/go.mod"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("test/run.sh", "check")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+path)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "< new\n") {
		t.Errorf("%v: %s", err, out)
	}
}

// A run that passes has linted and tested every module, as test/modules says, and run every end-to-end test once: three
// groups are named by patterns, and the fourth leaves out what these match.
func TestWholeRun(t *testing.T) {
	root, path := checkout(t, `echo "lint ${module:-.}" >>"$root/calls"`, `echo "test ${module:-.} $*" >>"$root/calls"`)
	cmd := exec.Command("test/run.sh")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+path, "TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "\n== Lint") || !strings.Contains(string(out), "\n== Passed") {
		t.Errorf("%v: %s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(root, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	calls := "\n" + string(b)
	list, err := os.ReadFile("modules")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		for word, call := range map[string]string{"lint": "\nlint " + fields[0] + "\n", "unit": "\ntest " + fields[0] + " --format pkgname "} {
			want := 0
			if slices.Contains(fields, word) {
				want = 1
			}
			if got := strings.Count(calls, call); got != want {
				t.Errorf("%s: %d calls of %s, want %d", fields[0], got, word, want)
			}
		}
	}
	var named, skipped []string
	for _, call := range regexp.MustCompile(`-tags e2e -(run|skip) (\S+)`).FindAllStringSubmatch(calls, -1) {
		if call[1] == "run" {
			named = append(named, call[2])
		} else {
			skipped = append(skipped, call[2])
		}
	}
	left := strings.Join(skipped, " ")
	for _, group := range named { // in any order: two run at the same time
		left = strings.Replace(left, group, "", 1)
	}
	if len(named) != 3 || len(skipped) != 1 || left != "||" {
		t.Errorf("the groups %q are named, the last leaves out %q", named, skipped)
	}
}

// Tests that fail are run again. The end of the run names those that have passed then. A package that fails without a test has
// no test to run again, so that it ends the run.
func TestFailuresAreRunAgain(t *testing.T) {
	for name, c := range map[string]struct {
		events, report string
		passes         bool
		want           string
	}{
		"a test fails once": {`{"Time":"1","Action":"fail","Package":"p/a","Test":"TestX","Elapsed":1}
{"Time":"1","Action":"fail","Package":"p/a","Elapsed":1}
{"Time":"1","Action":"pass","Package":"p/a","Test":"TestX","Elapsed":1}
{"Time":"1","Action":"pass","Package":"p/a","Elapsed":1}`, "p/a.TestX: 2 runs, 1 failures", true, "p/a.TestX: 2 runs, 1 failures\nThese tests have failed once"},
		"a package leaks": {`{"Time":"1","Action":"pass","Package":"p/b","Test":"TestX","Elapsed":1}
{"Time":"1","Action":"fail","Package":"p/b","Elapsed":1}`, "", false, "p/b\nrunning the tests of the packages above"},
		"a package leaks when its test is run again": {`{"Time":"1","Action":"fail","Package":"p/a","Test":"TestX","Elapsed":1}
{"Time":"1","Action":"fail","Package":"p/a","Elapsed":1}
{"Time":"1","Action":"pass","Package":"p/a","Test":"TestX","Elapsed":1}
{"Time":"1","Action":"fail","Package":"p/a","Elapsed":1}`, "p/a.TestX: 2 runs, 1 failures", false, "p/a\nrunning the tests of the packages above"},
		"nothing fails": {`{"Time":"1","Action":"pass","Package":"p/a","Test":"TestX","Elapsed":1}`, "", true, "== Passed"},
	} {
		t.Run(name, func(t *testing.T) {
			root, path := checkout(t, "", `if [ "$module" = preflight ]; then cp "$root/events" "$events"; cp "$root/report" "$report"; fi`)
			if err := errors.Join(os.WriteFile(filepath.Join(root, "events"), []byte(c.events+"\n"), 0o644), os.WriteFile(filepath.Join(root, "report"), []byte(c.report), 0o644)); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("test/run.sh")
			cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+path, "TMPDIR="+t.TempDir())
			out, err := cmd.CombinedOutput()
			if (err == nil) != c.passes || !strings.Contains(string(out), c.want) || strings.Contains(string(out), "have failed once") != (c.passes && c.report != "") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
