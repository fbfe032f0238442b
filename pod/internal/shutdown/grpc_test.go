package shutdown

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/micro/go-micro/v2"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
)

func TestHandlersCountAsInFlight(t *testing.T) {
	c, _, _, _ := newConfig()
	s := newGRPCService(c)
	for method, want := range map[string]int{"/shop.Orders/Place": 1, "/Health/Check": 1, "/shop.NoDebug/Stats": 1,
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": 0, "/Debug/Health": 0, "/shop.Debug/Health": 0} {
		handled := errors.New("handled")
		err := s.intercept(nil, nil, &grpc.StreamServerInfo{FullMethod: method}, func(any, grpc.ServerStream) error {
			if n := s.calls.count(); n != want {
				t.Errorf("during %s %d calls are in flight, want %d", method, n, want)
			}
			return handled
		})
		if !errors.Is(err, handled) {
			t.Errorf("%s returns the error %v", method, err)
		}
		if n := s.calls.count(); n != 0 {
			t.Errorf("after %s %d calls are in flight", method, n)
		}
	}
}

func TestHandlersGetTheChannelOfDraining(t *testing.T) {
	c, _, _, _ := newConfig()
	s := newGRPCService(c)
	handled := errors.New("handled")
	if err := s.wrapHandler(func(ctx context.Context, _ server.Request, _ any) error {
		if Draining(ctx) == nil {
			t.Error("the handler's context has no channel of Draining")
		}
		return handled
	})(t.Context(), nil, nil); !errors.Is(err, handled) {
		t.Errorf("the wrapper returns %v", err)
	}
}

func TestDrainingChannelIsClosedWhenTheStopBegins(t *testing.T) {
	c, _, _, _ := newConfig()
	l := newLifecycle(c)
	if Draining(t.Context()) != nil {
		t.Error("a context of no handler has a channel")
	}
	draining := Draining(l.withDraining(t.Context()))
	select {
	case <-draining:
		t.Error("the channel is closed before the stop")
	default:
	}
	close(l.stopping)
	<-draining
}

func TestMessagesThatArriveDuringTheStopAreLate(t *testing.T) {
	c, _, _, _ := newConfig()
	s := newGRPCService(c)
	check := func(messages, late int) {
		t.Helper()
		err := s.countMessages(func(ctx context.Context, _ server.Message) error {
			if m, l := s.messages.count(), s.lateMessages.count(); m != messages || l != late {
				t.Errorf("%d messages and %d late messages are in flight, want %d and %d", m, l, messages, late)
			}
			if Draining(ctx) == nil {
				t.Error("the subscriber's context has no channel of Draining")
			}
			return errors.New("handled")
		})(t.Context(), nil)
		if err == nil || s.messages.count()+s.lateMessages.count() != 0 {
			t.Errorf("afterwards %d and %d messages are in flight, error %v", s.messages.count(), s.lateMessages.count(), err)
		}
	}
	check(1, 0)
	close(s.stopping)
	check(0, 1)
}

func TestErrorsOfOwnClientGetIDOfService(t *testing.T) {
	c, _, _, _ := newConfig()
	s := newGRPCService(c)
	s.name = "greeter"
	own := s.ownError(microerrors.New("go.micro.client", "connection error", 408))
	if e := microerrors.Parse(own.Error()); e.Id != "greeter" || e.Detail != "connection error" || e.Code != 408 {
		t.Errorf("an error of the client became %v", own)
	}
	for _, err := range []error{nil, errors.New("plain"), microerrors.New("other", "text", 404)} {
		if got := s.ownError(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
}

func TestRecoverPanics(t *testing.T) {
	const internal = "internal error"
	for name, test := range map[string]struct {
		handler server.HandlerFunc
		detail  string
	}{
		"handler panics": {func(context.Context, server.Request, any) error { panic("secret") }, internal},
		"go-micro recovered": {func(context.Context, server.Request, any) error {
			return microerrors.InternalServerError("go.micro.server", "panic recovered: secret")
		}, internal},
		"other error of go-micro": {func(context.Context, server.Request, any) error {
			return microerrors.InternalServerError("go.micro.server", "no such method")
		}, "no such method"},
		"same text, other id": {func(context.Context, server.Request, any) error {
			return microerrors.InternalServerError("greeter", "panic recovered: mine")
		}, "panic recovered: mine"},
		"plain error": {func(context.Context, server.Request, any) error { return errors.New("plain") }, "plain"},
		"no error":    {func(context.Context, server.Request, any) error { return nil }, ""},
	} {
		err := recoverPanics(test.handler)(t.Context(), nil, nil)
		detail := ""
		if err != nil {
			detail = microerrors.Parse(err.Error()).Detail
		}
		if detail != test.detail {
			t.Errorf("%s: the caller gets %q, want %q", name, detail, test.detail)
		}
	}
}

func TestHealthStatus(t *testing.T) {
	c, f, _, _ := newConfig()
	s := newGRPCService(c)
	s.name = "greeter"
	s.names.names.Store(&map[string]bool{"Greeter": true})
	h := &health{service: s}
	const serving, notServing, unknown = healthv1.HealthCheckResponse_SERVING, healthv1.HealthCheckResponse_NOT_SERVING, healthv1.HealthCheckResponse_SERVICE_UNKNOWN
	check := func(name string, want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		if got := h.status(name); got != want {
			t.Errorf("the status of %q is %s, want %s", name, got, want)
		}
		rsp, err := h.Check(t.Context(), &healthv1.HealthCheckRequest{Service: name})
		if want == unknown && status.Code(err) != codes.NotFound || want != unknown && (err != nil || rsp.Status != want) {
			t.Errorf("Check of %q returns %s and error %v, want %s", name, rsp.GetStatus(), err, want)
		}
	}
	for _, name := range []string{"", "greeter", "Greeter", "liveness"} {
		check(name, serving)
	}
	check("other", unknown)
	f.registered = false
	for _, name := range []string{"", "greeter", "Greeter"} {
		check(name, notServing)
	}
	check("liveness", serving)
	check("other", unknown)
}

// startServer runs a gRPC service with a lifecycle and returns a connection to it, and
// the function that stops the service and returns the error of Run.
func startServer(t *testing.T, c Config, opts ...micro.Option) (*grpc.ClientConn, func() error) {
	t.Helper()
	return startService(t, append([]micro.Option{
		micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("greeter"))),
		micro.Registry(c.Registry), GRPC(c), Reflection()}, opts...)...)
}

// startService does what startServer does for a service with other options.
func startService(t *testing.T, opts ...micro.Option) (*grpc.ClientConn, func() error) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	started, ended := make(chan struct{}), make(chan error, 1)
	service := micro.NewService(append([]micro.Option{micro.HandleSignal(false), micro.Context(ctx),
		micro.AfterStart(func() error { close(started); return nil })}, opts...)...)
	go func() { ended <- service.Run() }()
	select {
	case <-started:
	case err := <-ended:
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:"+service.Server().Options().Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, func() error { stop(); return <-ended }
}

func TestServerAnswersHealthUntilItStops(t *testing.T) {
	c, f, retained, released := newConfig()
	c.DrainWait = 50 * time.Millisecond
	conn, stop := startServer(t, c)
	if *retained != 1 {
		t.Errorf("the registry is retained %d times", *retained)
	}
	watch, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{Service: "greeter"})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		if rsp, err := watch.Recv(); err != nil || rsp.Status != want {
			t.Fatalf("Watch sent %v and error %v, want %s", rsp, err, want)
		}
	}
	next(healthv1.HealthCheckResponse_SERVING)
	f.set(func() { f.registered = false })
	next(healthv1.HealthCheckResponse_NOT_SERVING)
	f.set(func() { f.registered = true })
	next(healthv1.HealthCheckResponse_SERVING)
	ended := make(chan error)
	go func() { ended <- stop() }()
	next(healthv1.HealthCheckResponse_NOT_SERVING) // because the stop has begun
	if _, err := watch.Recv(); err == nil {
		t.Error("Watch goes on after the drain")
	}
	if err := <-ended; !errors.Is(err, errRelease) || *released != 1 {
		t.Errorf("Run returned %v, the registry is released %d times", err, *released)
	}
}

func TestWatchEndsWithItsCaller(t *testing.T) {
	c, _, _, _ := newConfig()
	c.DrainWait = 0
	conn, stop := startServer(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	watch, err := healthv1.NewHealthClient(conn).Watch(ctx, &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := watch.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("Recv returned %v", err)
	}
	_ = stop()
}

func TestServerDrainsCallsAndLateMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, _, released := newConfig()
		s := newGRPCService(c)
		s.connections = grpc.NewServer()
		s.calls.begin()
		time.AfterFunc(5*time.Second, s.calls.end)
		begin := time.Now()
		if err := s.beforeStop(); err != nil || time.Since(begin) != 5*time.Second {
			t.Errorf("beforeStop returned %v after %s, the call ended after 5s", err, time.Since(begin))
		}
		<-s.closing
		s.lateMessages.begin()
		if err := s.drainLateMessages(); err == nil || !strings.Contains(err.Error(), "waiting for messages in flight: 1 cut off") {
			t.Errorf("drainLateMessages returned %v", err)
		}
		if err := s.end(); !errors.Is(err, errRelease) || *released != 1 {
			t.Errorf("end returned %v, the registry is released %d times", err, *released)
		}
		if d := time.Since(begin); d != c.Registration.GracePeriod()-stopMargin {
			t.Errorf("the stop took %s", d)
		}
	})
}

// Store is a handler whose proto file is linked into the test, because go-micro has a client of it.
type Store struct{ Orders }

// The names come from the server, whatever its registry is.
func TestNamesOfHandlersInOtherRegistry(t *testing.T) {
	c, _, _, _ := newConfig()
	c.DrainWait = 0
	conn, stop := startService(t, micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("orders"), server.Registry(otherRegistry))),
		GRPC(c), Reflection(), withOrders(new(Orders)), func(o *micro.Options) {
			o.BeforeStart = append(o.BeforeStart, func() error { return o.Server.Handle(o.Server.NewHandler(new(Store))) })
		})
	for name, want := range map[string]codes.Code{"": codes.OK, "orders": codes.OK, "Orders": codes.OK, "Debug": codes.NotFound, "other": codes.NotFound} {
		if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: name}); status.Code(err) != want {
			t.Errorf("Check of %q returns %v, want %s", name, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	info, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = info.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
	rsp, err := info.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range rsp.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	if want := []string{"go.micro.store.Store", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"}; !slices.Equal(names, want) {
		t.Errorf("reflection lists %q, want %q", names, want)
	}
	cancel()
	_ = stop()
}

// micro.Registry gives the registry to the server that micro.Server replaces afterwards.
func TestServerGetsTheRegistryWhateverTheOrderOfOptions(t *testing.T) {
	c, f, _, _ := newConfig()
	c.DrainWait = 0
	_, stop := startService(t, GRPC(c), micro.Registry(c.Registry), micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("orders"))))
	if f.background != "orders" {
		t.Errorf("service %q registers in the background", f.background)
	}
	if all, err := c.Registry.GetService("orders"); err != nil || len(all) != 1 {
		t.Errorf("the registry has %v, %v", all, err)
	}
	_ = stop()
}
