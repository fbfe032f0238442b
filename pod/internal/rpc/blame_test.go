package rpc

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The tests in this file call real servers, because grpc-go's errors decide which
// instances are blamed.

// helloFunc is the handler of a greeter service.
type helloFunc func(context.Context, *proto.HelloRequest, *proto.HelloResponse) error

func (f helloFunc) Hello(ctx context.Context, req *proto.HelloRequest, rsp *proto.HelloResponse) error {
	return f(ctx, req, rsp)
}

// startServer starts a greeter and returns its address. The greeter runs until stop or the
// end of the test.
func startServer(t *testing.T, hello helloFunc, opts ...server.Option) (address string, stop func()) {
	t.Helper()
	s := grpcs.NewServer(append([]server.Option{server.Name("greeter"), server.Address("127.0.0.1:0"), server.Registry(memory.NewRegistry())}, opts...)...)
	if err := proto.RegisterGreeterHandler(s, hello); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	running := true
	stop = func() {
		if running {
			running = false
			_ = s.Stop()
		}
	}
	t.Cleanup(stop)
	return s.Options().Address, stop
}

// startFrozen returns the address of a server that accepts connections and never
// answers.
func startFrozen(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	}()
	return l.Addr().String()
}

// refusingAddress returns an address that refuses connections.
func refusingAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return l.Addr().String()
}

// greeterClient calls the greeters at fixed addresses.
type greeterClient struct {
	proto.GreeterService
	client   *Client
	informer *discovery.Informer
}

func newGreeterClient(t *testing.T, addresses []string, opts ...client.Option) *greeterClient {
	t.Helper()
	c, inf := newTestClient(t, addresses, opts...)
	return &greeterClient{proto.NewGreeterService("greeter", c), c, inf}
}

func (c *greeterClient) call(deadline time.Duration, opts ...client.CallOption) error {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	_, err := c.Hello(ctx, &proto.HelloRequest{Name: "x"}, opts...)
	return err
}

// connect opens a connection to each instance of the addresses. It opens streams, because the
// length of a stream is no latency: if the first answer of an instance took a few milliseconds
// longer, the instance would get no call for 10 s.
func (c *greeterClient) connect(t *testing.T, addresses ...string) {
	t.Helper()
	for _, address := range addresses {
		only := client.WithSelectOption(selector.WithFilter(func(all []*registry.Service) []*registry.Service {
			for _, v := range all { // copies
				v.Nodes = slices.DeleteFunc(v.Nodes, func(n *registry.Node) bool { return n.Address != address })
			}
			return slices.DeleteFunc(all, func(v *registry.Service) bool { return len(v.Nodes) == 0 })
		}))
		s, err := c.client.Stream(t.Context(), c.client.NewRequest("greeter", "Greeter.Unknown", nil), only, client.WithDialTimeout(10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Recv(new(proto.HelloResponse)); err == nil {
			t.Fatal("an unknown method has answered")
		}
	}
}

// expectSlowAnswers makes the client believe that the instances at the addresses usually
// answer once a second, which is the longest interval. It then cannot blame them when the
// machine stalls.
func (c *greeterClient) expectSlowAnswers(addresses ...string) {
	for _, i := range c.informer.Snapshot().Instances {
		if slices.Contains(addresses, i.Address) {
			now := callstats.Clock()
			i.Calls.End(now, i.Calls.Begin(now-int64(time.Second), false), outcome.Answered)
		}
	}
}

// ejected returns the addresses of the ejected instances.
func (c *greeterClient) ejected() (addresses []string) {
	now := callstats.Clock()
	for _, i := range c.informer.Snapshot().Instances {
		if i.Calls.Ejected(now) {
			addresses = append(addresses, i.Address)
		}
	}
	return addresses
}

func answer(_ context.Context, _ *proto.HelloRequest, rsp *proto.HelloResponse) error {
	rsp.Greeting = "Hello"
	return nil
}

// Before the retry the caller's deadline passes. The instance of the retry was not called
// in time, and is not blamed.
func TestClientBlamesTimeoutOnInstanceThatWasCalled(t *testing.T) {
	for name, dead := range map[string]string{"an instance that refuses": refusingAddress(t), "a frozen instance": startFrozen(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var healthy []string
			for range 3 {
				a, _ := startServer(t, answer)
				healthy = append(healthy, a)
			}
			waitForDeadline := func(ctx context.Context, _ client.Request, i int) (time.Duration, error) {
				if i > 0 {
					<-ctx.Done()
				}
				return 0, nil
			}
			c := newGreeterClient(t, append([]string{dead}, healthy...), client.Retries(1), client.Backoff(waitForDeadline))
			c.connect(t, healthy...)
			for range 3 {
				for _, i := range c.informer.Snapshot().Instances {
					i.Calls.Readmit()
				}
				for begin := time.Now(); len(c.ejected()) == 0; {
					_ = c.call(2 * time.Second) // healthy instances answer in time, even on a busy machine
					if time.Since(begin) > 30*time.Second {
						t.Fatal("the dead instance is not ejected")
					}
				}
				if got := c.ejected(); len(got) != 1 || got[0] != dead {
					t.Fatalf("ejected: %q, want only the dead instance %s", got, dead)
				}
			}
		})
	}
}

func TestClientDoesNotBlameNearlySpentDeadlines(t *testing.T) {
	var hang atomic.Bool
	slow := func(ctx context.Context, req *proto.HelloRequest, rsp *proto.HelloResponse) error {
		if hang.Load() {
			<-ctx.Done()
			time.Sleep(100 * time.Millisecond) // the caller has given up
			return ctx.Err()
		}
		return answer(ctx, req, rsp)
	}
	var addresses []string
	for range 4 {
		a, _ := startServer(t, slow)
		addresses = append(addresses, a)
	}
	c := newGreeterClient(t, addresses, client.Retries(1))
	c.connect(t, addresses...)
	c.expectSlowAnswers(addresses...)
	hang.Store(true)
	for range 40 {
		if err := c.call(5 * time.Millisecond); err == nil {
			t.Fatal("an answer within 5 ms")
		}
	}
	time.Sleep(300 * time.Millisecond)
	if got := c.ejected(); len(got) > 0 {
		t.Errorf("ejected: %q, want none", got)
	}
}

func TestClientDoesNotBlameHandlersErrors(t *testing.T) {
	for name, err := range map[string]error{
		"a plain error":           fmt.Errorf("no such row"),
		"Unimplemented":           status.Error(codes.Unimplemented, "not yet"),
		"ResourceExhausted":       status.Error(codes.ResourceExhausted, "quota used up"),
		"Unavailable":             status.Error(codes.Unavailable, "connection error: desc = \"to the database\""),
		"its own 500":             errors.InternalServerError("greeter", "no such row"),
		"its own 408":             errors.Timeout("greeter", "too late"),
		"a wrapped context error": fmt.Errorf("asking the database: %w", context.DeadlineExceeded),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var addresses []string
			for range 4 {
				a, _ := startServer(t, func(context.Context, *proto.HelloRequest, *proto.HelloResponse) error { return err })
				addresses = append(addresses, a)
			}
			c := newGreeterClient(t, addresses, client.Retries(1))
			for range 8 {
				if err := c.call(5 * time.Second); err == nil {
					t.Fatal("no error")
				}
			}
			if got := c.ejected(); len(got) > 0 {
				t.Errorf("ejected: %q, want none", got)
			}
		})
	}
}

func TestClientEjectsInstanceThatIsGone(t *testing.T) {
	a, stop := startServer(t, answer)
	b, _ := startServer(t, answer)
	c := newGreeterClient(t, []string{a, b}, client.Retries(1))
	c.connect(t, a, b)
	stop()
	for i := 0; i < 20 || i < 100 && len(c.ejected()) == 0; i++ { // each call goes to a with a probability of 1/2, until a is ejected
		if err := c.call(10 * time.Second); err != nil {
			t.Errorf("with one retry a call fails: %v", err)
		}
	}
	if got := c.ejected(); len(got) != 1 || got[0] != a {
		t.Errorf("ejected: %q, want the instance that is gone, %s", got, a)
	}
}

// The connection breaks while a call is in flight, as when a container is killed.
func TestClientEjectsInstanceWhoseConnectionBreaks(t *testing.T) {
	hanging, hold := make(chan bool, 1), make(chan struct{})
	var hang atomic.Bool
	a, _ := startServer(t, func(ctx context.Context, req *proto.HelloRequest, rsp *proto.HelloResponse) error {
		if hang.CompareAndSwap(true, false) {
			hanging <- true
			<-hold
		}
		return answer(ctx, req, rsp)
	})
	defer close(hold)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	relay := kubetest.StartRelay(t, l, func() (net.Conn, error) { return net.Dial("tcp", a) })
	b, _ := startServer(t, answer)
	c := newGreeterClient(t, []string{l.Addr().String(), b}, client.Retries(1))
	c.connect(t, l.Addr().String(), b)
	hang.Store(true)
	results := make(chan error, 100)
	for range 100 {
		go func() { results <- c.call(20 * time.Second) }()
	}
	<-hanging
	relay.Cut()
	for range 100 {
		if err := <-results; err != nil {
			t.Errorf("with one retry a call fails: %v", err)
		}
	}
	if got := c.ejected(); len(got) != 1 || got[0] != l.Addr().String() {
		t.Errorf("ejected: %q, want the instance whose connection broke, %s", got, l.Addr())
	}
}
