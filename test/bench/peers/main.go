// Command peers runs one measurement of package load with a library other than
// go-micro. The benchmark builds and starts it.
package main

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/bench/load"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func main() {
	load.Main(map[string]load.Library{
		"grpc-go": {Serve: serveGRPC, Dial: dialGRPC},
		"kratos":  {Serve: serveKratos, Limited: serveKratosLimited, Dial: dialKratos},
		"go-zero": {Serve: serveGoZero, Limited: serveGoZeroLimited, Dial: dialGoZero},
	})
}

func serveGRPC() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s := grpc.NewServer()
	load.Register(s)
	go func() { _ = s.Serve(l) }()
	return l.Addr().String(), nil
}

// dialGRPC uses grpc-go alone, with its policy round_robin.
func dialGRPC(addresses []string, _ bool) (load.Client, error) {
	d := newDiscovery(addresses)
	c, err := grpc.NewClient(d.target(), grpc.WithResolvers(d.builder), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
	return client{c, d.add}, err
}

// client makes calls on a grpc.ClientConn.
type client struct {
	connection grpc.ClientConnInterface
	add        func(address string)
}

func (c client) Export(ctx context.Context) error {
	return c.connection.Invoke(ctx, "/Greeter/Export", &wrapperspb.StringValue{}, &wrapperspb.StringValue{})
}

func (c client) Hello(ctx context.Context) error {
	return c.connection.Invoke(ctx, "/Greeter/Hello", &wrapperspb.StringValue{Value: "XXX"}, &wrapperspb.StringValue{})
}

func (c client) Stream(ctx context.Context, name string) (receive, stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := c.connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/Greeter/Stream")
	if err == nil {
		err = s.SendMsg(&wrapperspb.StringValue{Value: name})
	}
	if err == nil {
		err = s.CloseSend()
	}
	return func() error { return s.RecvMsg(&wrapperspb.StringValue{}) }, func() error { cancel(); return nil }, err
}

func (c client) Add(address string) error {
	c.add(address)
	return nil
}

// discovery is a list of instances that can grow, for grpc-go and go-zero.
type discovery struct {
	builder *manual.Resolver
	mu      sync.Mutex
	state   resolver.State
}

func newDiscovery(addresses []string) *discovery {
	d := &discovery{builder: manual.NewBuilderWithScheme("bench")}
	for _, a := range addresses {
		d.state.Addresses = append(d.state.Addresses, resolver.Address{Addr: a})
	}
	d.builder.InitialState(d.state)
	return d
}

func (d *discovery) target() string { return "bench:///greeter" }

func (d *discovery) add(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state.Addresses = append(d.state.Addresses[:len(d.state.Addresses):len(d.state.Addresses)], resolver.Address{Addr: address})
	d.builder.UpdateState(d.state)
}

// timeout replaces the shorter default of kratos and go-zero, so that all libraries
// have the time limit of go-micro.
const timeout = 5 * time.Second
