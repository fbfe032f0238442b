//go:build linux

package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	broker "github.com/micro/go-micro/v2/broker/memory"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// side is one of the two that are compared.
type side struct {
	registry registry.Registry
	selector selector.Selector
	close    func() error
}

func upstream(opts ...registry.Option) side {
	r := kubernetes.NewRegistry(opts...)
	s := selector.NewSelector(selector.Registry(r))
	return side{r, s, s.Close}
}

func ours(opts ...registry.Option) side {
	r := pod.NewRegistry(kubernetes.NewRegistry, opts...)
	return side{r, pod.NewSelector(r), r.Close}
}

var sides = []func(...registry.Option) side{upstream, ours}

// settle is how long either needs after its first call: the plugin throws away
// the first second of its watch.
const settle = 2 * time.Second

// choose is what a client does for each call, but the call.
func choose(s selector.Selector, service string) error {
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

// best measures operations in turn, so that what else the machine does hits all
// alike, and says what the best round of each costs.
func best(n sizes, rounds int, operations ...func() error) (costs []string, err error) {
	testing.Init()
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
	for _, r := range results {
		costs = append(costs, fmt.Sprintf("%s, %d allocations", show(r.T/time.Duration(r.N)), r.AllocsPerOp()))
	}
	return costs, nil
}

// show gives a duration three digits.
func show(d time.Duration) string {
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

func pick(_ *kube, n sizes, t *table) error {
	progress("choosing a node among %v replicas (1 minute)", n.Replicas)
	for _, replicas := range n.Replicas {
		api := memoryAPI("pick", replicas)
		var operations []func() error
		var all []side
		for _, new := range sides {
			s := new(registry.Addrs(api.URL))
			if err := choose(s.selector, "pick"); err != nil {
				return err
			}
			all, operations = append(all, s), append(operations, func() error { return choose(s.selector, "pick") })
		}
		time.Sleep(settle)
		costs, err := best(n, n.Rounds, operations...)
		if err != nil {
			return err
		}
		t.row(fmt.Sprintf("choose a node among %d replicas", replicas), costs[0], costs[1])
		for _, s := range all {
			_ = s.close()
		}
		api.CloseClientConnections()
		api.Close()
	}
	return nil
}

// ---- from a write to what callers get ----

// observer notes when a selector begins or ceases to offer a node.
type observer struct {
	mu      sync.Mutex
	offered map[string]bool
	since   map[string]time.Time
}

// observe looks every millisecond until stop is called.
func observe(s side, service string) (o *observer, stop func()) {
	o = &observer{since: map[string]time.Time{}}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
			now := map[string]bool{}
			_, _ = s.selector.Select(service, selector.WithStrategy(func(services []*registry.Service) selector.Next { // an error is no node
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

// change is what happens to one pod after the other.
type change struct {
	what  string
	here  bool // the node is to be offered afterwards, or no longer
	over  time.Duration
	write func(pod string) error
}

// took waits until the change is seen and says how long that took; false when it was not.
func (c change) took(o *observer, pod string, sent, until time.Time) (time.Duration, bool) {
	for ; ; time.Sleep(time.Millisecond) {
		o.mu.Lock()
		here, since := o.offered[pod], o.since[pod]
		o.mu.Unlock()
		if here == c.here && since.After(sent) {
			return since.Sub(sent), true
		}
		if time.Now().After(until) {
			return 0, false
		}
	}
}

// follow makes the changes and measures how long each side takes to see them. It
// waits for ours each time, and for upstream at the end.
func (c change) follow(t *table, pods []string, patience time.Duration, up, our *observer) error {
	gap := max(c.over/time.Duration(len(pods)), 20*time.Millisecond)
	progress("  %s (%s)", c.what, (gap * time.Duration(len(pods))).Round(time.Second))
	sent := map[string]time.Time{}
	var writes []time.Duration
	for _, pod := range pods {
		sent[pod] = time.Now()
		if err := c.write(pod); err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
		writes = append(writes, time.Since(sent[pod]))
		c.took(our, pod, sent[pod], sent[pod].Add(patience))
		time.Sleep(time.Until(sent[pod].Add(gap/2 + rand.N(gap)))) // no step that a timer could fall into
	}
	until := time.Now().Add(patience)
	var cells []string
	for _, o := range []*observer{up, our} {
		var all []time.Duration
		for _, pod := range pods {
			if d, ok := c.took(o, pod, sent[pod], until); ok {
				all = append(all, d)
			}
		}
		cell := spread(all)
		if missing := len(pods) - len(all); missing > 0 {
			cell = strings.TrimPrefix(fmt.Sprintf("%s, %d of %d not seen in %s", cell, missing, len(pods), show(patience)), ", ")
		}
		cells = append(cells, cell)
	}
	t.row(fmt.Sprintf("%s (the request itself: %s)", c.what, spread(writes)), cells[0], cells[1])
	return nil
}

// spread is p50 / p99.
func spread(all []time.Duration) string {
	if len(all) == 0 {
		return ""
	}
	slices.Sort(all)
	return show(all[len(all)/2]) + " / " + show(all[len(all)*99/100])
}

func changes(k *kube, n sizes, t *table) error {
	counted, err := startRest(k, n.Rest) // it takes two minutes and no work
	if err != nil {
		return err
	}
	const address = "10.0.0.1:9100"
	// Each part in a namespace and with registries of its own, so that a cache that
	// was right by chance in one is not so in the next.
	part := func(namespace string, patience time.Duration, registered bool, all ...change) error {
		err := k.move(namespace)
		if err == nil { // one node is always there: a service without any is asked for anew each time
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
		up, stopUp := observe(upstream(), "greeter")
		defer stopUp()
		our, stopOur := observe(ours(), "greeter")
		defer stopOur()
		time.Sleep(settle)
		for _, c := range all {
			if err := c.follow(t, pods, c.over+patience, up, our); err != nil {
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
	if err := part("early", n.Patience, true,
		change{"registered pod becomes Running and Ready", true, 0, ready(true)},
		change{"pod is no longer Ready", false, 0, ready(false)},
		change{"pod is Ready again", true, 0, ready(true)},
		change{"pod vanishes (force-deleted)", false, 0, remove("early", 0)},
	); err != nil {
		return err
	}
	if err := part("late", n.Patience, false,
		change{"late registration", true, n.Late, func(p string) error {
			return k.do("PATCH", pods("late")+p, object{"metadata": marks(p, "greeter", address)}, nil)
		}},
		change{"pod is asked to stop (deletionTimestamp)", false, 0, remove("late", 30)},
	); err != nil {
		return err
	}
	return counted(t)
}

// ---- requests at rest ----

// startRest starts one registered service of each kind, which follows one other
// service. What it returns waits until their requests have been counted.
func startRest(k *kube, period time.Duration) (func(*table) error, error) {
	progress("requests at rest: counted for %s while other things are measured", period)
	if err := k.move("rest"); err != nil {
		return nil, err
	}
	if _, err := k.fill("rest", "target", 1, "target", "10.0.0.1:9100", true); err != nil {
		return nil, err
	}
	own, err := k.fill("rest", "own", len(sides), "", "", true)
	if err != nil {
		return nil, err
	}
	os.Setenv("HOSTNAME", own[0]) // for the plugin
	os.Setenv("POD_NAME", own[1]) // for pod/
	ctx, cancel := context.WithCancel(context.Background())
	var stops []func() error
	for i, new := range sides {
		s := new()
		service := newService(fmt.Sprint("rest-", i), s)
		if err := service.Server().Start(); err != nil { // registers, and again every 30 s
			cancel()
			return nil, err
		}
		if err := choose(s.selector, "target"); err != nil {
			cancel()
			return nil, err
		}
		go func() {
			for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
				_ = choose(s.selector, "target")
			}
		}()
		stops = append(stops, service.Server().Stop, s.close)
	}
	time.Sleep(settle)
	verbs, agents := []string{"PATCH", "LIST", "WATCH"}, []string{pluginAgent, ourAgent}
	before := map[string]int{}
	for _, agent := range agents {
		for _, verb := range verbs {
			before[agent+verb] = k.counted(agent, "rest", verb)
		}
	}
	row := make(chan []string, 1)
	time.AfterFunc(period, func() {
		var cells []string
		for _, agent := range agents {
			var asked []string
			for _, verb := range verbs {
				if n := k.counted(agent, "rest", verb) - before[agent+verb]; n > 0 {
					asked = append(asked, fmt.Sprintf("%.3g %s", float64(n)/period.Minutes(), verb))
				}
			}
			cells = append(cells, cmp.Or(strings.Join(asked, ", "), "0"))
		}
		row <- cells
	})
	return func(t *table) error {
		cells := <-row
		t.row("API requests per minute at rest", cells[0], cells[1])
		cancel()
		for _, stop := range stops {
			if err := stop(); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// newService is a go-micro service that serves on loopback. A message broker
// would be one more listener.
func newService(name string, s side) micro.Service {
	return micro.NewService(micro.Name(name), micro.Broker(broker.NewBroker()),
		micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"))), micro.Client(grpcc.NewClient()),
		micro.Registry(s.registry), micro.Selector(s.selector),
		micro.RegisterInterval(30*time.Second)) // what go-micro's flags say by default; this service has no flags
}

// ---- the first call to a large service ----

func first(k *kube, n sizes, t *table) error {
	progress("%d registered pods (1 minute), then %d first calls to them from each side (5 s each)", n.Many, n.Starts)
	if err := k.move("many"); err != nil {
		return err
	}
	if _, err := k.fill("many", "pod", n.Many, "many", "10.0.0.1:9100", true); err != nil {
		return err
	}
	var took [2][]time.Duration
	var live, all [2][]int
	for range n.Starts {
		for i, new := range sides {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.GC() // twice: what pools still hold
			runtime.ReadMemStats(&before)
			began := time.Now()
			s := new()
			if err := choose(s.selector, "many"); err != nil {
				return err
			}
			took[i] = append(took[i], time.Since(began))
			time.Sleep(settle)
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&after)
			live[i] = append(live[i], int(after.HeapAlloc)-int(before.HeapAlloc))
			all[i] = append(all[i], int(after.TotalAlloc-before.TotalAlloc))
			_ = s.close()
			time.Sleep(settle / 4) // until its goroutines are gone
		}
	}
	memory := func(i int) string {
		return fmt.Sprintf("%.1f MiB, %.0f MiB allocated", float64(median(live[i]))/(1<<20), float64(median(all[i]))/(1<<20))
	}
	t.row(fmt.Sprintf("first call to a service of %d pods", n.Many), show(median(took[0])), show(median(took[1])))
	t.row("its memory", memory(0), memory(1))
	return nil
}

func median[T cmp.Ordered](all []T) T {
	slices.Sort(all)
	return all[len(all)/2]
}

// ---- the call itself ----

type greeter struct{}

func (greeter) Hello(_ context.Context, q *proto.HelloRequest, a *proto.HelloResponse) error {
	a.Greeting = "Hello " + q.Name + "!"
	return nil
}

// unary measures Greeter.Hello: bare grpc-go, and go-micro with either selector,
// of one replica and of many. go-micro's client and server are the same for
// both: only what chooses the node differs.
func unary(k *kube, n sizes, t *table) error {
	const replicas = 100
	progress("the unary call (%d rounds of 5 times %s)", 2*n.Rounds, n.Benchtime)
	if err := k.move("call"); err != nil {
		return err
	}
	r := memory.NewRegistry()
	srv := newService("greeter", side{registry: r, selector: selector.NewSelector(selector.Registry(r))})
	if err := proto.RegisterGreeterHandler(srv.Server(), greeter{}); err != nil {
		return err
	}
	if err := srv.Server().Start(); err != nil {
		return err
	}
	defer func() { _ = srv.Server().Stop() }()
	names := map[int]string{1: "one", replicas: "many"}
	for n, service := range names { // all of them are the one server
		if _, err := k.fill("call", service, n, service, srv.Server().Options().Address, true); err != nil {
			return err
		}
	}
	bare, stop, err := bareGRPC()
	if err != nil {
		return err
	}
	defer stop()
	operations := []func() error{bare}
	for _, new := range sides {
		s := new()
		defer func() { _ = s.close() }()
		client := newService("caller", s).Client()
		for _, n := range []int{1, replicas} {
			g := proto.NewGreeterService(names[n], client)
			call := func() error {
				_, err := g.Hello(context.Background(), &proto.HelloRequest{Name: "XXX"})
				return err
			}
			if err := call(); err != nil {
				return err
			}
			operations = append(operations, call)
		}
	}
	time.Sleep(settle)
	costs, err := best(n, 2*n.Rounds, operations...)
	if err != nil {
		return err
	}
	t.row("unary call, 1 replica (bare grpc-go: "+costs[0]+")", costs[1], costs[3])
	t.row(fmt.Sprintf("unary call, %d replicas", replicas), costs[2], costs[4])
	return nil
}

// bareGRPC is the same call without go-micro; only the codec is go-micro's,
// which it registers for the whole process.
func bareGRPC() (call func() error, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
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
	}, func() { c.Close(); s.Stop() }, err
}
