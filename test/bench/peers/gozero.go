package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/bench/load"
	"github.com/zeromicro/go-zero/core/conf"
	"github.com/zeromicro/go-zero/core/logx"
	"github.com/zeromicro/go-zero/zrpc"
	"google.golang.org/grpc"
)

func init() { logx.SetLevel(logx.SevereLevel) }

// serveGoZero uses the defaults of go-zero's configuration file, with two exceptions in its favour: it
// does not log each call, as the other libraries do not, and it does not shed load, because with all cores
// busy, as in a measurement of throughput, it would refuse calls.
func serveGoZero() (string, error) {
	return startGoZero("CpuThreshold: 0\n", func(context.Context) error { return nil })
}

// serveGoZeroLimited sheds load as by default, when the CPU is used to 90 %.
func serveGoZeroLimited(work func(context.Context) error, options ...grpc.ServerOption) (string, error) {
	return startGoZero("", work, options...)
}

func startGoZero(settings string, work func(context.Context) error, options ...grpc.ServerOption) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // zrpc takes no listener
	if err != nil {
		return "", err
	}
	address := l.Addr().String()
	l.Close()
	var c zrpc.RpcServerConf
	config := fmt.Sprintf("Name: greeter\nListenOn: %s\nTimeout: %d\nLog: {Level: severe, Stat: false}\nDevServer: {Enabled: false}\n%s", address, timeout.Milliseconds(), settings)
	if err := conf.LoadFromYamlBytes([]byte(config), &c); err != nil {
		return "", err
	}
	s, err := zrpc.NewServer(c, func(s *grpc.Server) { load.RegisterWork(s, work) })
	if err != nil {
		return "", err
	}
	s.AddOptions(options...)
	go s.Start()
	for end := time.Now().Add(timeout); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", address); err == nil {
			return address, c.Close()
		} else if time.Now().After(end) {
			return "", err
		}
	}
}

// dialGoZero uses the defaults of go-zero's configuration file, with its balancer p2c_ewma.
func dialGoZero(addresses []string, _ bool) (load.Client, error) {
	d := newDiscovery(addresses)
	var c zrpc.RpcClientConf
	config := fmt.Sprintf("Target: %q\nTimeout: %d\n", d.target(), timeout.Milliseconds())
	if err := conf.LoadFromYamlBytes([]byte(config), &c); err != nil {
		return nil, err
	}
	z, err := zrpc.NewClient(c, zrpc.WithDialOption(grpc.WithResolvers(d.builder)))
	if err != nil {
		return nil, err
	}
	return client{z.Conn(), d.add}, nil
}
