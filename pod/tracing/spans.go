package tracing

import (
	"context"
	"io"
	"sync"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2/client"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/metadata"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/server"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// tracer makes the spans. It is safe for concurrent use.
type tracer struct{ trace.Tracer }

// headers are go-micro's metadata, whose keys begin with a capital, as a carrier for the propagator, whose keys do not.
type headers metadata.Metadata

func (h headers) Get(key string) string { v, _ := metadata.Metadata(h).Get(key); return v }

func (h headers) Set(key, value string) {
	metadata.Metadata(h).Delete(key) // the one of the request that this process serves
	h[key] = value
}

func (h headers) Keys() []string {
	keys := make([]string, 0, len(h))
	for key := range h {
		keys = append(keys, key)
	}
	return keys
}

// inject returns a context whose metadata carry its span.
func inject(ctx context.Context) context.Context {
	md, ok := metadata.FromContext(ctx) // a copy
	if !ok {
		md = metadata.Metadata{}
	}
	propagator.Inject(ctx, headers(md))
	return metadata.NewContext(ctx, md)
}

// start begins a span of a call. The names of attributes are those of OpenTelemetry's conventions for RPC, which are a release
// candidate.
func (t *tracer) start(ctx context.Context, kind trace.SpanKind, service, method string) (context.Context, trace.Span) {
	ctx, span := t.Start(ctx, method, trace.WithSpanKind(kind))
	if span.IsRecording() {
		span.SetAttributes(attribute.String("rpc.system.name", "grpc"), attribute.String("rpc.method", method), attribute.String("server.address", service))
	}
	return ctx, span
}

// end ends a span with the result of a call. io.EOF is the end of a stream.
func end(span trace.Span, err error) {
	if err != nil && err != io.EOF && span.IsRecording() { //nolint:errorlint // go-micro returns io.EOF itself
		span.SetStatus(codes.Error, err.Error())
		if e := microerrors.FromError(err); e != nil && e.Code != 0 {
			span.SetAttributes(attribute.Int("micro.error.code", int(e.Code)), attribute.String("micro.error.id", e.Id))
		}
	}
	span.End()
}

// handler is a wrapper of a server's handlers.
func (t *tracer) handler(next server.HandlerFunc) server.HandlerFunc {
	return func(ctx context.Context, req server.Request, rsp any) error {
		if md, ok := metadata.FromContext(ctx); ok {
			ctx = propagator.Extract(ctx, headers(md))
		}
		ctx, span := t.start(ctx, trace.SpanKindServer, req.Service(), req.Endpoint())
		err := next(ctx, req, rsp)
		end(span, err)
		return err
	}
}

// wrap returns a client whose calls and streams have spans.
func (t *tracer) wrap(c client.Client) client.Client {
	traced := &tracedClient{Client: c, tracer: t, instanceOf: func(*registry.Node) (pod.InstanceCalls, bool) { return pod.InstanceCalls{}, false }}
	if known, ok := c.(interface {
		InstanceOf(*registry.Node) (pod.InstanceCalls, bool)
	}); ok {
		traced.instanceOf = known.InstanceOf
	}
	_ = c.Init(client.WrapCall(traced.attempt)) // the error would be that of an option
	return traced
}

type tracedClient struct {
	client.Client
	tracer     *tracer
	instanceOf func(*registry.Node) (calls pod.InstanceCalls, ok bool)
}

// attempts are those of a call. They are in its context.
type attempts struct {
	mu     sync.Mutex
	made   int
	failed []*registry.Node
}

type attemptsKey struct{}

func (a *attempts) begin() (number int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.made++
	return a.made
}

func (a *attempts) fail(n *registry.Node) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = append(a.failed, n)
}

// addEjections adds an event for each instance that is ejected after an attempt of the call has failed there.
func (c *tracedClient) addEjections(span trace.Span, a *attempts) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.failed {
		if i, ok := c.instanceOf(n); ok && i.EjectedFor > 0 {
			span.AddEvent("instance ejected", trace.WithAttributes(attribute.String("micro.pod", i.Pod), attribute.String("network.peer.address", i.Address),
				attribute.Float64("micro.ejected_for", i.EjectedFor.Seconds())))
		}
	}
}

func (c *tracedClient) Call(ctx context.Context, req client.Request, rsp any, opts ...client.CallOption) error {
	ctx, span := c.tracer.start(ctx, trace.SpanKindInternal, req.Service(), req.Endpoint())
	a := &attempts{}
	err := c.Client.Call(inject(context.WithValue(ctx, attemptsKey{}, a)), req, rsp, opts...)
	c.addEjections(span, a)
	end(span, err)
	return err
}

// attempt is a wrapper of the attempts of a client's calls.
func (c *tracedClient) attempt(next client.CallFunc) client.CallFunc {
	return func(ctx context.Context, node *registry.Node, req client.Request, rsp any, opts client.CallOptions) error {
		ctx, span := c.tracer.start(ctx, trace.SpanKindClient, req.Service(), req.Endpoint())
		a, _ := ctx.Value(attemptsKey{}).(*attempts)
		if span.IsRecording() {
			span.SetAttributes(attribute.String("network.peer.address", node.Address), attribute.String("micro.node.id", node.Id))
			if i, ok := c.instanceOf(node); ok {
				span.SetAttributes(attribute.String("micro.pod", i.Pod))
			}
			if a != nil {
				span.SetAttributes(attribute.Int("micro.attempt", a.begin()))
			}
		}
		err := next(inject(ctx), node, req, rsp, opts)
		if err != nil && a != nil && span.IsRecording() {
			a.fail(node)
		}
		end(span, err)
		return err
	}
}

func (c *tracedClient) Stream(ctx context.Context, req client.Request, opts ...client.CallOption) (client.Stream, error) {
	ctx, span := c.tracer.start(ctx, trace.SpanKindClient, req.Service(), req.Endpoint())
	s, err := c.Client.Stream(inject(ctx), req, opts...)
	if err != nil {
		end(span, err)
		return nil, err
	}
	traced := &tracedStream{Stream: s, end: func(err error) { end(span, err) }}
	traced.stop = context.AfterFunc(ctx, func() { traced.finish(context.Cause(ctx)) }) // nobody may read the stream to its end
	return traced, nil
}

// tracedStream is a stream whose span ends with it.
type tracedStream struct {
	client.Stream
	once sync.Once
	end  func(error)
	stop func() bool
}

func (s *tracedStream) finish(err error) { s.once.Do(func() { s.end(err) }) }

func (s *tracedStream) Recv(msg any) error {
	err := s.Stream.Recv(msg)
	if err != nil {
		s.stop()
		s.finish(err)
	}
	return err
}

func (s *tracedStream) Close() error {
	err := s.Stream.Close()
	s.stop()
	s.finish(nil)
	return err
}
