package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program is the launcher as users run it.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "k8s-micro-test-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // another user runs it too
	}
	if err == nil {
		program = filepath.Join(dir, "cluster")
		err = goBuild(".", program, "", io.Discard, ".")
	}
	code := 1
	if err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, err)
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// checkout is a project directory with clusters of its own: what the launcher
// looks for, and nothing else.
func checkout(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for dir := root; dir != filepath.Dir(dir) && dir != os.TempDir(); dir = filepath.Dir(dir) {
		_ = os.Chmod(dir, 0o755)
	}
	for _, d := range []string{"cluster", "cluster/pause", "cluster/kube"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob("kube/*")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil {
			err = os.WriteFile(filepath.Join(root, "cluster", f), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func launch(root string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Dir = root
	return cmd
}

// run runs the launcher to its end and returns what it printed, error and all.
func cli(t *testing.T, root string, args ...string) (string, error) {
	t.Helper()
	out, err := launch(root, args...).CombinedOutput()
	return string(out), err
}

func up(t *testing.T, root string, args ...string) *cluster {
	t.Helper()
	provided(t)
	if out, err := cli(t, root, append([]string{"up"}, args...)...); err != nil {
		t.Fatalf("up %q: %v: %s", args, err, out)
	}
	c := &cluster{"demo", root, filepath.Join(root, ".cluster", "demo")}
	t.Cleanup(func() {
		if out, err := cli(t, root, "down"); err != nil {
			t.Errorf("down: %v: %s", err, out)
		}
	})
	return c
}

// provided makes what a cluster needs once, from the real sources, visibly.
func provided(t *testing.T) {
	t.Helper()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&cluster{root: filepath.Dir(wd)}).provide(false); err != nil {
		t.Fatal(err)
	}
}

// host is what a cluster could leave behind.
func host(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, f := range []string{"/proc/self/mounts", "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom", "/proc/sys/kernel/panic",
		"/proc/sys/kernel/panic_on_oops", "/proc/sys/kernel/keys/root_maxkeys", "/proc/sys/net/ipv4/ip_forward", "/proc/net/route", "/proc/sys/kernel/hostname"} {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s:\n%s", f, text)
	}
	for _, dir := range []string{"/sys/class/net", "/opt", "/usr/libexec", "/var/lib", "/var/log", "/run", "/etc/cni"} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			fmt.Fprintln(&b, filepath.Join(dir, e.Name()))
		}
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			fmt.Fprintln(&b, p)
		}
		return nil
	})
	if os.Getuid() == 0 {
		cache, err := cacheDir()
		if err != nil {
			t.Fatal(err)
		}
		bin, _, err := provideNodeTools(cache)
		if err != nil {
			t.Fatal(err)
		}
		rules, err := exec.Command(filepath.Join(bin, "nft"), "list", "ruleset").CombinedOutput()
		if err != nil {
			t.Fatalf("nft: %v: %s", err, rules)
		}
		b.Write(rules)
	}
	return b.String()
}

// processes that belong to a checkout: its directory is in their command line or
// their working directory.
func leftProcesses(root string) (left []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		line, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		cwd, _ := os.Readlink(filepath.Join(d, "cwd"))
		if d != fmt.Sprint("/proc/", os.Getpid()) && (strings.Contains(string(line), root) || strings.HasPrefix(cwd, root)) {
			left = append(left, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return left
}

// within waits for something that takes the kernel a moment.
func soon(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}

func TestAnEndLeavesNothingOnTheHost(t *testing.T) {
	ends := map[string]func(t *testing.T, root string){
		"down": func(t *testing.T, root string) {
			up(t, root)
			runPod(t, root)
			if out, err := cli(t, root, "down"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		},
		"SIGKILL of the keeper": func(t *testing.T, root string) {
			c := up(t, root)
			runPod(t, root)
			s, err := c.state()
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(s.Keeper, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		"SIGKILL of up while it starts": func(t *testing.T, root string) {
			provided(t)
			cmd := launch(root, "up")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if strings.Contains(lines.Text(), "API server ready") {
					_ = cmd.Process.Kill()
				}
			}
			if err := cmd.Wait(); err == nil {
				t.Fatal("up ended well: it was not killed in time")
			}
		},
		"SIGINT to up in the foreground": func(t *testing.T, root string) {
			provided(t)
			cmd := launch(root, "up", "-foreground")
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
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			root := checkout(t)
			provided(t)
			before := host(t)
			end(t, root)
			soon(t, 20*time.Second, "the last process ending", func() bool { return len(leftProcesses(root)) == 0 })
			if after := host(t); after != before {
				t.Errorf("the host has changed:\n%s", diff(before, after))
			}
		})
	}
}

func diff(before, after string) (d string) {
	b, a := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, l := range b {
		if !slices.Contains(a, l) {
			d += "- " + l + "\n"
		}
	}
	for _, l := range a {
		if !slices.Contains(b, l) {
			d += "+ " + l + "\n"
		}
	}
	return d
}

// runPod runs a pod of a non-root user, pulled from the inner registry.
// runPod runs a pod as restricted as the project's manifests.
func runPod(t *testing.T, root string) {
	t.Helper()
	const restricted = `{"spec": {"containers": [{"name": "pause", "image": "k8s-micro/pause:1", "imagePullPolicy": "Always",
		"resources": {"limits": {"memory": "128Mi"}}, "securityContext": {"runAsNonRoot": true, "readOnlyRootFilesystem": true,
		"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}}]}}`
	soon(t, 20*time.Second, "the service account", func() bool {
		_, err := cli(t, root, "kubectl", "--", "get", "serviceaccount", "default")
		return err == nil
	})
	for _, args := range [][]string{
		{"run", "pause", "--image=k8s-micro/pause:1", "--restart=Never", "--overrides=" + restricted},
		{"wait", "pod/pause", "--for=condition=Ready", "--timeout=30s"},
	} {
		if out, err := cli(t, root, append([]string{"kubectl", "--"}, args...)...); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

func TestClustersSideBySide(t *testing.T) {
	one, two := checkout(t), checkout(t)
	home := t.TempDir()
	t.Setenv("KUBECONFIG", filepath.Join(home, "mine"))
	a, b := up(t, one), up(t, two)
	runPod(t, one)
	if out, err := cli(t, two, "kubectl", "--", "get", "pods", "-o", "name"); err != nil || out != "" && !strings.Contains(out, "No resources") {
		t.Errorf("the other cluster has pods %q, %v", out, err)
	}
	sa, _ := a.state()
	sb, _ := b.state()
	if sa.API == sb.API || sa.Registry == sb.Registry {
		t.Errorf("both at %s and %s", sa.API, sa.Registry)
	}
	if out, err := cli(t, one, "up"); err != nil || !strings.Contains(out, "runs already") {
		t.Errorf("a second up: %v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(home, "mine")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the user's kubeconfig was touched: %v", err)
	}
	forwarded(t, one, two)
}

// forwarded reaches a Service of both clusters from the host, at one port and
// another, whatever becomes of the Service, until the cluster ends.
func forwarded(t *testing.T, one, two string) {
	t.Helper()
	service := filepath.Join(t.TempDir(), "service.yaml")
	if err := os.WriteFile(service, []byte(`{apiVersion: v1, kind: List, items: [
  {apiVersion: v1, kind: Service, metadata: {name: api}, spec: {ports: [{port: 19200, targetPort: 6443}]}},
  {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: api, labels: {kubernetes.io/service-name: api}},
    addressType: IPv4, ports: [{port: 6443}], endpoints: [{addresses: [10.10.0.1]}]}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	create := func(root string) {
		t.Helper()
		if out, err := cli(t, root, "kubectl", "--", "create", "-f", service); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	answers := func(address string) bool { // the API server does not like plain HTTP, and says so
		resp, err := http.Get("http://" + address)
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusBadRequest
	}
	var at []string
	for _, root := range []string{one, two, one} {
		out, err := cli(t, root, "forward", "default/api:19200")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		at = append(at, strings.TrimSpace(out))
	}
	if at[0] != "127.0.0.1:19200" || at[1] == at[0] || at[2] != at[0] {
		t.Errorf("forwarded to %q, want 127.0.0.1:19200, another and the first again", at)
	}
	create(one)
	create(two)
	for _, address := range at {
		soon(t, 20*time.Second, "an answer at "+address, func() bool { return answers(address) })
	}
	if out, err := cli(t, one, "kubectl", "--", "delete", "-f", service); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	create(one) // at another address
	soon(t, 40*time.Second, "an answer of the Service made anew", func() bool { return answers(at[0]) })
	if out, err := cli(t, one, "down"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := net.Dial("tcp", at[0]); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after its cluster's end %s is: %v", at[0], err)
	}
	if !answers(at[1]) {
		t.Error("the other cluster is not reached any more")
	}
}

// A component that ends is started again, as a kubelet would do for a static pod.
func TestKilledAPIServerComesBack(t *testing.T) {
	root := checkout(t)
	up(t, root)
	runPod(t, root)
	if out, err := cli(t, root, "node", "--", "pkill", "-KILL", "-f", "kube-apiserver --etcd"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	soon(t, 30*time.Second, "the API server coming back with what it knew", func() bool {
		out, err := cli(t, root, "kubectl", "--", "get", "pod", "pause", "-o", "jsonpath={.status.phase}")
		return err == nil && out == "Running"
	})
}

func TestControlPlaneOnly(t *testing.T) {
	root := checkout(t)
	c := up(t, root, "-control-plane")
	if out, err := cli(t, root, "kubectl", "--", "create", "configmap", "mine", "--from-literal=a=b"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, args := range [][]string{{"load", "a=b"}, {"node", "true"}, {"forward", "a/b:1"}} {
		if out, err := cli(t, root, args...); err == nil || !strings.Contains(out, "no node") && !strings.Contains(out, "has none") {
			t.Errorf("%s: %v: %s", args, err, out)
		}
	}
	if out, err := cli(t, root, "up"); err == nil || !strings.Contains(out, "control plane only") {
		t.Errorf("up with a node: %v: %s", err, out)
	}
	line, _ := exec.Command("pgrep", "-f", "kube etcd --data-dir="+c.path("etcd")).Output()
	args, _ := os.ReadFile("/proc/" + strings.TrimSpace(string(line)) + "/cmdline")
	_, rest, _ := bytes.Cut(args, []byte("--listen-client-url="))
	address, _, _ := strings.Cut(string(rest), "\x00")
	if resp, err := http.Get(strings.Replace(address, "https", "http", 1) + "/version"); err == nil && resp.StatusCode == http.StatusOK {
		t.Errorf("etcd at %q answers to anybody", address)
	}
	s, err := c.state()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.Keeper, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	soon(t, 10*time.Second, "etcd and kube-apiserver ending with their keeper", func() bool { return len(leftProcesses(root)) == 0 })
}

func TestMessages(t *testing.T) {
	root := checkout(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "no command: use up"},
		{[]string{"fly"}, `running "fly": no such command`},
		{[]string{"status"}, `cluster "demo": it does not run; start it with`},
		{[]string{"load", "a=b"}, "it does not run"},
		{[]string{"kubectl", "version"}, "it does not run"},
		{[]string{"node", "true"}, "it does not run"},
		{[]string{"forward", "a/b:1"}, "it does not run"},
		{[]string{"up", "-name", "../up"}, "want a plain word"},
	} {
		out, err := cli(t, root, c.args...)
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("cluster %q: %v: %q, want %q", c.args, err, out, c.want)
		}
	}
	if out, err := cli(t, root, "down"); err != nil {
		t.Errorf("down without a cluster: %v: %s", err, out)
	}
	outside := launch(t.TempDir(), "status")
	if out, err := outside.CombinedOutput(); err == nil || !strings.Contains(string(out), "run it inside the checkout") {
		t.Errorf("outside a checkout: %v: %s", err, out)
	}
}

func TestOlder(t *testing.T) {
	for _, c := range []struct {
		v, min string
		want   bool
	}{{"1.6.20", "1.6", false}, {"1.5.9", "1.6", true}, {"2.0", "1.6", false}, {"", "1.1", true}, {"1.0.1", "1.0.1", false}, {"5.4.0", "5.13", true}, {"1", "1.1", false}} {
		if got := older(c.v, c.min); got != c.want {
			t.Errorf("older(%q, %q) = %v", c.v, c.min, got)
		}
	}
}
