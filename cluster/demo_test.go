package main

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/private"
)

// Ctrl-C ends make demo and the compiler that it runs in the background, whose temporary files are removed.
func TestInterruptedDemo(t *testing.T) {
	root, tools, tmp := t.TempDir(), t.TempDir(), t.TempDir()
	copyCheckoutTo(t, root, 0o022)
	script := "#!/bin/sh\n[ $1 != env ] || case $2 in GOVERSION) echo go1.99.0; exit ;; *) pwd; exit ;; esac\nmkdir \"${GOTMPDIR:-$TMPDIR}/go-build-$1\"\necho $$ >'" + tools + "'/$1.pid\nexec sleep 100\n"
	if err := os.WriteFile(filepath.Join(tools, "go"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "demo.sh")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"), "CLUSTER=interrupted", "TMPDIR="+tmp, "GOTMPDIR=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	processes := func() (pids []int) {
		for _, command := range []string{"list", "run"} {
			text, _ := os.ReadFile(filepath.Join(tools, command+".pid"))
			if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && syscall.Kill(pid, 0) == nil {
				pids = append(pids, pid)
			}
		}
		return pids
	}
	eventually(t, 30*time.Second, "the launcher and the compiler", func() bool { return len(processes()) == 2 })
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) // as a terminal does
	if err := cmd.Wait(); err == nil {
		t.Error("the interrupted demo succeeded")
	}
	eventually(t, 20*time.Second, "their end", func() bool { return len(processes()) == 0 })
	if left, err := filepath.Glob(filepath.Join(tmp, "*")); err != nil || len(left) != 1 || filepath.Base(left[0]) != "go-build-run" { // of the fake launcher
		t.Errorf("%q is left, %v", left, err)
	}
}

// Without a go command, with one that is older than toolchains, or with one that cannot write to its cache,
// make demo says what to do.
func TestDemoWithoutGo(t *testing.T) {
	root := t.TempDir()
	copyCheckoutTo(t, root, 0o022)
	for name, c := range map[string]struct{ script, want string }{
		"no go":           {"", "install Go 1.26 or newer"},
		"old go":          {"echo go1.18.1\n", "install Go 1.26 or newer"},
		"no cache":        {"case $2 in GOVERSION) echo go1.99.0 ;; GOCACHE) echo off ;; esac\n", "set GOCACHE"},
		"read-only cache": {"case $2 in GOVERSION) echo go1.99.0 ;; GOCACHE) echo /proc/cache ;; esac\n", `writing to "/proc/cache": it is impossible; set GOCACHE`},
	} {
		bare := pathWith(t, "sh", "dirname", "grep", "sed", "mkdir") // what make demo needs before it finds go
		if c.script != "" {
			if err := os.WriteFile(filepath.Join(bare, "go"), []byte("#!/bin/sh\n"+c.script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command("make", "demo")
		cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+bare)
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), c.want) || exists(filepath.Join(root, ".cluster")) || exists(filepath.Join(root, "off")) {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

// pathWith returns a directory with links to programs, for a PATH that has no others.
func pathWith(t *testing.T, programs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, program := range programs {
		path, err := exec.LookPath(program)
		if err == nil {
			err = os.Symlink(path, filepath.Join(dir, program))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// make demo works in an odd path, below a Go workspace of other modules, and without a network, although
// the proxy, the locale, the umask, the limit of open files, the system to compile for and the kubectl in PATH are
// unusual and its port is taken. A second run, after a change of one service and after SIGKILL of the API server,
// replaces the pods of that service.
func TestDemoInAHostileEnvironment(t *testing.T) {
	provideTools(t)
	workspace := t.TempDir()
	root := filepath.Join(workspace, "it's", `a "copy" of: $HOME`)
	copyCheckoutTo(t, root, 0o077)
	if err := os.WriteFile(filepath.Join(workspace, "go.work"), []byte("go 1.26\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tools := t.TempDir()
	if err := os.WriteFile(filepath.Join(tools, "kubectl"), []byte("#!/bin/sh\necho 'error: unknown flag' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:9200")
	isTaken := err == nil // otherwise by another program, which may end before the demo needs it
	if isTaken {
		defer l.Close()
	}
	env := append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"), "GOPROXY=off", "GOFLAGS=-buildvcs=auto", "GOOS=plan9", "LANG=tr_TR.UTF-8", "LC_ALL=tr_TR.UTF-8",
		"HTTP_PROXY=http://127.0.0.1:9", "HTTPS_PROXY=http://127.0.0.1:9", "http_proxy=http://127.0.0.1:9", "https_proxy=http://127.0.0.1:9", "NO_PROXY=", "no_proxy=")
	sh := func(script string) string {
		t.Helper()
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir, cmd.Env = root, env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	t.Cleanup(func() {
		if out, err := cli(t, root, "down"); err != nil {
			t.Errorf("down: %v: %s", err, out)
		}
	})
	demo := "umask 077; ulimit -n 1024; cd /; make -j4 --no-print-directory -C " + private.ShellQuote(root) + " demo"
	check := func(out string) {
		t.Helper()
		page := regexp.MustCompile(`http://127\.0\.0\.1:(\d+)/registry/`).FindStringSubmatch(out)
		if page == nil || isTaken && page[1] == "9200" || !strings.Contains(out, "\nServer Hello XXX!\n") {
			t.Fatalf("the demo printed\n%s", out)
		}
		resp, err := http.Get(page[0])
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusOK {
			t.Errorf("the page at %s is %s", page[0], resp.Status)
		}
	}
	check(sh(demo))

	sh(`printf 'func init() { println("edited") }\n' >>go-micro-srv/main.go`)
	if out, err := cli(t, root, "node", "--", "pkill", "-KILL", "-f", "kube-apiserver --etcd"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	eventually(t, time.Minute, "the API server", func() bool {
		_, err := cli(t, root, "kubectl", "--", "get", "--raw", "/readyz")
		return err == nil
	})
	out := sh(demo)
	check(out)
	if strings.Count(out, "is up to date") != 3 || strings.Count(out, "] loaded ") != 1 || !strings.Contains(out, "\nedited\n") {
		t.Errorf("after a change of go-micro-srv the demo printed\n%s", out)
	}
	sh("make --no-print-directory cluster-down")
	eventually(t, 20*time.Second, "the last process ending", func() bool { return len(leftProcesses(root)) == 0 })
}
