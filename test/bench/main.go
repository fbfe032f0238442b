//go:build linux

// Command bench compares pod/ with the code that it replaces, go-micro's Kubernetes plugin,
// selector and gRPC client, and with other RPC libraries. It prints a section of Markdown
// for each group of measurements and writes the sections to test/bench/RESULTS.md.
//
//	go run ./test/bench                  everything, about 35 minutes on two cores
//	go run ./test/bench -only choice     one group; the other sections stay
//	go run ./test/bench -short           fewer and shorter measurements, writes no file
//
// The groups registry and scale start etcd and kube-apiserver (cluster/, control plane only).
// The group registry starts this program again in a user and mount namespace in which /var/run/secrets contains a
// service account, so that both registries work as in a pod. The pods are API objects without
// containers: no kubelet competes for the cores, and the benchmark decides when
// a pod is ready. The other groups need no cluster; see package load.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/bench/load"
	"github.com/jiangjiancc/go_micro_k8s/test/launch"
	"github.com/micro/go-micro/v2/logger"
)

// sizes sets how much is measured.
type sizes struct {
	Replicas  []int         // numbers of instances to pick from
	Benchtime string        // length of one round, in the format of -test.benchtime
	Rounds    int           // the best round counts
	Events    int           // changes of each kind
	Late      time.Duration // period over which late registrations are spread; go-micro's cache expires after 60 s
	Timeout   time.Duration // how long to wait until a change is seen
	Many      int           // pods of the large service
	Starts    int           // first calls to the large service
	Idle      time.Duration // period in which requests of idle services are counted
	Watched   time.Duration // period in which the page is measured

	LoadTime   time.Duration // length of one measurement of throughput and streams
	LoadRounds int           // the median round counts
	Pairs      int           // of measurements of throughput with and without metrics
	Slow       time.Duration // length of the slow-server test
	Failing    time.Duration // how long an instance fails
	Tenfold    time.Duration // how long an instance is slow
	Connected  int           // instances for idle memory
	Overload   time.Duration // how long a service gets three times the calls that it can handle

	Pods     int           // pods of the namespace of scale
	Watchers []int         // clients that watch it
	Changing time.Duration // how long pods change

	Short bool
	Root  string // the project's root directory
}

var (
	full = sizes{[]int{10, 100, 1000, 10000}, "300ms", 5, 200, 59 * time.Second, 5 * time.Second, 5000, 3, 2 * time.Minute, 30 * time.Second,
		2 * time.Second, 3, 30, time.Minute, 6 * time.Second, 10 * time.Second, 1000, time.Minute,
		3000, []int{0, 50, 200, 1000}, 20 * time.Second, false, ""}
	short = sizes{[]int{10, 1000}, "100ms", 2, 20, 4 * time.Second, time.Second, 500, 1, 10 * time.Second, 5 * time.Second,
		300 * time.Millisecond, 1, 3, 8 * time.Second, 3 * time.Second, 4 * time.Second, 50, 4 * time.Second,
		300, []int{0, 20, 40}, 2 * time.Second, true, ""}
)

// group is a section of RESULTS.md.
type group struct {
	name, title, lasts string
	measure            func(sizes) (markdown string, err error)
}

var groups = []group{
	{"registry", "Registry and selector", "6 minutes", inPod},
	{"scale", "Cost at scale", "3 minutes", scale},
	{"calls", "Unary calls", "1 minute", unary},
	{"throughput", "Throughput", "3 minutes", throughput},
	{"metrics", "Cost of metrics", "3 minutes", costOfMetrics},
	{"garbage", "Garbage collection", "1 minute", garbage},
	{"streams", "Server streams", "15 s", streams},
	{"choice", "Choice of an instance", "5 minutes", choice},
	{"mixed", "Slow calls, streams and fast calls together", "1 minute", mixed},
	{"retries", "Retries", "30 s", retryCosts},
	{"overload", "Overload", "10 minutes", overloaded},
	{"memory", "Idle memory", "20 s", idleMemory},
}

func main() {
	if os.Getenv(loadVariable) != "" {
		load.Main(libraries)
	}
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	isShort := flags.Bool("short", false, "measure less, in 3 minutes, and write no file")
	only := flags.String("only", "", "measure one group only: registry, scale, calls, throughput, metrics, garbage, streams, choice, mixed, retries, overload or memory")
	_ = flags.Parse(os.Args[1:]) // exits on error
	n := full
	if *isShort {
		n = short
	}
	const limit = 60 * time.Minute // includes the first build of Kubernetes and of the peers
	time.AfterFunc(limit, func() { fmt.Fprintln(os.Stderr, "bench: stopped after the time limit of", limit); os.Exit(1) })
	if err := run(n, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(n sizes, only string) (err error) {
	if n.Root, err = os.Getwd(); err != nil {
		return err
	}
	if kubeconfig := os.Getenv(kubeconfigVariable); kubeconfig != "" { // the parent holds the other end of standard input, so this process ends with it
		go func() { _, _ = io.Copy(io.Discard, os.Stdin); os.Exit(1) }()
		markdown, err := measureRegistry(n, kubeconfig)
		fmt.Print(markdown)
		return err
	}
	_ = logger.Init(logger.WithLevel(logger.FatalLevel)) // standard output is for the results
	if _, err := os.Stat("cluster/go.mod"); err != nil {
		return errors.New("finding cluster/: not in the working directory; run `make bench` in the project's root directory")
	}
	if only != "" && !slices.ContainsFunc(groups, func(g group) bool { return g.name == only }) {
		return fmt.Errorf("measuring group %q: there is no such group", only)
	}
	temporary, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	os.Setenv("TMPDIR", temporary) // also for the processes that this one starts
	for _, g := range groups {
		if only != "" && g.name != only {
			continue
		}
		progress("== %s (%s)", g.title, g.lasts)
		load := launch.LoadAverage()
		markdown, err := g.measure(n)
		if err != nil {
			return fmt.Errorf("measuring group %q: %w", g.name, err)
		}
		section := fmt.Sprintf("## %s\n\n%s, %s, load average %s before and %s after, %s.\n\n%s", g.title, time.Now().UTC().Format("2006-01-02"), launch.Machine(),
			load, launch.LoadAverage(), runtime.Version(), markdown)
		fmt.Println(section)
		if !n.Short {
			if err := writeSection(filepath.Join(n.Root, "test/bench/RESULTS.md"), g.title, section); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeSection replaces one section of the file, or adds it, in the order of groups.
func writeSection(file, title, section string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	introduction, rest, _ := strings.Cut(string(b), "\n## ")
	sections := map[string]string{}
	for _, s := range strings.Split(rest, "\n## ") {
		name, _, _ := strings.Cut(s, "\n")
		sections[name] = "## " + strings.TrimSpace(s) + "\n"
	}
	sections[title] = section
	text := introduction
	for _, g := range groups {
		if s := sections[g.title]; s != "" {
			text += "\n" + s
		}
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

const kubeconfigVariable = "BENCH_KUBECONFIG" // set for the process that measures the registry

// inPod starts the control plane and, as in a pod, the process that measures the registry.
func inPod(sizes) (string, error) {
	kubeconfig, down, err := controlPlane()
	if err != nil {
		return "", err
	}
	pod := exec.Command("/proc/self/exe", os.Args[1:]...)
	pod.Env = append(os.Environ(), kubeconfigVariable+"="+kubeconfig, "MICRO_LOG_LEVEL=error", "NO_PROXY=*", "no_proxy=*") // it connects only to loopback addresses
	var out bytes.Buffer
	pod.Stdout, pod.Stderr = &out, os.Stderr
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
	return out.String(), errors.Join(err, down())
}

func controlPlane() (kubeconfig string, down func() error, err error) {
	progress("starting etcd and kube-apiserver (5 s; the first time up to 10 minutes more to build Kubernetes)")
	return launch.Up("bench", "-control-plane")
}

// table collects the rows of a result.
type table struct{ strings.Builder }

// newTable returns a table with these columns; the first column, which says what is
// measured, has no title.
func newTable(columns ...string) *table {
	t := &table{}
	t.row("", columns...)
	t.row("---", slices.Repeat([]string{"---"}, len(columns))...)
	return t
}

func (t *table) row(what string, cells ...string) {
	fmt.Fprintf(t, "| %s | %s |\n", what, strings.Join(cells, " | "))
}

// measureRegistry runs in the environment of a pod.
func measureRegistry(n sizes, kubeconfig string) (string, error) {
	k, err := enterPod(kubeconfig)
	if err != nil {
		return "", fmt.Errorf("setting up the environment of a pod: %w", err)
	}
	var version struct{ GitVersion string }
	if err := k.do("GET", "/version", nil, &version); err != nil {
		return "", err
	}
	t := newTable("go-micro's plugin and selector", "pod/")
	for _, m := range []func(*kube, sizes, *table) error{picks, changes, firstCalls, page} {
		if err := m(k, n, t); err != nil {
			return "", err
		}
	}
	return t.String() + fmt.Sprintf(`
Kubernetes %s: etcd and kube-apiserver run on the same cores. *Pick an instance* is Select, Next and Mark in one goroutine (Next of pod/ also ends the choice, and its Mark does nothing), the best
of %d rounds. A *change* is measured from the start of its request until Select offers the instance, or no longer offers it, checked
every millisecond; p50 / p99 of %d changes of each kind. A *late registration* happens when the pod has been Running and Ready for a
while; these are spread over a minute. *First call* lasts from NewRegistry to the first instance, median of %d; its memory is the live
heap 2 s later, and everything allocated until then. *Idle* is a registered service that has called one other service; a proxy counts
its requests for %s. In addition, pod/ reopens each of its watches every 5 to 10 minutes. *Page* is the program go-micro-web with its viewers on
loopback, all on the same cores; a change is a registration, measured from the start of its request, p50 / p99 of all in %s; memory is RssAnon.
`, version.GitVersion, n.Rounds, n.Events, n.Starts, n.Idle, n.Watched), nil
}

var started = time.Now()

// progress prints to standard error; standard output holds only the table.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "[%5.1fs] %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
}
