// Package rpc makes calls and opens streams over gRPC. To a server and to a caller it looks like
// go-micro's gRPC client: pod.Client, whose calls it makes, documents where it differs.
//
// A call takes these steps, each in a file of its own:
//
//	Client.Call           client.go       through the wrappers of client.Wrap, with a deadline
//	call.run              call.go         attempts until one succeeds or the retries are used up
//	call.try              attempt.go      chooses an instance, and at the end reports how it did
//	call.race             hedge.go        a second attempt beside the first, with the option Hedge
//	connections.acquire   connections.go  the instance's connection, which the first call opens
//	call.outgoing         settings.go     go-micro's headers; then grpc-go sends the call
//	call.mayRetry         retry.go        whether the attempt may be repeated
//	result                errors.go       what grpc-go returned: an error of go-micro, and an outcome
//	probes.start          probe.go        asks an instance that gave no answer whether it is back
//
// A stream takes the same steps until it is open (stream.go). It then counts as in flight until
// it ends.
//
// What a client's options say is evaluated once, into immutable settings. Only connections change.
// An instance that has left the registry keeps its connection until its calls have ended.
//
// Outside of it the package needs an instance (discovery), a choice of one (balancer), and
// go-micro's private keys (gomicro). It knows no Kubernetes.
package rpc

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/hedge"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/retry"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/registry"
)

// Client calls services. It is safe for concurrent use.
type Client struct {
	client.Client // NewMessage, Publish and String
	instanceOf    func(*registry.Node) *discovery.Instance
	outermost     client.Client // applies client.Wrap; nil if there is no such wrapper
	settings      atomic.Pointer[settings]
	connections   connections
	probes        probes
	retries       retry.Budgets
	hedges        hedge.Methods
	events        *events.Hub

	initializing sync.Mutex // serializes Init
}

var _ client.Client = (*Client)(nil)

// New returns a client with the options of a client of go-micro. instanceOf returns the instance
// whose node a selector of another package or a wrapper has given to the client, nil if there is none.
// path returns the path to instances, nil if they are dialed directly. credentials returns those of connections, nil without any. The hub may be nil.
func New(c client.Client, instanceOf func(*registry.Node) *discovery.Instance, path func() Path, credentials func() Credentials, hub *events.Hub) *Client {
	p := &Client{Client: c, instanceOf: instanceOf, events: hub, connections: connections{open: map[*connection]bool{}, path: path, credentials: credentials, events: hub}}
	p.probes.context, p.probes.cancel = context.WithCancel(context.Background())
	p.configure()
	if wrappers := c.Options().Wrappers; len(wrappers) > 0 {
		p.outermost = &unwrapped{p}
		for i := len(wrappers) - 1; i >= 0; i-- {
			p.outermost = wrappers[i](p.outermost)
		}
	}
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
	s := newSettings(c.Client.Options())
	c.settings.Store(s)
	c.connections.replace(s)
}

// Options returns the options of the client that New was given, and of Init.
func (c *Client) Options() client.Options { return c.settings.Load().options }

// NewRequest returns a request for a method such as Greeter.Hello, or with gRPC's path of a
// method. Its content type is client.ContentType unless an option sets another one.
func (c *Client) NewRequest(service, method string, body any, opts ...client.RequestOption) client.Request {
	return gomicro.NewRequest(service, method, c.settings.Load().options.ContentType, body, opts...)
}

// Retries returns how many retries of the calls to a service were made and refused.
func (c *Client) Retries(service string) retry.Counts { return c.retries.Counts(service) }

// Close closes all connections and waits for their goroutines. Calls in flight fail, and
// so do later calls. Closing twice is no error.
func (c *Client) Close() error {
	c.probes.stop()
	c.connections.closeAll()
	return nil
}

// Call calls an instance of a service and decodes its response into rsp.
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
	measured := c.events.Called()
	err := k.run(ctx, rsp)
	k.ended(ctx, measured, err)
	return err
}

// Stream opens a stream to an instance of a service.
func (c *Client) Stream(ctx context.Context, req client.Request, opts ...client.CallOption) (client.Stream, error) {
	if c.outermost != nil {
		return c.outermost.Stream(ctx, req, opts...)
	}
	return c.stream(ctx, req, opts)
}

func (c *Client) stream(ctx context.Context, req client.Request, opts []client.CallOption) (client.Stream, error) {
	if req == nil {
		return nil, clientError("req is nil")
	}
	k := newCall(c, req, opts)
	k.timeout, k.method.IsStream = max(0, k.options.StreamTimeout), true
	s := &stream{}
	measured := c.events.Called()
	if err := k.run(ctx, s); err != nil {
		k.ended(ctx, measured, err)
		return nil, err
	}
	if measured.Active() {
		s.end.observe(func(err error) { k.ended(ctx, measured, err) })
	}
	return s, nil
}

// ended reports the end of a call or stream.
func (k *call) ended(ctx context.Context, m events.Measurement, err error) {
	attempts := k.called
	if k.node != nil || k.address != "" {
		attempts++
	}
	m.Called(ctx, events.Call{Service: k.service, Method: k.method.Name, IsStream: k.method.IsStream, Attempts: attempts}, k.hint.code, err)
}
