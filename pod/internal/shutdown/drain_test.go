package shutdown

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-micro/v2/web"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Orders is a service whose calls take as long as their requests say.
type Orders struct{ started chan struct{} }

func (o *Orders) Place(ctx context.Context, req, rsp *durationpb.Duration) error {
	if o.started != nil {
		o.started <- struct{}{}
	}
	select {
	case <-time.After(req.AsDuration()):
	case <-ctx.Done():
		return ctx.Err()
	}
	rsp.Seconds, rsp.Nanos = req.Seconds, req.Nanos
	return nil
}

func withOrders(o *Orders) micro.Option {
	return func(options *micro.Options) {
		options.BeforeStart = append(options.BeforeStart, func() error { return options.Server.Handle(options.Server.NewHandler(o)) })
	}
}

func place(ctx context.Context, conn *grpc.ClientConn, takes time.Duration) error {
	return conn.Invoke(ctx, "/shop.Orders/Place", durationpb.New(takes), new(durationpb.Duration))
}

// serviceConnection returns a connection as through a Kubernetes Service: each new connection of
// its channel goes to the instance at the address that the function returns.
func serviceConnection(t *testing.T, address func() string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:service", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address())
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Callers behind a Service know nothing of the registration. Only GOAWAY makes them leave a
// connection that is never idle.
func TestCallersOfBusyConnectionMoveToOtherInstance(t *testing.T) {
	const drainWait, long = 200 * time.Millisecond, time.Second
	start := func() (*grpc.ClientConn, func() error) {
		c, f, _, _ := newConfig()
		c.DrainWait, f.gracePeriod = drainWait, 15*time.Second
		return startServer(t, c, withOrders(new(Orders)))
	}
	stopping, stop := start()
	remaining, stopRemaining := start()
	var endpoint atomic.Pointer[grpc.ClientConn]
	endpoint.Store(stopping)
	conn := serviceConnection(t, func() string { return endpoint.Load().Target()[len("passthrough:"):] })

	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	var calls, failed atomic.Int64
	for range 40 {
		callers.Go(func() {
			for ctx.Err() == nil {
				calls.Add(1)
				if err := place(t.Context(), conn, time.Duration(10+rand.IntN(40))*time.Millisecond); err != nil {
					failed.Add(1)
					t.Errorf("a call fails: %v", err)
				}
			}
		})
	}
	answer := make(chan error, 1)
	for calls.Load() < 100 {
		time.Sleep(time.Millisecond)
	}
	go func() { answer <- place(t.Context(), conn, long) }()
	time.Sleep(20 * time.Millisecond) // the long call has begun
	begin := time.Now()
	endpoint.Store(remaining)
	if err := stop(); err == nil || err.Error() != errRelease.Error() {
		t.Errorf("Run returned %v", err)
	}
	took := time.Since(begin)
	if err := <-answer; err != nil {
		t.Errorf("the long call fails: %v", err)
	}
	if limit := drainWait + long + 2*time.Second; took > limit {
		t.Errorf("the stop took %s, want at most %s", took, limit)
	}
	cancel()
	callers.Wait()
	_ = stopRemaining()
	t.Logf("%d calls, %d failed, the stop took %s", calls.Load(), failed.Load(), took)
}

// A stream of reflection ends only when its caller wants it.
func TestOpenStreamsOfOwnServicesDoNotDelayTheStop(t *testing.T) {
	for name, options := range map[string]func(Config) []micro.Option{
		"the lifecycle comes first": func(c Config) []micro.Option { return []micro.Option{GRPC(c), Reflection()} },
		"reflection comes first":    func(c Config) []micro.Option { return []micro.Option{Reflection(), GRPC(c)} },
	} {
		for wait, opts := range map[string][]server.Option{"": nil, ", with server.Wait": {server.Wait(nil)}} {
			t.Run(name+wait, func(t *testing.T) { testOpenStreams(t, opts, options) })
		}
	}
}

func testOpenStreams(t *testing.T, opts []server.Option, options func(Config) []micro.Option) {
	c, _, _, _ := newConfig()
	c.DrainWait = 0
	conn, stop := startService(t, append([]micro.Option{micro.Server(grpcs.NewServer(append(opts, server.Address("127.0.0.1:0"), server.Name("greeter"))...)),
		micro.Registry(c.Registry)}, options(c)...)...)
	if _, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	info, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = info.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
	if _, err := info.Recv(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := stop(); err == nil || err.Error() != errRelease.Error() {
		t.Errorf("Run returned %v", err)
	}
	if took := time.Since(begin); took < closeTimeout || took > closeTimeout+3*time.Second {
		t.Errorf("the stop took %s", took)
	}
}

// A user's function of BeforeStop may close a database that handlers need.
func TestUsersBeforeStopRunsAfterTheDrain(t *testing.T) {
	var closed atomic.Bool
	database := micro.BeforeStop(func() error { closed.Store(true); return nil })
	needsDatabase := micro.WrapHandler(func(h server.HandlerFunc) server.HandlerFunc {
		return func(ctx context.Context, req server.Request, rsp any) error {
			if err := h(ctx, req, rsp); err != nil || !closed.Load() {
				return err
			}
			return errors.New("the database is closed")
		}
	})
	for name, before := range map[string]bool{"before Lifecycle": true, "after Lifecycle": false} {
		t.Run(name, func(t *testing.T) {
			closed.Store(false)
			c, _, _, _ := newConfig()
			c.DrainWait = 200 * time.Millisecond
			started := make(chan struct{}, 1)
			opts := []micro.Option{micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("orders"))), micro.Registry(c.Registry)}
			if before {
				opts = append(opts, database, needsDatabase, withOrders(&Orders{started}), GRPC(c))
			} else {
				opts = append(opts, GRPC(c), withOrders(&Orders{started}), needsDatabase, database)
			}
			conn, stop := startService(t, opts...)
			answer := make(chan error, 1)
			go func() { answer <- place(t.Context(), conn, 500*time.Millisecond) }()
			<-started
			if err := stop(); err == nil || err.Error() != errRelease.Error() {
				t.Errorf("Run returned %v", err)
			}
			if err := <-answer; err != nil {
				t.Errorf("the call fails: %v", err)
			}
			if !closed.Load() {
				t.Error("the user's function was not called")
			}
		})
	}
}

// The user's functions of AfterStop run when the late messages have ended; the registry is closed after
// those that are given before Lifecycle.
func TestUsersAfterStopRunsAfterLateMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, _, released := newConfig()
		s := newGRPCService(c)
		called := false
		var o micro.Options
		micro.AfterStop(func() error {
			called = true
			if n := s.lateMessages.count(); n != 0 || *released != 0 {
				t.Errorf("when the user's function runs, %d messages are in flight and the registry was released %d times", n, *released)
			}
			return nil
		})(&o)
		s.addTo(&o)
		s.deadline = time.Now().Add(time.Minute)
		s.lateMessages.begin()
		time.AfterFunc(time.Second, s.lateMessages.end)
		for _, after := range o.AfterStop {
			_ = after()
		}
		if !called || *released != 1 {
			t.Errorf("the user's function was called: %v, the registry is released %d times", called, *released)
		}
	})
}

// The user may wait for the group, too.
func TestGroupOfServerWaitCountsCallsAndMessages(t *testing.T) {
	c, _, _, _ := newConfig()
	s := newGRPCService(c)
	s.waits = new(sync.WaitGroup)
	counted := func() error {
		s.waits.Done() // panics if the group is empty
		s.waits.Add(1)
		return nil
	}
	info := &grpc.StreamServerInfo{FullMethod: "/shop.Orders/Place"}
	if err := s.intercept(nil, nil, info, func(any, grpc.ServerStream) error { return counted() }); err != nil {
		t.Error(err)
	}
	if err := s.countMessages(func(context.Context, server.Message) error { return counted() })(t.Context(), nil); err != nil {
		t.Error(err)
	}
	s.waits.Wait() // nothing is in flight
	close(s.stopping)
	_ = s.countMessages(func(context.Context, server.Message) error {
		s.waits.Wait() // the stop may wait for the group while a message arrives
		return nil
	})(t.Context(), nil)
}

// New calls may arrive until the clients have received GOAWAY.
func TestDrainWaitsForCallsThatArriveMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLifecycle(Config{})
		l.deadline = time.Now().Add(time.Minute)
		var calls inFlight
		time.AfterFunc(closeTimeout/2, calls.begin)
		time.AfterFunc(5*time.Second, calls.end)
		begin := time.Now()
		if err := l.drain("calls", make(chan struct{}), &calls); err != nil || time.Since(begin) != 5*time.Second+closeTimeout {
			t.Errorf("drain returned %v after %s, the last call ended after 5s", err, time.Since(begin))
		}
		closed := make(chan struct{})
		time.AfterFunc(closeTimeout/2, func() { close(closed) })
		begin = time.Now()
		if err := l.drain("calls", closed, &calls); err != nil || time.Since(begin) != closeTimeout/2 {
			t.Errorf("drain returned %v after %s, the connections were closed after %s", err, time.Since(begin), closeTimeout/2)
		}
		time.AfterFunc(closeTimeout/2, calls.begin)
		l.deadline = time.Now().Add(10 * time.Second)
		begin = time.Now()
		if err := l.drain("calls", make(chan struct{}), &calls); err == nil || !strings.Contains(err.Error(), "1 cut off") || time.Since(begin) != 10*time.Second {
			t.Errorf("drain returned %v after %s, the deadline was after 10s", err, time.Since(begin))
		}
	})
}

// server.Wait makes Stop wait for a group without limit.
func TestGroupOfServerWait(t *testing.T) {
	for name, hangs := range map[string]bool{"is waited for": false, "ends at the deadline": true} {
		t.Run(name, func(t *testing.T) {
			var group sync.WaitGroup
			c, f, _, _ := newConfig()
			c.DrainWait, f.gracePeriod, c.Release = 0, stopMargin+time.Second, func() error { return nil }
			started := make(chan struct{}, 1)
			conn, stop := startService(t, micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("orders"), server.Wait(&group))),
				micro.Registry(c.Registry), GRPC(c), withOrders(&Orders{started}))
			group.Add(1) // work of the user
			begin := time.Now()
			if !hangs {
				time.AfterFunc(300*time.Millisecond, group.Done)
			}
			answer := make(chan error, 1)
			go func() { answer <- place(t.Context(), conn, 50*time.Millisecond) }()
			<-started
			err := stop()
			took := time.Since(begin)
			if cutOff := err != nil && strings.Contains(err.Error(), "waiting for the group of server.Wait: cut off: the pod's grace period ends"); cutOff != hangs || !hangs && err != nil {
				t.Errorf("Run returned %v", err)
			}
			if want := map[bool]time.Duration{false: 300 * time.Millisecond, true: 900 * time.Millisecond}[hangs]; took < want || took > want+2*time.Second {
				t.Errorf("the stop took %s, want %s", took, want)
			}
			if err := <-answer; err != nil {
				t.Errorf("the call fails: %v", err)
			}
			if hangs {
				group.Done()
			}
		})
	}
}

// A handler that ignores its context must not hold the process, also with server.Wait.
func TestHandlerThatHangs(t *testing.T) {
	own := make(chan os.Signal, 1)
	signal.Notify(own, syscall.SIGTERM)
	defer signal.Stop(own)
	secondSignal := func() {
		for range 2 { // the end of the context has begun the stop
			if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			<-own
		}
	}
	for name, test := range map[string]struct {
		deadline time.Duration // of the drain
		draining func()        // called when the stop has begun
		cause    string
		options  []grpc.ServerOption
	}{
		"ends at the deadline":                            {200 * time.Millisecond, func() {}, "the pod's grace period ends", nil},
		"ends at the deadline, with grpc.WaitForHandlers": {200 * time.Millisecond, func() {}, "the pod's grace period ends", []grpc.ServerOption{grpc.WaitForHandlers(true)}},
		"ends with a second signal":                       {time.Minute, secondSignal, "a second signal: terminated", nil},
	} {
		t.Run(name, func(t *testing.T) {
			c, f, _, _ := newConfig()
			c.DrainWait, f.gracePeriod, c.Release = 0, stopMargin+test.deadline, func() error { return nil }
			hold, running := make(chan struct{}), make(chan (<-chan struct{}), 1)
			defer close(hold)
			conn, stop := startService(t, micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("orders"), server.Wait(nil), grpcs.Options(test.options...))),
				micro.Registry(c.Registry), GRPC(c), withOrders(new(Orders)),
				micro.WrapHandler(func(server.HandlerFunc) server.HandlerFunc {
					return func(ctx context.Context, _ server.Request, _ any) error { running <- Draining(ctx); <-hold; return nil }
				}))
			answer := make(chan error, 1)
			go func() { answer <- place(t.Context(), conn, 0) }()
			draining := <-running
			begin := time.Now()
			ended := make(chan error, 1)
			go func() { ended <- stop() }()
			<-draining
			test.draining()
			if err := <-answer; err == nil {
				t.Error("the call was answered")
			}
			cutOff := time.Now()
			select {
			case err := <-ended:
				ended <- err
			case <-time.After(20 * time.Second):
				t.Fatal("the stop waits for the handler")
			}
			if err := <-ended; err == nil || !strings.Contains(err.Error(), "waiting for calls in flight: 1 cut off: "+test.cause) {
				t.Errorf("Run returned %v", err)
			}
			if wait := time.Since(cutOff); wait < 300*time.Millisecond { // go-micro waits for the handler for one second
				t.Errorf("the call was cut off %s before Run returned: by go-micro", wait)
			}
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("the stop took %s", took)
			}
		})
	}
}

// A kubelet sends SIGTERM to a process that stops already, because its context has ended.
func TestSignalAfterTheEndOfTheContextCutsNothingOff(t *testing.T) {
	own := make(chan os.Signal, 1)
	signal.Notify(own, syscall.SIGTERM)
	defer signal.Stop(own)
	terminate := func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		<-own
	}
	t.Run("grpc", func(t *testing.T) {
		c, _, _, _ := newConfig()
		c.DrainWait = 0
		running := make(chan (<-chan struct{}), 1)
		conn, stop := startServer(t, c, withOrders(new(Orders)), micro.WrapHandler(func(h server.HandlerFunc) server.HandlerFunc {
			return func(ctx context.Context, req server.Request, rsp any) error {
				running <- Draining(ctx)
				<-Draining(ctx)
				return h(ctx, req, rsp)
			}
		}))
		answer := make(chan error, 1)
		go func() { answer <- place(t.Context(), conn, 300*time.Millisecond) }()
		draining := <-running
		ended := make(chan error, 1)
		go func() { ended <- stop() }()
		<-draining
		terminate()
		if err := <-answer; err != nil {
			t.Errorf("the call fails: %v", err)
		}
		<-ended //nolint:errcheck // of the registry
	})
	t.Run("web", func(t *testing.T) {
		c, _, _, _ := newConfig()
		c.DrainWait = 0
		running, terminated := make(chan struct{}), make(chan struct{})
		address, stop, ended := startWeb(t, c, web.Server(&http.Server{ReadHeaderTimeout: time.Second, BaseContext: func(net.Listener) context.Context {
			return context.WithValue(context.Background(), runningKey{}, running)
		}}), func(o *web.Options) {
			Web(c)(o)
			beforeStop := o.BeforeStop[0]
			o.BeforeStop[0] = func() error {
				time.AfterFunc(100*time.Millisecond, func() { terminate(); close(terminated) }) // the request takes 200 ms more
				return beforeStop()
			}
		})
		answer := make(chan string, 1)
		go func() { answer <- getBody("http://" + address + "/slow") }()
		<-running
		stop()
		if got := <-answer; got != "drained" {
			t.Errorf("the request in flight got %q", got)
		}
		<-terminated
		<-ended //nolint:errcheck // of the registry
		http.DefaultClient.CloseIdleConnections()
	})
}

// service.Init(micro.Server(…)) replaces the server that Lifecycle knows.
func TestServerOfServiceInitIsRefused(t *testing.T) {
	c, _, retained, _ := newConfig()
	service := micro.NewService(micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"))), micro.Registry(c.Registry), GRPC(c))
	defer func(before []string) { os.Args = before }(os.Args)
	os.Args = os.Args[:1] // Init reads flags
	service.Init(micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("orders"))))
	if err := service.Run(); err == nil || !strings.Contains(err.Error(), "give micro.Server to micro.NewService, not to service.Init") || *retained != 0 {
		t.Errorf("Run returned %v, the registry is retained %d times", err, *retained)
	}
}
