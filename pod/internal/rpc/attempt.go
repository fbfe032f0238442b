package rpc

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/retry"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// attempt is one attempt of a call.
type attempt struct {
	choice  balancer.Choice // its node is nil without a choice
	node    *registry.Node  // to call
	outcome outcome.Outcome
	end     *streamEnd // of the stream that was opened
	pending bool       // whether a call wrapper has returned before its call, which then reports its end
	hint    retryHint
}

// try makes attempt i, after its backoff.
func (k *call) try(ctx context.Context, i int, rsp any) error {
	backoff, err := k.options.Backoff(ctx, k.req, i)
	if err != nil {
		return clientError(err.Error())
	}
	if p := k.hint.pushback; p.Given {
		backoff, k.saved = p.Delay, k.waited // the wait for a connection does not shorten the delay
	}
	saved := max(0, min(backoff, k.waited-k.saved))
	k.saved += saved
	if err := sleep(ctx, backoff-saved); err != nil {
		return err
	}
	k.slept += max(0, backoff-saved)
	if err := k.chooseInstance(k.spare(ctx, i)); err != nil {
		return err
	}
	if i == 0 {
		if m := k.hedged(rsp); m != nil {
			return k.race(ctx, m, rsp)
		}
	}
	return k.callChosen(ctx, rsp)
}

// callChosen calls the instance that was chosen, or the address.
func (k *call) callChosen(ctx context.Context, rsp any) (err error) {
	defer k.finish(&err)
	// Like go-micro's client: a wrapper that ends its context when its call returns would end the stream.
	if _, isStream := rsp.(*stream); isStream || len(k.options.CallWrappers) == 0 {
		return k.invoke(ctx, k.node, k.req, rsp, k.options, k.timeout)
	}
	return k.invokeWrapped(ctx, rsp)
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

// spare returns how much time attempt i and a retry have together, 0 if no retry is left.
func (k *call) spare(ctx context.Context, i int) time.Duration {
	if i >= k.options.Retries {
		return 0
	}
	if deadline, ok := ctx.Deadline(); ok {
		return time.Until(deadline)
	}
	return math.MaxInt64
}

// chooseInstance chooses the instance of an attempt, and starts the probe that is due for an
// instance that gave no answer.
func (k *call) chooseInstance(spare time.Duration) (err error) {
	k.attempt = attempt{outcome: outcome.Inconclusive}
	if k.address != "" {
		if len(k.options.CallWrappers) > 0 {
			k.node = &registry.Node{Address: k.address}
		}
		return nil
	}
	if k.choice, err = k.choose(balancer.Attempt{Method: k.method, Previous: k.previous, Spare: spare}); err != nil {
		return gomicro.SelectError(k.service, err)
	}
	k.node, k.previous = k.choice.Node, k.choice.Instance
	k.client.probes.startDue(k.choice, &k.client.connections)
	return nil
}

// awaitConnection waits, if the connection is broken, for the next attempt to connect: for calls to
// an address, and to an instance that was chosen although it is unresponsive, because no other is
// available, and while the path to instances is broken. All attempts of a call together wait and sleep
// for at most maxWaited.
func (k *call) awaitConnection(ctx context.Context, conn *connection) {
	i := k.choice.Instance
	if mayWait := k.address != "" || i != nil && i.Calls.Unresponsive() || conn.path != nil && conn.path.Trouble() != nil; !mayWait || conn.channel.GetState() != connectivity.TransientFailure {
		return
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, maxWaited-k.waited-k.slept)
	defer cancel()
	conn.channel.WaitForStateChange(ctx, connectivity.TransientFailure)
	k.waited += time.Since(begin)
}

// finish reports the outcome of an attempt. An opened stream reports it at its end. If a wrapper, an
// interceptor or a codec panics, there is no error, and the outcome is inconclusive.
func (k *call) finish(result *error) {
	switch err := *result; {
	case k.address != "":
	case k.settings.selector == nil:
		k.settings.options.Selector.Mark(k.req.Service(), k.node, err)
	case k.pending:
	case k.end != nil && err == nil:
		k.end.report(k.choice.AsStream())
	default:
		k.choice.Done(k.outcome, err)
	}
}

// invokeWrapped makes an attempt of a call through the call wrappers. A wrapper may make no call, or
// several at once, or call another node. It may also return before its call, as with a time limit
// of its own: then the end of the call is the end of the choice.
func (k *call) invokeWrapped(ctx context.Context, rsp any) error {
	o := *k.options
	o.RequestTimeout = k.timeout
	attempt := *k // not shared with the attempts that begin while a call of this one is in flight
	var mu sync.Mutex
	result, hint, waited, calls, returned := k.outcome, k.hint, k.waited, 0, false // of the calls to the chosen node
	invoke := func(ctx context.Context, node *registry.Node, req client.Request, rsp any, o client.CallOptions) (err error) {
		mu.Lock()
		counts := node == attempt.node && !returned
		if counts {
			calls++
		}
		mu.Unlock()
		own := attempt
		defer func() { // also after a panic of an interceptor or a codec, which a wrapper may recover
			if !counts {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			result, hint, waited = own.outcome, own.hint, max(waited, own.waited)
			if calls--; calls == 0 && returned {
				own.choice.Done(result, err)
			}
		}()
		return own.invoke(ctx, node, req, rsp, &o, o.RequestTimeout)
	}
	for i := len(o.CallWrappers) - 1; i >= 0; i-- {
		invoke = o.CallWrappers[i](invoke)
	}
	err := invoke(ctx, k.node, k.req, rsp, o)
	mu.Lock()
	defer mu.Unlock()
	returned = true
	k.outcome, k.hint, k.waited, k.pending = result, hint, waited, calls > 0
	return err
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
	i, address := k.target(node)
	conn, err := k.client.connections.acquire(i, address, k.service)
	if err != nil {
		return clientError("Error sending request: " + err.Error())
	}
	k.awaitConnection(ctx, conn)
	losses := conn.losses.Load()
	var o outcome.Outcome
	var pushback retry.Pushback
	var code codes.Code
	s, isStream := rsp.(*stream)
	if isStream {
		o, err = s.open(k.outgoing(ctx, codec, max(0, opts.StreamTimeout)), conn, req, codec.Name(), options, opts.DialTimeout)
	} else {
		defer conn.release()
		ctx = k.outgoing(ctx, codec, timeout)
		k.trailers = nil
		options = append(append(k.callOptions[:0], options...), grpc.Trailer(&k.trailers))
		err = conn.channel.Invoke(ctx, gomicro.MethodPath(req), req.Body(), rsp, options...)
		code = status.Code(err)
		o, err = result(ctx, err)
		pushback = retry.PushbackOf(k.trailers)
	}
	o, err = conn.judge(o, err)
	if o == outcome.TimedOut && k.address != "" {
		k.client.probes.startForAddress(conn, &k.client.connections)
	}
	if node == k.node { // not another one, which a wrapper has called
		k.outcome, k.hint = o, retryHint{pushback, o == outcome.LostConnection && conn.lossCharged(losses, err), code}
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
