package rpc

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/codec/bytes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	corev1 "k8s.io/api/core/v1"
)

// The tests in this file take instances away and bring them back. They call methods of their own
// services of grpc-go, which have no health service.

// export calls the method Orders.Export.
func export(c client.Client, timeout time.Duration, opts ...client.CallOption) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return exportIn(ctx, c, opts...)
}

func exportIn(ctx context.Context, c client.Client, opts ...client.CallOption) error {
	var rsp bytes.Frame
	return c.Call(ctx, c.NewRequest("greeter", "Orders.Export", &bytes.Frame{}, client.WithContentType("application/grpc+bytes")), &rsp, opts...)
}

// relayed is an instance behind a relay.
type relayed struct {
	address string
	relay   *kubetest.Relay
	exports atomic.Int64
}

func startRelayed(t *testing.T, takes time.Duration) *relayed {
	t.Helper()
	r := &relayed{}
	server, _ := startGRPC(t, func(ctx context.Context, method string, _ []byte) ([]byte, error) {
		if method != "/greeter.Orders/Export" {
			return nil, status.Error(codes.Unimplemented, method)
		}
		r.exports.Add(1)
		time.Sleep(takes)
		return nil, nil
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = l.Addr().String()
	r.relay = kubetest.StartRelay(t, l, func() (net.Conn, error) { return net.Dial("tcp", server) })
	return r
}

func instanceAt(t *testing.T, inf *discovery.Informer, address string) *discovery.Instance {
	t.Helper()
	all := inf.Snapshot().Instances
	i := slices.IndexFunc(all, func(i *discovery.Instance) bool { return i.Address == address })
	if i < 0 {
		t.Fatalf("no instance at %s", address)
	}
	return all[i]
}

// isOut reports whether an instance gets no calls as long as others are left.
func isOut(i *discovery.Instance) bool { return !i.Calls.Available(1<<62, false) }

// The handlers usually need more than half of the deadline. One of two replicas loses its connection
// and comes back: no call pays for its return, and none is sent twice.
func TestClientRecoveryCostsNoCaller(t *testing.T) {
	t.Parallel()
	a, b := startRelayed(t, 600*time.Millisecond), startRelayed(t, 600*time.Millisecond)
	c, inf := newTestClient(t, []string{a.address, b.address}, client.Retries(1))
	bad := instanceAt(t, inf, a.address)
	eventually(t, "both replicas are called", func() bool {
		_ = export(c, 10*time.Second)
		return a.exports.Load() > 0 && b.exports.Load() > 0
	})
	a.relay.Cut()
	eventually(t, "the replica is out of rotation", func() bool {
		_ = export(c, 10*time.Second)
		return isOut(bad)
	})
	a.relay.Restore()
	before := a.exports.Load() + b.exports.Load()
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for range 5 {
				if err := export(c, 1100*time.Millisecond); err != nil {
					t.Error(err)
				}
			}
		})
	}
	callers.Wait()
	if n := a.exports.Load() + b.exports.Load() - before; n != 20 {
		t.Errorf("20 calls made %d exports", n)
	}
	eventually(t, "the replica is back", func() bool { _ = export(c, 10*time.Second); return !isOut(bad) })
}

// Both replicas lose their connections; one is back at once.
func TestClientReadmitsOneOfTwoWithinASecond(t *testing.T) {
	t.Parallel()
	a, b := startRelayed(t, 0), startRelayed(t, 0)
	c, inf := newTestClient(t, []string{a.address, b.address}, client.Retries(0))
	eventually(t, "both replicas are called", func() bool {
		_ = export(c, 10*time.Second)
		return a.exports.Load() > 0 && b.exports.Load() > 0
	})
	a.relay.Cut()
	b.relay.Cut()
	both := []*discovery.Instance{instanceAt(t, inf, a.address), instanceAt(t, inf, b.address)}
	eventually(t, "both replicas are out of rotation", func() bool {
		_ = export(c, 10*time.Second)
		return isOut(both[0]) && isOut(both[1])
	})
	a.relay.Restore()
	back := time.Now()
	eventually(t, "the replica is back", func() bool { _ = export(c, 10*time.Second); return !isOut(both[0]) })
	if took := time.Since(back); took > 3*time.Second { // 2.2 s if a call has just begun to wait for the other one
		t.Errorf("back after %s", took)
	}
	for range 100 {
		if err := export(c, 10*time.Second); err != nil {
			t.Fatalf("one replica is back, and a call fails: %v", err)
		}
	}
}

// A frozen process accepts connections, and answers when it is thawed. A retry of a handler's error
// does not go to it.
func TestClientAndFrozenReplica(t *testing.T) {
	t.Parallel()
	handlerError := status.Error(codes.Internal, "no such order")
	healthy := startFailing(t, handlerError)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	thaw := make(chan struct{})
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return handlerError }))
	t.Cleanup(s.Stop)
	go func() { <-thaw; _ = s.Serve(l) }()
	c, inf := newTestClient(t, []string{l.Addr().String(), healthy}, client.Retries(1), client.Backoff(noBackoff))
	frozen := instanceAt(t, inf, l.Addr().String())
	eventually(t, "the frozen replica is out of rotation", func() bool {
		_ = export(c, 200*time.Millisecond, client.WithRetries(0))
		return isOut(frozen)
	})
	for until := time.Now().Add(4 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		begin := time.Now()
		err := export(c, 5*time.Second)
		if took := time.Since(begin); codeOf(err) != 500 || took > time.Second {
			t.Fatalf("after %s: %v, want the handler's error at once", took, err)
		}
		if !isOut(frozen) {
			t.Fatal("a frozen process is back")
		}
	}
	if !frozen.Calls.Ejected() {
		t.Error("not ejected although it has not answered the probes")
	}
	close(thaw)
	eventually(t, "the replica is back", func() bool { _ = export(c, 5*time.Second); return !isOut(frozen) })
}

// Two of three instances refuse connections, of which one can be ejected.
func TestClientAndMostInstancesRefuse(t *testing.T) {
	t.Parallel()
	works := startRelayed(t, 0)
	for name, test := range map[string]struct {
		retries   int
		maxFailed int
	}{"without retries": {0, 20}, "with a retry": {1, 1}} { // the first call and its retry may find one each
		c, _ := newTestClient(t, []string{refusingAddress(t), works.address, refusingAddress(t)}, client.Retries(test.retries))
		failed, begin := 0, time.Now()
		for range 200 {
			if export(c, 10*time.Second) != nil {
				failed++
			}
		}
		mean := time.Since(begin) / 200
		t.Logf("%s: %d of 200 calls fail, %s each", name, failed, mean)
		if failed > test.maxFailed || mean > 20*time.Millisecond {
			t.Errorf("%s: %d of 200 calls fail, %s each", name, failed, mean)
		}
	}
}

// Streams alone bring an instance back.
func TestClientStreamsReadmit(t *testing.T) {
	t.Parallel()
	works := startStreams(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	relay := kubetest.StartRelay(t, l, func() (net.Conn, error) { return net.Dial("tcp", works) })
	c, inf := newTestClient(t, []string{l.Addr().String(), startStreams(t)}, client.Retries(1), client.Backoff(noBackoff))
	bad := instanceAt(t, inf, l.Addr().String())
	var open []client.Stream
	stream := func() {
		s, text := openEcho(t.Context(), c, []string{"a"})
		if s == nil {
			t.Log(text)
			return
		}
		open = append(open, s)
		time.Sleep(10 * time.Millisecond)
	}
	defer func() {
		for _, s := range open {
			_ = s.Close()
		}
	}()
	eventually(t, "both instances have a stream", func() bool { stream(); return bad.Calls.Report(1).InFlight > 0 && len(open) > 1 })
	relay.Cut()
	eventually(t, "the instance is out of rotation", func() bool { stream(); return isOut(bad) })
	relay.Restore()
	eventually(t, "the instance is back", func() bool { stream(); return !isOut(bad) })
}

// The server ends its connections after some time, and with them the streams that are still open.
func TestClientBlamesNobodyForPlannedGoAway(t *testing.T) {
	t.Parallel()
	var addresses []string
	for range 2 {
		address, _ := startGRPC(t, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
			<-ctx.Done()
			return nil, nil
		}, grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 200 * time.Millisecond, MaxConnectionAgeGrace: 100 * time.Millisecond}))
		addresses = append(addresses, address)
	}
	c, inf := newTestClient(t, addresses, client.Retries(0))
	ended := 0
	for range 3 {
		s, text := openCounted(t.Context(), c)
		if s == nil {
			t.Fatal(text)
		}
		if err := s.Send(&bytes.Frame{}); err != nil {
			t.Fatal(err)
		}
		if err := s.Recv(&bytes.Frame{}); status.Code(err) != codes.Unavailable {
			t.Fatalf("the stream ends with %v", err)
		}
		ended++
		for _, i := range inf.Snapshot().Instances {
			if isOut(i) {
				t.Fatalf("after %d streams: %s is out of rotation", ended, i.Address)
			}
		}
	}
}

// dialCounter counts the attempts to connect, and refuses them while it is down.
type dialCounter struct {
	dials atomic.Int64
	up    atomic.Bool
	to    *bufconn.Listener

	mu    sync.Mutex
	conns []net.Conn
}

func (d *dialCounter) down() {
	d.up.Store(false)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		_ = c.Close()
	}
}

func (d *dialCounter) option() client.Option {
	return dialOptions(grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		d.dials.Add(1)
		if !d.up.Load() {
			return nil, syscall.ECONNREFUSED
		}
		conn, err := d.to.DialContext(ctx)
		if err == nil {
			d.mu.Lock()
			d.conns = append(d.conns, conn)
			d.mu.Unlock()
		}
		return conn, err
	}))
}

// A fixed address, or the only instance, is away for some seconds.
func TestClientAfterOutageOfTheOnlyServer(t *testing.T) {
	const address = "127.0.0.1:1"
	for name, opts := range map[string][]client.CallOption{"address": {client.WithAddress(address)}, "instance": nil} {
		t.Run(name, func(t *testing.T) {
			d := &dialCounter{}
			grpcClient := grpcc.NewClient(d.option()) // outside of the bubble, because a goroutine of it never ends
			synctest.Test(t, func(t *testing.T) {
				d.to = bufconn.Listen(1 << 20)
				s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error { return stream.SendMsg(&bytes.Frame{}) }))
				var serving sync.WaitGroup
				serving.Go(func() { _ = s.Serve(d.to) })
				defer serving.Wait()
				defer s.Stop()
				services := newServices(t, &kubetest.Pods{})
				inf, err := services.Synced(t.Context(), "greeter")
				if err != nil {
					t.Fatal(err)
				}
				inf.Replace([]*corev1.Pod{greeterPod(t, 0, address)})
				expectCallsAfterOutage(t, newClientFrom(t, services, grpcClient), d, opts)
			})
		})
	}
}

func expectCallsAfterOutage(t *testing.T, c *Client, d *dialCounter, opts []client.CallOption) {
	call := func() (error, time.Duration) {
		begin := time.Now()
		err := export(c, 10*time.Second, opts...)
		return err, time.Since(begin)
	}
	d.up.Store(true)
	if err, _ := call(); err != nil {
		t.Fatal(err)
	}
	d.down()
	d.dials.Store(0)
	begin, longest := time.Now(), time.Duration(0)
	for time.Since(begin) < 3500*time.Millisecond { // attempts to connect are whole seconds apart
		err, took := call()
		if err == nil {
			t.Fatal("a call to a server that is down succeeds")
		}
		longest = max(longest, took)
		time.Sleep(time.Millisecond) // the bubble's clock stands still during calls that fail at once
	}
	if away := time.Since(begin); float64(d.dials.Load()) > away.Seconds()+2 { // one at once, and one to find out that the connection is broken
		t.Errorf("%d attempts to connect in %s", d.dials.Load(), away)
	}
	if longest > maxWaited {
		t.Errorf("while the server is away, a call takes %s", longest)
	}
	d.up.Store(true)
	err, took := call()
	t.Logf("away: %s, back: %s, %d attempts to connect", longest, took, d.dials.Load())
	if err != nil || took > maxWaited {
		t.Errorf("the first call after the outage: %v after %s", err, took)
	}
}

// Close ends the probes, also one that waits for a frozen process.
func TestClientCloseEndsProbes(t *testing.T) {
	checkNoLeak(t)
	c, inf := newTestClient(t, []string{startFrozen(t), startFailing(t, status.Error(codes.NotFound, "no such order"))}, client.Retries(0))
	for range 20 {
		_ = export(c, 100*time.Millisecond)
	}
	if !slices.ContainsFunc(inf.Snapshot().Instances, isOut) {
		t.Fatal("no instance is probed")
	}
	begin := time.Now()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("Close takes %s", took)
	}
	if slices.ContainsFunc(inf.Snapshot().Instances, func(i *discovery.Instance) bool { return i.Calls.Ejected() }) {
		t.Error("a probe that Close has ended ejects")
	}
	if err := export(c, time.Second); codeOf(err) != 500 {
		t.Errorf("a call after Close: %v", err)
	}
}

// An interceptor of the user that panics in a probe does not end the process.
func TestClientSurvivesPanicInProbe(t *testing.T) {
	checkNoLeak(t)
	var panics atomic.Int64
	c, inf := newTestClient(t, []string{startFrozen(t), startFailing(t, status.Error(codes.NotFound, "no such order"))}, client.Retries(0),
		dialOptions(grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(
			func(ctx context.Context, method string, req, rsp any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				if strings.HasPrefix(method, "/grpc.health") {
					panics.Add(1)
					panic("expected")
				}
				return invoke(ctx, method, req, rsp, cc, opts...)
			})))
	eventually(t, "a probe panics", func() bool { _ = export(c, 100*time.Millisecond); return panics.Load() > 0 })
	for range 20 {
		_ = export(c, 100*time.Millisecond)
	}
	if !slices.ContainsFunc(inf.Snapshot().Instances, isOut) || slices.ContainsFunc(inf.Snapshot().Instances, func(i *discovery.Instance) bool { return i.Calls.Ejected() }) {
		t.Error("a probe that has panicked says something about the instance")
	}
}

// The node behind a fixed address is gone without a word, and the address leads to another one.
func TestClientLeavesSilentConnectionToAddress(t *testing.T) {
	t.Parallel()
	works := startRelayed(t, 0)
	var lost atomic.Pointer[atomic.Bool]
	lost.Store(new(atomic.Bool))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	kubetest.StartRelay(t, l, func() (net.Conn, error) {
		conn, err := net.Dial("tcp", works.address)
		return &swallowingConn{conn, lost.Load()}, err
	})
	c, _ := newTestClient(t, nil, client.Retries(0))
	call := func(timeout time.Duration) error { return export(c, timeout, client.WithAddress(l.Addr().String())) }
	for range 3 {
		if err := call(10 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	lost.Swap(new(atomic.Bool)).Store(true)
	if err := call(200 * time.Millisecond); codeOf(err) != 408 {
		t.Fatalf("through a lost connection: %v", err)
	}
	time.Sleep(time.Second) // for the probe, on a busy machine
	if err := call(2 * time.Second); err != nil {
		t.Errorf("the call after the one that timed out: %v", err)
	}
}
