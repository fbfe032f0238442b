package pod

import (
	"context"
	"crypto/x509"
	"slices"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/rpc"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
)

// Client calls services over gRPC. To a server and to a caller it looks like go-micro's gRPC client (client/grpc): same headers, content
// types, options, wrappers and errors. It differs in how it makes a call:
//
//   - One connection per instance carries all calls and streams to the instance. It is opened when the instance is chosen, and closed when
//     no call has used it for client.PoolTTL, 1 minute by default, to twice as long, or when the instance has left and its calls have ended.
//     go-micro dials for each stream, and replaces its connections every minute.
//   - After each call, the choice of instances learns which instance was called, how the call ended and how long it took; after each stream,
//     that the stream ended. A retry goes to another instance unless all others are ejected. Whether an instance that gave no answer is
//     back, the client finds out with a probe of its own, not with a call.
//   - A unary call starts no goroutine. Each wait ends with the call's deadline or when the caller cancels the context: the wait for the
//     registry's first LIST, for a connection, for the response, and before a retry. The response is not written after the call has
//     returned.
//
// Make a Client with NewClient. It is safe for concurrent use.
//
// # Retries
//
// client.Retry and client.Retries decide which errors are retried and how often, as in go-micro: once by default, after the codes 408 and
// 500. Refused and lost connections have the code 500, and so has a gRPC status that is not an error of go-micro. After an error of a
// handler or a lost connection, the call may have been executed. The client refuses retries that do not help:
//
//   - Each service has a budget of 10 tokens. A retry that fails takes one token, calls that were lost with one connection take one
//     together, and a retry that succeeds takes none. A call that succeeds adds 0.2 tokens, and 10 seconds add one. Calls without an answer
//     and errors of the server have budgets of their own. A call whose retry is over the budget returns its error; the status of the error
//     says so.
//   - Chain stop: a retry has the header grpc-previous-rpc-attempts (gRFC A6). A call that a handler makes with its context, for a request
//     that is a retry, is not retried.
//   - Pushback: an error with the trailer grpc-retry-pushback-ms (gRFC A6) is retried after so many milliseconds, and not at all if the
//     number is negative or the deadline is earlier. The opening of streams ignores the trailer.
//
// If the registry has no instance, the client looks for one again without a budget.
//
// # Connections
//
// While calls are in flight, a connection on which nothing arrives for 5 minutes is probed by an HTTP/2 ping (gRFC A8). This is the shortest
// time that a gRPC server with default settings permits (gRFC A9). Data that the instance's kernel does not acknowledge for 20 s closes the
// connection (gRFC A18). A broken connection is opened again after 1 s, and then every second. A call to client.WithAddress, or to an
// instance without which none is left, waits for the next attempt to connect, for at most 1 s in all. After a call to client.WithAddress has
// timed out, the client opens another connection, which may lead to another machine. An attempt to connect takes at most client.DialTimeout,
// 5 s by default, but never less than 1 s. Up to 1 MiB of each stream may be unread. An IP address, as those of instances, is dialed without
// the proxy of HTTPS_PROXY.
//
// Outside of the cluster, when the registry uses a kubeconfig, the client reaches instances through the API server: each connection is a
// port-forward to the instance's pod, which needs the verbs get and create on pods/portforward. The options Direct and ThroughAPIServer of
// the registry force one or the other. Addresses of client.WithAddress are dialed directly. No instance is blamed when the API server breaks
// these connections, is away, or refuses them: calls in flight fail with an error that names the API server, or are retried as client.Retry
// decides, and calls that begin while it is away wait up to 1 s for the next attempt to connect.
//
// Because calls share connections, client.WithDialTimeout and grpcc.DialOptions of a single call do not change how the client connects;
// client.WithDialTimeout limits the opening of a stream. The connections to the instances of a service are subchannels of one grpc.ClientConn.
// With grpcc.DialOptions each has a grpc.ClientConn of its own, because interceptors may read its target, and takes about 20 kB more.
//
// # Differences
//
// Where go-micro's client is wrong, Client does the following instead:
//
//   - A call whose deadline has passed, or whose context was cancelled, always returns an error with the code 408. go-micro returns 408 or
//     500, at random.
//   - The backoff before a retry ends with the context. go-micro sleeps.
//   - The opening of a stream is retried as client.Retry decides. go-micro ignores it. Both ignore call wrappers for streams; use
//     client.Wrap for those.
//   - Opening a stream takes at most client.DialTimeout.
//   - grpcc.CallOptions given to one call are honoured. go-micro ignores them.
//   - grpcc.MaxRecvMsgSize and grpcc.MaxSendMsgSize apply to streams too.
//   - A gRPC status whose details are not an errors.Error becomes an error with the text of the status. go-micro panics, or returns the
//     detail.
//   - The method Error of a stream returns the error of Recv. go-micro's returns nil.
//   - An address https://HOST is dialed. go-micro cannot dial it.
//   - client.WithAddress("") is an error at once. go-micro dials the empty address.
//
// client.PoolSize, grpcc.PoolMaxStreams and grpcc.PoolMaxIdle have no effect. go-micro's servers permit any number of streams on a
// connection. Where a server permits fewer, as NGINX (128) and Kestrel (100) do, further calls wait until a stream ends. grpcc.UseNumber has
// no effect either: give a codec with grpcc.Codec. Options of grpcc.DialOptions that wait for the connection, such as grpc.WithBlock, are
// ignored, as in grpc.NewClient.
type Client struct {
	rpc      *rpc.Client
	registry *Registry
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
func NewClient(r *Registry, grpcClient client.Client) *Client {
	if grpcClient.Options().Selector == selector.DefaultSelector {
		_ = grpcClient.Init(client.Selector(balancer.NewSelector(r, choosersOf)))
	}
	c := &Client{rpc: rpc.New(grpcClient, r.instanceOf, r.pathToInstances, r.clientCredentials, &r.events), registry: r}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clients = append(r.clients, c)
	return c
}

// choosersOf returns the choosers of a registry of this package, and nil for any other.
func choosersOf(r registry.Registry) *balancer.Choosers {
	if r, ok := r.(*Registry); ok {
		return r.choosers
	}
	return nil
}

// Init applies options. Calls that begin later use new connections.
func (c *Client) Init(opts ...client.Option) error { return c.rpc.Init(opts...) }

// Options returns the options of the client that NewClient was given, and of Init.
func (c *Client) Options() client.Options { return c.rpc.Options() }

// String returns the name of the client that NewClient was given, which is "grpc".
func (c *Client) String() string { return c.rpc.String() }

// NewRequest returns a request for a method such as Greeter.Hello, or with gRPC's path of a
// method. Its content type is client.ContentType unless an option sets another one.
func (c *Client) NewRequest(service, method string, body any, opts ...client.RequestOption) client.Request {
	return c.rpc.NewRequest(service, method, body, opts...)
}

// Call calls an instance of a service and decodes its response into rsp. Its errors are of type
// *errors.Error, except those that a wrapper makes.
func (c *Client) Call(ctx context.Context, req client.Request, rsp any, opts ...client.CallOption) error {
	return c.rpc.Call(ctx, req, rsp, opts...)
}

// Stream opens a stream to an instance of a service. Unlike a call, a stream has no deadline
// but that of its context; only opening it takes at most client.DialTimeout. The stream counts
// as in flight until it ends: Recv returns an error (io.EOF at its regular end), or Close is
// called, or its context ends. A caller must see to one of these.
//
// Send and Recv return the errors of grpc-go. Send may be called by one goroutine while
// another calls Recv.
func (c *Client) Stream(ctx context.Context, req client.Request, opts ...client.CallOption) (client.Stream, error) {
	return c.rpc.Stream(ctx, req, opts...)
}

// NewMessage returns a message for Publish, as the client that NewClient was given does.
func (c *Client) NewMessage(topic string, body any, opts ...client.MessageOption) client.Message {
	return c.rpc.NewMessage(topic, body, opts...)
}

// Publish sends a message to the broker, as the client that NewClient was given does.
func (c *Client) Publish(ctx context.Context, m client.Message, opts ...client.PublishOption) error {
	return c.rpc.Publish(ctx, m, opts...)
}

// Close closes all connections and waits for their goroutines. Calls in flight fail, and
// so do later calls. Closing twice is no error.
func (c *Client) Close() error {
	c.registry.mu.Lock()
	c.registry.clients = slices.DeleteFunc(c.registry.clients, func(other *Client) bool { return other == c })
	c.registry.mu.Unlock()
	return c.rpc.Close()
}

// Instances returns what is known about the routable instances of a service, in no particular
// order. It returns nil for a service that was never called, and if the client uses a selector of
// another package. All clients of a registry know the same; other processes may judge the same
// instances differently.
func (c *Client) Instances(service string) (all []InstanceCalls) {
	if s, ok := c.Options().Selector.(*balancer.Selector); ok {
		for _, i := range s.Instances(service) {
			calls := instanceCalls(i)
			calls.Certificate = c.rpc.CertificateOf(i.Instance)
			all = append(all, calls)
		}
	}
	return all
}

// InstanceOf returns what is known about the instance of a node that a call wrapper has received. ok is false if the node is none
// of the registry's, such as that of client.WithAddress, or if the instance has left. It takes no lock.
func (c *Client) InstanceOf(n *registry.Node) (calls InstanceCalls, ok bool) {
	i := c.registry.instanceOf(n)
	if i == nil {
		return InstanceCalls{}, false
	}
	return instanceCalls(balancer.InstanceCalls{Pod: i.Pod, Address: i.Address, Zone: i.Zone(), Report: i.Calls.Report(callstats.Clock())}), true
}

func instanceCalls(i balancer.InstanceCalls) InstanceCalls {
	return InstanceCalls{Pod: i.Pod, Address: i.Address, Zone: i.Zone, InFlight: i.InFlight, Failures: i.Failures, EjectedFor: i.EjectedFor}
}

// Retries returns how many retries of the calls to a service this client has made and refused.
func (c *Client) Retries(service string) Retries {
	return Retries(c.rpc.Retries(service))
}

// Retries counts the retries of the calls to one service since the client was made.
type Retries struct {
	Made         uint64 // retries made, and second attempts of Hedge
	OverBudget   uint64 // refused because the retry budget of the service was used up
	ChainStopped uint64 // refused because the call was made for a request that was a retry
	PushedBack   uint64 // refused by the server, or delayed by it until after the deadline
}

// InstanceCalls is what a Client knows about the calls to one instance.
type InstanceCalls struct {
	Pod, Address string
	Zone         string        // as in Instance
	InFlight     int           // calls and streams in flight
	Failures     int           // calls and probes in a row that failed by the instance's fault; failures within 5 s count once
	EjectedFor   time.Duration // how long the ejection still lasts; 0 if the instance is not ejected

	// Certificate is that of the instance on the connection of this client, of Client.Instances only. It is nil without
	// WithCredentials, and if there is no connection.
	Certificate *x509.Certificate
}
