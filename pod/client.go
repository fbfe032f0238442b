package pod

import (
	"context"
	stderrors "errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
	pnet "github.com/micro/go-micro/v2/util/net"
)

// Client calls services over gRPC. To a server and to a caller it looks like go-micro's
// gRPC client (client/grpc): same headers, content types, options, wrappers and errors.
// It differs in how it makes a call:
//
//   - One connection per instance carries all calls and streams to the instance. It is
//     opened when the instance is first chosen, kept as long as the registry lists the
//     instance, and closed when the instance has left and its calls have ended. go-micro
//     dials for each stream, and replaces its connections every minute.
//   - After each call, the choice of instances learns which instance was called, how the call
//     ended and how long it took; after each stream, that the stream ended. A retry
//     goes to another instance if there is one. A unary call that tries an instance after
//     its ejection waits for it for at most half of its time while it has retries left.
//   - A unary call starts no goroutine. Each wait ends with the call's deadline or when the
//     caller cancels the context: the wait for the registry's first LIST, for a connection, for
//     the response, and before a retry. The response is not written after the call has returned.
//
// Make a Client with NewClient. It is safe for concurrent use.
//
// # Connections
//
// While calls are in flight, a connection on which nothing arrives for 5 minutes is probed by
// an HTTP/2 ping (gRFC A8). This is the shortest time that a gRPC server with default settings
// permits (gRFC A9). Data that the instance's kernel does not acknowledge for 20 s closes the
// connection (gRFC A18). A broken connection is opened again after 1 s, then 1.6 times later
// each time, as in gRPC's connection backoff protocol, but at most 10 s later, so that an
// instance is connected when its ejection ends. An attempt to connect takes at most
// client.DialTimeout, 5 s by default. Up to 1 MiB of a stream, and of a connection, may be unread.
//
// # Differences
//
// Where go-micro's client is wrong, Client does the following instead:
//
//   - A call whose deadline has passed, or whose context was cancelled, always returns an error
//     with the code 408. go-micro returns 408 or 500, at random.
//   - The backoff before a retry ends with the context. go-micro sleeps.
//   - Call wrappers are applied to streams too, and the opening of a stream is retried as
//     client.Retry decides. go-micro ignores both.
//   - Opening a stream takes at most client.DialTimeout.
//   - grpcc.CallOptions given to one call are honoured. go-micro ignores them.
//   - grpcc.MaxRecvMsgSize and grpcc.MaxSendMsgSize apply to streams too.
//   - A gRPC status whose details are not an errors.Error becomes an error with the text of
//     the status. go-micro panics, or returns the detail.
//   - The method Error of a stream returns the error of Recv. go-micro's returns nil.
//   - An address https://HOST is dialed. go-micro cannot dial it.
//
// client.PoolSize, grpcc.PoolMaxStreams and grpcc.PoolMaxIdle have no effect. go-micro's servers permit any number of streams
// on a connection. Where a server permits fewer, as NGINX (128) and Kestrel (100) do, further calls wait
// until a stream ends. grpcc.UseNumber has no effect either: give a codec with grpcc.Codec.
// Options of grpcc.DialOptions that wait for the connection, such as grpc.WithBlock, are
// ignored, as in grpc.NewClient.
type Client struct {
	client.Client // NewMessage, Publish and String
	registry      *Registry
	outermost     client.Client // applies client.Wrap; nil if there is no such wrapper
	settings      atomic.Pointer[clientSettings]
	connections   connections

	initializing sync.Mutex // serializes Init
}

var _ client.Client = (*Client)(nil)

// NewClient returns a client that calls the instances of a registry. It takes its options,
// and everything but Call and Stream, from a gRPC client of go-micro:
//
//	micro.Client(pod.NewClient(registry, grpcc.NewClient()))
//
// Change options later with Init of the Client. If client.Selector or micro.Selector sets a
// selector, the client chooses with its Select and reports to its Mark, and ejects no instance.
// With a registry of another package, as after --registry=mdns, the client chooses at random.
//
// Close of the registry closes the client; a service with Lifecycle closes the registry.
func NewClient(r *Registry, c client.Client) *Client {
	p := &Client{Client: c, registry: r, connections: connections{open: map[*connection]bool{}}}
	if c.Options().Selector == selector.DefaultSelector {
		_ = c.Init(client.Selector(balancer.NewSelector(r, choosersOf)))
	}
	p.configure()
	if wrappers := c.Options().Wrappers; len(wrappers) > 0 {
		p.outermost = &unwrapped{p}
		for i := len(wrappers) - 1; i >= 0; i-- {
			p.outermost = wrappers[i](p.outermost)
		}
	}
	r.addClient(p)
	return p
}

// unwrapped is a client without the wrappers of client.Wrap.
type unwrapped struct{ *Client }

func (u *unwrapped) Call(ctx context.Context, req client.Request, rsp any, opts ...client.CallOption) error {
	return u.call(ctx, req, rsp, opts)
}

func (u *unwrapped) Stream(ctx context.Context, req client.Request, opts ...client.CallOption) (client.Stream, error) {
	return u.stream(ctx, req, opts)
}

// Init applies options. Calls that begin later use new connections.
func (c *Client) Init(opts ...client.Option) error {
	c.initializing.Lock()
	defer c.initializing.Unlock()
	err := c.Client.Init(opts...)
	c.configure()
	return err
}

// configure makes later calls use the client's present options.
func (c *Client) configure() {
	s := newClientSettings(c.Client.Options())
	c.settings.Store(s)
	c.connections.replace(s)
}

// Options returns the options of the client that NewClient was given, and of Init.
func (c *Client) Options() client.Options { return c.settings.Load().options }

// Instances returns what is known about the routable instances of a service, in no particular
// order. It returns nil for a service that was never called, and if the client uses a selector of
// another package. All clients of a registry know the same; other processes may judge the same
// instances differently.
func (c *Client) Instances(service string) (all []InstanceCalls) {
	if s := c.settings.Load().selector; s != nil {
		for _, i := range s.Instances(service) {
			all = append(all, InstanceCalls{Pod: i.Pod, Address: i.Address, InFlight: i.InFlight, Failures: i.Failures, EjectedFor: i.EjectedFor})
		}
	}
	return all
}

// InstanceCalls is what a Client knows about the calls to one instance.
type InstanceCalls struct {
	Pod, Address string
	InFlight     int           // calls and streams in flight
	Failures     int           // calls in a row that failed by the instance's fault; failures within 5 s count once
	EjectedFor   time.Duration // how long the ejection still lasts; 0 if the instance is not ejected
}

// Close closes all connections and waits for their goroutines. Calls in flight fail, and
// so do later calls. Closing twice is no error.
func (c *Client) Close() error {
	c.registry.removeClient(c)
	c.connections.closeAll()
	return nil
}

// Call calls an instance of a service and decodes its response into rsp. Its errors are of type
// *errors.Error, except those that a wrapper makes.
func (c *Client) Call(ctx context.Context, req client.Request, rsp any, opts ...client.CallOption) error {
	if c.outermost != nil {
		return c.outermost.Call(ctx, req, rsp, opts...)
	}
	return c.call(ctx, req, rsp, opts)
}

func (c *Client) call(ctx context.Context, req client.Request, rsp any, opts []client.CallOption) error {
	if req == nil {
		return clientError("req is nil")
	} else if rsp == nil {
		return clientError("rsp is nil")
	}
	k := newCall(c, req, opts)
	if deadline, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, k.options.RequestTimeout)
		defer cancel()
	} else {
		k.timeout = time.Until(deadline)
	}
	return k.run(ctx, rsp)
}

// call is one call or the opening of one stream, with its retries. Only the goroutine of the
// caller uses it.
type call struct {
	client   *Client
	settings *clientSettings
	req      client.Request
	options  *client.CallOptions
	timeout  time.Duration       // sent in the header; 0 if none is sent
	service  string              // to choose an instance of
	address  string              // to call instead of a chosen instance; "" if none
	next     selector.Next       // of a selector of another package
	previous *discovery.Instance // called by the attempt before

	attempt
}

// attempt is one attempt of a call.
type attempt struct {
	choice  balancer.Choice // its Node is nil without a choice
	node    *registry.Node  // to call
	outcome outcome.Outcome
	ended   *streamEnd // of a stream that was opened
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

// prepare waits until the registry knows the service's instances, or asks the selector of
// another package for its function.
func (k *call) prepare(ctx context.Context) error {
	switch s := k.settings.selector; {
	case k.address != "":
		return nil
	case s != nil:
		if err := s.Await(ctx, k.service); err != nil {
			if ctx.Err() != nil {
				return contextError(ctx)
			}
			return selectError(k.service, err)
		}
		return nil
	default:
		next, err := k.settings.options.Selector.Select(k.service, k.options.SelectOptions...)
		if err != nil {
			return selectError(k.service, err)
		}
		k.next = next
		return nil
	}
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

// chooseInstance chooses the instance of an attempt and avoids the instance of the attempt
// before.
func (k *call) chooseInstance() error {
	k.attempt = attempt{outcome: outcome.Inconclusive}
	var err error
	switch s := k.settings.selector; {
	case k.address != "":
		if len(k.options.CallWrappers) > 0 {
			k.node = &registry.Node{Address: k.address}
		}
	case s != nil:
		if k.choice, err = s.Choose(k.service, k.options.SelectOptions, k.previous); err != nil {
			return selectError(k.service, err)
		}
		k.node, k.previous = k.choice.Node, k.choice.Instance
	default:
		if k.node, err = k.next(); err != nil {
			return selectError(k.req.Service(), err)
		}
	}
	return nil
}

// finish reports the outcome of an attempt. An opened stream reports it at its end. If a wrapper, an
// interceptor or a codec panics, there is no error, and the outcome is inconclusive.
func (k *call) finish(result *error) {
	switch err := *result; {
	case k.address != "":
	case k.settings.selector == nil:
		k.settings.options.Selector.Mark(k.req.Service(), k.node, err)
	case k.ended != nil && err == nil:
		k.ended.report(k.choice.AsStream())
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
	method := methodOf(req)
	i, address := k.target(node)
	if s, ok := rsp.(*stream); ok {
		return k.open(ctx, s, i, address, method, node, req, codec, options, opts)
	}
	conn, err := k.client.connections.acquire(i, address)
	if err != nil {
		return clientError("Error sending request: " + err.Error())
	}
	ctx = k.settings.outgoing(ctx, codec, timeout)
	defer conn.release()
	err = conn.channel.Invoke(ctx, method, req.Body(), rsp, options...)
	o, err := result(ctx, err)
	if node == k.node {
		k.outcome = o
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
	return k.client.registry.instanceOf(node), node.Address
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

// methodOf returns the path of a request's method, as go-micro's client does: a method
// Greeter.Hello of a service x becomes /x.Greeter/Hello.
func methodOf(req client.Request) string {
	if r, ok := req.(*request); ok {
		return r.path
	}
	return methodPath(req.Service(), req.Endpoint())
}

// selectError returns the error of a selector as go-micro's client does.
func selectError(service string, err error) error {
	if stderrors.Is(err, selector.ErrNotFound) {
		return errors.InternalServerError(gomicro.ClientID, "service %s: %s", service, err.Error())
	}
	return errors.InternalServerError(gomicro.ClientID, "error selecting %s node: %s", service, err.Error())
}

// timeoutHeader returns a timeout in the format of the header timeout: in nanoseconds.
func timeoutHeader(d time.Duration) string { return strconv.FormatInt(int64(d), 10) }

var errClientClosed = stderrors.New("the client is closed")
