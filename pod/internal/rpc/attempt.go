package rpc

import (
	"context"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/registry"
)

// attempt is one attempt of a call.
type attempt struct {
	choice  balancer.Choice // its node is nil without a choice
	node    *registry.Node  // to call
	outcome outcome.Outcome
	end     *streamEnd // of the stream that was opened
}

// try makes attempt i, after its backoff.
func (k *call) try(ctx context.Context, i int, rsp any) (err error) {
	backoff, err := k.options.Backoff(ctx, k.req, i)
	if err != nil {
		return clientError(err.Error())
	}
	if err := sleep(ctx, backoff); err != nil {
		return err
	}
	if err := k.chooseInstance(); err != nil {
		return err
	}
	defer k.finish(&err)
	s, isStream := rsp.(*stream)
	if !isStream && i < k.options.Retries && k.choice.IsTrial() {
		var end func()
		ctx, end = k.leaveTimeToRetry(ctx)
		defer end()
	}
	if len(k.options.CallWrappers) == 0 {
		err = k.invoke(ctx, k.node, k.req, rsp, k.options, k.timeout)
	} else {
		err = k.invokeWrapped(ctx, rsp)
	}
	if isStream {
		err = s.check(err)
	}
	return err
}

// sleep waits for a duration, or until the context ends, and then returns an error.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return contextError(ctx)
	}
}

// chooseInstance chooses the instance of an attempt and avoids the instance of the attempt
// before.
func (k *call) chooseInstance() (err error) {
	k.attempt = attempt{outcome: outcome.Inconclusive}
	if k.address != "" {
		if len(k.options.CallWrappers) > 0 {
			k.node = &registry.Node{Address: k.address}
		}
		return nil
	}
	if k.choice, err = k.choose(k.previous); err != nil {
		return selectError(k.service, err)
	}
	k.node, k.previous = k.choice.Node, k.choice.Instance
	return nil
}

// leaveTimeToRetry returns a context that ends after half of the remaining time, and the
// function that ends the attempt. An instance that was ejected, because its node is lost for
// example, may still not answer. The call therefore keeps half of its time for a retry on another
// instance.
func (k *call) leaveTimeToRetry(ctx context.Context) (context.Context, func()) {
	timeout := k.timeout
	deadline, _ := ctx.Deadline()
	k.timeout = time.Until(deadline) / 2
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	return ctx, func() {
		cancel()
		k.timeout = timeout
	}
}

// finish reports the outcome of an attempt. An opened stream reports it at its end. If a wrapper, an
// interceptor or a codec panics, there is no error, and the outcome is inconclusive.
func (k *call) finish(result *error) {
	switch err := *result; {
	case k.address != "":
	case k.settings.selector == nil:
		k.settings.options.Selector.Mark(k.req.Service(), k.node, err)
	case k.end != nil && err == nil:
		k.end.report(k.choice.AsStream())
	default:
		k.choice.Done(k.outcome, err)
	}
}

// invokeWrapped makes an attempt through the call wrappers. A wrapper may make no call, or
// call another node.
func (k *call) invokeWrapped(ctx context.Context, rsp any) error {
	o := *k.options
	o.RequestTimeout = k.timeout
	invoke := func(ctx context.Context, node *registry.Node, req client.Request, rsp any, o client.CallOptions) error {
		return k.invoke(ctx, node, req, rsp, &o, o.RequestTimeout)
	}
	for i := len(o.CallWrappers) - 1; i >= 0; i-- {
		invoke = o.CallWrappers[i](invoke)
	}
	return invoke(ctx, k.node, k.req, rsp, o)
}

// invoke makes the call, or opens the stream if rsp is a stream of this package.
func (k *call) invoke(ctx context.Context, node *registry.Node, req client.Request, rsp any, opts *client.CallOptions, timeout time.Duration) error {
	codec, err := k.settings.codec(req.ContentType())
	if err != nil {
		return clientError(err.Error())
	}
	options := codec.callOptions
	if extra := gomicro.CallOptions(*opts); len(extra) > 0 {
		options = append(options[:len(options):len(options)], extra...)
	}
	conn, err := k.client.connections.acquire(k.target(node))
	if err != nil {
		return clientError("Error sending request: " + err.Error())
	}
	var o outcome.Outcome
	s, isStream := rsp.(*stream)
	if isStream {
		o, err = s.open(k.settings.outgoing(ctx, codec, max(0, opts.StreamTimeout)), conn, req, codec.Name(), options, opts.DialTimeout)
	} else {
		defer conn.release()
		ctx = k.settings.outgoing(ctx, codec, timeout)
		o, err = result(ctx, conn.channel.Invoke(ctx, methodOf(req), req.Body(), rsp, options...))
	}
	if node == k.node { // not another one, which a wrapper has called
		k.outcome = o
		if isStream && err == nil {
			k.end = s.end
		}
	}
	return err
}

// target returns what a node stands for: the instance that was chosen, an instance that
// another selector has returned, or an address.
func (k *call) target(node *registry.Node) (*discovery.Instance, string) {
	switch {
	case node == nil:
		return nil, k.address
	case node == k.choice.Node && k.choice.Instance != nil:
		return k.choice.Instance, ""
	}
	return k.client.instanceOf(node), node.Address
}
