package rpc

import (
	"context"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/client/selector"
	pnet "github.com/micro/go-micro/v2/util/net"
)

// call is one call or the opening of one stream, with its retries. Only the goroutine of the
// caller uses it.
type call struct {
	client   *Client
	settings *settings
	req      client.Request
	options  *client.CallOptions
	timeout  time.Duration // sent in the header; 0 if none is sent
	service  string        // to choose an instance of
	address  string        // to call instead of a chosen instance; "" if none
	choose   func(previous *discovery.Instance) (balancer.Choice, error)
	previous *discovery.Instance // called by the attempt before

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
	k.service = service
	if len(address) > 0 {
		k.address = address[0]
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
	if err := k.prepare(ctx); err != nil {
		return err
	}
	for i := 0; ; i++ {
		err := k.try(ctx, i, rsp)
		if err == nil {
			return nil
		}
		if contextEnded(ctx) {
			return err
		}
		retry, retryErr := k.options.Retry(ctx, k.req, i, err)
		if retryErr != nil {
			return retryErr
		}
		if !retry || i >= k.options.Retries {
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
		k.choose = func(*discovery.Instance) (balancer.Choice, error) {
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
	return selectError(k.service, err)
}
