//go:build linux

package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2"
	broker "github.com/micro/go-micro/v2/broker/memory"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/debug/trace"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// candidate is one of the implementations that are compared.
type candidate struct {
	registry registry.Registry
	selector selector.Selector
	client   client.Client // nil: go-micro's client with the selector
	close    func() error
}

func upstream(opts ...registry.Option) candidate {
	r := kubernetes.NewRegistry(opts...)
	s := selector.NewSelector(selector.Registry(r))
	return candidate{registry: r, selector: s, close: s.Close}
}

func ours(opts ...registry.Option) candidate {
	r := pod.NewRegistry(kubernetes.NewRegistry, append(opts, pod.Direct())...)
	c := pod.NewClient(r, grpcc.NewClient())
	return candidate{registry: r, selector: c.Options().Selector, client: c, close: r.Close}
}

var candidates = []func(...registry.Option) candidate{upstream, ours}

// settle is the time after the first call in which nothing is measured: the plugin
// discards the events of the first second of its watch.
const settle = 2 * time.Second

// pick does everything that a client does for a call, except the call itself.
func pick(s selector.Selector, service string) error {
	next, err := s.Select(service)
	if err != nil {
		return err
	}
	node, err := next()
	if err == nil {
		s.Mark(service, node, nil)
	}
	return err
}

// best measures the operations alternately, so that other load on the machine
// affects all of them equally, and returns the cost of the best round of each.
func best(n sizes, rounds int, operations ...func() error) ([]testing.BenchmarkResult, error) {
	testing.Init()
	var err error
	if err := flag.Set("test.benchtime", n.Benchtime); err != nil {
		return nil, err
	}
	results := make([]testing.BenchmarkResult, len(operations))
	for range rounds {
		for i, operation := range operations {
			r := testing.Benchmark(func(b *testing.B) {
				for b.Loop() {
					if err = operation(); err != nil {
						b.FailNow()
					}
				}
			})
			if err != nil {
				return nil, err
			}
			if results[i].N == 0 || float64(r.T)/float64(r.N) < float64(results[i].T)/float64(results[i].N) {
				results[i] = r
			}
		}
	}
	return results, nil
}

func cost(r testing.BenchmarkResult) string {
	return fmt.Sprintf("%s, %d allocations", format(r.T/time.Duration(r.N)), r.AllocsPerOp())
}

// format prints a duration with three digits.
func format(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Second, "s"}, {time.Millisecond, "ms"}, {time.Microsecond, "µs"}} {
		if d >= u.unit {
			return fmt.Sprintf("%.3g %s", float64(d)/float64(u.unit), u.name)
		}
	}
	return fmt.Sprintf("%d ns", d)
}

func picks(_ *kube, n sizes, t *table) error {
	progress("picking an instance of %v (1 minute)", n.Replicas)
	for _, replicas := range n.Replicas {
		api := newMemoryAPI()
		for i := range replicas {
			api.add("pick", fmt.Sprintf("10.%d.%d.%d:9100", i>>16, i>>8&255, i&255))
		}
		var operations []func() error
		var all []candidate
		for _, new := range candidates {
			s := new(registry.Addrs(api.URL))
			if err := pick(s.selector, "pick"); err != nil {
				return err
			}
			all, operations = append(all, s), append(operations, func() error { return pick(s.selector, "pick") })
		}
		time.Sleep(settle)
		costs, err := best(n, n.Rounds, operations...)
		if err != nil {
			return err
		}
		t.row(fmt.Sprintf("pick an instance of %d", replicas), cost(costs[0]), cost(costs[1]))
		for _, s := range all {
			_ = s.close()
		}
		api.CloseClientConnections()
		api.Close()
	}
	return nil
}

// ---- from a write to the API server until callers see it ----

// observer records when a selector begins or ceases to offer an instance.
type observer struct {
	mu      sync.Mutex
	offered map[string]bool
	since   map[string]time.Time
}

// observe reads the selector every millisecond until stop is called.
func observe(s candidate, service string) (o *observer, stop func()) {
	o = &observer{since: map[string]time.Time{}}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
			now := map[string]bool{}
			_, _ = s.selector.Select(service, selector.WithStrategy(func(services []*registry.Service) selector.Next { // an error means that no instance is offered
				for _, v := range services {
					for _, n := range v.Nodes {
						now[n.Id] = true
					}
				}
				return nil
			}))
			o.mu.Lock()
			for _, all := range []map[string]bool{now, o.offered} {
				for id := range all {
					if now[id] != o.offered[id] {
						o.since[id] = time.Now()
					}
				}
			}
			o.offered = now
			o.mu.Unlock()
		}
	})
	return o, func() { cancel(); done.Wait(); _ = s.close() }
}

// change is one kind of change, made to one pod after the other.
type change struct {
	what    string
	offered bool          // whether the instance is offered afterwards
	period  time.Duration // over which the changes are spread
	write   func(pod string) error
}

// latency waits until the change is seen and returns the time since sent. It
// returns false if the change is not seen until the deadline.
func (c change) latency(o *observer, pod string, sent, deadline time.Time) (time.Duration, bool) {
	for ; ; time.Sleep(time.Millisecond) {
		o.mu.Lock()
		offered, since := o.offered[pod], o.since[pod]
		o.mu.Unlock()
		if offered == c.offered && since.After(sent) {
			return since.Sub(sent), true
		}
		if time.Now().After(deadline) {
			return 0, false
		}
	}
}

// measure makes the changes and measures how long each candidate takes to see
// them. It waits for pod/ after each change, and for upstream at the end.
func (c change) measure(t *table, pods []string, timeout time.Duration, upstreamObserver, podObserver *observer) error {
	gap := max(c.period/time.Duration(len(pods)), 20*time.Millisecond)
	progress("  %s (%s)", c.what, (gap * time.Duration(len(pods))).Round(time.Second))
	sent := map[string]time.Time{}
	var writes []time.Duration
	for _, pod := range pods {
		sent[pod] = time.Now()
		if err := c.write(pod); err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
		writes = append(writes, time.Since(sent[pod]))
		c.latency(podObserver, pod, sent[pod], sent[pod].Add(timeout))
		time.Sleep(time.Until(sent[pod].Add(gap/2 + rand.N(gap)))) // random, so that no timer runs in step with the changes
	}
	deadline := time.Now().Add(timeout)
	var cells []string
	for _, o := range []*observer{upstreamObserver, podObserver} {
		var all []time.Duration
		for _, pod := range pods {
			if d, ok := c.latency(o, pod, sent[pod], deadline); ok {
				all = append(all, d)
			}
		}
		cell := percentiles(all)
		if missing := len(pods) - len(all); missing > 0 {
			cell = strings.TrimPrefix(fmt.Sprintf("%s, %d of %d not seen in %s", cell, missing, len(pods), format(timeout)), ", ")
		}
		cells = append(cells, cell)
	}
	t.row(fmt.Sprintf("%s (the request itself: %s)", c.what, percentiles(writes)), cells[0], cells[1])
	return nil
}

// percentiles returns p50 / p99.
func percentiles(all []time.Duration) string {
	if len(all) == 0 {
		return ""
	}
	slices.Sort(all)
	return format(all[len(all)/2]) + " / " + format(all[len(all)*99/100])
}

func changes(k *kube, n sizes, t *table) error {
	counted, err := startIdle(k, n.Idle) // counts for two minutes in the background
	if err != nil {
		return err
	}
	const address = "10.0.0.1:9100"
	// Each part has its own namespace and registries, so that no part uses
	// cached data of an earlier part.
	part := func(namespace string, timeout time.Duration, registered bool, all ...change) error {
		err := k.enterNamespace(namespace)
		if err == nil { // one instance always exists, because a service without instances is looked up again each time
			_, err = k.fill(namespace, "first", 1, "greeter", address, true)
		}
		if err != nil {
			return err
		}
		service := ""
		if registered {
			service = "greeter"
		}
		pods, err := k.fill(namespace, "pod", n.Events, service, address, !registered)
		if err != nil {
			return err
		}
		upstreamObserver, stopUpstream := observe(upstream(), "greeter")
		defer stopUpstream()
		podObserver, stopPod := observe(ours(), "greeter")
		defer stopPod()
		time.Sleep(settle)
		for _, c := range all {
			if err := c.measure(t, pods, c.period+timeout, upstreamObserver, podObserver); err != nil {
				return err
			}
		}
		return nil
	}
	ready := func(is bool) func(string) error {
		return func(p string) error { return k.setStatus("early", p, is) }
	}
	remove := func(namespace string, grace int) func(string) error {
		return func(p string) error {
			return k.do("DELETE", pods(namespace)+p, object{"gracePeriodSeconds": grace}, nil)
		}
	}
	if err := part("early", n.Timeout, true,
		change{"registered pod becomes Running and Ready", true, 0, ready(true)},
		change{"pod is no longer Ready", false, 0, ready(false)},
		change{"pod is Ready again", true, 0, ready(true)},
		change{"pod is force-deleted", false, 0, remove("early", 0)},
	); err != nil {
		return err
	}
	if err := part("late", n.Timeout, false,
		change{"late registration", true, n.Late, func(p string) error {
			return k.do("PATCH", pods("late")+p, object{"metadata": registrationMetadata(p, "greeter", address)}, nil)
		}},
		change{"pod becomes terminating (deletionTimestamp)", false, 0, remove("late", 30)},
	); err != nil {
		return err
	}
	return counted(t)
}

// ---- requests of idle services ----

// startIdle starts one registered service of each kind that calls one other
// service. The returned function waits until their requests have been counted.
func startIdle(k *kube, period time.Duration) (func(*table) error, error) {
	progress("counting the requests of idle services for %s while other measurements run", period)
	if err := k.enterNamespace("idle"); err != nil {
		return nil, err
	}
	if _, err := k.fill("idle", "target", 1, "target", "10.0.0.1:9100", true); err != nil {
		return nil, err
	}
	own, err := k.fill("idle", "own", len(candidates), "", "", true)
	if err != nil {
		return nil, err
	}
	os.Setenv("HOSTNAME", own[0]) // read by the plugin
	os.Setenv("POD_NAME", own[1]) // read by pod/
	ctx, cancel := context.WithCancel(context.Background())
	var stops []func() error
	for i, new := range candidates {
		s := new()
		service := newService(fmt.Sprint("idle-", i), s)
		if err := service.Server().Start(); err != nil { // registers now and every 30 s
			cancel()
			return nil, err
		}
		if err := pick(s.selector, "target"); err != nil {
			cancel()
			return nil, err
		}
		go func() {
			for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
				_ = pick(s.selector, "target")
			}
		}()
		stops = append(stops, service.Server().Stop, s.close)
	}
	time.Sleep(settle)
	verbs, agents := []string{"PATCH", "LIST", "WATCH"}, []string{pluginAgent, ourAgent}
	before := map[string]int{}
	for _, agent := range agents {
		for _, verb := range verbs {
			before[agent+verb] = k.counted(agent, "idle", verb)
		}
	}
	row := make(chan []string, 1)
	time.AfterFunc(period, func() {
		var cells []string
		for _, agent := range agents {
			var counts []string
			for _, verb := range verbs {
				if n := k.counted(agent, "idle", verb) - before[agent+verb]; n > 0 {
					counts = append(counts, fmt.Sprintf("%.3g %s", float64(n)/period.Minutes(), verb))
				}
			}
			cells = append(cells, cmp.Or(strings.Join(counts, ", "), "0"))
		}
		row <- cells
	})
	return func(t *table) error {
		cells := <-row
		t.row("API requests per minute, idle", cells[0], cells[1])
		cancel()
		for _, stop := range stops {
			if err := stop(); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// podTracer is what pod.NewRegistry sets.
var goMicroTracer, podTracer = trace.DefaultTracer, func() trace.Tracer {
	pod.NewRegistry(kubernetes.NewRegistry)
	return trace.DefaultTracer
}()

// newService returns a go-micro service that listens on loopback. The in-memory
// broker avoids a second listener. The service has go-micro's tracer if it uses nothing of pod/, also
// no Lifecycle, which is an option.
func newService(name string, s candidate, more ...micro.Option) micro.Service {
	trace.DefaultTracer = goMicroTracer
	if _, ok := s.registry.(*pod.Registry); ok || len(more) > 0 {
		trace.DefaultTracer = podTracer
	}
	options := []micro.Option{micro.Name(name), micro.Broker(broker.NewBroker()), micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0")))}
	if s.client != nil {
		options = append(options, micro.Client(s.client), micro.Registry(s.registry))
	} else {
		options = append(options, micro.Client(grpcc.NewClient()), micro.Registry(s.registry), micro.Selector(s.selector))
	}
	options = append(options, micro.RegisterInterval(30*time.Second)) // the default of go-micro's flags, which this service does not parse
	return micro.NewService(append(options, more...)...)
}

// ---- the first call to a large service ----

func firstCalls(k *kube, n sizes, t *table) error {
	progress("creating %d registered pods (1 minute), then %d first calls with each implementation (5 s each)", n.Many, n.Starts)
	if err := k.enterNamespace("many"); err != nil {
		return err
	}
	if _, err := k.fill("many", "pod", n.Many, "many", "10.0.0.1:9100", true); err != nil {
		return err
	}
	var took [2][]time.Duration
	var live, all [2][]int
	for range n.Starts {
		for i, new := range candidates {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.GC() // the second run also frees what sync.Pools still hold
			runtime.ReadMemStats(&before)
			start := time.Now()
			s := new()
			if err := pick(s.selector, "many"); err != nil {
				return err
			}
			took[i] = append(took[i], time.Since(start))
			time.Sleep(settle)
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&after)
			live[i] = append(live[i], int(after.HeapAlloc)-int(before.HeapAlloc))
			all[i] = append(all[i], int(after.TotalAlloc-before.TotalAlloc))
			_ = s.close()
			time.Sleep(settle / 4) // until its goroutines have ended
		}
	}
	memory := func(i int) string {
		return fmt.Sprintf("%.1f MiB, %.0f MiB allocated", float64(median(live[i]))/(1<<20), float64(median(all[i]))/(1<<20))
	}
	t.row(fmt.Sprintf("first call to a service of %d pods", n.Many), format(median(took[0])), format(median(took[1])))
	t.row("its memory", memory(0), memory(1))
	return nil
}

func median[T cmp.Ordered](all []T) T {
	slices.Sort(all)
	return all[len(all)/2]
}
