package pod

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/debug/service/handler"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
)

// newGreeterRegistry returns a registry that knows greeters at addresses.
func newGreeterRegistry(t testing.TB, addresses ...string) *Registry {
	t.Helper()
	r, inf := newStaticRegistry(t, 0)
	inf.Replace(readyPodsAt(t, addresses...))
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

type helloFunc func(context.Context, *proto.HelloRequest, *proto.HelloResponse) error

func (f helloFunc) Hello(ctx context.Context, req *proto.HelloRequest, rsp *proto.HelloResponse) error {
	return f(ctx, req, rsp)
}

func answer(_ context.Context, _ *proto.HelloRequest, rsp *proto.HelloResponse) error {
	rsp.Greeting = "Hello"
	return nil
}

// startHello starts a greeter with Lifecycle of a registry with the options, and returns its address.
func startHello(t *testing.T, hello helloFunc, opts ...registry.Option) string {
	t.Helper()
	s := grpcs.NewServer(server.Name("greeter"), server.Address("127.0.0.1:0"), server.Registry(memory.NewRegistry()))
	if err := proto.RegisterGreeterHandler(s, hello); err != nil {
		t.Fatal(err)
	}
	o := micro.Options{Server: s, Client: grpcc.NewClient()}
	Lifecycle(NewRegistry(nil, opts...))(&o)
	if err := s.Handle(s.NewHandler(handler.NewHandler(o.Client))); err != nil { // as Run does
		t.Fatal(err)
	}
	if err := o.BeforeStart[0](); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	return s.Options().Address
}

// listen returns the address of a listener that never answers.
func listen(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

func callHello(ctx context.Context, c client.Client, opts ...client.CallOption) error {
	_, err := proto.NewGreeterService("greeter", c).Hello(ctx, &proto.HelloRequest{Name: "x"}, opts...)
	return err
}

func dialOptions(o ...grpc.DialOption) client.Option {
	return func(c *client.Options) { grpcc.DialOptions(o...)(&c.CallOptions) }
}

// micro.NewService applies its options in the order in which they are given.
func TestClientInServiceNeedsNoSelector(t *testing.T) {
	newClient := func(r *Registry, base client.Client) *Client {
		c := NewClient(r, base)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	address := startHello(t, answer)
	own := selector.NewSelector(selector.Registry(memory.NewRegistry(memory.Services(map[string][]*registry.Service{"greeter": {service("greeter", "v1", "own", address)}}))))
	for name, options := range map[string]func(*Registry) []micro.Option{
		"client, registry": func(r *Registry) []micro.Option {
			return []micro.Option{micro.Client(newClient(r, grpcc.NewClient())), micro.Registry(r)}
		},
		"registry, client": func(r *Registry) []micro.Option {
			return []micro.Option{micro.Registry(r), micro.Client(newClient(r, grpcc.NewClient()))}
		},
		"no registry": func(r *Registry) []micro.Option {
			return []micro.Option{micro.Client(newClient(r, grpcc.NewClient()))}
		},
		"micro.Selector": func(r *Registry) []micro.Option {
			return []micro.Option{micro.Client(newClient(newGreeterRegistry(t), grpcc.NewClient())), micro.Selector(balancer.NewSelector(r, choosersOf))}
		},
		"a selector of another package": func(r *Registry) []micro.Option {
			return []micro.Option{micro.Client(newClient(newGreeterRegistry(t), grpcc.NewClient())), micro.Selector(own)}
		},
		"client.Selector": func(r *Registry) []micro.Option {
			return []micro.Option{micro.Client(newClient(newGreeterRegistry(t), grpcc.NewClient(client.Selector(own))))}
		},
		"a registry of another package": func(r *Registry) []micro.Option { // as with --registry=mdns
			return []micro.Option{micro.Client(newClient(newGreeterRegistry(t), grpcc.NewClient())), micro.Registry(own.Options().Registry)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := micro.NewService(options(newGreeterRegistry(t, address))...)
			for range 3 {
				if err := callHello(t.Context(), s.Client()); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// The handler calls a service that is down, and returns the error of that call. Lifecycle replaces the error's id by the name of the handler's
// service.
func TestClientDoesNotBlameDownstreamErrors(t *testing.T) {
	for name, downstream := range map[string]struct {
		address  string
		deadline time.Duration
	}{"refused": {"127.0.0.1:1", time.Second}, "timed out": {listen(t), 150 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			other := NewClient(newGreeterRegistry(t, downstream.address), grpcc.NewClient())
			var addresses []string
			for range 4 {
				addresses = append(addresses, startHello(t, func(context.Context, *proto.HelloRequest, *proto.HelloResponse) error {
					return callHello(t.Context(), other, client.WithRequestTimeout(downstream.deadline))
				}))
			}
			c := NewClient(newGreeterRegistry(t, addresses...), grpcc.NewClient(client.Retries(1)))
			for range 8 {
				e := errors.FromError(callHello(t.Context(), c))
				if e == nil || e.Id != "greeter" || e.Code != 500 && e.Code != 408 {
					t.Fatalf("the caller gets %v", e)
				}
			}
			for _, i := range c.Instances("greeter") {
				if i.EjectedFor > 0 {
					t.Errorf("%+v is ejected", i)
				}
			}
		})
	}
}

// Close of a registry closes its clients, and Close of a client makes the registry forget it.
func TestRegistryClosesClients(t *testing.T) {
	kubetest.CheckNoLeak(t, "github.com/micro/go-micro/v2/registry/memory.(*Registry).ttlPrune")
	address := startHello(t, answer)
	r := newGreeterRegistry(t, address)
	first, second := NewClient(r, grpcc.NewClient(client.Retries(0))), NewClient(r, grpcc.NewClient(client.Retries(0)))
	for _, c := range []*Client{first, second} {
		if err := callHello(t.Context(), c, client.WithAddress(address)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(r.clients) != 1 || r.clients[0] != second {
		t.Errorf("the registry has %d clients, want the one that is not closed", len(r.clients))
	}
	if err := callHello(t.Context(), second, client.WithAddress(address)); err != nil {
		t.Errorf("a call of the other client: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range []*Client{first, second} {
		if err := callHello(t.Context(), c, client.WithAddress(address)); err == nil || !strings.Contains(err.Error(), "the client is closed") {
			t.Errorf("a call after Close: %v", err)
		}
	}
}

func TestClientInstances(t *testing.T) {
	address := startHello(t, answer)
	c := NewClient(newGreeterRegistry(t, address), grpcc.NewClient())
	if got := c.Instances("greeter"); got != nil {
		t.Errorf("before the first call: %+v", got)
	}
	s, err := c.Stream(t.Context(), c.NewRequest("greeter", "Greeter.Hello", nil))
	if err != nil {
		t.Fatal(err)
	}
	want := InstanceCalls{Pod: "p-0", Address: address, InFlight: 1}
	if got := c.Instances("greeter"); len(got) != 1 || got[0] != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	_ = s.Close()
	other := NewClient(newGreeterRegistry(t), grpcc.NewClient(client.Selector(selector.NewSelector())))
	if got := other.Instances("greeter"); got != nil {
		t.Errorf("with a selector of another package: %+v", got)
	}
}

func TestLifecycleFixesWindowsAndKeepsServerOptions(t *testing.T) {
	for name, test := range map[string]struct {
		options []grpc.ServerOption
		window  uint32
	}{
		"no window of the user": {nil, gomicro.FlowControlWindow},
		"a window of the user":  {[]grpc.ServerOption{grpc.InitialWindowSize(2 << 20)}, 2 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			s := grpcs.NewServer(server.Name("greeter"), server.Address("127.0.0.1:0"), server.Registry(memory.NewRegistry()),
				grpcs.Options(append(test.options, grpc.MaxConcurrentStreams(7))...))
			o := micro.Options{Server: s, Client: grpcc.NewClient()}
			Lifecycle(newGreeterRegistry(t))(&o)
			if err := s.Handle(s.NewHandler(handler.NewHandler(o.Client))); err != nil { // as Run does
				t.Fatal(err)
			}
			for _, prepare := range o.BeforeStart {
				if err := prepare(); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Stop() }()
			conn, err := net.Dial("tcp", s.Options().Address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
				t.Fatal(err)
			}
			if window, streams := kubetest.ReadSettings(t, conn); window != test.window || streams != 7 {
				t.Errorf("the server permits %d bytes and %d streams, want %d and 7", window, streams, test.window)
			}
		})
	}
}

// A call wrapper learns which pod it calls.
func TestInstanceOfNode(t *testing.T) {
	address := startHello(t, answer)
	c := NewClient(newGreeterRegistry(t, address), grpcc.NewClient())
	var seen InstanceCalls
	record := func(call client.CallFunc) client.CallFunc {
		return func(ctx context.Context, n *registry.Node, req client.Request, rsp any, o client.CallOptions) error {
			seen, _ = c.InstanceOf(n)
			return call(ctx, n, req, rsp, o)
		}
	}
	if err := callHello(t.Context(), c, client.WithCallWrapper(record)); err != nil {
		t.Fatal(err)
	}
	if seen.Pod != "p-0" || seen.Address != address || seen.InFlight != 1 {
		t.Errorf("the wrapper has seen %+v", seen)
	}
	if _, ok := c.InstanceOf(&registry.Node{Address: address}); ok {
		t.Error("a node that is none of the registry's has an instance")
	}
}
