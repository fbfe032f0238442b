package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asNobody runs a shell script as a user who owns no file.
func asNobody(script string) (string, error) {
	out, err := exec.Command("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", script).CombinedOutput()
	return string(out), err
}

// reachable lists the TCP ports and the abstract Unix sockets on which the processes of a
// checkout listen in the host's network namespace.
func reachable(t *testing.T, root string) (ports, abstract []string) {
	t.Helper()
	sockets := map[string]bool{} // inodes
	for _, pid := range checkoutProcesses(root) {
		files, _ := os.ReadDir(filepath.Join("/proc", pid, "fd"))
		for _, f := range files {
			target, _ := os.Readlink(filepath.Join("/proc", pid, "fd", f.Name()))
			if inode, ok := strings.CutPrefix(target, "socket:["); ok {
				sockets[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	for _, f := range []string{"/proc/net/tcp", "/proc/net/tcp6", "/proc/net/unix"} {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range strings.Split(string(text), "\n")[1:] {
			f := strings.Fields(l)
			if len(f) > 9 && f[3] == "0A" && sockets[f[9]] {
				port, err := strconv.ParseUint(f[1][strings.LastIndex(f[1], ":")+1:], 16, 16)
				if err != nil {
					t.Fatal(err)
				}
				ports = append(ports, fmt.Sprint(port))
			} else if len(f) == 8 && strings.HasPrefix(f[7], "@") && sockets[f[6]] {
				abstract = append(abstract, f[7])
			}
		}
	}
	return ports, abstract
}

// Another local user reaches only one port of a running cluster, the port of the API
// server, which requires a certificate. The user cannot read, write or lock any file, not
// even a file that an older version of the launcher left readable for everyone.
func TestOtherUsersReachNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	cache := provideTools(t).Cache
	root := checkout(t)
	clusters := filepath.Join(root, ".cluster")
	lock := filepath.Join(clusters, "demo.lock")
	if err := os.Mkdir(clusters, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lock, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := asNobody("flock -n " + lock + " true"); err != nil {
		t.Fatalf("before up, every user must be able to lock the file: %v: %s", err, out)
	}
	setUserEnvironment(t)
	c := up(t, root)
	runPod(t, root)
	checkEnvironment(t, root, 11) // 8 components, the supervisor, init and the node manager
	s, err := c.state()
	if err != nil {
		t.Fatal(err)
	}

	ports, abstract := reachable(t, root)
	_, api, _ := net.SplitHostPort(s.API)
	if !slices.Equal(ports, []string{api}) {
		t.Errorf("the cluster listens on ports %q of the host, want only the API server's %s", ports, api)
	}
	if len(abstract) > 0 {
		t.Errorf("the cluster has the abstract sockets %q", abstract)
	}
	anonymous := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for _, path := range []string{"/api/v1/pods", "/api/v1/secrets", "/metrics", "/logs/", "/debug/pprof/"} {
		resp, err := anonymous.Get("https://" + s.API + path)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s without a certificate: %s, want 401 or 403", path, resp.Status)
		}
	}

	for _, script := range []string{
		"flock -n " + lock + " true", "cat " + lock, "ls " + clusters, "cat " + c.path("cluster.json"), "cat " + c.path("log", "supervisor.log"),
		"cat " + c.path("kubeconfig"), "touch " + c.path("x"), "test -w " + c.path("registry.sock"), "test -S " + c.path("forward.sock"),
		fmt.Sprintf("cat /proc/%d/environ", s.Supervisor), fmt.Sprintf("ls /proc/%d/root/run/k8s-micro", s.Node), fmt.Sprintf("kill -0 %d", s.Supervisor),
	} {
		if out, err := asNobody(script); err == nil {
			t.Errorf("another user can run %q: %s", script, out)
		}
	}
	for path, want := range map[string]os.FileMode{clusters: 0o700, lock: 0o600, c.dir: 0o700, cache: 0o700, filepath.Join(cache, "lock"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%q has mode %v, want %o; %v", path, info.Mode(), want, err)
		}
	}

	// The node reaches the registry's reader, which refuses writes.
	out, err := cli(t, root, "node", "--", "bash", "-c",
		`exec 3<>/dev/tcp/127.0.0.2/5000; printf 'POST /v2/k8s-micro/pause/blobs/uploads/ HTTP/1.0\r\n\r\n' >&3; head -1 <&3`)
	if err != nil || !strings.Contains(out, "405") {
		t.Errorf("pushing from the node: %v: %q, want status 405", err, out)
	}
	// The node cannot write to the host's file systems, devices and kernel.
	for _, path := range []string{"/x", "/dev/x", "/dev/shm/x", cache + "/x", "/run/k8s-micro/cache/x"} {
		if out, err := cli(t, root, "node", "--", "touch", path); err == nil {
			t.Errorf("the node can write %q: %s", path, out)
		}
	}
	if out, err := cli(t, root, "node", "find", "/dev", "-type", "b", "-o", "-name", "mem"); err != nil || out != "" {
		t.Errorf("the node has the devices %q, %v", out, err)
	}
	if out, err := cli(t, root, "node", "sh", "-c", "find /sys -writable -type f ! -path '/sys/fs/cgroup/*' | grep . && exit 1; echo x >/dev/null && head -c 1 /dev/urandom >/dev/null"); err != nil {
		t.Errorf("the node can write in /sys, or not to /dev/null: %v: %.300s", err, out)
	}
	// CoreDNS reads what it needs, which the test of forward shows, and nothing else.
	for _, resource := range []string{"configmaps", "pods", "secrets"} {
		if out, err := cli(t, root, "kubectl", "auth", "can-i", "list", resource, "--as=coredns", "-A"); err == nil || !strings.Contains(out, "no") {
			t.Errorf("CoreDNS may list %s: %v: %s", resource, err, out)
		}
	}
}

// If several processes start a cluster at the same time, one starts it and the others wait.
func TestConcurrentUps(t *testing.T) {
	provideTools(t)
	root := checkout(t)
	t.Cleanup(func() { _, _ = cli(t, root, "down") })
	var outs [3]bytes.Buffer
	var ups [3]*exec.Cmd
	for i := range ups {
		ups[i] = launcher(root, "up")
		ups[i].Stdout, ups[i].Stderr = &outs[i], &outs[i]
		if err := ups[i].Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	started := 0
	for i := range ups {
		if err := ups[i].Wait(); err != nil {
			t.Errorf("up %d: %v: %s", i, err, outs[i].String())
		}
		if strings.Contains(outs[i].String(), `cluster "demo" is ready`) {
			started++
		} else if !strings.Contains(outs[i].String(), "waiting for another process") || !strings.Contains(outs[i].String(), "is already running") {
			t.Errorf("up %d: %s", i, outs[i].String())
		}
	}
	if started != 1 {
		t.Errorf("%d processes started the cluster, want 1", started)
	}
}

// While one up waits for another up, it starts the cluster if the other fails.
func TestUpAfterAFailedUp(t *testing.T) {
	provideTools(t)
	root := checkout(t)
	t.Cleanup(func() { _, _ = cli(t, root, "down") })
	first := launcher(root, "up", "-foreground")
	stdin, err := first.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, err := first.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAtLeast(out, make([]byte, 10), 10); err != nil { // the first up holds the lock
		t.Fatal(err)
	}
	second := launcher(root, "up", "-control-plane")
	messages, err := second.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	second.Stderr = second.Stdout
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	killed := false
	for lines := bufio.NewScanner(messages); lines.Scan(); {
		fmt.Fprintln(&text, lines.Text())
		if strings.Contains(lines.Text(), "waiting for another process") {
			killed = true
			_ = first.Process.Kill()
			_ = first.Wait()
		}
	}
	if err := second.Wait(); err != nil || !killed || !strings.Contains(text.String(), "is ready") {
		t.Errorf("%v, waited: %v: %s", err, killed, text.String())
	}
}

func TestClusterNames(t *testing.T) {
	for name, want := range map[string]bool{"demo": true, "e2e-demo": true, "A_1": true, "": false, ".": false, "..": false, "a/b": false,
		"demo.lock": false, "-x": false, "a b": false, "a'b": false, "a\nb": false, "ü": false, strings.Repeat("x", 64): false} {
		if _, err := newCluster(name); (err == nil) != want {
			t.Errorf("name %q: %v, want valid %v", name, err, want)
		}
	}
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
	pid := filepath.Join(t.TempDir(), "pid")
	fakeGo(t, "echo $$ >"+pid+"; exec sleep 100")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("K8S_MICRO_SOURCE", "build")
	var output bytes.Buffer
	cmd := launcher(root, "up", "-control-plane")
	cmd.Stderr = &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the build", func() bool { return exists(pid) })
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
	if err := cmd.Wait(); err == nil || !strings.Contains(output.String(), "interrupted") {
		t.Errorf("up after SIGINT while it built: %v: %s", err, output.String())
	}
	if err := down.Wait(); err != nil {
		t.Errorf("down after the interrupted build: %v", err)
	}
}

// While a cluster stops, up waits for its end instead of saying that it is running. The supervisor is a script that needs
// 2 s after SIGTERM, or that leaves a process with the lock after SIGKILL.
func TestUpWaitsForAStop(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"down": 0, "SIGKILL of the supervisor": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			root := checkout(t)
			c := demoCluster(root)
			lock, err := c.lock()
			if err != nil {
				t.Fatal(err)
			}
			stopping := filepath.Join(t.TempDir(), "stopping")
			supervisor := exec.Command("sh", "-c", `trap ': >"$0"; sleep 2; exit' TERM; sleep 3 & : >"$0.started"; while :; do sleep 0.1; done`, stopping)
			supervisor.ExtraFiles = []*os.File{lock}
			if err := supervisor.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { _ = supervisor.Wait(); close(ended) }()
			t.Cleanup(func() { _ = supervisor.Process.Kill(); <-ended })
			lock.Close()
			eventually(t, 20*time.Second, "the supervisor", func() bool { return exists(stopping + ".started") })
			if err := errors.Join(os.MkdirAll(c.dir, 0o700), c.save(state{Supervisor: supervisor.Process.Pid}), c.markReady()); err != nil {
				t.Fatal(err)
			}
			if _, err := c.lockOrReady(); !errors.Is(err, errRunning) {
				t.Fatalf("before the stop: %v, want %v", err, errRunning)
			}
			if signal == 0 {
				down := launcher(root, "down")
				if err := down.Start(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = down.Wait() })
				eventually(t, 20*time.Second, "SIGTERM from down", func() bool { return exists(stopping) })
			} else {
				_ = supervisor.Process.Signal(signal)
				<-ended
			}
			lock, err = c.lockOrReady()
			if err != nil {
				t.Fatalf("during the stop: %v, want the lock after it", err)
			}
			lock.Close()
		})
	}
}
