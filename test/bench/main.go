//go:build linux

// Command bench compares pod/ with the code that it replaces: the reading half of
// go-micro's Kubernetes plugin, and go-micro's selector with its cache. It measures
// both in one run with one real API server, prints a Markdown table and writes it
// to test/bench/RESULTS.md.
//
//	go run ./test/bench           about 7 minutes on two cores
//	go run ./test/bench -short    1 minute, fewer measurements, writes no file
//
// It starts etcd and kube-apiserver (cluster/, control plane only) and then starts
// itself again in a user and mount namespace in which /var/run/secrets contains a
// service account, so that both registries work as in a pod. The pods are API objects without
// containers: no kubelet competes for the cores, and the benchmark decides when
// a pod is ready.
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

// sizes sets how much is measured.
type sizes struct {
	Replicas   []int         // numbers of instances to pick from
	Benchtime  string        // length of one round, in the format of -test.benchtime
	Rounds     int           // the best round counts
	Events     int           // changes of each kind
	Late       time.Duration // period over which late registrations are spread; go-micro's cache expires after 60 s
	Timeout    time.Duration // how long to wait until a change is seen
	Many       int           // pods of the large service
	Starts     int           // first calls to the large service
	Idle       time.Duration // period in which requests of idle services are counted
	Watched    time.Duration // period in which the page is measured
	LastsAbout string        // the usual duration of the whole benchmark
	Root       string        // the project's root directory
}

var (
	full  = sizes{[]int{10, 100, 1000, 10000}, "300ms", 5, 200, 59 * time.Second, 5 * time.Second, 5000, 3, 2 * time.Minute, 30 * time.Second, "7 minutes", ""}
	short = sizes{[]int{10, 1000}, "100ms", 2, 20, 4 * time.Second, time.Second, 500, 1, 10 * time.Second, 5 * time.Second, "1 minute", ""}
)

func main() {
	run, kubeconfig := start, os.Getenv(kubeconfigVariable)
	if kubeconfig != "" { // the parent holds the other end of standard input, so this process ends with it
		go func() { _, _ = io.Copy(io.Discard, os.Stdin); os.Exit(1) }()
		run = func(n sizes) error { return measure(n, kubeconfig) }
	}
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	isShort := flags.Bool("short", false, "measure less, in one minute, and write no file")
	_ = flags.Parse(os.Args[1:]) // exits on error
	n := full
	if *isShort {
		n = short
	}
	const limit = 25 * time.Minute // includes the first build of Kubernetes
	time.AfterFunc(limit, func() { fmt.Fprintln(os.Stderr, "bench: stopped after the time limit of", limit); os.Exit(1) })
	if err := run(n); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

const kubeconfigVariable = "BENCH_KUBECONFIG" // set for the measuring process

// start starts the control plane and the measuring process.
func start(sizes) error {
	if _, err := os.Stat("cluster/go.mod"); err != nil {
		return errors.New("finding cluster/: not in the working directory; run `make bench` in the project's root directory")
	}
	progress("starting etcd and kube-apiserver (5 s; the first time up to 10 minutes more to build Kubernetes)")
	kubeconfig, down, err := launch.Up("bench", "-control-plane")
	if err != nil {
		return err
	}
	pod := exec.Command("/proc/self/exe", os.Args[1:]...)
	pod.Env = append(os.Environ(), kubeconfigVariable+"="+kubeconfig, "MICRO_LOG_LEVEL=error", "NO_PROXY=*", "no_proxy=*") // it connects only to loopback addresses
	pod.Stdout, pod.Stderr = os.Stdout, os.Stderr
	id := func(id int) []syscall.SysProcIDMap { return []syscall.SysProcIDMap{{HostID: id, Size: 1}} }
	pod.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, // the user namespace grants the right to mount
		UidMappings: id(os.Getuid()), GidMappings: id(os.Getgid()),
	}
	end, err := pod.StdinPipe()
	if err == nil {
		err = pod.Run()
		end.Close()
	}
	return errors.Join(err, down())
}

// table collects the rows of the result.
type table struct{ strings.Builder }

func (t *table) row(what, upstream, ours string) {
	fmt.Fprintf(t, "| %s | %s | %s |\n", what, upstream, ours)
}

func measure(n sizes, kubeconfig string) error {
	progress("measuring, about %s", n.LastsAbout)
	var err error
	if n.Root, err = os.Getwd(); err != nil { // enterPod changes the working directory
		return err
	}
	k, err := enterPod(kubeconfig)
	if err != nil {
		return fmt.Errorf("setting up the environment of a pod: %w", err)
	}
	var version struct{ GitVersion string }
	if err := k.do("GET", "/version", nil, &version); err != nil {
		return err
	}
	load := loadAverage()
	var t table
	for _, m := range []func(*kube, sizes, *table) error{picks, changes, firstCalls, page, unary} {
		if err := m(k, n, &t); err != nil {
			return err
		}
	}
	text := fmt.Sprintf(`%s, %d cores of %s, load average %s before and %s after, %s, Kubernetes %s

| | go-micro's plugin and selector | pod/ |
|---|---|---|
%s
How it is measured: etcd and kube-apiserver run on the same cores. *Pick an instance* is Select, Next and Mark in one goroutine, the best
of %d rounds. A *change* is measured from the start of its request until Select offers the instance, or no longer offers it, checked
every millisecond; p50 / p99 of %d changes of each kind. A *late registration* happens when the pod has been Running and Ready for a
while; these are spread over a minute. *First call* lasts from NewRegistry to the first instance, median of %d; its memory is the live
heap 2 s later, and everything allocated until then. *Idle* is a registered service that has called one other service; a proxy counts
its requests for %s. In addition, pod/ reopens each of its watches every 5 to 10 minutes. *Page* is the program go-micro-web with its viewers on
loopback, all on the same cores; a change is a registration, measured from the start of its request, p50 / p99 of all in %s; memory is RssAnon.
*Unary call* is client and server in one process over loopback, time and allocations of both, the best of %d alternating rounds.
`, time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), cpuModel(), load, loadAverage(), runtime.Version(), version.GitVersion,
		t.String(), n.Rounds, n.Events, n.Starts, n.Idle, n.Watched, 2*n.Rounds)
	fmt.Print(text)
	if n.Rounds == short.Rounds {
		return nil
	}
	return os.WriteFile(filepath.Join(n.Root, "test/bench/RESULTS.md"), []byte(text), 0o644)
}

var started = time.Now()

// progress prints to standard error; standard output holds only the table.
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
