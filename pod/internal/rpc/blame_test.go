package rpc

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/codec/bytes"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
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
	return kubetest.Accept(t, func(net.Conn) {})
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
			i.Calls.End(now, i.Calls.Begin(now-int64(time.Second), new(callstats.Method), false), outcome.Answered)
		}
	}
}

// ejected returns the addresses of the ejected instances.
func (c *greeterClient) ejected() (addresses []string) {
	for _, i := range c.informer.Snapshot().Instances {
		if i.Calls.Ejected() {
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

// One method always takes longer than its deadline; another one answers at once.
func TestClientDoesNotBlameForMethodThatIsAlwaysTooSlow(t *testing.T) {
	for _, callers := range []int{1, 4} {
		t.Run(fmt.Sprint(callers, " callers"), func(t *testing.T) {
			t.Parallel()
			var addresses []string
			for range 2 {
				address, _ := startGRPC(t, func(ctx context.Context, method string, _ []byte) ([]byte, error) {
					if strings.HasSuffix(method, "/Report") {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					return nil, nil
				})
				addresses = append(addresses, address)
			}
			c, ejections := newCountingClient(t, addresses, client.Retries(0))
			call := func(method string, timeout time.Duration) error {
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				defer cancel()
				return c.Call(ctx, c.NewRequest("greeter", method, &bytes.Frame{}, client.WithContentType("application/grpc+bytes")), &bytes.Frame{})
			}
			end := time.Now().Add(5 * time.Second)
			var running sync.WaitGroup
			for range callers {
				running.Go(func() {
					for time.Now().Before(end) {
						if err := call("Orders.Report", 150*time.Millisecond); codeOf(err) != 408 {
							t.Error(err)
						}
					}
				})
				running.Go(func() {
					for ; time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
						if err := call("Orders.Get", 10*time.Second); err != nil {
							t.Error(err)
						}
					}
				})
			}
			running.Wait()
			if n := ejections.Load(); n != 0 {
				t.Errorf("%d ejections of healthy instances", n)
			}
		})
	}
}

// Two clients of one registry share what they know. The TLS settings of one of them are wrong.
func TestClientDoesNotBlameForWrongSettingsOfAnotherClient(t *testing.T) {
	t.Parallel()
	serverTLS, clientTLS := testCertificate(t)
	var addresses []string
	for range 4 {
		addresses = append(addresses, startCounted(t, nil, grpc.Creds(credentials.NewTLS(serverTLS))).address())
	}
	right, ejections := newCountingClient(t, addresses, client.Retries(0), grpcc.AuthTLS(clientTLS))
	for name, opts := range map[string][]client.Option{
		"no TLS":         nil,
		"no certificate": {grpcc.AuthTLS(&tls.Config{MinVersion: tls.VersionTLS12})},
	} {
		wrong := New(grpcc.NewClient(append(opts, client.Retries(0), client.Selector(right.Options().Selector))...), right.instanceOf, noPath, noCredentials, nil)
		for range 50 {
			if err := callGreeter(t.Context(), wrong); err == nil {
				t.Fatal("a call with wrong settings succeeds")
			}
			if err := callGreeter(t.Context(), right); err != nil {
				t.Fatalf("%s: a call with the right settings: %v", name, err)
			}
		}
		if err := wrong.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := ejections.Load(); n != 0 {
		t.Errorf("%d ejections of healthy instances", n)
	}
}

// The process of the client is stopped for longer than the deadlines of its calls in flight.
func TestClientDoesNotBlameForItsOwnPause(t *testing.T) {
	if addresses := os.Getenv("TEST_PAUSED_CLIENT"); addresses != "" {
		runPausedClient(t, strings.Fields(addresses))
		return
	}
	t.Parallel()
	var addresses []string
	for range 4 {
		address, _ := startGRPC(t, func(context.Context, string, []byte) ([]byte, error) {
			time.Sleep(100 * time.Millisecond)
			return nil, nil
		})
		addresses = append(addresses, address)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), "TEST_PAUSED_CLIENT="+strings.Join(addresses, " "))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	waitFor := func(prefix string) string {
		for lines.Scan() {
			if text, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				return text
			}
		}
		t.Fatalf("the client has not written %q", prefix)
		return ""
	}
	waitFor("running")
	for range 3 {
		_ = cmd.Process.Signal(syscall.SIGSTOP)
		time.Sleep(1500 * time.Millisecond)
		_ = cmd.Process.Signal(syscall.SIGCONT)
		time.Sleep(300 * time.Millisecond)
	}
	if got := waitFor("ejections: "); got != "0" {
		t.Errorf("%s ejections of healthy instances", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// runPausedClient makes calls for 8 s, and writes how many instances were ejected.
func runPausedClient(t *testing.T, addresses []string) {
	c, ejections := newCountingClient(t, addresses, client.Retries(0))
	end := time.Now().Add(8 * time.Second)
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for time.Now().Before(end) {
				_ = export(c, time.Second)
			}
		})
	}
	time.Sleep(time.Second)
	fmt.Println("running")
	callers.Wait()
	fmt.Printf("ejections: %d\n", ejections.Load())
}

// newCountingClient returns a client, and the number of its ejections.
func newCountingClient(t *testing.T, addresses []string, opts ...client.Option) (*Client, *atomic.Int64) {
	t.Helper()
	ejections := new(atomic.Int64)
	c, _ := newObservedClient(t, addresses, balancer.Events{Ejected: func(_, _, address string, _ time.Duration, cause error) {
		ejections.Add(1)
		t.Logf("%s is ejected: %v", address, cause)
	}}, opts...)
	return c, ejections
}

// A client whose TLS settings are wrong probes an instance because a call of another client timed out.
func TestProbeDoesNotBlameForWrongSettings(t *testing.T) {
	t.Parallel()
	serverTLS, clientTLS := testCertificate(t)
	secure := startCounted(t, nil, grpc.Creds(credentials.NewTLS(serverTLS))).address()
	i, leave := newInstance(secure)
	t.Cleanup(leave)
	for name, opts := range map[string][]client.Option{
		"no TLS":         nil,
		"no certificate": {grpcc.AuthTLS(&tls.Config{MinVersion: tls.VersionTLS12})},
		"right":          {grpcc.AuthTLS(clientTLS)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := New(grpcc.NewClient(opts...), nil, noPath, noCredentials, nil)
			t.Cleanup(func() { _ = c.Close() })
			conn, err := c.connections.acquire(i, "", "")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.release()
			ctx, cancel := context.WithTimeout(t.Context(), probeTimeout)
			defer cancel()
			o, err := conn.checkHealth(ctx, conn.channel)
			if want := name == "right"; (err == nil) != want || !want && o != outcome.Inconclusive {
				t.Errorf("outcome %v: %v", o, err)
			}
		})
	}
}
