package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/programs"
)

// program is the path of the launcher that TestMain builds.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "k8s-micro-test-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // tests run the launcher as other users too
	}
	if err == nil {
		program = filepath.Join(dir, "cluster")
		var out []byte
		if out, err = exec.Command("go", "build", "-trimpath", "-o", program, ".").CombinedOutput(); err != nil {
			err = fmt.Errorf("building the launcher: %w: %s", err, out)
		}
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

// checkout creates a directory with the files that the launcher reads. The launcher
// keeps the clusters of each such directory separate.
func checkout(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for dir := root; dir != filepath.Dir(dir) && dir != os.TempDir(); dir = filepath.Dir(dir) {
		_ = os.Chmod(dir, 0o755)
	}
	return checkoutIn(t, root)
}

// checkoutIn is checkout in a given directory, which it creates if necessary.
func checkoutIn(t *testing.T, root string) string {
	t.Helper()
	for _, d := range []string{"cluster", "cluster/pause", "cluster/kube", "cluster/networkpolicy", "cluster/programs"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files := []string{"pause/main.go", "programs/sums.txt"}
	for _, d := range []string{"kube", "networkpolicy"} {
		sources, err := filepath.Glob(d + "/*")
		if err != nil || len(sources) == 0 {
			t.Fatal(sources, err)
		}
		files = append(files, sources...)
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

// launcher returns a command that runs the launcher with root as its working directory.
func launcher(root string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Dir = root
	return cmd
}

// cli runs the launcher and returns its output, including standard error.
func cli(t *testing.T, root string, args ...string) (string, error) {
	t.Helper()
	out, err := launcher(root, args...).CombinedOutput()
	return string(out), err
}

// up starts a cluster and stops it at the end of the test.
func up(t *testing.T, root string, args ...string) *cluster {
	t.Helper()
	provideTools(t)
	if out, err := cli(t, root, append([]string{"up"}, args...)...); err != nil {
		t.Fatalf("up %q: %v: %s", args, err, out)
	}
	t.Cleanup(func() {
		if !exists(root) { // the test has deleted it, which ends the cluster
			return
		}
		if out, err := cli(t, root, "down"); err != nil {
			t.Errorf("down: %v: %s", err, out)
		}
	})
	return demoCluster(root)
}

// demoCluster returns the cluster with the default name in a checkout.
func demoCluster(root string) *cluster {
	return &cluster{"demo", root, filepath.Join(root, ".cluster", "demo")}
}

// provideTools provides the programs of a cluster without options.
func provideTools(t *testing.T) programs.Tools {
	t.Helper()
	return provideToolsWith(t, programs.Options{})
}

// provideToolsWith builds and downloads the programs of a cluster, so that no later step of
// the test does so.
func provideToolsWith(t *testing.T, options programs.Options) programs.Tools {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a Kubernetes build: run without -short")
	}
	options.Progress = progress
	tools, err := programs.Provide(t.Context(), "..", options)
	if err != nil {
		t.Fatal(err)
	}
	if nft == "" {
		nft = filepath.Join(tools.Bin, "nft")
	}
	return tools
}

// nft is the program that lists the rules of the host's firewall.
var nft string

// otherPrograms matches what systemd, its timers, snapd, sudo, Docker and Podman make and remove
// at any time: mounts, files, and cgroups, which systemd names after their units. Podman runs in
// the tests of cluster/image, at the same time as these tests.
var otherPrograms = regexp.MustCompile(`^/run/(user|systemd|credentials|udev|snapd|sudo|docker|containers|libpod|crun|buildkit|lock|motd|reboot|utmp|apt|unattended|shadow)|` +
	`^/(snap|var/snap|var/lib/docker|var/lib/containers)(/|$)|/TestSameAsDocker|^/var/log/[^/]*(log|\.gz|\.\d+|tmp|journal)$|` +
	`^/sys/fs/cgroup(/[^/]+)?/([^/]+\.(slice|scope|service)|docker|libpod_parent|buildkit)(/|$)`)

// hostState describes everything on the host that the checkout's cluster could leave behind.
func hostState(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	for _, f := range []string{"/proc/self/mounts", "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom", "/proc/sys/kernel/panic",
		"/proc/sys/kernel/panic_on_oops", "/proc/sys/kernel/keys/root_maxkeys", "/proc/sys/net/ipv4/ip_forward", "/proc/net/route", "/proc/sys/kernel/hostname"} {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, f)
		for line := range strings.Lines(string(text)) {
			if f != "/proc/self/mounts" || !otherPrograms.MatchString(strings.Fields(line)[1]) {
				b.WriteString(line)
			}
		}
	}
	for _, dir := range []string{"/sys/class/net", "/opt", "/usr/libexec", "/var/lib", "/var/log", "/run", "/etc/cni"} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if path := filepath.Join(dir, e.Name()); !otherPrograms.MatchString(path) {
				fmt.Fprintln(&b, path)
			}
		}
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d os.DirEntry, err error) error {
		other := strings.HasPrefix(d.Name(), "k8s-micro-") && d.Name() != "k8s-micro-"+demoCluster(root).id()
		if err == nil && d.IsDir() {
			if other || otherPrograms.MatchString(p) { // a cluster of another checkout, or no cluster
				return filepath.SkipDir
			}
			fmt.Fprintln(&b, p)
		}
		return nil
	})
	if os.Getuid() == 0 {
		rules, err := exec.Command(nft, "list", "ruleset").CombinedOutput()
		if err != nil {
			t.Fatalf("nft: %v: %s", err, rules)
		}
		b.Write(rules)
	}
	return b.String()
}

// leftProcesses lists the command lines of the processes of a checkout. These processes
// have the checkout's directory in their command line or as their working directory.
func leftProcesses(root string) (left []string) {
	for _, pid := range checkoutProcesses(root) {
		line, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		left = append(left, strings.ReplaceAll(string(line), "\x00", " "))
	}
	return left
}

// checkoutProcesses lists the ids of the processes of a checkout; see leftProcesses.
func checkoutProcesses(root string) (pids []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		line, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		cwd, _ := os.Readlink(filepath.Join(d, "cwd"))
		if d != fmt.Sprint("/proc/", os.Getpid()) && (strings.Contains(string(line), root) || strings.HasPrefix(cwd, root)) {
			pids = append(pids, filepath.Base(d))
		}
	}
	return pids
}

// setUserEnvironment sets variables that no process of a cluster may have.
func setUserEnvironment(t *testing.T) {
	t.Helper()
	for _, v := range []string{"GOGC=400", "MY_SECRET=x", "OTEL_SDK_DISABLED=true", "SSL_CERT_FILE=/dev/null", "ETCD_NAME=mine", "HTTPS_PROXY=http://me:secret@127.0.0.1:9"} {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
}

// checkEnvironment checks that the processes of a checkout, at least min, have none of the variables of setUserEnvironment.
func checkEnvironment(t *testing.T, root string, min int) {
	t.Helper()
	allowed := regexp.MustCompile(`^(PATH|HOME|USER|TMPDIR|TZ|PWD|KUBE_EXIT_WITH_FD|K8S_MICRO_(TEST_RUN|ROOTLESS|NOCGROUPS|MAPPED)|MAX_SHIM_VERSION|TTRPC_ADDRESS|GRPC_ADDRESS|NAMESPACE|GOMAXPROCS)=|^LD_LIBRARY_PATH=/run/k8s-micro/`) // the last is of writeWrapper
	pids := checkoutProcesses(root)
	if len(pids) < min {
		t.Errorf("%d processes, want at least %d", len(pids), min)
	}
	for _, pid := range pids {
		b, _ := os.ReadFile(filepath.Join("/proc", pid, "environ"))
		line, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		for v := range strings.SplitSeq(strings.TrimSuffix(string(b), "\x00"), "\x00") {
			if v != "" && !allowed.MatchString(v) {
				t.Errorf("%.60q has the variable %s", line, v)
			}
		}
		if run, ok := os.LookupEnv("K8S_MICRO_TEST_RUN"); ok && len(b) > 0 && !strings.Contains("\x00"+string(b), "\x00K8S_MICRO_TEST_RUN="+run+"\x00") {
			t.Errorf("%.60q cannot be found by test/run.sh", line)
		}
	}
}

// fakeGo puts a program named go, a shell script, into PATH.
func fakeGo(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
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

// diff lists the lines that only one of the two texts contains.
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

// runPod runs a pod with the security context of the project's manifests, from an
// image of the cluster's registry.
func runPod(t *testing.T, root string) {
	t.Helper()
	const restricted = `{"spec": {"containers": [{"name": "pause", "image": "k8s-micro/pause:1", "imagePullPolicy": "Always",
		"resources": {"limits": {"memory": "128Mi"}}, "securityContext": {"runAsNonRoot": true, "readOnlyRootFilesystem": true,
		"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}}]}}`
	eventually(t, time.Minute, "the service account", func() bool {
		_, err := cli(t, root, "kubectl", "--", "get", "serviceaccount", "default")
		return err == nil
	})
	for _, args := range [][]string{
		{"run", "pause", "--image=k8s-micro/pause:1", "--restart=Never", "--overrides=" + restricted},
		{"wait", "pod/pause", "--for=condition=Ready", "--timeout=2m"},
	} {
		if out, err := cli(t, root, append([]string{"kubectl", "--"}, args...)...); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

// Flags after the launcher's own belong to kubectl or to the command in the node.
func TestOwnFlags(t *testing.T) {
	for line, want := range map[string]string{
		"":                                 "|",
		"-n go-micro get pods":             "|-n go-micro get pods",
		"--namespace=go-micro get pods":    "|--namespace=go-micro get pods",
		"-name demo -n go-micro get pods":  "-name demo|-n go-micro get pods",
		"--name=demo get pods -name x":     "--name=demo|get pods -name x",
		"-name demo -- exec x -- ls -name": "-name demo|exec x -- ls -name",
		"-- ip addr":                       "|ip addr",
		"-name":                            "-name|",
	} {
		own, rest := ownFlags(strings.Fields(line), "name")
		if got := strings.Join(own, " ") + "|" + strings.Join(rest, " "); got != want {
			t.Errorf("%q is separated into %q, want %q", line, got, want)
		}
	}
	own, rest := ownFlags(strings.Fields("-name demo -n 2 ps -n 3"), "name", "n") // of the command node
	if got := strings.Join(own, " ") + "|" + strings.Join(rest, " "); got != "-name demo -n 2|ps -n 3" {
		t.Errorf("node: the arguments are separated into %q", got)
	}
}

func TestErrorMessages(t *testing.T) {
	root := checkout(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "no command: use up"},
		{[]string{"fly"}, `running "fly": no such command`},
		{[]string{"status"}, `cluster "demo": it is not running; start it with`},
		{[]string{"load", "a=b"}, "it is not running"},
		{[]string{"kubectl", "version"}, "it is not running"},
		{[]string{"node", "true"}, "it is not running"},
		{[]string{"forward", "a/b:1"}, "it is not running"},
		{[]string{"save", "x.tar"}, "saving images: want a file and IMAGE=DIR"},
		{[]string{"save", "x.tar", "ab"}, `saving image "ab": want IMAGE=DIR`},
		{[]string{"save", "x.tar", "A/b=c"}, "write it as you/go-micro-srv:v1"},
		{[]string{"up", "-kube-apiserver", "x"}, "it needs -control-plane"},
		{[]string{"up", "-name", "../up"}, "want a plain word"},
		{[]string{"up", "-ip-family", "IPv6"}, "use ipv4, ipv6 or dual"},
		{[]string{"up", "-ip-family", "ipv6", "-control-plane"}, "leave out -control-plane"},
		{[]string{"up", "-network-policy", "-control-plane"}, "reading -network-policy: it needs a node and IPv4"},
		{[]string{"up", "-network-policy", "-ip-family", "dual"}, "reading -network-policy: it needs a node and IPv4"},
		{[]string{"up", "-nodes", "0"}, "reading -nodes 0: use 1 to 9"},
		{[]string{"up", "-nodes", "1000"}, "reading -nodes 1000: use 1 to 9"},
		{[]string{"up", "-nodes", "two"}, `invalid value "two" for flag -nodes`},
		{[]string{"up", "-nodes", "3", "-ip-family", "dual"}, "several nodes need IPv4; leave out -control-plane and -ip-family"},
		{[]string{"up", "-nodes", "3", "-control-plane"}, "several nodes need IPv4; leave out -control-plane and -ip-family"},
	} {
		out, err := cli(t, root, c.args...)
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("cluster %q: %v: %q, want %q", c.args, err, out, c.want)
		}
	}
	for _, args := range [][]string{{"--help"}, {"up", "--help"}} {
		if out, err := cli(t, root, args...); err != nil || !strings.Contains(out, "K8S_MICRO_SOURCE") {
			t.Errorf("cluster %q: %v: %q, want K8S_MICRO_SOURCE", args, err, out)
		}
	}
	if out, err := cli(t, root, "down"); err != nil {
		t.Errorf("down without a cluster: %v: %s", err, out)
	}
	outside := launcher(t.TempDir(), "status")
	if out, err := outside.CombinedOutput(); err == nil || !strings.Contains(string(out), "run it inside the checkout") {
		t.Errorf("outside a checkout: %v: %s", err, out)
	}
}
