//go:build linux

// Command bench measures pod/ beside what it replaces, the reading half of
// go-micro's Kubernetes plugin and go-micro's selector with its cache, in one
// run against one real API server. It prints a Markdown table and writes it to
// test/bench/RESULTS.md.
//
//	go run ./test/bench           about 7 minutes on two cores
//	go run ./test/bench -short    1 minute, small numbers, writes no file
//
// It starts etcd and kube-apiserver (cluster/, control plane only) and then
// itself again inside namespaces of its own, where /var/run/secrets holds a
// service account: to both registries the process is a pod, with a token and
// the rights of k8s/pod-rbac.yaml. Pods are API objects without containers: no
// kubelet competes for the cores, and the bench alone says when a pod is ready.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/launch"
)

// sizes is how much is measured.
type sizes struct {
	Replicas   []int         // to choose among
	Benchtime  string        // of one round, as testing understands it
	Rounds     int           // of which the best counts
	Events     int           // for each kind of change
	Late       time.Duration // over which late registrations are spread; go-micro's cache forgets after 60 s
	Patience   time.Duration // how long a change may stay unseen
	Many       int           // pods of the large service
	Starts     int           // first calls to it
	Rest       time.Duration
	Watched    time.Duration // the page
	LastsAbout string
	Root       string // of the project
}

var (
	full  = sizes{[]int{10, 100, 1000, 10000}, "300ms", 5, 200, 59 * time.Second, 5 * time.Second, 5000, 3, 2 * time.Minute, 30 * time.Second, "7 minutes", ""}
	short = sizes{[]int{10, 1000}, "100ms", 2, 20, 4 * time.Second, time.Second, 500, 1, 10 * time.Second, 5 * time.Second, "1 minute", ""}
)

func main() {
	run, kubeconfig := start, os.Getenv(inside)
	if kubeconfig != "" { // whoever started this process holds the other end: it ends with its parent
		go func() { _, _ = io.Copy(io.Discard, os.Stdin); os.Exit(1) }()
		run = func(n sizes) error { return measure(n, kubeconfig) }
	}
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	isShort := flags.Bool("short", false, "small numbers in a minute, for trying the bench; writes no file")
	_ = flags.Parse(os.Args[1:]) // exits on error
	n := full
	if *isShort {
		n = short
	}
	const limit = 25 * time.Minute // a first build of Kubernetes included
	time.AfterFunc(limit, func() { fmt.Fprintln(os.Stderr, "bench: not done after", limit); os.Exit(1) })
	if err := run(n); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

const inside = "BENCH_KUBECONFIG" // what the measuring process is told

// start starts the control plane and beside it the measuring process.
func start(sizes) error {
	if _, err := os.Stat("cluster/go.mod"); err != nil {
		return errors.New("finding cluster/: run it in the project's directory (make bench)")
	}
	progress("etcd and kube-apiserver (5 s; when Kubernetes is not built yet up to 10 minutes more)")
	kubeconfig, down, err := launch.Up("bench", "-control-plane")
	if err != nil {
		return err
	}
	pod := exec.Command("/proc/self/exe", os.Args[1:]...)
	pod.Env = append(os.Environ(), inside+"="+kubeconfig, "MICRO_LOG_LEVEL=error", "NO_PROXY=*", "no_proxy=*") // its traffic is loopback
	pod.Stdout, pod.Stderr = os.Stdout, os.Stderr
	id := func(id int) []syscall.SysProcIDMap { return []syscall.SysProcIDMap{{HostID: id, Size: 1}} }
	pod.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, // the user namespace gives the right to mount
		UidMappings: id(os.Getuid()), GidMappings: id(os.Getgid()),
	}
	end, err := pod.StdinPipe()
	if err == nil {
		err = pod.Run()
		end.Close()
	}
	return errors.Join(err, down())
}

// table is what this run found out.
type table struct{ strings.Builder }

func (t *table) row(what, upstream, ours string) {
	fmt.Fprintf(t, "| %s | %s | %s |\n", what, upstream, ours)
}

func measure(n sizes, kubeconfig string) error {
	progress("measuring, about %s", n.LastsAbout)
	var err error
	if n.Root, err = os.Getwd(); err != nil { // enterPod leaves it
		return err
	}
	k, err := enterPod(kubeconfig)
	if err != nil {
		return fmt.Errorf("making a pod's environment: %w", err)
	}
	var version struct{ GitVersion string }
	if err := k.do("GET", "/version", nil, &version); err != nil {
		return err
	}
	load := loadAverage()
	var t table
	for _, m := range []func(*kube, sizes, *table) error{pick, changes, first, page, unary} {
		if err := m(k, n, &t); err != nil {
			return err
		}
	}
	text := fmt.Sprintf(`%s, %d cores of %s, load average %s before and %s after, %s, Kubernetes %s

| | go-micro's plugin and selector | pod/ |
|---|---|---|
%s
How: etcd and kube-apiserver run on the same cores. *Choose a node* is Select, Next and Mark, in one goroutine, best of
%d rounds. A *change* counts from the moment its request is sent until a Select offers the node, or no longer does,
looked at every millisecond; p50 / p99 of %d changes of each kind. A *late registration* comes when the pod has long been
Running and Ready; they are spread over a minute. *First call* is from NewRegistry to the first node, median of %d; its
memory is the live heap 2 s later, and all that was allocated until then. *At rest* is a registered service that follows one
other, for %s, behind a proxy that counts; besides pod/ opens each of its watches anew every 5 to 10 minutes.
*Page* is go-micro-web's own program with its readers on loopback, all on the same cores; a change is a registration, counted from
the moment its request is sent, p50 / p99 of some in %s; memory is RssAnon.
*Unary call* is client and server in one process, over loopback, times and allocations of both, best of %d rounds in turn.
`, time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), cpuModel(), load, loadAverage(), runtime.Version(), version.GitVersion,
		t.String(), n.Rounds, n.Events, n.Starts, n.Rest, n.Watched, 2*n.Rounds)
	fmt.Print(text)
	if n.Rounds == short.Rounds {
		return nil
	}
	return os.WriteFile(filepath.Join(n.Root, "test/bench/RESULTS.md"), []byte(text), 0o644)
}

var started = time.Now()

// progress goes to standard error, the table to standard output.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "[%5.1fs] %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
}

func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(b), " ")
	return one
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	_, after, _ := strings.Cut(string(b), "model name")
	model, _, _ := strings.Cut(after, "\n")
	return cmp.Or(strings.Trim(model, "\t: "), runtime.GOARCH)
}
