package shutdown

import (
	"context"
	"errors"
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
	"google.golang.org/grpc/status"
)

func newGRPCService(c Config) *grpcService {
	return &grpcService{lifecycle: newLifecycle(c), drained: make(chan struct{})}
}

// request is a request of which only the method is used.
type request struct {
	server.Request
	method string
}

func (r request) Method() string { return r.method }

func TestHandlersCountAsInFlight(t *testing.T) {
	c, _, _, _ := newConfig()
	s := newGRPCService(c)
	for method, want := range map[string]int{"Greeter.Hello": 1, "Health.Check": 0, "ServerReflection.ServerReflectionInfo": 0, "Debug.Stats": 0} {
		handled := false
		err := s.wrapHandler(func(ctx context.Context, _ server.Request, _ any) error {
			handled = true
			if n := s.calls.count(); n != want {
				t.Errorf("during %s %d calls are in flight, want %d", method, n, want)
			}
			if draining := Draining(ctx); (draining != nil) != (want == 1) {
				t.Errorf("during %s the channel of Draining is %v", method, draining)
			}
			return nil
		})(t.Context(), request{method: method}, nil)
		if err != nil || !handled {
			t.Errorf("%s: handled %v, error %v", method, handled, err)
		}
		if n := s.calls.count(); n != 0 {
			t.Errorf("after %s %d calls are in flight", method, n)
		}
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
		err := recoverPanics(test.handler)(t.Context(), request{method: "Greeter.Hello"}, nil)
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
	h := &health{s}
	const serving, notServing, unknown = healthv1.HealthCheckResponse_SERVING, healthv1.HealthCheckResponse_NOT_SERVING, healthv1.HealthCheckResponse_SERVICE_UNKNOWN
	check := func(name string, want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		var rsp healthv1.HealthCheckResponse
		err := h.Check(t.Context(), &healthv1.HealthCheckRequest{Service: name}, &rsp)
		if rsp.Status != want || (err != nil) != (want == unknown) {
			t.Errorf("the status of %q is %s with error %v, want %s", name, rsp.Status, err, want)
		}
		if err != nil && microerrors.Parse(err.Error()).Code != 404 {
			t.Errorf("the error of %q is %v, want code 404", name, err)
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
	ctx, stop := context.WithCancel(t.Context())
	started, ended := make(chan struct{}), make(chan error, 1)
	service := micro.NewService(append([]micro.Option{
		micro.Name("greeter"), micro.HandleSignal(false), micro.Context(ctx),
		micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("greeter"))),
		micro.Registry(c.Registry), GRPC(c), Reflection(c.Registration.Serves),
		micro.AfterStart(func() error { close(started); return nil }),
	}, opts...)...)
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
		s.calls.begin()
		time.AfterFunc(5*time.Second, s.calls.end)
		begin := time.Now()
		if err := s.beforeStop(); err != nil || time.Since(begin) != 5*time.Second {
			t.Errorf("beforeStop returned %v after %s, the call ended after 5s", err, time.Since(begin))
		}
		<-s.drained
		s.lateMessages.begin()
		err := s.afterStop()
		if err == nil || !strings.Contains(err.Error(), "waiting for messages in flight: 1 cut off") || !errors.Is(err, errRelease) || *released != 1 {
			t.Errorf("afterStop returned %v, the registry is released %d times", err, *released)
		}
		if d := time.Since(begin); d != c.Registration.GracePeriod()-stopMargin {
			t.Errorf("the stop took %s", d)
		}
	})
}

func TestReflectionNamesServedServices(t *testing.T) {
	c, f, _, _ := newConfig()
	f.serves = "Health" // any service whose proto file is linked into the test
	infos := registeredServices{c.Registration.Serves}.GetServiceInfo()
	for _, name := range []string{"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"} {
		if _, ok := infos[name]; !ok {
			t.Errorf("%s is missing in %v", name, infos)
		}
	}
	if len(infos) != 2 {
		t.Errorf("the services are %v, want 2", infos)
	}
}
