package rpc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	stderrors "errors"
	"fmt"
	"math/big"
	"net"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	corev1 "k8s.io/api/core/v1"
)

// countingListener counts the open connections of a server.
type countingListener struct {
	net.Listener
	open, accepted atomic.Int64
}

type countedConn struct {
	net.Conn
	closed func()
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.open.Add(1)
	l.accepted.Add(1)
	return &countedConn{c, sync.OnceFunc(func() { l.open.Add(-1) })}, nil
}

func (c *countedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// startCounted starts a server of grpc-go whose connections are counted. Each call waits for
// the function hold, if it is not nil, before it is answered.
func startCounted(t testing.TB, hold func(context.Context), opts ...grpc.ServerOption) *countingListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	counting := &countingListener{Listener: l}
	s := grpc.NewServer(append(opts, grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		var req proto.HelloRequest
		if err := stream.RecvMsg(&req); err != nil {
			return err
		}
		if hold != nil {
			hold(stream.Context())
		}
		return stream.SendMsg(&proto.HelloResponse{Greeting: "Hello"})
	}))...)
	go func() { _ = s.Serve(counting) }()
	t.Cleanup(s.Stop)
	return counting
}

func (l *countingListener) address() string { return l.Addr().String() }

// eventually waits up to 10 s for a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// inFlight returns the number of calls in flight to a service's instances.
func inFlightCalls(c *Client) (n int) {
	for _, i := range instancesOf(c) {
		n += i.InFlight
	}
	return n
}

// barrier is a hold that waits until release, and knows how many calls wait.
type barrier struct {
	waiting  atomic.Int64
	released chan struct{}
}

func newBarrier() *barrier { return &barrier{released: make(chan struct{})} }

func (b *barrier) hold(ctx context.Context) {
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	select {
	case <-b.released:
	case <-ctx.Done():
	}
}

func (b *barrier) release() { close(b.released) }

func codeOf(err error) int32 {
	var e *errors.Error
	if stderrors.As(err, &e) {
		return e.Code
	}
	return 0
}

func callGreeter(ctx context.Context, c client.Client, opts ...client.CallOption) error {
	_, err := proto.NewGreeterService("greeter", c).Hello(ctx, &proto.HelloRequest{Name: "x"}, opts...)
	return err
}

// The calls that Close ends say nothing about the instances, also those that began before Init.
func TestCloseBlamesNoInstance(t *testing.T) {
	for name, before := range map[string]func(*Client){"Close": func(*Client) {}, "Close after Init": func(c *Client) { _ = c.Init() }, "Close after Reconnect": (*Client).Reconnect} {
		t.Run(name, func(t *testing.T) {
			checkNoLeak(t)
			b := newBarrier()
			var addresses []string
			for range 4 {
				addresses = append(addresses, startCounted(t, b.hold).address())
			}
			c, _ := newTestClient(t, addresses, client.Retries(0))
			const n = 12
			errs := make(chan error)
			for range n {
				go func() { errs <- callGreeter(t.Context(), c) }()
			}
			eventually(t, "the calls are in flight", func() bool { return b.waiting.Load() == n })
			before(c)
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			for range n {
				if err := <-errs; err == nil || !strings.Contains(err.Error(), "the client connection is closing") {
					t.Errorf("a call in flight: %v", err)
				}
			}
			for _, i := range instancesOf(c) {
				if i.Failures > 0 || i.EjectedFor > 0 {
					t.Errorf("instance %s has %d failures and is ejected for %s", i.Address, i.Failures, i.EjectedFor)
				}
			}
		})
	}
}

func TestClientUsesOneConnectionPerInstance(t *testing.T) {
	checkNoLeak(t)
	b := newBarrier()
	a := startCounted(t, b.hold)
	c, _ := newTestClient(t, []string{a.address()})
	var calls sync.WaitGroup
	for range 50 { // go-micro's client dials again after 20
		calls.Go(func() {
			if err := callGreeter(t.Context(), c); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "50 calls in flight", func() bool { return b.waiting.Load() == 50 })
	if n := inFlightCalls(c); n != 50 {
		t.Errorf("the selector counts %d calls in flight, want 50", n)
	}
	b.release()
	calls.Wait()
	for range 10 {
		s, text := openCounted(t.Context(), c)
		if s == nil {
			t.Fatal(text)
		}
		_ = s.Close()
	}
	if n := a.accepted.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	eventually(t, "no call in flight", func() bool { return inFlightCalls(c) == 0 })
}

func openCounted(ctx context.Context, c client.Client) (client.Stream, string) {
	s, err := c.Stream(ctx, c.NewRequest("greeter", "Greeter.Hello", nil))
	if err != nil {
		return nil, err.Error()
	}
	return s, ""
}

// The server permits one stream on a connection, so that further calls wait until a call has ended.
func TestClientCallsWaitForTheStreamLimitOfTheServer(t *testing.T) {
	checkNoLeak(t)
	b := newBarrier()
	a := startCounted(t, b.hold, grpc.MaxConcurrentStreams(1))
	c, _ := newTestClient(t, []string{a.address()}, client.PoolSize(3))
	var calls sync.WaitGroup
	for range 3 {
		calls.Go(func() {
			if err := callGreeter(t.Context(), c); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "a call is in flight", func() bool { return b.waiting.Load() == 1 })
	if err := callGreeter(t.Context(), c, client.WithRequestTimeout(100*time.Millisecond), client.WithRetries(0)); codeOf(err) != 408 {
		t.Errorf("a call that waits for a stream until its timeout: %v, want the code 408", err)
	}
	b.release()
	calls.Wait()
	if n := a.accepted.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestClientClosesConnectionAfterInstanceHasLeftAndItsCallsHaveEnded(t *testing.T) {
	checkNoLeak(t)
	b := newBarrier()
	gone, stays := startCounted(t, b.hold), startCounted(t, nil)
	c, inf := newTestClient(t, []string{gone.address(), stays.address()})
	results := make(chan error, 1)
	for b.waiting.Load() == 0 {
		go func() { results <- callGreeter(t.Context(), c) }()
		eventually(t, "the call waits in the instance that leaves, or the other has answered", func() bool { return b.waiting.Load() > 0 || len(results) > 0 })
		if b.waiting.Load() == 0 {
			if err := <-results; err != nil {
				t.Fatal(err)
			}
		}
	}
	inf.Delete(greeterPod(t, 0, gone.address()))
	time.Sleep(100 * time.Millisecond)
	if n := gone.open.Load(); n != 1 {
		t.Fatalf("%d connections while a call is in flight, want 1", n)
	}
	for range 20 {
		if err := callGreeter(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	b.release()
	if err := <-results; err != nil {
		t.Errorf("the call in flight: %v", err)
	}
	eventually(t, "the connection is closed", func() bool { return gone.open.Load() == 0 })
	if n := stays.open.Load(); n != 1 {
		t.Errorf("%d connections to the instance that stays, want 1", n)
	}
	eventually(t, "the client keeps one connection", func() bool { return c.connections.count() == 1 })
	inf.Delete(greeterPod(t, 1, stays.address())) // no call is in flight
	eventually(t, "the other connection is closed", func() bool { return stays.open.Load() == 0 })
}

// A pod is replaced by another one at the same address, as with hostNetwork.
func TestClientCallsNewInstanceAtTheAddressOfAnOldOne(t *testing.T) {
	checkNoLeak(t)
	a := startCounted(t, nil)
	c, inf := newTestClient(t, []string{a.address()})
	for i := range 5 {
		inf.Delete(greeterPod(t, i-1, a.address()))
		inf.Update(greeterPod(t, i, a.address()))
		if err := callGreeter(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "one connection is left", func() bool { return a.open.Load() == 1 })
}

func TestClientKeepsNoConnectionToAddressesThatAreNotUsed(t *testing.T) {
	checkNoLeak(t)
	a := startCounted(t, nil)
	c, _ := newTestClient(t, nil, client.PoolTTL(500*time.Millisecond))
	for range 3 {
		if err := callGreeter(t.Context(), c, client.WithAddress(a.address())); err != nil {
			t.Fatal(err)
		}
	}
	if n := a.accepted.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	eventually(t, "the unused connection is closed", func() bool { return a.open.Load() == 0 && c.connections.count() == 0 })
}

func TestClientRetriesOnAnotherInstance(t *testing.T) {
	for name, broken := range map[string]string{
		"refused":     refusingAddress(t),
		"unavailable": startFailing(t, status.Error(codes.Unavailable, "later")),
		"error":       startFailing(t, status.Error(codes.Unknown, "broken")),
	} {
		t.Run(name, func(t *testing.T) {
			a := startCounted(t, nil)
			c, _ := newTestClient(t, []string{broken, a.address()}, client.Retries(1), client.Backoff(noBackoff))
			for range 200 {
				if err := callGreeter(t.Context(), c); err != nil {
					t.Fatalf("with one retry a call fails: %v", err)
				}
			}
		})
	}
}

func noBackoff(context.Context, client.Request, int) (time.Duration, error) { return 0, nil }

func startFailing(t *testing.T, err error) string {
	address, _ := startGRPC(t, fails(err))
	return address
}

func TestClientEjectsInstanceThatRefuses(t *testing.T) {
	dead := refusingAddress(t)
	a := startCounted(t, nil)
	c, _ := newTestClient(t, []string{dead, a.address()}, client.Retries(0))
	failed := 0
	for range 100 {
		if callGreeter(t.Context(), c) != nil {
			failed++
		}
	}
	if failed > 1 {
		t.Errorf("%d of 100 calls failed, want at most 1", failed)
	}
	for _, i := range instancesOf(c) {
		if got, want := i.EjectedFor > 0, i.Address == dead && failed == 1; got != want || i.InFlight != 0 {
			t.Errorf("%+v", i)
		}
	}
}

func TestClientWritesNoLateResponse(t *testing.T) {
	checkNoLeak(t)
	b := newBarrier()
	late := func(context.Context) { b.hold(context.Background()) } // answers although the call has ended
	a := startCounted(t, late)
	c, _ := newTestClient(t, []string{a.address()})
	var responses []*proto.HelloResponse
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		rsp := &proto.HelloResponse{}
		if err := c.Call(ctx, c.NewRequest("greeter", "Greeter.Hello", &proto.HelloRequest{}), rsp); codeOf(err) != 408 {
			t.Errorf("%v, want the code 408", err)
		}
		rsp.Greeting = "mine" // under the race detector: nothing else writes to it
		responses = append(responses, rsp)
		cancel()
	}
	b.release()
	eventually(t, "the server has answered", func() bool { return b.waiting.Load() == 0 })
	if err := callGreeter(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, rsp := range responses {
		if rsp.Greeting != "mine" {
			t.Errorf("a late response was written: %q", rsp.Greeting)
		}
	}
}

func TestClientReturns408WhenTheContextEnds(t *testing.T) {
	checkNoLeak(t)
	b := newBarrier()
	a := startCounted(t, func(ctx context.Context) {
		b.hold(ctx)
		time.Sleep(50 * time.Millisecond) // otherwise the answer may arrive just before the client's timer fires
	})
	c, _ := newTestClient(t, []string{a.address()}, client.Retries(3))
	for range 50 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		err := callGreeter(ctx, c)
		cancel()
		if e := errors.FromError(err); e.Id != "go.micro.client" || e.Code != 408 || e.Detail != "context deadline exceeded" {
			t.Fatalf("after the deadline: %v", err)
		}
	}
	if err := callGreeter(t.Context(), c, client.WithRequestTimeout(5*time.Millisecond)); codeOf(err) != 408 {
		t.Fatalf("after the timeout: %v", err)
	}
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(5*time.Millisecond, cancel)
		if e := errors.FromError(callGreeter(ctx, c)); e.Id != "go.micro.client" || e.Code != 408 || e.Detail != "context canceled" {
			t.Fatalf("after the end of the context: %v", e)
		}
	}
	eventually(t, "the handlers' contexts have ended too", func() bool { return b.waiting.Load() == 0 })
}

func TestClientWaitsNoLongerThanTheContext(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T) *Client{
		"before a retry": func(t *testing.T) *Client {
			c, _ := newTestClient(t, []string{startFailing(t, status.Error(codes.Unknown, "broken"))}, client.Retries(1),
				client.Backoff(func(_ context.Context, _ client.Request, i int) (time.Duration, error) {
					return time.Duration(i) * time.Hour, nil
				}))
			return c
		},
		"for a connection": func(t *testing.T) *Client {
			c, _ := newTestClient(t, []string{startFrozen(t)})
			return c
		},
		"for the first LIST": func(t *testing.T) *Client { return newClientOf(t, newServices(t, silentAPI{})) },
	} {
		t.Run(name, func(t *testing.T) {
			c := prepare(t)
			for _, open := range []func(context.Context) error{
				func(ctx context.Context) error { return callGreeter(ctx, c) },
				func(ctx context.Context) error {
					s, err := c.Stream(ctx, c.NewRequest("greeter", "Greeter.Hello", nil))
					if err == nil {
						err = contextError(ctx) // the stream opens before the server answers
						_ = s.Close()
					}
					return err
				},
			} {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				begin := time.Now()
				err := open(ctx)
				cancel()
				if took := time.Since(begin); codeOf(err) != 408 || took > 2*time.Second {
					t.Errorf("%v after %s", err, took)
				}
			}
		})
	}
}

// The connection accepts data and passes none on, as a network does that has lost a route: only
// a ping finds out.
func TestClientNoticesThatAnInstanceIsSilentlyDead(t *testing.T) {
	var l *bufconn.Listener
	var swallow atomic.Bool
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := l.DialContext(ctx)
		return &swallowingConn{conn, &swallow}, err
	}
	grpcClient := grpcc.NewClient(client.Retries(0), client.RequestTimeout(time.Hour), // outside of the bubble, because a goroutine of it never ends
		dialOptions(grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dial)))
	synctest.Test(t, func(t *testing.T) {
		l = bufconn.Listen(1 << 20)
		handled := false
		s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			handled = true
			<-stream.Context().Done()
			return nil
		}))
		var serving sync.WaitGroup
		serving.Go(func() { _ = s.Serve(l) })
		defer serving.Wait()
		defer s.Stop()
		services := newServices(t, &kubetest.Pods{})
		inf, err := services.Synced(t.Context(), "greeter")
		if err != nil {
			t.Fatal(err)
		}
		inf.Replace([]*corev1.Pod{greeterPod(t, 0, "127.0.0.1:1")})
		c := newClientFrom(t, services, grpcClient)
		result := make(chan error)
		go func() { result <- callGreeter(t.Context(), c) }()
		synctest.Wait()
		if n := inFlightCalls(c); n != 1 || !handled {
			t.Fatalf("%d calls in flight, at the handler: %v", n, handled)
		}
		swallow.Store(true)
		begin := time.Now()
		if err := <-result; !strings.Contains(fmt.Sprint(err), "keepalive ping failed") {
			t.Errorf("%v", err)
		}
		if took := time.Since(begin); took > 5*time.Minute+21*time.Second {
			t.Errorf("noticed after %s, want a ping after 5 minutes and its timeout of 20 s", took)
		}
		if n := inFlightCalls(c); n != 0 {
			t.Errorf("%d calls in flight", n)
		}
	})
}

// swallowingConn drops, while the flag is set, what is written to it.
type swallowingConn struct {
	net.Conn
	swallow *atomic.Bool
}

func (c *swallowingConn) Write(b []byte) (int, error) {
	if c.swallow.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func TestClientReconnects(t *testing.T) {
	checkNoLeak(t)
	a := startCounted(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	relay := kubetest.StartRelay(t, l, func() (net.Conn, error) { return net.Dial("tcp", a.address()) })
	c, _ := newTestClient(t, []string{l.Addr().String()})
	for range 3 {
		if err := callGreeter(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		relay.Cut()
		if err := callGreeter(t.Context(), c, client.WithRetries(0)); err == nil {
			t.Fatal("a call through a cut connection succeeds")
		}
		relay.Restore()
		eventually(t, "the client has connected again", func() bool { return callGreeter(t.Context(), c, client.WithRetries(0)) == nil })
	}
}

func TestClientClose(t *testing.T) {
	checkNoLeak(t)
	b := newBarrier()
	a := startCounted(t, b.hold)
	c, _ := newTestClient(t, []string{a.address()}, client.Retries(0))
	result := make(chan error)
	go func() { result <- callGreeter(t.Context(), c) }()
	go func() { result <- callGreeter(t.Context(), c, client.WithAddress(a.address())) }()
	eventually(t, "two calls are in flight", func() bool { return b.waiting.Load() == 2 })
	if err := c.Init(client.Retries(0)); err != nil { // the old connections are closed too
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-result; codeOf(err) != 500 {
			t.Errorf("the call in flight: %v", err)
		}
	}
	if err := callGreeter(t.Context(), c, client.WithAddress(a.address())); codeOf(err) != 500 {
		t.Errorf("a call after Close: %v", err)
	}
	if _, err := c.Stream(t.Context(), c.NewRequest("greeter", "a", nil), client.WithAddress(a.address())); codeOf(err) != 500 {
		t.Errorf("a stream after Close: %v", err)
	}
	eventually(t, "no connection is open", func() bool { return a.open.Load() == 0 })
}

func TestClientInitAppliesToLaterCalls(t *testing.T) {
	checkNoLeak(t)
	serverTLS, clientTLS := testCertificate(t)
	a := startCounted(t, nil, grpc.Creds(credentials.NewTLS(serverTLS)))
	c, _ := newTestClient(t, []string{a.address()}, client.Retries(0))
	if err := callGreeter(t.Context(), c); err == nil {
		t.Fatal("a call without TLS succeeds")
	}
	if err := c.Init(grpcc.AuthTLS(clientTLS), client.RequestTimeout(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := callGreeter(t.Context(), c); err != nil {
		t.Error(err)
	}
	if got := c.Options().CallOptions.RequestTimeout; got != time.Minute {
		t.Errorf("the timeout is %s", got)
	}
	eventually(t, "the connection without TLS is closed", func() bool { return a.open.Load() == 1 })
}

// A selector of another package is told how each call ended, with the node that it chose.
func TestClientMarksForSelectorOfAnotherPackage(t *testing.T) {
	a := startCounted(t, nil)
	marks := &markingSelector{address: a.address()}
	c, _ := newTestClient(t, nil, client.Selector(marks), client.Retries(0))
	if err := callGreeter(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	s, text := openCounted(t.Context(), c)
	if s == nil {
		t.Fatal(text)
	}
	_ = s.Close()
	marks.address = refusingAddress(t)
	if err := callGreeter(t.Context(), c); err == nil {
		t.Fatal("no error")
	}
	if got := strings.Join(marks.marks, ", "); !strings.HasPrefix(got, "greeter <nil>, greeter <nil>, greeter {") || instancesOf(c) != nil {
		t.Errorf("marks: %s", got)
	}
}

type markingSelector struct {
	selector.Selector
	address string
	marks   []string
}

func (s *markingSelector) Select(string, ...selector.SelectOption) (selector.Next, error) {
	return func() (*registry.Node, error) { return &registry.Node{Address: s.address}, nil }, nil
}

func (s *markingSelector) Mark(service string, _ *registry.Node, err error) {
	s.marks = append(s.marks, fmt.Sprint(service, " ", err))
}

// Go-micro's server recovers the panic of a handler, and the process goes on.
func TestClientAfterPanic(t *testing.T) {
	a := startCounted(t, nil)
	for name, opt := range map[string]client.Option{
		"wrapper": client.WrapCall(func(client.CallFunc) client.CallFunc { panic("expected") }),
		"interceptor": dialOptions(grpc.WithUnaryInterceptor(func(context.Context, string, any, any, *grpc.ClientConn, grpc.UnaryInvoker, ...grpc.CallOption) error {
			panic("expected")
		})),
		"stream interceptor": dialOptions(grpc.WithStreamInterceptor(func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, grpc.Streamer, ...grpc.CallOption) (grpc.ClientStream, error) {
			panic("expected")
		})),
	} {
		t.Run(name, func(t *testing.T) {
			c, inf := newTestClient(t, []string{a.address()}, opt)
			func() {
				defer func() {
					if r := recover(); r != "expected" {
						t.Errorf("recovered %v", r)
					}
				}()
				if name == "stream interceptor" {
					_, _ = c.Stream(t.Context(), c.NewRequest("greeter", "Greeter.Hello", nil))
				} else {
					_ = callGreeter(t.Context(), c)
				}
			}()
			if n := inFlightCalls(c); n != 0 {
				t.Errorf("%d calls in flight", n)
			}
			inf.Delete(greeterPod(t, 0, a.address()))
			eventually(t, "the connection is closed", func() bool { return c.connections.count() == 0 })
		})
	}
}

// Concurrent calls must not append to the slices of the client's options that they share.
func TestClientCallsDoNotShareOptions(t *testing.T) {
	a := startCounted(t, nil)
	pass := func(call client.CallFunc) client.CallFunc { return call }
	c, _ := newTestClient(t, []string{a.address()}, client.WrapCall(pass), client.WrapCall(pass), client.WrapCall(pass))
	var calls sync.WaitGroup
	for i := range 20 {
		calls.Go(func() {
			for range 20 {
				var seen string
				if err := callGreeter(t.Context(), c, client.WithCallWrapper(recordWrapper(fmt.Sprint(i), &seen))); err != nil || seen != fmt.Sprintf("<%d%d>", i, i) {
					t.Errorf("call %d ran the wrappers %q: %v", i, seen, err)
				}
			}
		})
	}
	calls.Wait()
}

// A call wrapper with a time limit of its own returns before its call, which is still in flight and
// whose end says something about its instance.
func TestClientAndWrapperThatReturnsBeforeItsCall(t *testing.T) {
	checkNoLeak(t)
	b := newBarrier()
	c, _ := newTestClient(t, []string{startCounted(t, b.hold).address(), startCounted(t, b.hold).address()}, client.Backoff(noBackoff), client.Retries(1))
	var late sync.WaitGroup
	var started atomic.Int64
	doNotWait := func(call client.CallFunc) client.CallFunc {
		return func(ctx context.Context, n *registry.Node, req client.Request, _ any, o client.CallOptions) error {
			late.Go(func() {
				if err := call(t.Context(), n, req, new(proto.HelloResponse), o); err != nil {
					t.Error(err)
				}
			})
			if n := started.Add(1); n <= 2 {
				eventually(t, "the call has reached its server", func() bool { return b.waiting.Load() == n })
			}
			return errors.Timeout("test", "the wrapper does not wait")
		}
	}
	if err := callGreeter(t.Context(), c, client.WithCallWrapper(doNotWait)); codeOf(err) != 408 {
		t.Errorf("the call returns %v, want the error of its wrapper", err)
	}
	if n := inFlightCalls(c); n != 2 {
		t.Errorf("%d calls are in flight after the call and its retry, want 2", n)
	}
	b.release()
	for range 50 { // the calls end while others are retried
		_ = callGreeter(t.Context(), c, client.WithCallWrapper(doNotWait))
	}
	late.Wait()
	for _, i := range instancesOf(c) {
		if i.InFlight != 0 || i.Failures != 0 {
			t.Errorf("%+v, want no call in flight and no failure", i)
		}
	}
}

// A call starts no goroutine but the handler's, which grpc-go's server starts.
func TestClientStartsNoGoroutinePerCall(t *testing.T) {
	a := startCounted(t, nil)
	c, _ := newTestClient(t, []string{a.address()})
	created := func() uint64 {
		s := []metrics.Sample{{Name: "/sched/goroutines-created:goroutines"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	if err := callGreeter(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	before := created()
	for range 100 {
		if err := callGreeter(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if n := created() - before; n < 100 || n > 120 {
		t.Errorf("100 calls started %d goroutines, want one each", n)
	}
}

func TestClientAllocations(t *testing.T) {
	address, _ := startServer(t, answer)
	c, _ := newTestClient(t, []string{address})
	call := func() {
		if err := callGreeter(context.Background(), c); err != nil {
			t.Fatal(err)
		}
	}
	call()
	if n := testing.AllocsPerRun(500, call); n > 230 { // of the client and of go-micro's server; 268 with go-micro's client
		t.Errorf("%v allocations per call", n)
	}
}

// testCertificate returns the TLS configurations of a server and of a client that trusts it. The certificate names 127.0.0.1, or
// only the given names.
func testCertificate(t testing.TB, names ...string) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: names, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	if len(names) == 0 {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(c)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: pool}
}

// A call wrapper recovers the panic of an interceptor or a codec.
func TestClientAndWrapperThatRecovers(t *testing.T) {
	recovers := func(call client.CallFunc) client.CallFunc {
		return func(ctx context.Context, n *registry.Node, req client.Request, rsp any, o client.CallOptions) (err error) {
			defer func() {
				if r := recover(); r != nil {
					err = errors.InternalServerError("test", "%v", r)
				}
			}()
			return call(ctx, n, req, rsp, o)
		}
	}
	c, _ := newTestClient(t, []string{startCounted(t, nil).address()}, client.Retries(0), client.WrapCall(recovers),
		dialOptions(grpc.WithUnaryInterceptor(func(context.Context, string, any, any, *grpc.ClientConn, grpc.UnaryInvoker, ...grpc.CallOption) error {
			panic("expected")
		})))
	if err := callGreeter(t.Context(), c); err == nil || !strings.Contains(err.Error(), "expected") {
		t.Errorf("the call returns %v", err)
	}
	if n := inFlightCalls(c); n != 0 {
		t.Errorf("%d calls in flight", n)
	}
}

// The time that one attempt has waited for the connection shortens one backoff, not all of them.
func TestClientRetriesKeepTheirBackoff(t *testing.T) {
	t.Parallel()
	const backoff, retries = 500 * time.Millisecond, 4
	c, _ := newTestClient(t, nil, client.Retries(retries), client.Backoff(func(_ context.Context, _ client.Request, i int) (time.Duration, error) {
		if i == 0 {
			return 0, nil
		}
		return backoff, nil
	}))
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := callGreeter(ctx, c, client.WithAddress(refusingAddress(t))); err == nil {
		t.Error("a call to an address that refuses connections succeeds")
	}
	if took := time.Since(begin); took < retries*backoff {
		t.Errorf("%d retries took %s", retries, took)
	}
}
