package shutdown

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/overload"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/types/known/durationpb"
)

// overloadMethod makes calls that wait for each other, in a time of its own, until a method has a limit, and then takes all
// places. The function that it returns ends the calls that have them.
func overloadMethod(t *testing.T, m *overload.Method) (end func()) {
	t.Helper()
	now := overload.Clock()
	begin := func() overload.Call {
		c, ok := m.Begin(now, now)
		if !ok {
			t.Fatal("a call is refused before the overload")
		}
		return c
	}
	for range 200 {
		c := begin()
		now += int64(5 * time.Millisecond)
		c.End(now)
	}
	var waiting []overload.Call
	for range 400 { // one a millisecond is answered: the last one takes 400 ms
		waiting = append(waiting, begin())
	}
	for _, c := range waiting {
		now += int64(time.Millisecond)
		c.End(now)
	}
	var held []overload.Call
	for len(held) < 100 {
		c, ok := m.Begin(now, now)
		if !ok {
			return func() {
				for _, c := range held {
					c.End(overload.Clock())
				}
			}
		}
		held = append(held, c)
	}
	t.Fatal("calls of 400 ms, usually 5 ms, make no limit")
	return nil
}

func TestCallsThatAreTooManyAreRefused(t *testing.T) {
	c, _, _, _ := newConfig()
	c.DrainWait, c.AdaptiveLimit, c.Events = 0, true, &events.Hub{}
	served := make(chan events.ServedCall, 10)
	c.Events.Set(&events.Callbacks{ServedCall: func(_ context.Context, s events.ServedCall) { served <- s }})
	s := newGRPCService(c)
	conn, stop := startService(t, micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("greeter"))),
		micro.Registry(c.Registry), withOrders(new(Orders)), s.addTo, Reflection())
	end := overloadMethod(t, s.limit.methods["Orders/Place"])

	var trailer metadata.MD
	err := conn.Invoke(t.Context(), "/shop.Orders/Place", durationpb.New(0), new(durationpb.Duration), grpc.Trailer(&trailer))
	refusal := status.Convert(err)
	if refusal.Code() != codes.ResourceExhausted || len(refusal.Details()) != 1 {
		t.Fatalf("the call ends with %v", err)
	}
	if e, ok := refusal.Details()[0].(*microerrors.Error); !ok || e.Code != 429 || e.Id != "greeter" || e.Status != "Too Many Requests" {
		t.Errorf("go-micro's error is %v", refusal.Details()[0])
	}
	if s := <-served; s.Method != "Orders/Place" || s.Code != codes.ResourceExhausted { // as metrics show it
		t.Errorf("the event of the refused call is %+v", s)
	}
	if got := trailer.Get("grpc-retry-pushback-ms"); len(got) != 1 || got[0] != "-1" {
		t.Errorf("the pushback is %q, want -1", got)
	}
	attempts := 0
	count := func(call client.CallFunc) client.CallFunc {
		attempts++
		return call
	}
	caller := grpcc.NewClient(client.WrapCall(count))
	err = caller.Call(t.Context(), caller.NewRequest("greeter", "Orders.Place", durationpb.New(0)), new(durationpb.Duration), client.WithAddress(conn.Target()[len("passthrough:"):]))
	if e, ok := err.(*microerrors.Error); !ok || e.Code != 429 || attempts != 1 {
		t.Errorf("go-micro's client returns %v after %d attempts", err, attempts)
	}

	if rsp, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || rsp.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("Check answers %v and %v", rsp, err)
	}
	reflection, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err == nil {
		err = reflection.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
	}
	if err == nil {
		_, err = reflection.Recv()
	}
	if err != nil {
		t.Errorf("reflection ends with %v", err)
	}
	if err := conn.Invoke(t.Context(), "/shop.Orders/Cancel", durationpb.New(0), new(durationpb.Duration)); status.Code(err) != codes.Unimplemented {
		t.Errorf("an unknown method ends with %v", err)
	}

	end()
	if err := place(t.Context(), conn, 0); err != nil {
		t.Errorf("a call is refused although no call is in flight: %v", err)
	}
	_ = reflection.CloseSend()
	_ = stop()
}

// A call arrives when its header is read, before it waits for a CPU, unless the service has a tap of its own, which is kept.
func TestArrivalOfACall(t *testing.T) {
	var tapped, handled atomic.Int64
	mine := grpc.InTapHandle(func(ctx context.Context, _ *tap.Info) (context.Context, error) { tapped.Add(1); return ctx, nil })
	var arrived atomic.Int64
	look := grpc.ChainStreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		handled.Add(1)
		arrived.Store(arrivalOf(s.Context(), 0))
		return next(srv, s)
	})
	for name, options := range map[string][]grpc.ServerOption{"without a tap": {look}, "with a tap": {look, mine}} {
		t.Run(name, func(t *testing.T) {
			c, _, _, _ := newConfig()
			c.DrainWait, c.AdaptiveLimit = 0, true
			conn, stop := startService(t, micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("greeter"), grpcs.Options(options...))),
				micro.Registry(c.Registry), withOrders(new(Orders)), newGRPCService(c).addTo)
			before := overload.Clock()
			for range 2 { // the second one also sees the context of a connection that is in use
				if err := place(t.Context(), conn, 0); err != nil {
					t.Fatal(err)
				}
			}
			hasTap := len(options) == 2
			if got := arrived.Load(); hasTap != (got == 0) || !hasTap && (got < before || got > overload.Clock()) {
				t.Errorf("the call arrived at %d, after %d", got, before)
			}
			if want := map[bool]int64{true: 2}[hasTap]; tapped.Swap(0) != want || handled.Swap(0) != 2 {
				t.Errorf("the user's tap and interceptor have not seen all calls")
			}
			_ = stop()
		})
	}
}

// serverStream is a call with a context.
type serverStream struct {
	grpc.ServerStream
	ctx     context.Context
	trailer metadata.MD
}

func (s *serverStream) Context() context.Context       { return s.ctx }
func (s *serverStream) SetTrailer(trailer metadata.MD) { s.trailer = trailer }

func TestCallsThatHaveWaitedLongAreRefused(t *testing.T) {
	l, err := newCallLimit("greeter", map[string]bool{"Orders/Place": false})
	if err != nil {
		t.Fatal(err)
	}
	handled := 0
	serve := func(ctx context.Context) (error, metadata.MD) {
		s := &serverStream{ctx: ctx}
		return l.serve("Orders/Place", nil, s, func(any, grpc.ServerStream) error { handled++; return nil }), s.trailer
	}
	m, now := l.methods["Orders/Place"], overload.Clock()
	isRefused := false
	for step := 0; !isRefused; step++ { // each call has waited for a second and uses all CPUs for 10 ms
		if step == 100 {
			t.Fatal("calls that have waited for a second are not refused")
		}
		for range runtime.GOMAXPROCS(0) {
			if c, ok := m.Begin(now-int64(time.Second), now); ok {
				c.End(now + int64(10*time.Millisecond))
			} else {
				isRefused = true
			}
		}
		now += int64(10 * time.Millisecond)
	}
	if err, trailer := serve(&arrival{t.Context(), overload.Clock() - int64(time.Second)}); status.Code(err) != codes.ResourceExhausted || trailer.Get("grpc-retry-pushback-ms")[0] != "-1" || handled != 0 {
		t.Errorf("a call that has waited for a second ends with %v and %v, handled: %v", err, trailer, handled != 0)
	}
	if err, _ := serve(&arrival{t.Context(), overload.Clock()}); err != nil || handled != 1 {
		t.Errorf("a call that has not waited ends with %v", err)
	}
}

// Nobody waits for the answer to a call that was cancelled while it waited.
func TestCancelledCallsAreNotHandled(t *testing.T) {
	l, err := newCallLimit("greeter", map[string]bool{"Orders/Place": false})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = l.serve("Orders/Place", nil, &serverStream{ctx: ctx}, func(any, grpc.ServerStream) error { t.Error("the call is handled"); return nil })
	if status.Code(err) != codes.Canceled {
		t.Errorf("the call ends with %v", err)
	}
}

func TestStreamsAreNotRefused(t *testing.T) {
	l, err := newCallLimit("greeter", map[string]bool{"Orders/Place": false, "Orders/Watch": true})
	if err != nil {
		t.Fatal(err)
	}
	overloadMethod(t, l.methods["Orders/Place"])
	handled := 0
	for range 100 {
		_ = l.serve("Orders/Watch", nil, nil, func(any, grpc.ServerStream) error { handled++; return nil })
	}
	if handled != 100 {
		t.Errorf("%d of 100 streams are handled", handled)
	}
}

func TestRequestsThatAreTooManyAreRefused(t *testing.T) {
	c, _, _, _ := newConfig()
	c.Events = &events.Hub{}
	var served []int
	c.Events.Set(&events.Callbacks{ServedRequest: func(_ *http.Request, s events.ServedRequest) { served = append(served, s.Status) }})
	s := newWebService(c, nil)
	handled := 0
	limit := newRequestLimit(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { handled++; _, _ = io.WriteString(w, "the user's") }))
	h := s.handler(limit)
	end := overloadMethod(t, limit.method("/orders"))
	w := get(h, "/orders/2")
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" || handled != 0 {
		t.Errorf("a request beyond the limit is answered with %d, the headers %v, by the handler: %v", w.Code, w.Header(), handled != 0)
	}
	if !slices.Equal(served, []int{http.StatusServiceUnavailable}) { // as metrics show it
		t.Errorf("the events have the statuses %v", served)
	}
	for _, header := range []string{"Accept: text/event-stream", "Upgrade: websocket"} {
		r := httptest.NewRequest(http.MethodGet, "/orders/events", nil)
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
		w = httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != http.StatusOK {
			t.Errorf("a stream with the header %s is answered with %d", header, w.Code)
		}
	}
	for _, probe := range []string{"/healthz", "/readyz"} {
		if w := get(h, probe); w.Code != http.StatusOK {
			t.Errorf("%s is answered with %d", probe, w.Code)
		}
	}
	end()
	if w := get(h, "/orders/3"); w.Code != http.StatusOK {
		t.Errorf("a request is answered with %d although none is in flight", w.Code)
	}
}

func TestAdaptiveLimitOfRequestsIsOptional(t *testing.T) {
	c, _, _, _ := newConfig()
	for _, c.AdaptiveLimit = range []bool{false, true} {
		w := get(newWebService(c, nil).handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the user's") })), "/")
		if w.Code != http.StatusOK || w.Body.String() != "the user's" {
			t.Errorf("with the limit %v a request is answered with %d %q", c.AdaptiveLimit, w.Code, w.Body)
		}
	}
}

func TestPathsAreBounded(t *testing.T) {
	l := newRequestLimit(nil)
	if l.method("/orders/1") != l.method("/orders") || l.method("/orders") == l.method("/items") {
		t.Error("the first part of a path does not tell methods apart")
	}
	for i := range 2 * maxPaths {
		l.method("/" + strconv.Itoa(i))
	}
	if n := len(*l.methods.Load()); n != maxPaths {
		t.Errorf("%d paths are told apart, want %d", n, maxPaths)
	}
	if l.method("/one more") != l.method("/another") {
		t.Error("further paths do not share a method")
	}
}
