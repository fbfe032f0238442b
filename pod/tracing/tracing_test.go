package tracing

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/test/orders"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(), // and the goroutines of go-micro that never end
		goleak.IgnoreAnyFunction("github.com/micro/go-micro/v2/registry/memory.(*Registry).ttlPrune"),
		goleak.IgnoreAnyFunction("github.com/micro/go-micro/v2/util/auth.Generate.func1"),
		goleak.IgnoreAnyFunction("github.com/patrickmn/go-cache.(*janitor).Run"))
}

// collector receives spans over OTLP.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	address string

	mu    sync.Mutex
	spans []span
}

// span is a span, with the name of the service that exported it.
type span struct {
	*tracev1.Span
	service string
}

func (s span) attribute(key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			if text := a.Value.GetStringValue(); text != "" {
				return text
			}
			return fmt.Sprint(a.Value.GetIntValue())
		}
	}
	return ""
}

func (c *collector) Export(_ context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.ResourceSpans {
		for _, s := range r.ScopeSpans {
			for _, exported := range s.Spans {
				of := span{exported, ""}
				for _, a := range r.Resource.Attributes {
					if a.Key == "service.name" {
						of.service = a.Value.GetStringValue()
					}
				}
				c.spans = append(c.spans, of)
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// find returns the only span of a service whose name ends as given.
func (c *collector) find(t *testing.T, service, name string, kind tracev1.Span_SpanKind) span {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []span
	for _, s := range c.spans {
		if s.service == service && strings.HasSuffix(s.Name, name) && s.Kind == kind {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans %s of kind %s of service %s, want 1; all: %v", len(found), name, kind, service, c.spans)
	}
	return found[0]
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func serve(t *testing.T, s *grpc.Server) (address string) {
	l := listen(t)
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { s.Stop(); serving.Wait() })
	return l.Addr().String()
}

// startCollector makes services of this process export to a collector.
func startCollector(t *testing.T) *collector {
	c, s := &collector{}, grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(s, c)
	c.address = serve(t, s)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+c.address)
	return c
}

// shop answers two methods; the others panic.
type shop struct {
	orders.OrdersHandler
	next func(context.Context) error // called by GetOrder
}

func (s shop) GetOrder(ctx context.Context, _ *orders.OrderRequest, _ *orders.OrderResponse) error {
	return s.next(ctx)
}

func (shop) TrackOrder(_ context.Context, _ *orders.OrderRequest, s orders.Orders_TrackOrderStream) error {
	return errors.Join(s.Send(&orders.OrderResponse{}), s.Close())
}

// startService runs a service that exports, and returns its address and the function that stops it, so that all spans are exported.
func startService(t *testing.T, name string, c client.Client, handler shop) (address string, stop func()) {
	t.Helper()
	l := listen(t)
	address = l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{})
	r := pod.NewRegistry(kubernetes.NewRegistry)
	service := micro.NewService(micro.Server(grpcs.NewServer(server.Address(address), server.Name(name), server.Registry(memory.NewRegistry()))),
		micro.Client(c), micro.Registry(memory.NewRegistry()), micro.Context(ctx), micro.HandleSignal(false),
		micro.AfterStart(func() error { close(started); return nil }), pod.Lifecycle(r, pod.DrainWait(0)), Export())
	if handler.next == nil {
		handler.next = func(context.Context) error { return nil }
	}
	downstream := handler.next
	handler.next = func(ctx context.Context) error { return downstream(context.WithValue(ctx, serviceKey{}, service)) }
	if err := orders.RegisterOrdersHandler(service.Server(), handler); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- service.Run() }()
	select {
	case <-started:
	case err := <-ended:
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return address, stop
}

type serviceKey struct{}

func newClient(t *testing.T, opts ...client.Option) client.Client {
	c := pod.NewClient(pod.NewRegistry(kubernetes.NewRegistry, pod.Direct()), grpcc.NewClient(opts...))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func getOrder(ctx context.Context, c client.Client, opts ...client.CallOption) error {
	return c.Call(ctx, c.NewRequest("shop", "Orders.GetOrder", &orders.OrderRequest{}), &orders.OrderResponse{}, opts...)
}

// A program with otelgrpc calls front, front calls shop, and shop calls a program with otelgrpc: one trace, in which each
// span is the child of the one before.
func TestOneTraceThroughServicesAndOtelgrpc(t *testing.T) {
	c := startCollector(t)
	recorded := tracetest.NewSpanRecorder()
	others := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorded))
	backend := grpc.NewServer(grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(others), otelgrpc.WithPropagators(propagator))))
	healthv1.RegisterHealthServer(backend, checked{})
	backendAddress := serve(t, backend)

	shopAddress, stopShop := startService(t, "shop", newClient(t), shop{next: func(ctx context.Context) error {
		own := ctx.Value(serviceKey{}).(micro.Service).Client()
		req := own.NewRequest("backend", "/grpc.health.v1.Health/Check", &healthv1.HealthCheckRequest{})
		return own.Call(ctx, req, &healthv1.HealthCheckResponse{}, client.WithAddress(backendAddress))
	}})
	frontAddress, stopFront := startService(t, "front", newClient(t), shop{next: func(ctx context.Context) error {
		return getOrder(ctx, ctx.Value(serviceKey{}).(micro.Service).Client(), client.WithAddress(shopAddress))
	}})

	conn, err := grpc.NewClient(frontAddress, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithTracerProvider(others), otelgrpc.WithPropagators(propagator))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil { // no span: a probe
		t.Fatal(err)
	}
	if err := conn.Invoke(t.Context(), "/orders.Orders/GetOrder", &orders.OrderRequest{}, &orders.OrderResponse{}); err != nil {
		t.Fatal(err)
	}
	stopFront()
	stopShop()

	const internal, clientKind, serverKind = tracev1.Span_SPAN_KIND_INTERNAL, tracev1.Span_SPAN_KIND_CLIENT, tracev1.Span_SPAN_KIND_SERVER
	find := func(name string, kind trace.SpanKind) (found sdktrace.ReadOnlySpan) {
		for _, s := range recorded.Ended() {
			if strings.HasSuffix(s.Name(), name) && s.SpanKind() == kind {
				found = s
			}
		}
		if found == nil {
			t.Fatalf("otelgrpc has no span %s of kind %s", name, kind)
		}
		return found
	}
	caller, called := find("GetOrder", trace.SpanKindClient), find("Check", trace.SpanKindServer)
	chain := []span{
		c.find(t, "front", "GetOrder", serverKind), c.find(t, "front", "GetOrder", internal), c.find(t, "front", "GetOrder", clientKind),
		c.find(t, "shop", "GetOrder", serverKind), c.find(t, "shop", "Check", internal), c.find(t, "shop", "Check", clientKind),
	}
	traceID, parent := caller.SpanContext().TraceID(), caller.SpanContext().SpanID()
	for _, s := range chain {
		if string(s.TraceId) != string(traceID[:]) || string(s.ParentSpanId) != string(parent[:]) {
			t.Errorf("span %s of %s: trace %x, parent %x, want %s and %s", s.Name, s.service, s.TraceId, s.ParentSpanId, traceID, parent)
		}
		if s.Status.GetCode() != tracev1.Status_STATUS_CODE_UNSET {
			t.Errorf("span %s of %s has the status %v, want no error", s.Name, s.service, s.Status)
		}
		parent = trace.SpanID(s.SpanId)
	}
	if called.SpanContext().TraceID() != traceID || called.Parent().SpanID() != parent {
		t.Errorf("otelgrpc's server: trace %s, parent %s, want %s and %s", called.SpanContext().TraceID(), called.Parent().SpanID(), traceID, parent)
	}
	if len(c.spans) != len(chain) {
		t.Errorf("%d spans are exported, want %d: the probe has none: %v", len(c.spans), len(chain), c.spans)
	}
	if got := chain[2].attribute("network.peer.address"); got != shopAddress {
		t.Errorf("the attempt went to %s, want %s", got, shopAddress)
	}
}

// inOrder is a selector that returns nodes in an order.
type inOrder struct {
	selector.Selector
	addresses []string
}

func (s inOrder) Select(string, ...selector.SelectOption) (selector.Next, error) {
	left := s.addresses
	return func() (*registry.Node, error) {
		if len(left) == 0 {
			return nil, selector.ErrNoneAvailable
		}
		address := left[0]
		left = left[1:]
		return &registry.Node{Id: "shop-" + address, Address: address}, nil
	}, nil
}

func TestRetryIsASecondAttempt(t *testing.T) {
	l := listen(t)
	away := l.Addr().String()
	l.Close()
	s := grpc.NewServer()
	healthv1.RegisterHealthServer(s, checked{})
	address := serve(t, s)
	recorded := tracetest.NewSpanRecorder()
	choice := inOrder{selector.NewSelector(selector.Registry(memory.NewRegistry())), []string{away, address}}
	c := Client(newClient(t, client.Selector(choice)), sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorded)))
	req := c.NewRequest("shop", "/grpc.health.v1.Health/Check", &healthv1.HealthCheckRequest{})
	if err := c.Call(t.Context(), req, &healthv1.HealthCheckResponse{}); err != nil {
		t.Fatal(err)
	}
	spans := recorded.Ended()
	if len(spans) != 3 {
		t.Fatalf("%d spans, want two attempts and the call: %v", len(spans), spans)
	}
	call := spans[2]
	for i, peer := range []string{away, address} {
		attempt := attributesOf(spans[i])
		if failed := spans[i].Status().Description != ""; attempt["network.peer.address"] != peer || attempt["micro.attempt"] != fmt.Sprint(i+1) || attempt["micro.node.id"] != "shop-"+peer || failed != (i == 0) || spans[i].Parent().SpanID() != call.SpanContext().SpanID() {
			t.Errorf("attempt %d: %v, status %v, parent %s", i+1, attempt, spans[i].Status(), spans[i].Parent().SpanID())
		}
	}
	if call.SpanKind() != trace.SpanKindInternal || call.Status().Description != "" {
		t.Errorf("the call: %s, %v", call.SpanKind(), call.Status())
	}
}

// failing is a client whose attempts at two nodes fail. One of them is ejected then.
type failing struct{ client.Client }

func (f failing) InstanceOf(n *registry.Node) (pod.InstanceCalls, bool) {
	return pod.InstanceCalls{Pod: "pod-" + n.Id, Address: n.Address, EjectedFor: map[string]time.Duration{"a": 5 * time.Second}[n.Id]}, n.Id != "unknown"
}

func (f failing) Call(ctx context.Context, req client.Request, rsp any, _ ...client.CallOption) error {
	attempt := func(context.Context, *registry.Node, client.Request, any, client.CallOptions) error {
		return errors.New("lost")
	}
	for _, w := range f.Options().CallOptions.CallWrappers {
		attempt = w(attempt)
	}
	for _, id := range []string{"a", "b", "unknown"} {
		_ = attempt(ctx, &registry.Node{Id: id, Address: "10.0.0.1:1"}, req, rsp, client.CallOptions{})
	}
	return errors.New("lost")
}

func TestEjectionIsAnEventOfTheCall(t *testing.T) {
	recorded := tracetest.NewSpanRecorder()
	c := Client(failing{grpcc.NewClient()}, sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorded)))
	if err := getOrder(t.Context(), c); err == nil {
		t.Error("the call succeeded")
	}
	spans := recorded.Ended()
	if len(spans) != 4 || len(spans[3].Events()) != 1 {
		t.Fatalf("%v", spans)
	}
	if e := spans[3].Events()[0]; e.Name != "instance ejected" || fmt.Sprint(textsOf(e.Attributes)) != "map[micro.ejected_for:5 micro.pod:pod-a network.peer.address:10.0.0.1:1]" {
		t.Errorf("%s %v", e.Name, textsOf(e.Attributes))
	}
	for i, want := range []string{"pod-a", "pod-b", ""} {
		if got := attributesOf(spans[i])["micro.pod"]; got != want {
			t.Errorf("attempt %d has the pod %q, want %q", i+1, got, want)
		}
	}
}

func attributesOf(s sdktrace.ReadOnlySpan) map[string]string { return textsOf(s.Attributes()) }

func textsOf(attributes []attribute.KeyValue) map[string]string {
	all := map[string]string{}
	for _, a := range attributes {
		all[string(a.Key)] = a.Value.String()
	}
	return all
}

// checked is a health service that answers.
type checked struct {
	healthv1.UnimplementedHealthServer
}

func (checked) Check(context.Context, *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	return &healthv1.HealthCheckResponse{}, nil
}

func TestSpanOfStreamEndsWithIt(t *testing.T) {
	c := startCollector(t)
	address, stop := startService(t, "shop", newClient(t), shop{})
	recorded := tracetest.NewSpanRecorder()
	caller := Client(newClient(t), sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorded)))
	open := func(ctx context.Context) client.Stream {
		s, err := caller.Stream(ctx, caller.NewRequest("shop", "Orders.TrackOrder", nil), client.WithAddress(address))
		if err != nil {
			t.Fatal(err)
		}
		if len(recorded.Ended()) != 0 {
			t.Error("the span has ended before the stream")
		}
		return s
	}
	ended := func(what string, failed bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); len(recorded.Ended()) == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		if all := recorded.Ended(); len(all) != 1 || (all[0].Status().Description != "") != failed {
			t.Errorf("%s: spans %v", what, all)
		}
		recorded.Reset()
	}

	s := open(t.Context())
	if err := s.Send(&orders.OrderRequest{}); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		err = s.Recv(&orders.OrderResponse{})
	}
	if err != io.EOF {
		t.Errorf("the stream ended with %v", err)
	}
	ended("read to its end", false)
	_ = s.Close()

	s = open(t.Context())
	_ = s.Close()
	ended("closed", false)

	ctx, cancel := context.WithCancel(t.Context())
	open(ctx)
	cancel()
	ended("cancelled", true)

	if _, err := caller.Stream(t.Context(), caller.NewRequest("shop", "Orders.TrackOrder", nil), client.WithAddress("")); err == nil {
		t.Error("a stream without an address was opened")
	}
	ended("not opened", true)
	stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) == 0 || c.spans[0].Kind != tracev1.Span_SPAN_KIND_SERVER || c.spans[0].Name != "Orders.TrackOrder" { // those of closed streams may not have reached the server
		t.Errorf("the server exported %v", c.spans)
	}
}

func TestNothingIsExportedUnlessConfigured(t *testing.T) {
	for _, env := range []map[string]string{
		{},
		{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_SDK_DISABLED": "true"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_TRACES_EXPORTER": "none"},
	} {
		t.Run(fmt.Sprint(env), func(t *testing.T) {
			for name, value := range env {
				t.Setenv(name, value)
			}
			before := otel.GetTracerProvider()
			c := newClient(t)
			o := micro.Options{Client: c}
			Export()(&o)
			if o.Client != c || len(o.BeforeStart) != 0 || len(o.AfterStop) != 0 || otel.GetTracerProvider() != before {
				t.Error("the option has changed something")
			}
		})
	}
}

func TestOtherProtocolIsRefused(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	service := micro.NewService(micro.Server(grpcs.NewServer(server.Name("shop"), server.Address("127.0.0.1:0"))), micro.Client(newClient(t)), micro.Registry(memory.NewRegistry()), micro.HandleSignal(false), Export())
	if err := service.Run(); err == nil || !strings.Contains(err.Error(), "only grpc is supported") {
		t.Errorf("Run returned %v", err)
	}
}

// A collector that is away costs the stop 2 s at most, and no call.
func TestCollectorThatIsAway(t *testing.T) {
	l := listen(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+l.Addr().String())
	l.Close()
	address, stop := startService(t, "shop", newClient(t), shop{})
	if err := getOrder(t.Context(), newClient(t), client.WithAddress(address)); err != nil {
		t.Error(err)
	}
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > flushTimeout+10*time.Second { // and what the stop takes on a slow machine
		t.Errorf("the stop took %s", took)
	}
}

func TestHeadersReplaceThoseOfTheRequestServed(t *testing.T) {
	h := headers{"Traceparent": "old", "Micro-Id": "1"}
	h.Set("traceparent", "new")
	if keys := h.Keys(); len(keys) != 2 || h.Get("traceparent") != "new" || slices.Contains(keys, "Traceparent") {
		t.Errorf("the headers are %v", h)
	}
}

func TestErrorsOfTheExporterAreLoggedOnceAMinute(t *testing.T) {
	l := &errorLog{}
	l.Handle(errors.New("away"))
	first := l.logged
	l.Handle(errors.New("away"))
	if l.logged != first {
		t.Error("the same error is logged twice")
	}
	l.Handle(errors.New("refused"))
	if l.last != "refused" {
		t.Error("another error is not logged")
	}
}

// What the span of an attempt costs.
func BenchmarkAttempt(b *testing.B) {
	for name, sampler := range map[string]sdktrace.Sampler{"sampled": sdktrace.AlwaysSample(), "not sampled": sdktrace.NeverSample()} {
		b.Run(name, func(b *testing.B) {
			c := Client(grpcc.NewClient(), sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler))).(*tracedClient)
			call := c.attempt(func(context.Context, *registry.Node, client.Request, interface{}, client.CallOptions) error {
				return nil
			})
			req, node := grpcc.NewClient().NewRequest("shop", "Orders.GetOrder", nil), &registry.Node{}
			b.ReportAllocs()
			for b.Loop() {
				_ = call(b.Context(), node, req, nil, client.CallOptions{})
			}
		})
	}
}
