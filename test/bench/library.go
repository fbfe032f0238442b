//go:build linux

package main

import (
	"context"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/metrics"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/jiangjiancc/go_micro_k8s/test/bench/load"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/debug/service/handler"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
)

// The names of the libraries, which are the columns of the tables. Those not in
// libraries are in test/bench/peers.
const (
	grpcGo     = "grpc-go"
	kratos     = "kratos"
	goZero     = "go-zero"
	goMicro    = "go-micro"
	roundRobin = "go-micro, round robin"
	podClient  = "pod/"
	podSubset  = "pod/ with Subset(20)"
	podMetrics = "pod/ with metrics"
)

// libraries are go-micro with its own selector and with pod/, for package load.
var libraries = map[string]load.Library{
	goMicro:    {Serve: serve, Limited: serveWork(), Dial: dialGoMicro(selector.Random), Tier: serveTier},
	roundRobin: {Serve: serve, Dial: dialGoMicro(selector.RoundRobin)},
	podClient:  {Serve: serveWithLifecycle, Limited: serveWork(pod.AdaptiveLimit()), Dial: dialPod(nothing), Tier: serveTier},
	podSubset:  {Serve: serveWithLifecycle, Dial: dialPod(nothing, pod.Subset(20))},
	podMetrics: {Serve: serveWithMetrics, Dial: dialPod(measure)},
}

type greeter struct{}

func (greeter) Hello(_ context.Context, q *proto.HelloRequest, a *proto.HelloResponse) error {
	a.Greeting = "Hello " + q.Name + "!"
	return nil
}

// tier is a greeter that calls the next tier.
type tier func(context.Context) error

func (call tier) Hello(ctx context.Context, _ *proto.HelloRequest, _ *proto.HelloResponse) error {
	return call(ctx)
}

// serve starts a go-micro service on loopback.
func serve() (string, error) { return start(greeter{}, nil) }

func serveTier(call func(context.Context) error) (string, error) { return start(tier(call), nil) }

// serveWork returns a function that starts a service whose handler works, with pod.Lifecycle if options for it are given.
func serveWork(options ...pod.LifecycleOption) func(func(context.Context) error, ...grpc.ServerOption) (string, error) {
	return func(work func(context.Context) error, settings ...grpc.ServerOption) (string, error) {
		var lifecycle []micro.Option
		if options != nil {
			lifecycle = append(lifecycle, pod.Lifecycle(pod.NewRegistry(kubernetes.NewRegistry), options...))
		}
		return start(tier(work), settings, lifecycle...)
	}
}

// serveWithLifecycle starts a service with pod.Lifecycle.
func serveWithLifecycle() (string, error) {
	return start(greeter{}, nil, pod.Lifecycle(pod.NewRegistry(kubernetes.NewRegistry)))
}

// measure makes a registry, its clients and its services record metrics.
func measure(r *pod.Registry) { prometheus.NewRegistry().MustRegister(metrics.New(r)) }

func nothing(*pod.Registry) {}

func serveWithMetrics() (string, error) {
	r := pod.NewRegistry(kubernetes.NewRegistry)
	measure(r)
	return start(greeter{}, nil, pod.Lifecycle(r))
}

func start(h proto.GreeterHandler, settings []grpc.ServerOption, options ...micro.Option) (string, error) {
	r := memory.NewRegistry()
	s := newService("greeter", candidate{registry: r, selector: selector.NewSelector(selector.Registry(r))}, options...)
	if err := s.Server().Init(grpcs.Options(settings...)); err != nil {
		return "", err
	}
	if err := proto.RegisterGreeterHandler(s.Server(), h); err != nil {
		return "", err
	}
	// Like micro.Service.Run, which adds this handler before it starts the server.
	if err := s.Server().Handle(s.Server().NewHandler(handler.NewHandler(s.Client()), server.InternalHandler(true))); err != nil {
		return "", err
	}
	for _, prepare := range s.Options().BeforeStart {
		if err := prepare(); err != nil {
			return "", err
		}
	}
	if err := s.Server().Start(); err != nil {
		return "", err
	}
	for _, started := range s.Options().AfterStart {
		if err := started(); err != nil {
			return "", err
		}
	}
	return s.Server().Options().Address, nil
}

func retries(retry bool) client.Option {
	if retry {
		return client.Retries(client.DefaultRetries)
	}
	return client.Retries(0)
}

func dialGoMicro(strategy selector.Strategy) func([]string, bool) (load.Client, error) {
	return func(addresses []string, retry bool) (load.Client, error) {
		r := memory.NewRegistry()
		add := func(address string) error {
			return r.Register(&registry.Service{Name: "greeter", Version: "latest", Nodes: []*registry.Node{{Id: address, Address: address, Metadata: map[string]string{"protocol": "grpc"}}}})
		}
		for _, a := range addresses {
			if err := add(a); err != nil {
				return nil, err
			}
		}
		s := selector.NewSelector(selector.Registry(r), selector.SetStrategy(strategy))
		return newMicroClient(candidate{registry: r, client: grpcc.NewClient(retries(retry), client.Selector(s))}, add), nil
	}
}

// dialPod returns a function that makes a client of a new registry, which prepare gets first.
func dialPod(prepare func(*pod.Registry), options ...registry.Option) func([]string, bool) (load.Client, error) {
	return func(addresses []string, retry bool) (load.Client, error) {
		before := load.InUse()
		api := newMemoryAPI()
		if err := api.enterKubeconfig(); err != nil {
			return nil, err
		}
		for _, a := range addresses {
			api.add("greeter", a)
		}
		if err := api.list(); err != nil {
			return nil, err
		}
		overhead := load.InUse() - before
		r := pod.NewRegistry(kubernetes.NewRegistry, append(options, pod.Direct())...)
		prepare(r)
		c := candidate{registry: r, client: pod.NewClient(r, grpcc.NewClient(retries(retry)))}
		return withAPI{newMicroClient(c, func(a string) error { api.add("greeter", a); return nil }), overhead}, nil
	}
}

// withAPI is a client in whose process the fake API server runs, which takes overhead bytes.
type withAPI struct {
	load.Client
	overhead int
}

func (c withAPI) Overhead() int { return c.overhead }

// microClient calls the Greeter through go-micro, with the wrappers of micro.NewService.
type microClient struct {
	client  client.Client
	greeter proto.GreeterService
	add     func(address string) error
}

func newMicroClient(s candidate, add func(string) error) load.Client {
	c := newService("caller", s).Client()
	return microClient{c, proto.NewGreeterService("greeter", c), add}
}

func (c microClient) Hello(ctx context.Context) error {
	_, err := c.greeter.Hello(ctx, &proto.HelloRequest{Name: "XXX"})
	return err
}

func (c microClient) Export(ctx context.Context) error {
	return c.client.Call(ctx, c.client.NewRequest("greeter", "Greeter.Export", &proto.HelloRequest{}), &proto.HelloResponse{})
}

func (c microClient) Stream(ctx context.Context, name string) (receive, stop func() error, err error) {
	s, err := c.client.Stream(ctx, c.client.NewRequest("greeter", "Greeter.Stream", &proto.HelloRequest{}))
	if err != nil {
		return nil, nil, err
	}
	return func() error { return s.Recv(&proto.HelloResponse{}) }, s.Close, s.Send(&proto.HelloRequest{Name: name})
}

func (c microClient) Add(address string) error { return c.add(address) }
