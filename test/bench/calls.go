//go:build linux

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/jiangjiancc/go_micro_k8s/test/bench/load"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// unary measures Greeter.Hello with bare grpc-go, and with go-micro's server and each
// client, through micro.NewService and without its wrappers, for one instance and for
// many. All instances are the same service with pod.Lifecycle.
func unary(n sizes) (string, error) {
	const many = 100
	progress("the unary call (%d rounds of 9 times %s)", n.Rounds, n.Benchtime)
	address, err := serveWithLifecycle()
	if err != nil {
		return "", err
	}
	bare, err := bareGRPC()
	if err != nil {
		return "", err
	}
	operations := []func() error{bare}
	for _, instances := range []int{1, many} {
		api := newMemoryAPI()
		defer func() { api.CloseClientConnections(); api.Close() }()
		if err := api.enterKubeconfig(); err != nil {
			return "", err
		}
		for range instances {
			api.add("greeter", address)
		}
		for _, wrapped := range []bool{true, false} {
			for _, new := range candidates {
				s := new(registry.Addrs(api.URL))
				defer func() { _ = s.close() }()
				c := s.client
				if c == nil {
					c = grpcc.NewClient(client.Registry(s.registry), client.Selector(s.selector))
				}
				if s.client = c; wrapped {
					c = newService("caller", s).Client()
				}
				g := proto.NewGreeterService("greeter", c)
				call := func() error {
					_, err := g.Hello(context.Background(), &proto.HelloRequest{Name: "XXX"})
					return err
				}
				if err := call(); err != nil {
					return "", err
				}
				operations = append(operations, call)
			}
		}
	}
	time.Sleep(settle)
	costs, err := best(n, n.Rounds, operations...)
	if err != nil {
		return "", err
	}
	t := newTable("go-micro's client", "pod.NewClient")
	next := costs[1:]
	for _, instances := range []int{1, many} {
		for _, what := range []string{"unary call", "client alone"} {
			var cells []string
			for _, r := range next[:2] {
				perCall := func(r testing.BenchmarkResult) float64 { return float64(r.T) / float64(r.N) }
				cells = append(cells, fmt.Sprintf("%s, %.2fx", cost(r), perCall(r)/perCall(costs[0])))
			}
			t.row(fmt.Sprintf("%s, %d %s", what, instances, map[bool]string{true: "instance", false: "instances"}[instances == 1]), cells...)
			next = next[2:]
		}
	}
	return t.String() + fmt.Sprintf(`
One caller makes one call after the other; client and server are in one process and talk over loopback, and time and allocations are
those of both. Bare grpc-go takes %s; the factor is the multiple of that time. *Unary call* is made through micro.NewService, which wraps
the client four times and the handler three times; the service has pod.Lifecycle. *Client alone* leaves out the client's wrappers. The best of %d alternating rounds.
All of them use go-micro's codec, which go-micro registers for the whole process.
`, cost(costs[0]), n.Rounds), nil
}

// bareGRPC makes the same call without go-micro.
func bareGRPC() (call func() error, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "Greeter", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{MethodName: "Hello",
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			q, a := new(proto.HelloRequest), new(proto.HelloResponse)
			if err := decode(q); err != nil {
				return nil, err
			}
			return a, greeter{}.Hello(ctx, q, a)
		}}}}, greeter{})
	go func() { _ = s.Serve(l) }()
	c, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	return func() error {
		return c.Invoke(context.Background(), "/Greeter/Hello", &proto.HelloRequest{Name: "XXX"}, new(proto.HelloResponse))
	}, err
}

// ---- measurements of package load ----

// peersProgram builds test/bench/peers once.
var peersProgram = sync.OnceValues(func() (string, error) {
	progress("building kratos and go-zero (the first time 3 minutes)")
	program := filepath.Join(os.TempDir(), fmt.Sprintf("bench-peers-%d", os.Getpid()))
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, ".")
	build.Dir, build.Env = "test/bench/peers", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building test/bench/peers: %w: %s", err, out)
	}
	return program, nil
})

const loadVariable = "BENCH_LOAD" // set for a process that runs one job of package load

// start starts a job in a process of its own. The process ends when stop is called.
func startJob(j load.Job) (result func() (load.Result, error), stop func(), err error) {
	program := "/proc/self/exe"
	if _, ok := libraries[j.Library]; !ok {
		if program, err = peersProgram(); err != nil {
			return nil, nil, err
		}
	}
	p := exec.Command(program)
	p.Env = append(append(os.Environ(), loadVariable+"=1", "MICRO_LOG_LEVEL=fatal", "NO_PROXY=*", "no_proxy=*"), j.Env...)
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var errs strings.Builder
	p.Stderr = &errs
	in, err := p.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := p.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := onCPU(j.CPU, p.Start); err != nil {
		return nil, nil, err
	}
	if err := json.NewEncoder(in).Encode(j); err != nil {
		return nil, nil, err
	}
	stop = func() { in.Close(); _, _ = io.Copy(io.Discard, out); _ = p.Wait() }
	return func() (r load.Result, err error) {
		if err := json.NewDecoder(out).Decode(&r); err != nil {
			stop()
			text := errs.String()
			return r, fmt.Errorf("measuring %s of %q: %w: %s", j.Measure, j.Library, err, text[max(0, len(text)-2000):])
		}
		return r, nil
	}, stop, nil
}

// measure measures a job with each library, and adds a row with a cell for each.
func (t *table) measure(what string, libraries []string, job load.Job, cell func(load.Result) string) error {
	var jobs []load.Job
	for _, l := range libraries {
		job.Library = l
		jobs = append(jobs, job)
	}
	results, err := runJobs(jobs, 1)
	if err != nil {
		return err
	}
	var cells []string
	for _, r := range results {
		cells = append(cells, cell(r))
	}
	t.row(what, cells...)
	return nil
}

// runJobs runs jobs, some of them at the same time.
func runJobs(jobs []load.Job, parallel int) ([]load.Result, error) {
	results, failed := make([]load.Result, len(jobs)), make([]error, len(jobs))
	slots := make(chan struct{}, parallel)
	var running sync.WaitGroup
	for i, j := range jobs {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			result, stop, err := startJob(j)
			if err == nil {
				results[i], err = result()
				stop()
			}
			failed[i] = err
		})
	}
	running.Wait()
	return results, errors.Join(failed...)
}

const setUp = `grpc-go uses its policy round_robin; kratos its balancer p2c, the middleware recovery of its project template and all instances; go-zero the
defaults of its configuration file with the balancer p2c_ewma, but without logging each call and without shedding load, which would refuse calls on
busy cores; go-micro its own registry cache and client, without Kubernetes; pod/ is pod.NewClient, with a fake API server, and a service with pod.Lifecycle. Timeouts are 5 s.`

// throughput compares whole libraries, each with its own server.
func throughput(n sizes) (string, error) {
	columns := []string{grpcGo, kratos, goZero, goMicro, podClient}
	callers := []int{1, 100, 1000}
	progress("throughput of %d libraries (%s)", len(columns), time.Duration(n.LoadRounds*len(columns)*len(callers))*(n.LoadTime*5/4+time.Second/2))
	if _, err := peersProgram(); err != nil {
		return "", err
	}
	var jobs []load.Job
	for range n.LoadRounds {
		for _, c := range callers {
			for _, l := range columns {
				jobs = append(jobs, load.Job{Library: l, Measure: "throughput", Duration: n.LoadTime, Callers: c})
			}
		}
	}
	results, err := runJobs(jobs, 1)
	if err != nil {
		return "", err
	}
	t := newTable(columns...)
	for i, c := range callers {
		var rates, latencies []string
		var bare float64
		for k := range columns {
			var rounds []load.Result
			for round := range n.LoadRounds {
				rounds = append(rounds, results[(round*len(callers)+i)*len(columns)+k])
			}
			slices.SortFunc(rounds, func(a, b load.Result) int { return int(a.Rate - b.Rate) })
			r := rounds[len(rounds)/2]
			if k == 0 {
				bare = r.Rate
			}
			rates = append(rates, fmt.Sprintf("%.0f (%.2f of grpc-go)", r.Rate, r.Rate/bare))
			if r.Failed > 0 {
				rates[k] += fmt.Sprintf(", %.2f %% failed", 100*r.Failed)
			}
			latencies = append(latencies, fmt.Sprintf("%s / %s / %s", format(r.At(0.5)), format(r.At(0.99)), format(r.At(0.999))))
		}
		callers := map[bool]string{true: "1 caller", false: fmt.Sprint(c, " callers")}[c == 1]
		t.row("calls per second, "+callers, rates...)
		t.row("latency, "+callers, latencies...)
	}
	return t.String() + fmt.Sprintf(`
Each caller makes one unary call after the other to one instance of the library's own server; more is better for calls per second, less for
latency (p50 / p99 / p99.9). Client and server are in one process of their own for each measurement of %s; the median of %d alternating rounds.
%s
`, n.LoadTime, n.LoadRounds, setUp), nil
}

// costOfMetrics compares pairs of measurements, one of them with metrics.
func costOfMetrics(n sizes) (string, error) {
	progress("cost of metrics (%s)", time.Duration(2*n.Pairs)*(n.LoadTime*5/4+time.Second/2))
	var jobs []load.Job
	for i := range n.Pairs {
		pair := []string{podClient, podMetrics}
		if i%2 == 1 {
			slices.Reverse(pair)
		}
		for _, l := range pair {
			jobs = append(jobs, load.Job{Library: l, Measure: "throughput", Duration: n.LoadTime, Callers: 100})
		}
	}
	results, err := runJobs(jobs, 1)
	if err != nil {
		return "", err
	}
	var ratios []float64 // their logarithms
	rates, memory := map[string][]float64{}, map[string]int{}
	for i := 0; i < len(jobs); i += 2 {
		pair := map[string]float64{}
		for k := i; k < i+2; k++ {
			l := jobs[k].Library
			pair[l] = results[k].Rate
			rates[l], memory[l] = append(rates[l], results[k].Rate), max(memory[l], results[k].Resident)
		}
		ratios = append(ratios, math.Log(pair[podMetrics]/pair[podClient]))
	}
	mean, deviation := 0., 0.
	for _, r := range ratios {
		mean += r / float64(len(ratios))
	}
	for _, r := range ratios {
		deviation += (r - mean) * (r - mean) / float64(len(ratios)-1)
	}
	half := 2.05 * math.Sqrt(deviation/float64(len(ratios))) // of Student's t distribution with 29 degrees of freedom, 95 %
	t := newTable(podClient, podMetrics)
	for _, l := range []string{podClient, podMetrics} {
		slices.Sort(rates[l])
	}
	t.row("calls per second, 100 callers", fmt.Sprintf("%.0f", rates[podClient][n.Pairs/2]), fmt.Sprintf("%.0f", rates[podMetrics][n.Pairs/2]))
	t.row("ratio", "", fmt.Sprintf("%.3f (%.3f to %.3f)", math.Exp(mean), math.Exp(mean-half), math.Exp(mean+half)))
	t.row("resident memory, at most", fmt.Sprintf("%d MB", memory[podClient]/1e6), fmt.Sprintf("%d MB", memory[podMetrics]/1e6))
	return t.String() + fmt.Sprintf(`
As in *Throughput*: client and server in one process, both with package metrics, nobody scrapes. %d alternating pairs of %s each; the median; the ratio is
the geometric mean of the pairs with its 95 %% confidence interval. The memory includes the record of each call, which the benchmark keeps.
`, n.Pairs, n.LoadTime), nil
}

// garbage compares settings of the garbage collector.
func garbage(n sizes) (string, error) {
	settings := [][]string{nil, {"GOMEMLIMIT=115MiB"}, {"GOMEMLIMIT=115MiB", "GOGC=200"}, {"GOMEMLIMIT=115MiB", "GOGC=400"}, {"GOMEMLIMIT=115MiB", "GOGC=off"}}
	columns := []string{"Go's defaults"}
	for _, s := range settings[1:] {
		columns = append(columns, strings.Join(s, ", "))
	}
	progress("settings of the garbage collector (%s)", time.Duration(n.LoadRounds*len(settings))*(n.LoadTime*5/4+time.Second/2))
	var jobs []load.Job
	for range n.LoadRounds {
		for _, s := range settings {
			jobs = append(jobs, load.Job{Library: podClient, Measure: "throughput", Duration: n.LoadTime, Callers: 100, Env: s})
		}
	}
	results, err := runJobs(jobs, 1)
	if err != nil {
		return "", err
	}
	t := newTable(columns...)
	var rates, latencies, collecting, memory []string
	for k := range settings {
		var rounds []load.Result
		for round := range n.LoadRounds {
			rounds = append(rounds, results[round*len(settings)+k])
		}
		slices.SortFunc(rounds, func(a, b load.Result) int { return cmp.Compare(a.Rate, b.Rate) })
		r := rounds[len(rounds)/2]
		rates = append(rates, fmt.Sprintf("%.0f", r.Rate))
		latencies = append(latencies, fmt.Sprintf("%s / %s", format(r.At(0.5)), format(r.At(0.99))))
		collecting = append(collecting, fmt.Sprintf("%.1f %%", 100*r.Collecting))
		memory = append(memory, fmt.Sprintf("%d MB", r.Resident/1e6))
	}
	t.row("calls per second, 100 callers", rates...)
	t.row("latency", latencies...)
	t.row("CPU time of the garbage collector", collecting...)
	t.row("resident memory, at most", memory...)
	return t.String() + fmt.Sprintf(`
As in *Throughput*, with pod/ only: client and server in one process, %s each, the median of %d alternating rounds; latency is p50 / p99. The manifests
set GOMEMLIMIT to 90 %% of their memory limit of 128Mi. That of go-micro-srv, which serves calls, also sets GOGC=200. The memory includes the record of each call, which the benchmark keeps.
`, n.LoadTime, n.LoadRounds), nil
}

func streams(n sizes) (string, error) {
	columns := []string{grpcGo, goMicro, podClient}
	progress("server streams (%s)", time.Duration(len(columns)*3)*n.LoadTime)
	var jobs []load.Job
	for _, l := range columns {
		jobs = append(jobs, load.Job{Library: l, Measure: "streams", Duration: n.LoadTime})
	}
	results, err := runJobs(jobs, 1)
	if err != nil {
		return "", err
	}
	var opened, messages []string
	for _, r := range results {
		opened = append(opened, fmt.Sprintf("%.0f", r.Rate))
		messages = append(messages, fmt.Sprintf("%.0f", r.Messages))
	}
	t := newTable(columns...)
	t.row("streams opened per second", opened...)
	t.row("messages per second", messages...)
	return t.String() + `
*Streams opened*: one caller opens a server stream, receives one message, closes it and opens the next. *Messages*: one caller receives the
messages of one stream as fast as it can. All call the same grpc-go server.
`, nil
}

// choice compares how libraries choose instances.
func choice(n sizes) (string, error) {
	columns := []string{goMicro, roundRobin, kratos, goZero, podClient}
	t := newTable(columns...)
	// add runs one job for each library and adds a row for each function.
	type row struct {
		what string
		cell func(load.Result) string
	}
	add := func(j load.Job, parallel int, without []string, rows ...row) ([]load.Result, error) {
		var jobs []load.Job
		for _, l := range columns {
			if j.Library = l; !slices.Contains(without, l) {
				jobs = append(jobs, j)
			}
		}
		results, err := runJobs(jobs, parallel)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			var cells []string
			next := results
			for _, l := range columns {
				if slices.Contains(without, l) {
					cells = append(cells, "")
					continue
				}
				cells = append(cells, r.cell(next[0]))
				next = next[1:]
			}
			t.row(r.what, cells...)
		}
		return results, nil
	}
	percent := func(f float64) string { return fmt.Sprintf("%.2f %%", 100*f) }
	if _, err := peersProgram(); err != nil {
		return "", err
	}

	progress("slow-server test (%s)", 2*(n.Slow+6*time.Second))
	slow, err := add(load.Job{Measure: "slow", Duration: n.Slow, Retry: true}, 3, nil,
		row{"slow server: calls answered within 1 s", func(r load.Result) string { return percent(r.Fast) }},
		row{"slow server: its share of the calls", func(r load.Result) string { return percent(r.Share) }},
		row{"slow server: latency", func(r load.Result) string {
			return fmt.Sprintf("%s / %s / %s", format(r.At(0.5)), format(r.At(0.99)), format(r.At(0.999)))
		}})
	if err != nil {
		return "", err
	}
	for _, retry := range []bool{false, true} {
		for _, f := range []struct{ key, text string }{{"transport", "closes its connections"}, {"unavailable", "returns Unavailable"}, {"error", "returns an error of its own id"}} {
			without := []string{kratos, goZero} // they do not retry
			if !retry {
				without = nil
			}
			what := fmt.Sprintf("one of 10 %s, %s", f.text, map[bool]string{false: "no retries", true: "retries"}[retry])
			progress("%s (%s)", what, 2*(n.Failing+3*time.Second))
			if _, err := add(load.Job{Measure: "failing", Failure: f.key, Retry: retry, Duration: n.Failing}, 3, without,
				row{what + ": its share of the calls", func(r load.Result) string {
					return percent(r.ShareFirst) + " / " + percent(r.Share)
				}},
				row{what + ": calls that failed", func(r load.Result) string {
					return percent(r.FailedFirst) + " / " + percent(r.Failed)
				}}); err != nil {
				return "", err
			}
		}
	}
	progress("one of 10 instances ten times slower (%s)", 2*(n.Tenfold+4*time.Second))
	if _, err := add(load.Job{Measure: "tenfold", Duration: n.Tenfold, Retry: true}, 3, nil,
		row{"one of 10 ten times slower: its share of the calls", func(r load.Result) string { return percent(r.Share) }},
		row{"one of 10 ten times slower: p99 before / from 3 s on", func(r load.Result) string { return format(r.Calm) + " / " + format(r.Disturbed) }}); err != nil {
		return "", err
	}
	progress("an instance joins (12 s)")
	if _, err := add(load.Job{Measure: "joining", Retry: true}, 3, nil,
		row{"an eleventh instance joins: multiple of its fair share in its first second", func(r load.Result) string { return fmt.Sprintf("%.2f", 11*r.ShareFirst) }}); err != nil {
		return "", err
	}
	if !n.Short {
		picture, err := drawLatency(n.Root, columns, slow)
		if err != nil {
			return "", fmt.Errorf("drawing the latencies: %w", err)
		}
		if err := os.WriteFile(filepath.Join(n.Root, "media/latency.svg"), picture, 0o644); err != nil {
			return "", err
		}
	}
	return t.String() + fmt.Sprintf(`
All libraries call the same kind of grpc-go servers with one client. *Slow server* is the experiment of Buoyant's article "Beyond Round Robin: Load
Balancing for Latency" (2016): 11 instances answer after 167 ms in the median (lognormal, p99 300 ms); the rate grows from 500 to 1,000 calls a second in %s,
whatever the latency, and one instance answers after 2 s during the second and third quarter of this time. Its share is that in these two
quarters; latency is p50 / p99 / p99.9 of all calls, shown in media/latency.svg. In the other rows 32 callers call 10 instances that answer after 20 ms. In *one of 10
fails* one instance begins to fail every call at once; both cells are the first second / the %s after it; a share counts attempts, a failed call is one that
failed for the caller. A share of 10 %% is fair. *Ten times slower* lasts %s. %s kratos and go-zero do not retry.
`, n.Slow, n.Failing-time.Second, n.Tenfold, setUp), nil
}

// mixed compares how libraries choose instances for calls of different lengths.
func mixed(n sizes) (string, error) {
	columns := []string{goMicro, roundRobin, kratos, goZero, podClient}
	t := newTable(columns...)
	spread := func(r load.Result) string {
		return fmt.Sprintf("%.2f to %.2f", r.Least, r.Most)
	}
	if _, err := peersProgram(); err != nil {
		return "", err
	}
	progress("slow calls, streams and fast calls together (%s)", time.Duration(len(columns))*(17*time.Second+n.Tenfold))
	for _, m := range []struct {
		what, measure string
		cell          func(load.Result) string
	}{
		{"3 exports on 4 instances: calls of an instance to the mean", "exports", spread},
		{"60 idle streams on 3 instances, a fourth joins: the same", "idle streams", spread},
		{"0.1 % of the calls take 2 s, 70 % busy: latency", "rare", func(r load.Result) string {
			return fmt.Sprintf("%s / %s", format(r.At(0.5)), format(r.At(0.99)))
		}},
	} {
		if err := t.measure(m.what, columns, load.Job{Measure: m.measure, Duration: n.Tenfold, Retry: true}, func(r load.Result) string {
			if r.Failed > 0 {
				return m.cell(r) + fmt.Sprintf(", %.2f %% failed", 100*r.Failed)
			}
			return m.cell(r)
		}); err != nil {
			return "", err
		}
	}
	return t.String() + fmt.Sprintf(`
In the first two rows 8 callers call a method that answers after 2 ms; the cell has the calls of the instance with the fewest and with
the most, divided by the mean: 1.00 to 1.00 is even. *Exports* are calls of another method, which take 4.5 s. In the last row 10 instances
have 4 workers each; a call takes 100 ms, and waits for a worker; calls begin at a constant rate; p50 / p99 of %s. %s
`, n.Tenfold, setUp), nil
}

// idleMemory measures the memory of connections to many instances.
func idleMemory(n sizes) (string, error) {
	columns := []string{grpcGo, kratos, goZero, goMicro, podClient, podSubset}
	progress("memory of connections to %d instances (20 s)", n.Connected)
	result, stop, err := startJob(load.Job{Library: grpcGo, Measure: "servers", Count: n.Connected})
	if err != nil {
		return "", err
	}
	defer stop()
	servers, err := result()
	if err != nil {
		return "", err
	}
	var jobs []load.Job
	for _, l := range columns {
		connections := n.Connected / 2
		if l == podSubset {
			connections = 20
		}
		jobs = append(jobs, load.Job{Library: l, Measure: "memory", Servers: servers.Addresses, Count: connections})
	}
	results, err := runJobs(jobs, 1)
	if err != nil {
		return "", err
	}
	var bytes, open, total []string
	for i, r := range results {
		bytes = append(bytes, fmt.Sprintf("%.1f kB", float64(r.Bytes)/1000))
		if columns[i] == podSubset {
			bytes[i] = "" // most of it is not that of connections
		}
		total = append(total, fmt.Sprintf("%.1f MB", float64(r.Total)/1e6))
		open = append(open, fmt.Sprint(r.Connections))
	}
	t := newTable(columns...)
	t.row("idle memory per connection", bytes...)
	t.row("connections", open...)
	t.row("memory of the client", total...)
	return t.String() + fmt.Sprintf(`
One client calls each of %d instances, which are in another process, and then waits. Memory is the heap after a garbage collection and the stacks, less
those without a client, divided by the number of connections; it includes what discovery keeps about an instance. The fake API server in the process of pod/, which is measured
before the client is made, does not count.
`, n.Connected), nil
}
