package rpc

import (
	"context"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/retry"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/client/selector"
	pnet "github.com/micro/go-micro/v2/util/net"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// call is one call or the opening of one stream, with its retries. Only the goroutine of the
// caller uses it.
type call struct {
	client         *Client
	settings       *settings
	req            client.Request
	options        *client.CallOptions
	timeout        time.Duration // sent in the header; 0 if none is sent
	service        string        // to choose an instance of
	method         balancer.Method
	address        string // to call instead of a chosen instance; "" if none
	withoutAddress bool   // an empty address was given
	choose         func(balancer.Attempt) (balancer.Choice, error)
	previous       *discovery.Instance // called by the attempt before
	slept          time.Duration       // before retries
	waited         time.Duration       // for the next attempt to connect
	saved          time.Duration       // of backoffs, because the call had waited
	called         int                 // attempts before this one that have called an instance or an address
	retry          retry.Retry         // the attempt, if it is a retry

	trailers    metadata.MD        // of the attempt
	callOptions [5]grpc.CallOption // room for those of the attempt, which saves an allocation
	values      [5]string          // room for the headers of the first attempt

	attempt
}

func newCall(c *Client, req client.Request, opts []client.CallOption) *call {
	s := c.settings.Load()
	k := &call{client: c, settings: s, req: req, options: &s.options.CallOptions, timeout: s.options.CallOptions.RequestTimeout}
	if len(opts) > 0 {
		o := s.options.CallOptions
		for _, opt := range opts {
			opt(&o)
		}
		k.options, k.timeout = &o, o.RequestTimeout
	}
	service, address, _ := pnet.Proxy(req.Service(), k.options.Address)
	k.service, k.method.Name = service, req.Endpoint()
	if len(address) > 0 {
		k.address, k.withoutAddress = address[0], address[0] == ""
	}
	return k
}

// run makes attempts until one succeeds, the retries are used up, or the context ends.
func (k *call) run(ctx context.Context, rsp any) error {
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	if k.settings.err != nil {
		return clientError(k.settings.err.Error())
	}
	if k.withoutAddress { // not a reason to call whatever the registry finds
		return clientError("calling service " + k.service + ": the address given to client.WithAddress is empty")
	}
	if err := k.prepare(ctx); err != nil {
		return err
	}
	defer func() { k.retry.End(ctx.Err() == context.Canceled) }() // which says nothing about retries
	for i := 0; ; i++ {
		err := k.try(ctx, i, rsp)
		if err == nil {
			k.succeeded()
			return nil
		}
		if outcome.HasEnded(ctx) {
			return err
		}
		again, retryErr := k.options.Retry(ctx, k.req, i, err)
		if retryErr != nil {
			return retryErr
		}
		switch {
		case k.outcome == outcome.Refused: // not executed, so only the server knows whether a retry helps
			again = k.hint.pushback.Given
		case !again:
			k.succeeded()
		}
		if !again || i >= k.options.Retries {
			return err
		}
		if err := k.mayRetry(ctx, err); err != nil {
			return err
		}
	}
}

// prepare sets choose. The first call for a service waits until the registry knows its instances.
func (k *call) prepare(ctx context.Context) (err error) {
	switch s := k.settings.selector; {
	case k.address != "":
		return nil
	case s != nil:
		k.choose, err = s.Chooser(ctx, k.service, k.options.SelectOptions)
	default: // a selector of another package
		var next selector.Next
		next, err = k.settings.options.Selector.Select(k.service, k.options.SelectOptions...)
		k.choose = func(balancer.Attempt) (balancer.Choice, error) {
			node, err := next()
			return balancer.Choice{Node: node}, err
		}
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return contextError(ctx)
	}
	return gomicro.SelectError(k.service, err)
}
