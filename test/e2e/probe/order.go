package main

import (
	"context"
	"flag"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
	"github.com/jiangjiancc/go_micro_k8s/test/orders"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// order calls the order service until the pod ends and prints the results.
func order(args []string) error {
	flags := flag.NewFlagSet("order", flag.ContinueOnError)
	by := flags.String("client", "pod", "what calls: pod, go-micro, or the address at which grpc-go calls")
	retries := flags.Int("retries", client.DefaultRetries, "how often the clients of pod/ and go-micro retry a failed call")
	version := flags.String("version", "", "call only instances of this version")
	if err := flags.Parse(args); err != nil {
		return err
	}
	callers, pause, err := parseLoad(flags.Args())
	if err != nil {
		return err
	}
	service := "Orders"
	var opts []client.CallOption
	if *version != "" {
		service = "Returns"
		opts = append(opts, client.WithSelectOption(selector.WithFilter(selector.FilterVersion(*version))))
	}
	var caller *orders.Caller
	switch *by {
	case "pod", "go-micro":
		caller = orders.ByClient(newClient(*by == "go-micro", nil, client.Retries(*retries), client.WrapCall(limitTime)), opts...)
	default:
		conn, err := grpc.NewClient(*by, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		caller = orders.ByConnection(conn)
	}
	var c counter
	var calls atomic.Int64
	return c.run(callers, pause, func(int) error {
		servedBy, err := caller.MakeCall(service, int(calls.Add(1)))
		if err == nil {
			c.update(func(s *faults.Second) { s.Answered[servedBy]++ })
		}
		return err
	})
}

// limitTime is a wrapper as services have them: it gives each call a deadline.
func limitTime(call client.CallFunc) client.CallFunc {
	return func(ctx context.Context, node *registry.Node, req client.Request, rsp interface{}, opts client.CallOptions) error {
		ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
		defer cancel()
		return call(ctx, node, req, rsp, opts)
	}
}
