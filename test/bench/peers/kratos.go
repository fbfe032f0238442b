package main

import (
	"context"
	"net"
	"sync"

	"github.com/go-kratos/kratos/v2/log"
	"github.com/go-kratos/kratos/v2/middleware/ratelimit"
	"github.com/go-kratos/kratos/v2/middleware/recovery"
	"github.com/go-kratos/kratos/v2/registry"
	"github.com/go-kratos/kratos/v2/selector"
	"github.com/go-kratos/kratos/v2/selector/p2c"
	kratos "github.com/go-kratos/kratos/v2/transport/grpc"
	"github.com/jiangjiancc/go_micro_k8s/test/bench/load"
	"google.golang.org/grpc"
)

func init() {
	log.SetLogger(log.NewFilter(log.DefaultLogger, log.FilterLevel(log.LevelError)))
	selector.SetGlobalSelector(p2c.NewBuilder()) // kratos' own peak EWMA; the default is wrr
}

// serveKratos uses the middleware of kratos' project template.
func serveKratos() (string, error) {
	return startKratos(func(context.Context) error { return nil }, kratos.Middleware(recovery.Recovery()))
}

// serveKratosLimited adds kratos' middleware against overload, BBR.
func serveKratosLimited(work func(context.Context) error, options ...grpc.ServerOption) (string, error) {
	return startKratos(work, kratos.Middleware(recovery.Recovery(), ratelimit.Server()), kratos.Options(options...))
}

func startKratos(work func(context.Context) error, options ...kratos.ServerOption) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s := kratos.NewServer(append(options, kratos.Listener(l), kratos.Timeout(timeout))...)
	load.RegisterWork(s, work)
	go func() { _ = s.Start(context.Background()) }()
	return l.Addr().String(), nil
}

func dialKratos(addresses []string, _ bool) (load.Client, error) {
	d := &kratosDiscovery{changed: make(chan struct{}, 1)}
	for _, a := range addresses {
		d.add(a)
	}
	c, err := kratos.DialInsecure(context.Background(), kratos.WithEndpoint("discovery:///greeter"), kratos.WithDiscovery(d), kratos.WithTimeout(timeout),
		kratos.WithMiddleware(recovery.Recovery()),
		kratos.WithSubset(0)) // all instances, as with the other libraries; the default takes 25 of them
	return client{c, d.add}, err
}

// kratosDiscovery is a list of instances that can grow.
type kratosDiscovery struct {
	mu      sync.Mutex
	all     []*registry.ServiceInstance
	changed chan struct{}
}

func (d *kratosDiscovery) add(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = append(d.all, &registry.ServiceInstance{ID: address, Name: "greeter", Endpoints: []string{"grpc://" + address}})
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

func (d *kratosDiscovery) GetService(context.Context, string) ([]*registry.ServiceInstance, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*registry.ServiceInstance{}, d.all...), nil
}

func (d *kratosDiscovery) Watch(ctx context.Context, _ string) (registry.Watcher, error) {
	return kratosWatcher{ctx, d}, nil
}

type kratosWatcher struct {
	ctx context.Context
	*kratosDiscovery
}

func (w kratosWatcher) Next() ([]*registry.ServiceInstance, error) {
	select {
	case <-w.changed:
		return w.GetService(w.ctx, "")
	case <-w.ctx.Done():
		return nil, w.ctx.Err()
	}
}

func (w kratosWatcher) Stop() error { return nil }
