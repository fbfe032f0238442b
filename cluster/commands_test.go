package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/private"
)

func TestNothingIsLeftOnTheHost(t *testing.T) {
	endings := map[string]func(t *testing.T, root string){
		"down": func(t *testing.T, root string) {
			up(t, root)
			runPod(t, root)
			if out, err := cli(t, root, "down"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		},
		"SIGKILL of the supervisor of three nodes": func(t *testing.T, root string) {
			c := up(t, root, "-nodes", "3")
			checkNodes(t, root)
			s, err := c.state()
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(s.Supervisor, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		"SIGKILL of up while the cluster starts": func(t *testing.T, root string) {
			signalUpAt(t, root, "API server ready", 0, syscall.SIGKILL)
		},
		"SIGINT to up while the cluster starts": func(t *testing.T, root string) {
			signalUpAt(t, root, "API server ready", 0, syscall.SIGINT)
		},
		"SIGKILL of up at each step": func(t *testing.T, root string) {
			for delay := 10 * time.Millisecond; delay < 2*time.Second; delay *= 3 {
				signalUpAt(t, root, "starting cluster", delay, syscall.SIGKILL)
			}
		},
		"SIGKILL of the supervisor at each step": func(t *testing.T, root string) {
			for delay := 10 * time.Millisecond; delay < 2*time.Second; delay *= 3 {
				killSupervisorAt(t, root, delay)
			}
			if out, err := cli(t, root, "down"); err != nil { // removes the cgroups if the cgroup cleaner had not started yet
				t.Fatalf("%v: %s", err, out)
			}
		},
		"deletion of the checkout": func(t *testing.T, root string) {
			up(t, root)
			runPod(t, root)
			if err := os.RemoveAll(root); err != nil {
				t.Fatal(err)
			}
		},
		"SIGINT to up in the foreground": func(t *testing.T, root string) {
			provideTools(t)
			cmd := launcher(root, "up", "-foreground")
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if strings.Contains(lines.Text(), "is ready") {
					_ = cmd.Process.Signal(syscall.SIGINT)
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			root := checkout(t)
			provideTools(t)
			t.Cleanup(func() { _, _ = cli(t, root, "down") }) // in case the test fails
			before := hostState(t, root)
			end(t, root)
			eventually(t, 20*time.Second, "the last process ending", func() bool { return len(leftProcesses(root)) == 0 })
			if after := hostState(t, root); after != before {
				t.Errorf("the host has changed:\n%s", diff(before, after))
			}
		})
	}
}

// signalUpAt starts up, sends it a signal when delay has passed since up printed text,
// and waits until all processes have ended. If the cluster was ready before this process
// came to send the signal, signalUpAt stops the cluster and tries again.
func signalUpAt(t *testing.T, root, text string, delay time.Duration, signal syscall.Signal) {
	t.Helper()
	for range 5 {
		if signalUpOnce(t, root, text, delay, signal) {
			eventually(t, 20*time.Second, "the last process ending", func() bool { return len(leftProcesses(root)) == 0 })
			return
		}
		if out, err := cli(t, root, "down"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	t.Fatal("up succeeded 5 times: it did not receive the signal in time")
}

// signalUpOnce reports whether up ended with an error.
func signalUpOnce(t *testing.T, root, text string, delay time.Duration, signal syscall.Signal) bool {
	t.Helper()
	cmd := launcher(root, "up")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), text) {
			time.AfterFunc(delay, func() { _ = cmd.Process.Signal(signal) })
		}
	}
	return cmd.Wait() != nil
}

// killSupervisorAt starts up and sends SIGKILL to the supervisor when delay has passed
// since up printed that it starts the cluster.
func killSupervisorAt(t *testing.T, root string, delay time.Duration) {
	t.Helper()
	cmd := launcher(root, "up")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var output strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(&output, lines.Text())
		if strings.Contains(lines.Text(), "starting cluster") {
			time.AfterFunc(delay, func() {
				for !killSupervisor(cmd.Process.Pid) && syscall.Kill(cmd.Process.Pid, 0) == nil { // up has not started the supervisor yet
					time.Sleep(time.Millisecond)
				}
			})
		}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(output.String(), "the supervisor ended") {
		t.Errorf("up without its supervisor: %v: %s", err, output.String())
	}
	eventually(t, 20*time.Second, "the last process ending", func() bool { return len(leftProcesses(root)) == 0 })
}

// killSupervisor sends SIGKILL to the supervisor that a process has started, and reports
// whether there was one. Before the supervisor, the runtime of Go starts a child that only
// tests the kernel.
func killSupervisor(parent int) (killed bool) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	for _, thread := range threads {
		children, _ := os.ReadFile(thread)
		for _, pid := range strings.Fields(string(children)) {
			n, _ := strconv.Atoi(pid)
			line, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
			if strings.Contains(string(line), "\x00supervisor\x00") {
				killed = syscall.Kill(n, syscall.SIGKILL) == nil || killed
			}
		}
	}
	return killed
}

// A cluster works in a checkout with any path, also below a directory that the node
// hides, and through a symbolic link to the checkout.
func TestPaths(t *testing.T) {
	provideTools(t)
	odd := filepath.Join("a b", "it's", `"q" $HOME \`, "ünï \u6587", "c:d", "{$PATH}%v", strings.Repeat("x", 100), strings.Repeat("y", 100))
	tmp := t.TempDir()
	for name, bases := range map[string][2]string{"odd": {tmp, tmp}, "below run and on tmpfs": {"/run", "/dev/shm"}} {
		t.Run(name, func(t *testing.T) {
			var dirs [2]string // of the checkout and of the cache
			for i, base := range bases {
				var err error
				if dirs[i], err = os.MkdirTemp(base, "k8s-micro-test-"); err != nil {
					t.Skipf("%v: run as root", err)
				}
				t.Cleanup(func() { os.RemoveAll(dirs[i]) })
			}
			dir, root := dirs[0], filepath.Join(dirs[0], odd)
			checkoutIn(t, root)
			t.Setenv("XDG_CACHE_HOME", copyOfCache(t, filepath.Join(dirs[1], "cache: of 'me'")))
			link := filepath.Join(dir, "link")
			if err := os.Symlink(root, link); err != nil {
				t.Fatal(err)
			}
			before := hostState(t, root)
			up(t, root)
			runPod(t, root)
			image := filepath.Join(root, "an image")
			if err := errors.Join(os.Mkdir(image, 0o755), os.WriteFile(filepath.Join(image, "Dockerfile"), []byte("FROM scratch\nCOPY f /\nCMD [\"/f\"]"), 0o644),
				os.WriteFile(filepath.Join(image, "f"), nil, 0o755)); err != nil {
				t.Fatal(err)
			}
			cmd := launcher(link, "load", "a/b:c="+image)
			cmd.Env = append(os.Environ(), "PWD="+link)
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "loaded a/b:c") {
				t.Errorf("load through a link: %v: %s", err, out)
			}
			if out, err := cli(t, root, "forward", "default/kubernetes:443"); err != nil {
				t.Errorf("forward: %v: %s", err, out)
			}
			// The commands that status prints work in a shell.
			status, err := cli(t, root, "status")
			if err != nil {
				t.Fatalf("status: %v: %s", err, status)
			}
			_, hint, _ := strings.Cut(status, "\n\n")
			if out, err := exec.Command("sh", "-ec", hint+"\nPATH=.cluster/demo/bin:$PATH\ncd "+private.ShellQuote(root)+"\nkubectl get pod pause -o name").CombinedOutput(); err != nil || string(out) != "pod/pause\n" {
				t.Errorf("after %q: %v: %s", hint, err, out)
			}
			cmd = launcher(link, "down")
			cmd.Env = append(os.Environ(), "PWD="+link)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("down through a link: %v: %s", err, out)
			}
			if name == "odd" { // without a node, the components use the path itself
				for _, args := range [][]string{{"up", "-control-plane"}, {"kubectl", "--", "get", "namespaces"}, {"down"}} {
					if out, err := cli(t, root, args...); err != nil {
						t.Errorf("with a control plane only, %q: %v: %s", args, err, out)
					}
				}
			}
			eventually(t, 20*time.Second, "the last process ending", func() bool { return len(leftProcesses(root)) == 0 })
			if after := hostState(t, root); after != before {
				t.Errorf("the host has changed:\n%s", diff(before, after))
			}
		})
	}
}

// The hint puts the cluster's kubectl into PATH when PATH contains no kubectl that works
// with the cluster.
func TestHintForKubectl(t *testing.T) {
	c := demoCluster("/home/you/it's mine")
	for script, want := range map[string]bool{
		"":                  true,
		"exit 1":            true,
		"echo Client v1.37": true,
		`echo '{"clientVersion":{"gitVersion":"v1.10.0"}}'`:   true,
		`echo '{"clientVersion":{"gitVersion":"v1.39.0"}}'`:   true,
		`echo '{"clientVersion":{"gitVersion":"v1.36.5"}}'`:   false,
		`echo '{"clientVersion":{"gitVersion":"v1.38.0+x"}}'`: false,
	} {
		dir := t.TempDir()
		if script != "" {
			if err := os.WriteFile(filepath.Join(dir, "kubectl"), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		t.Setenv("PATH", dir)
		hint := c.hint(state{Version: "v1.37.2"})
		if got := strings.Contains(hint, `export PATH='/home/you/it'\''s mine/.cluster/demo/bin':$PATH`); got != want {
			t.Errorf("with a kubectl that does %q the hint is %s, want PATH in it: %v", script, hint, want)
		}
	}
}

// copyOfCache copies the cache to dir/k8s-micro and returns dir.
func copyOfCache(t *testing.T, dir string) string {
	t.Helper()
	cache := provideTools(t).Cache
	if out, err := exec.Command("sh", "-c", `mkdir -p "$2" && cp -al "$1" "$2/" 2>/dev/null || cp -a "$1" "$2/"`, "sh", cache, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// Without space for its files, or without permission to write them, up returns an error
// with the cause and leaves no process.
func TestCheckoutWithoutRoom(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	provideTools(t)
	t.Setenv("K8S_MICRO_TEST_CACHE", t.TempDir())
	for _, c := range []struct{ name, mount, want string }{
		{"full cache", `export K8S_MICRO_SOURCE=build; mount -t tmpfs -o size=1M tmpfs "$K8S_MICRO_TEST_CACHE"; export XDG_CACHE_HOME="$K8S_MICRO_TEST_CACHE"`, " 0.0 GB free in "},
		{"full build cache", `export K8S_MICRO_SOURCE=build; mount -t tmpfs -o size=1M tmpfs "$K8S_MICRO_TEST_CACHE"; mkdir "$K8S_MICRO_TEST_CACHE/go"; export XDG_CACHE_HOME="$PWD" GOCACHE="$K8S_MICRO_TEST_CACHE/go"`, ` 0.0 GB free in "`},
		{"read-only", "mount --bind . . && mount -o remount,ro,bind .", "read-only file system; the checkout must be writable"},
		{"full", "mkdir .cluster && mount -t tmpfs -o size=100k tmpfs .cluster", "no space left on device"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := checkout(t)
			cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-ec", c.mount+`; cd "$PWD"; exec "$0" up`, program)
			cmd.Dir = root
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), c.want) {
				t.Errorf("%v: %s, want %q", err, out, c.want)
			}
			eventually(t, 20*time.Second, "the last process ending", func() bool { return len(leftProcesses(root)) == 0 })
		})
	}
}

func TestClustersAreIndependent(t *testing.T) {
	first, second := checkout(t), checkout(t)
	home := t.TempDir()
	t.Setenv("KUBECONFIG", filepath.Join(home, "mine"))
	t.Setenv("XDG_CACHE_HOME", filepath.Dir(provideTools(t).Cache))
	t.Setenv("HOME", home)
	a, b := up(t, first), up(t, second)
	runPod(t, first)
	if out, err := cli(t, second, "kubectl", "--", "get", "pods", "-o", "name"); err != nil || out != "" && !strings.Contains(out, "No resources") {
		t.Errorf("the other cluster has pods %q, %v", out, err)
	}
	sa, _ := a.state()
	sb, _ := b.state()
	if sa.API == sb.API {
		t.Errorf("both clusters listen on %s", sa.API)
	}
	if out, err := cli(t, first, "up"); err != nil || !strings.Contains(out, "is already running") {
		t.Errorf("second up: %v: %s", err, out)
	}
	for _, args := range [][]string{{"-ip-family", "dual"}, {"-nodes", "3"}, {"-network-policy"}} {
		if out, err := cli(t, first, append([]string{"up"}, args...)...); err == nil || !strings.Contains(out, "already running, one node; stop it with `down`") {
			t.Errorf("up %q: %v: %s", args, err, out)
		}
	}
	if _, err := os.Stat(filepath.Join(home, "mine")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("up created the user's kubeconfig: %v", err)
	}
	if left, err := os.ReadDir(home); err != nil || len(left) > 0 {
		t.Errorf("the user's home has %v, %v", left, err)
	}
	checkForward(t, first, second)
}

// A cluster starts from downloaded programs and runs a pod. The mirror is reached only
// through a proxy, and the go command could not build anything.
func TestUpFromDownloads(t *testing.T) {
	have := provideTools(t)
	mirror := t.TempDir()
	publish := exec.Command("sh", "-ec", `
version() { awk -v module="$1" '$1 == module { print $2; exit }' kube/go.mod; }
kubernetes=$(version k8s.io/kubernetes) etcd=$(version go.etcd.io/etcd/server/v3) coredns=$(version github.com/coredns/coredns)
k=$MIRROR/dl.k8s.io/release/$kubernetes/bin/linux/$ARCH
e=$MIRROR/github.com/etcd-io/etcd/releases/download/$etcd
c=$MIRROR/github.com/coredns/coredns/releases/download/$coredns
mkdir -p "$k" "$e" "$c"
for p in kube-apiserver kubelet kube-controller-manager kube-scheduler kubectl kube-proxy; do
	cp -L "$PROGRAMS/$p" "$k"
	sha256sum <"$k/$p" | cut -c -64 >"$k/$p.sha256"
done
archive() { tar -C "$PROGRAMS" -ch "$1" | gzip -1; }
archive etcd >"$e/etcd-$etcd-linux-$ARCH.tar.gz"
(cd "$e" && sha256sum etcd-* >SHA256SUMS)
file=coredns_${coredns#v}_linux_$ARCH.tgz
archive coredns >"$c/$file"
(cd "$c" && sha256sum "$file" >"$file.sha256")
cd "$MIRROR" && find . -type f ! -name '*.sha256' ! -name SHA256SUMS -exec sha256sum {} + | sed 's|  ./|  |' >"$SUMS"`)
	root := checkout(t)
	publish.Env = append(os.Environ(), "MIRROR="+mirror, "PROGRAMS="+have.Kube, "ARCH="+runtime.GOARCH, "SUMS="+filepath.Join(root, "cluster/programs/sums.txt"))
	if out, err := publish.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var mu sync.Mutex
	var hosts []string // of the requests for kubelet
	files := http.FileServer(http.Dir(mirror))
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && filepath.Base(r.URL.Path) == "kubelet" {
			mu.Lock()
			hosts = append(hosts, r.Host)
			mu.Unlock()
		}
		files.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	cache := copyOfCache(t, t.TempDir())
	for _, pattern := range []string{"kubernetes-*", "official-*"} {
		dirs, err := filepath.Glob(filepath.Join(cache, "k8s-micro", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range dirs {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	fakeGo(t, "exit 1")
	for _, v := range []string{"no_proxy", "NO_PROXY", "http_proxy"} {
		t.Setenv(v, "")
	}
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("K8S_MICRO_SOURCE", "http://mirror.invalid")
	out, err := cli(t, root, "up")
	t.Cleanup(func() {
		if out, err := cli(t, root, "down"); err != nil {
			t.Errorf("down: %v: %s", err, out)
		}
	})
	if err != nil || !strings.Contains(out, "downloaded and verified") || !strings.Contains(out, "is ready") {
		t.Fatalf("%v: %s", err, out)
	}
	runPod(t, root)
	if !slices.Equal(hosts, []string{"mirror.invalid"}) {
		t.Errorf("the proxy was asked for kubelet of %q", hosts)
	}
}
