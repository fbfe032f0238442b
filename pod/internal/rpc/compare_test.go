package rpc

import (
	"cmp"
	"context"
	"crypto/tls"
	stderrors "errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	podcodec "github.com/jiangjiancc/go_micro_k8s/pod/internal/codec"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	bmemory "github.com/micro/go-micro/v2/broker/memory"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/codec"
	"github.com/micro/go-micro/v2/codec/bytes"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/metadata"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpcmetadata "google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// The tests in this file make the same calls with go-micro's client and with Client, and compare
// what the server receives and what the caller gets. They contain what go-micro's own tests
// check (client/grpc/grpc_test.go and request_test.go, client/rpc_client_test.go,
// server/grpc/grpc_test.go).

// newClientFunc makes a client that knows greeters at addresses.
type newClientFunc func(t testing.TB, addresses []string, opts ...client.Option) client.Client

func newMicroClient(t testing.TB, addresses []string, opts ...client.Option) client.Client {
	r := memory.NewRegistry()
	for _, a := range addresses {
		if err := r.Register(kubetest.OneInstance("greeter", "v1", a)); err != nil {
			t.Fatal(err)
		}
	}
	return grpcc.NewClient(append([]client.Option{client.Registry(r), client.Selector(selector.NewSelector(selector.Registry(r)))}, opts...)...)
}

func newPodClient(t testing.TB, addresses []string, opts ...client.Option) client.Client {
	c, _ := newTestClient(t, addresses, opts...)
	return c
}

// startGRPC starts a server of grpc-go that passes each call's method and message to a
// handler, and sends what the handler returns.
func startGRPC(t testing.TB, handler func(ctx context.Context, method string, message []byte) ([]byte, error), opts ...grpc.ServerOption) (address string, s *grpc.Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = grpc.NewServer(append(opts, grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		var f bytes.Frame
		if err := stream.RecvMsg(&f); err != nil && err != io.EOF {
			return err
		}
		answer, err := handler(stream.Context(), method, f.Data)
		if err != nil {
			return err
		}
		return stream.SendMsg(&bytes.Frame{Data: answer})
	}))...)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String(), s
}

func echo(_ context.Context, _ string, message []byte) ([]byte, error) { return message, nil }

func greet(context.Context, string, []byte) ([]byte, error) {
	return marshal(&proto.HelloResponse{Greeting: "Hello"}), nil
}

// showHeaders answers with the method and the headers of the call, as a HelloResponse.
func showHeaders(ctx context.Context, method string, _ []byte) ([]byte, error) {
	md, _ := grpcmetadata.FromIncomingContext(ctx)
	text := method
	for _, k := range slices.Sorted(maps.Keys(md)) {
		if k != ":authority" {
			text += fmt.Sprintf(" %s=%s", k, strings.Join(md[k], "|"))
		}
	}
	return marshal(&proto.HelloResponse{Greeting: text}), nil
}

func marshal(m *proto.HelloResponse) []byte {
	b, err := podcodec.ByContentType(nil)["application/proto"].Marshal(m)
	if err != nil {
		panic(err)
	}
	return b.Materialize()
}

func fails(err error) func(context.Context, string, []byte) ([]byte, error) {
	return func(context.Context, string, []byte) ([]byte, error) { return nil, err }
}

// hello calls Greeter.Hello and returns the greeting or the error.
func hello(ctx context.Context, c client.Client, opts ...client.CallOption) string {
	rsp, err := proto.NewGreeterService("greeter", c).Hello(ctx, &proto.HelloRequest{Name: "x"}, opts...)
	if err != nil {
		return fmt.Sprintf("%T %v", err, err)
	}
	return rsp.Greeting
}

// comparison is one behaviour of a client. Its function returns a description of what the server
// or the caller saw.
type comparison struct {
	name string
	do   func(t *testing.T, newClient newClientFunc) string
	want string // part of the description
}

func TestClientIsLikeGoMicros(t *testing.T) {
	for _, c := range slices.Concat(compareRequests, compareErrors, compareOptions, compareWrappers, compareStreams) {
		t.Run(c.name, func(t *testing.T) {
			theirs := c.do(t, withoutBackoff(newMicroClient))
			ours := c.do(t, withoutBackoff(newPodClient))
			if ours != theirs || !strings.Contains(ours, c.want) {
				t.Errorf("go-micro's client: %s\nours:              %s\nwant:              %s", theirs, ours, c.want)
			}
		})
	}
}

// withoutBackoff returns a function whose clients do not wait before a retry, unless their options say so.
func withoutBackoff(newClient newClientFunc) newClientFunc {
	return func(t testing.TB, addresses []string, opts ...client.Option) client.Client {
		return newClient(t, addresses, append([]client.Option{client.Backoff(noBackoff)}, opts...)...)
	}
}

// withServer returns a comparison of calls to one server of grpc-go.
func withServer(name string, handler func(context.Context, string, []byte) ([]byte, error), do func(ctx context.Context, c client.Client) string, want string, opts ...client.Option) comparison {
	return comparison{name, func(t *testing.T, newClient newClientFunc) string {
		address, _ := startGRPC(t, handler)
		return do(t.Context(), newClient(t, []string{address}, opts...))
	}, want}
}

func callHello(ctx context.Context, c client.Client) string { return hello(ctx, c) }

// callMethod calls a method and returns what showHeaders shows.
func callMethod(service, method string) func(context.Context, client.Client) string {
	return func(ctx context.Context, c client.Client) string {
		var rsp proto.HelloResponse
		if err := c.Call(ctx, c.NewRequest(service, method, &proto.HelloRequest{}), &rsp, client.WithAddress(addressOf(c))); err != nil {
			return err.Error()
		}
		return rsp.Greeting
	}
}

// addressOf returns the address of the only greeter that a client knows.
func addressOf(c client.Client) string {
	next, err := c.Options().Selector.Select("greeter")
	if err != nil {
		panic(err)
	}
	n, err := next()
	if err != nil {
		panic(err)
	}
	c.Options().Selector.Mark("greeter", n, nil)
	return n.Address
}

// callRaw sends a request with a content type, and returns the response that echo made of it.
func callRaw[T any](contentType string, body T, show func(T) string) func(context.Context, client.Client) string {
	return func(ctx context.Context, c client.Client) string {
		var rsp T
		target := any(&rsp)
		if _, ok := any(rsp).(*proto.HelloRequest); ok {
			rsp = any(new(proto.HelloRequest)).(T)
			target = rsp
		}
		if err := c.Call(ctx, c.NewRequest("greeter", "Greeter.Hello", body, client.WithContentType(contentType)), target); err != nil {
			return err.Error()
		}
		return contentType + " " + show(rsp)
	}
}

var (
	helloRequest = &proto.HelloRequest{Name: "Jörg"}
	showRequest  = func(r *proto.HelloRequest) string { return r.Name }
)

var compareRequests = []comparison{
	withServer("a call", greet, callHello, "Hello"),
	withServer("method Greeter.Hello", showHeaders, callMethod("helloworld", "Greeter.Hello"), "/helloworld.Greeter/Hello "),
	withServer("method /x.Greeter/Hello", showHeaders, callMethod("helloworld", "/x.Greeter/Hello"), "/x.Greeter/Hello "),
	withServer("method /x.Greeter/Hello without service", showHeaders, callMethod("", "/x.Greeter/Hello"), "/x.Greeter/Hello "),
	withServer("method Greeter.Hello without service", showHeaders, callMethod("", "Greeter.Hello"), "/Greeter/Hello "),
	withServer("method with two dots", showHeaders, callMethod("helloworld", "a.Greeter.Hello"), "malformed method name"),
	withServer("no method", showHeaders, callMethod("helloworld", ""), "malformed method name"),

	withServer("proto", echo, callRaw("application/proto", helloRequest, showRequest), "Jörg"),
	withServer("protobuf", echo, callRaw("application/protobuf", helloRequest, showRequest), "Jörg"),
	withServer("octet-stream", echo, callRaw("application/octet-stream", helloRequest, showRequest), "Jörg"),
	withServer("grpc", echo, callRaw("application/grpc", helloRequest, showRequest), "Jörg"),
	withServer("grpc+proto", echo, callRaw("application/grpc+proto", helloRequest, showRequest), "Jörg"),
	withServer("json", echo, callRaw("application/json", helloRequest, showRequest), "Jörg"),
	withServer("grpc+json", echo, callRaw("application/grpc+json", map[string]any{"a": []int{1}}, func(m map[string]any) string { return fmt.Sprint(m) }), "map[a:[1]]"),
	withServer("grpc+bytes", echo, func(ctx context.Context, c client.Client) string {
		body, rsp := []byte("abc"), []byte(nil)
		err := c.Call(ctx, c.NewRequest("greeter", "Greeter.Hello", &body, client.WithContentType("application/grpc+bytes")), &rsp)
		return fmt.Sprint(string(rsp), err)
	}, "abc<nil>"),
	withServer("frames", echo, func(ctx context.Context, c client.Client) string {
		text := ""
		for _, contentType := range []string{"application/json", "application/grpc+proto", "application/grpc+bytes"} {
			var rsp bytes.Frame
			err := c.Call(ctx, c.NewRequest("greeter", "Greeter.Hello", &bytes.Frame{Data: []byte("abc")}, client.WithContentType(contentType)), &rsp)
			text += fmt.Sprint(string(rsp.Data), err)
		}
		return text
	}, "abc<nil>abc<nil>abc<nil>"),
	withServer("unknown content type", echo, callRaw("text/plain", helloRequest, showRequest), `"code":500,"detail":"Unsupported Content-Type: text/plain"`),
	withServer("content type of the client", showHeaders, callHello, "content-type=application/grpc+proto", client.ContentType("application/proto")),
	withServer("codec of the user", echo, callRaw("text/x", "abc", func(s string) string { return s }), "<<abc>>", grpcc.Codec("text/x", textCodec{})),
	withServer("body of another type", echo, callRaw("application/grpc+proto", "abc", func(s string) string { return s }), "failed to marshal: abc is not type of"),
	withServer("bytes of another type", echo, callRaw("application/grpc+bytes", "abc", func(s string) string { return s }), "failed to marshal: abc is not type of"),

	withServer("headers", showHeaders, callHello, "x-content-type=application/grpc+proto"),
	withServer("content type json in the headers", showHeaders, func(ctx context.Context, c client.Client) string {
		var rsp bytes.Frame
		err := c.Call(ctx, c.NewRequest("greeter", "Greeter.Hello", map[string]any{}, client.WithContentType("application/json")), &rsp)
		return fmt.Sprint(string(rsp.Data), err)
	}, "content-type=application/grpc+json"),
	withServer("metadata", showHeaders, func(ctx context.Context, c client.Client) string {
		return hello(metadata.NewContext(ctx, metadata.Metadata{"Foo-Bar": "A b", "lower": "x", "Micro-Trace-Id": "1", "Timeout": "ignored"}), c)
	}, "foo-bar=A b lower=x micro-trace-id=1 timeout=5000000000 "),
	withServer("metadata of gRPC is not sent", showHeaders, func(ctx context.Context, c client.Client) string {
		return hello(grpcmetadata.AppendToOutgoingContext(ctx, "key", "value"), c)
	}, "x-content-type"),
	withServer("invalid metadata", showHeaders, func(ctx context.Context, c client.Client) string {
		return hello(metadata.NewContext(ctx, metadata.Metadata{"a b": "x"}), c)
	}, `"code":500,"detail":"header key`),
	withServer("timeout of the client", showHeaders, callHello, "timeout=7000000000 ", client.RequestTimeout(7*time.Second)),
	withServer("timeout of the call", showHeaders, func(ctx context.Context, c client.Client) string {
		return hello(ctx, c, client.WithRequestTimeout(3*time.Second))
	}, "timeout=3000000000 "),
	withServer("deadline of the context", showHeaders, func(ctx context.Context, c client.Client) string {
		ctx, cancel := context.WithTimeout(ctx, time.Hour)
		defer cancel()
		text := hello(ctx, c)
		_, rest, _ := strings.Cut(text, " timeout=") // a little less than an hour: 3599999...
		return rest[:4]
	}, "3599"),
	withServer("no request", echo, func(ctx context.Context, c client.Client) string {
		return fmt.Sprint(c.Call(ctx, nil, &proto.HelloResponse{}))
	}, "req is nil"),
	withServer("no response", echo, func(ctx context.Context, c client.Client) string {
		return fmt.Sprint(c.Call(ctx, c.NewRequest("greeter", "Greeter.Hello", &proto.HelloRequest{}), nil))
	}, "rsp is nil"),
	withServer("request", echo, func(_ context.Context, c client.Client) string {
		r := c.NewRequest("greeter", "Greeter.Hello", 1, client.WithContentType("a/b"), client.StreamingRequest())
		return fmt.Sprint(r.Service(), r.Method(), r.Endpoint(), r.ContentType(), r.Body(), r.Stream(), r.Codec(), c.String())
	}, "greeterGreeter.HelloGreeter.Helloa/b1 true <nil>grpc"),
}

// textCodec is a codec of a user.
type textCodec struct{}

func (textCodec) Marshal(v any) ([]byte, error) { return []byte("<" + v.(string) + ">"), nil }
func (textCodec) Unmarshal(b []byte, v any) error {
	*v.(*string) = "<" + string(b) + ">"
	return nil
}
func (textCodec) Name() string { return "proto" } // a name that the server knows

var compareErrors = []comparison{
	withServer("a status", fails(status.Error(codes.NotFound, "no such row")), callHello, `{"id":"go.micro.client","code":500,"detail":"no such row","status":"Internal Server Error"}`),
	withServer("a status with the text of an error", fails(status.Error(codes.Unknown, errors.Forbidden("x", "no").Error())), callHello, `{"id":"x","code":403,"detail":"no","status":"Forbidden"}`),
	withServer("a status with an error as detail", fails(statusWith(codes.Unknown, &errors.Error{Id: "1", Code: 99, Detail: "detail"}).Err()), callHello, `{"id":"1","code":99,"detail":"detail"}`),
	withServer("an unavailable server", fails(status.Error(codes.Unavailable, "later")), callHello, `"code":500,"detail":"later"`),
	comparison{"errors of a go-micro server", func(t *testing.T, newClient newClientFunc) string {
		var err error
		address, _ := startServer(t, func(context.Context, *proto.HelloRequest, *proto.HelloResponse) error { return err })
		c, text := newClient(t, []string{address}, client.Retries(0)), ""
		for _, err = range []error{errors.BadRequest("a", "b"), errors.NotFound("a", "b"), errors.Timeout("a", "b"), errors.InternalServerError("a", "b"),
			errors.New("a", "b", 503), errors.New("a", "b", 99), stderrors.New("plain"), status.Error(codes.NotFound, "status"), io.EOF} {
			text += hello(t.Context(), c) + "\n"
		}
		return text
	}, `"code":99`},
	comparison{"an unknown service", func(t *testing.T, newClient newClientFunc) string {
		return hello(t.Context(), newClient(t, nil))
	}, `{"id":"go.micro.client","code":500,"detail":"service greeter: not found","status":"Internal Server Error"}`},
	comparison{"filters that leave no instance", func(t *testing.T, newClient newClientFunc) string {
		address, _ := startGRPC(t, echo)
		return hello(t.Context(), newClient(t, []string{address}), client.WithSelectOption(selector.WithFilter(selector.FilterVersion("v9"))))
	}, `"detail":"error selecting greeter node: none available"`},
	comparison{"a strategy that returns an error", func(t *testing.T, newClient newClientFunc) string {
		address, _ := startGRPC(t, echo)
		broken := func([]*registry.Service) selector.Next {
			return func() (*registry.Node, error) { return nil, stderrors.New("broken") }
		}
		return hello(t.Context(), newClient(t, []string{address}), client.WithSelectOption(selector.WithStrategy(broken)))
	}, `"detail":"error selecting greeter node: broken"`},
	withServer("a context that has ended", echo, func(ctx context.Context, c client.Client) string {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return hello(ctx, c)
	}, `{"id":"go.micro.client","code":408,"detail":"context canceled","status":"Request Timeout"}`),
	withServer("a deadline that has passed", echo, func(ctx context.Context, c client.Client) string {
		ctx, cancel := context.WithTimeout(ctx, -1)
		defer cancel()
		return hello(ctx, c)
	}, `{"id":"go.micro.client","code":408,"detail":"context deadline exceeded","status":"Request Timeout"}`),
	comparison{"an address that refuses", func(t *testing.T, newClient newClientFunc) string {
		text := hello(t.Context(), newClient(t, []string{"127.0.0.1:1"}, client.Retries(0)))
		return text
	}, `"code":500,"detail":"connection error: desc = \"transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused\""`},
	withServer("a response that is not a message", func(context.Context, string, []byte) ([]byte, error) { return []byte{255}, nil }, callHello, "failed to unmarshal the received message"),
}

func statusWith(c codes.Code, e *errors.Error) *status.Status {
	s, err := status.New(c, e.Error()).WithDetails(e)
	if err != nil {
		panic(err)
	}
	return s
}

var bigName = strings.Repeat("x", 5<<20)

func callBig(ctx context.Context, c client.Client) string {
	var rsp proto.HelloRequest
	err := c.Call(ctx, c.NewRequest("greeter", "Greeter.Hello", &proto.HelloRequest{Name: bigName}), &rsp)
	return fmt.Sprint(len(rsp.Name), err)
}

func answerBig(context.Context, string, []byte) ([]byte, error) {
	return marshal(&proto.HelloResponse{Greeting: bigName}), nil
}

// withProxy returns a comparison with environment variables of go-micro, of which ADDRESS in
// a value is replaced by the address of a server.
func withProxy(name, variable, value string, want string) comparison {
	return comparison{name, func(t *testing.T, newClient newClientFunc) string {
		address, _ := startGRPC(t, showHeaders)
		t.Setenv(variable, strings.ReplaceAll(value, "ADDRESS", address))
		return hello(t.Context(), newClient(t, []string{"127.0.0.1:1"}, client.Retries(0)))
	}, want}
}

var compareOptions = []comparison{
	comparison{"addresses", func(t *testing.T, newClient newClientFunc) string {
		address, _ := startGRPC(t, greet)
		return hello(t.Context(), newClient(t, nil), client.WithAddress(address, "127.0.0.1:1"))
	}, "Hello"},
	withProxy("MICRO_PROXY with an address", "MICRO_PROXY", "ADDRESS", "/greeter.Greeter/Hello "),
	withProxy("MICRO_PROXY with a name", "MICRO_PROXY", "greeter", "127.0.0.1:1"),
	withProxy("MICRO_PROXY=service", "MICRO_PROXY", "service", "service go.micro.proxy: not found"),
	withProxy("MICRO_NETWORK", "MICRO_NETWORK", "service", "service go.micro.network: not found"),
	withProxy("MICRO_NETWORK_ADDRESS", "MICRO_NETWORK_ADDRESS", "ADDRESS", "/greeter.Greeter/Hello "),

	withServer("a request that is too large", echo, callBig, "trying to send message larger than max (5242885 vs. 4194304)"),
	withServer("a response that is too large", answerBig, func(ctx context.Context, c client.Client) string { return hello(ctx, c) }, "received message larger than max (5242885 vs. 4194304)"),
	withServer("MaxSendMsgSize", echo, callBig, "trying to send message larger than max (5242885 vs. 1000)", grpcc.MaxSendMsgSize(1000)),
	withServer("MaxRecvMsgSize", answerBig, func(ctx context.Context, c client.Client) string { return fmt.Sprint(len(hello(ctx, c))) }, "5242880", grpcc.MaxRecvMsgSize(6<<20)),
	withServer("message sizes and dial options", answerBig, func(ctx context.Context, c client.Client) string { return fmt.Sprint(len(hello(ctx, c))) }, "5242880",
		dialOptions(grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(6<<20)))),
	withServer("dial options", showHeaders, func(ctx context.Context, c client.Client) string {
		return hello(ctx, c)
	}, "user-agent=me grpc-go/", dialOptions(grpc.WithUserAgent("me"))),
	withServer("an interceptor", echo, callHello, "intercepted", dialOptions(grpc.WithUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return stderrors.New("intercepted")
		}))),
	withServer("call options", showHeaders, func(ctx context.Context, c client.Client) string { return hello(ctx, c) }, "secret=1", func(o *client.Options) {
		grpcc.CallOptions(grpc.PerRPCCredentials(headerCredentials{}))(&o.CallOptions)
	}),
	comparison{"TLS", func(t *testing.T, newClient newClientFunc) string {
		serverTLS, clientTLS := testCertificate(t)
		address, _ := startGRPC(t, greet, grpc.Creds(credentials.NewTLS(serverTLS)))
		trusting := hello(t.Context(), newClient(t, []string{address}, grpcc.AuthTLS(clientTLS)))
		distrusting := hello(t.Context(), newClient(t, []string{address}, client.Retries(0), grpcc.AuthTLS(&tls.Config{})))
		_, reason, _ := strings.Cut(distrusting, "authentication handshake failed: ")
		return trusting + " " + reason
	}, "Hello tls: failed to verify certificate"},
	comparison{"publish", func(t *testing.T, newClient newClientFunc) string {
		b := bmemory.NewBroker()
		s := grpcs.NewServer(server.Broker(b), server.Name("greeter"), server.Address("127.0.0.1:0"), server.Registry(memory.NewRegistry()))
		text := ""
		if err := micro.RegisterSubscriber("topic", s, func(_ context.Context, m *proto.HelloRequest) error {
			text += m.Name
			if m.Name == "b" {
				return stderrors.New("fake")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Stop() }()
		event := micro.NewEvent("topic", newClient(t, nil, client.Broker(b)))
		for _, name := range []string{"a", "a", "b"} {
			text += fmt.Sprint(event.Publish(t.Context(), &proto.HelloRequest{Name: name}))
		}
		return text
	}, "a<nil>a<nil>b"},
	comparison{"a service's wrappers", func(t *testing.T, newClient newClientFunc) string {
		address, _ := startGRPC(t, showHeaders)
		s := micro.NewService(micro.Server(server.NewServer(server.Name("caller"))), micro.Client(newClient(t, []string{address})))
		var all []string
		for _, field := range strings.Fields(hello(t.Context(), s.Client())) {
			key, value, _ := strings.Cut(field, "=")
			if key == "micro-from-service" {
				key += "=" + value
			}
			all = append(all, key)
		}
		return strings.Join(all, " ")
	}, "micro-from-service=caller micro-span-id micro-trace-id timeout user-agent x-content-type"},
}

func dialOptions(o ...grpc.DialOption) client.Option {
	return func(c *client.Options) { grpcc.DialOptions(o...)(&c.CallOptions) }
}

type headerCredentials struct{}

func (headerCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"secret": "1"}, nil
}
func (headerCredentials) RequireTransportSecurity() bool { return false }

// recordWrapper returns a call wrapper that records its name before and after a call.
func recordWrapper(name string, text *string) client.CallWrapper {
	return func(call client.CallFunc) client.CallFunc {
		return func(ctx context.Context, n *registry.Node, req client.Request, rsp any, o client.CallOptions) error {
			*text += "<" + name
			err := call(metadata.Set(ctx, name, n.Address[:4]), n, req, rsp, o)
			*text += name + ">"
			return err
		}
	}
}

// noCall is a call wrapper that makes no call, but records its arguments and returns errors.
func noCall(text *string, errs ...error) client.CallWrapper {
	return func(client.CallFunc) client.CallFunc {
		return func(_ context.Context, n *registry.Node, req client.Request, _ any, o client.CallOptions) error {
			*text += fmt.Sprint(n.Address, req.Service(), req.Endpoint(), o.RequestTimeout, " ")
			if len(errs) == 0 {
				return nil
			}
			err := errs[0]
			errs = errs[1:]
			return err
		}
	}
}

var compareWrappers = []comparison{
	comparison{"a wrapper and an address (TestCallAddress)", func(t *testing.T, newClient newClientFunc) string {
		text := ""
		err := hello(t.Context(), newClient(t, nil, client.WrapCall(noCall(&text))), client.WithAddress("10.1.10.1:8080"))
		return text + err
	}, "10.1.10.1:8080greeterGreeter.Hello5s "},
	comparison{"a wrapper and an instance (TestCallWrapper)", func(t *testing.T, newClient newClientFunc) string {
		text := ""
		err := hello(t.Context(), newClient(t, []string{"10.0.0.1:1"}, client.WrapCall(noCall(&text))))
		return text + err
	}, "10.0.0.1:1greeterGreeter.Hello5s "},
	comparison{"a retry (TestCallRetry)", func(t *testing.T, newClient newClientFunc) string {
		text := ""
		err := hello(t.Context(), newClient(t, []string{"10.0.0.1:1"}, client.WrapCall(noCall(&text, errors.InternalServerError("test.error", "retry request"), nil))))
		return text + err
	}, "10.0.0.1:1greeterGreeter.Hello5s 10.0.0.1:1greeterGreeter.Hello5s "},
	comparison{"no retry", func(t *testing.T, newClient newClientFunc) string {
		text := ""
		return text + hello(t.Context(), newClient(t, []string{"10.0.0.1:1"}, client.WrapCall(noCall(&text, errors.NotFound("a", "b"), nil)))) + text
	}, `"code":404`},
	comparison{"an error of a wrapper that is not go-micro's", func(t *testing.T, newClient newClientFunc) string {
		text := ""
		return hello(t.Context(), newClient(t, []string{"10.0.0.1:1"}, client.WrapCall(noCall(&text, stderrors.New("own"))))) + text
	}, "*errors.errorString own"},
	comparison{"retries as the function decides", func(t *testing.T, newClient newClientFunc) string {
		text := ""
		retry := func(_ context.Context, req client.Request, i int, err error) (bool, error) {
			text += fmt.Sprint(req.Endpoint(), i, err, " ")
			if i == 3 {
				return false, stderrors.New("given up")
			}
			return true, nil
		}
		backoff := func(_ context.Context, req client.Request, i int) (time.Duration, error) {
			text += fmt.Sprint("backoff", i, " ")
			return time.Millisecond, nil
		}
		fail := errors.NotFound("a", "b")
		c := newClient(t, []string{"10.0.0.1:1"}, client.Retries(5), client.Retry(retry), client.Backoff(backoff), client.WrapCall(noCall(&text, fail, fail, fail, fail)))
		return hello(t.Context(), c) + text
	}, "*errors.errorString given up"},
	comparison{"a backoff that returns an error", func(t *testing.T, newClient newClientFunc) string {
		c := newClient(t, []string{"10.0.0.1:1"}, client.Retries(0))
		return hello(t.Context(), c, client.WithBackoff(func(context.Context, client.Request, int) (time.Duration, error) { return 0, stderrors.New("no") }))
	}, `{"id":"go.micro.client","code":500,"detail":"no"`},
	comparison{"order of wrappers, and their metadata", func(t *testing.T, newClient newClientFunc) string {
		address, _ := startGRPC(t, showHeaders)
		text := ""
		c := newClient(t, []string{address}, client.WrapCall(recordWrapper("a", &text), recordWrapper("b", &text)))
		return hello(t.Context(), c, client.WithCallWrapper(recordWrapper("c", &text))) + text
	}, "<a<b<cc>b>a>"},
	comparison{"a wrapper that calls another address", func(t *testing.T, newClient newClientFunc) string {
		address, _ := startGRPC(t, greet)
		other := func(call client.CallFunc) client.CallFunc {
			return func(ctx context.Context, _ *registry.Node, req client.Request, rsp any, o client.CallOptions) error {
				return call(ctx, &registry.Node{Address: address}, req, rsp, o)
			}
		}
		return hello(t.Context(), newClient(t, []string{"127.0.0.1:1"}, client.WrapCall(other)))
	}, "Hello"},
	comparison{"a wrapper that changes the timeout", func(t *testing.T, newClient newClientFunc) string {
		address, _ := startGRPC(t, showHeaders)
		change := func(call client.CallFunc) client.CallFunc {
			return func(ctx context.Context, n *registry.Node, req client.Request, rsp any, o client.CallOptions) error {
				o.RequestTimeout = 42
				return call(ctx, n, req, rsp, o)
			}
		}
		return hello(t.Context(), newClient(t, []string{address}, client.WrapCall(change)))
	}, "timeout=42 "},
	comparison{"client.Wrap", func(t *testing.T, newClient newClientFunc) string {
		address, _ := startGRPC(t, greet)
		text := ""
		wrap := func(name string) client.Wrapper {
			return func(c client.Client) client.Client { return &namedWrapper{c, name, &text} }
		}
		c := newClient(t, []string{address}, client.Wrap(wrap("a")), client.Wrap(wrap("b")))
		_, err := c.Stream(t.Context(), c.NewRequest("greeter", "Greeter.Hello", nil))
		return hello(t.Context(), c) + text + fmt.Sprint(err)
	}, "Helloabab<nil>"},
}

type namedWrapper struct {
	client.Client
	name string
	text *string
}

func (w *namedWrapper) Call(ctx context.Context, req client.Request, rsp any, opts ...client.CallOption) error {
	*w.text += w.name
	return w.Client.Call(ctx, req, rsp, opts...)
}

func (w *namedWrapper) Stream(ctx context.Context, req client.Request, opts ...client.CallOption) (client.Stream, error) {
	*w.text += w.name
	return w.Client.Stream(ctx, req, opts...)
}

// withStreams returns a comparison of streams to a go-micro server.
func withStreams(name string, do func(ctx context.Context, c client.Client) string, want string, opts ...client.Option) comparison {
	return comparison{name, func(t *testing.T, newClient newClientFunc) string {
		s := grpcs.NewServer(server.Name("greeter"), server.Address("127.0.0.1:0"), server.Registry(memory.NewRegistry()))
		if err := s.Handle(s.NewHandler(new(TestStreams))); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Stop() }()
		return do(t.Context(), newClient(t, []string{s.Options().Address}, opts...))
	}, want}
}

// TestStreams is a handler with streams.
type TestStreams struct{}

// Echo sends back each message until it receives "end" or "fail".
func (*TestStreams) Echo(ctx context.Context, s server.Stream) error {
	for {
		var req proto.HelloRequest
		if err := s.Recv(&req); err != nil {
			return err
		}
		switch req.Name {
		case "end":
			return nil
		case "fail":
			return errors.NotFound("greeter", "no such row")
		case "metadata":
			md, _ := metadata.FromContext(ctx)
			req.Name = fmt.Sprint(md["Foo"], md["Timeout"], md["Content-Type"])
		}
		if err := s.Send(&proto.HelloResponse{Greeting: req.Name}); err != nil {
			return err
		}
	}
}

// openEcho opens a stream, sends names, and returns the answers.
func openEcho(ctx context.Context, c client.Client, names []string, opts ...client.CallOption) (s client.Stream, text string) {
	s, err := c.Stream(ctx, c.NewRequest("greeter", "TestStreams.Echo", nil, client.StreamingRequest()), opts...)
	if err != nil {
		return nil, err.Error()
	}
	for _, name := range names {
		var rsp proto.HelloResponse
		if err := cmp.Or(s.Send(&proto.HelloRequest{Name: name}), s.Recv(&rsp)); err != nil {
			text += " " + err.Error()
		}
		text += " " + rsp.Greeting
	}
	return s, text
}

// openHello opens a stream and returns its first message.
func openHello(ctx context.Context, c client.Client, opts ...client.CallOption) string {
	s, err := c.Stream(ctx, c.NewRequest("greeter", "Greeter.Hello", nil), opts...)
	if err != nil {
		return err.Error()
	}
	var rsp proto.HelloResponse
	err = cmp.Or(s.Send(&proto.HelloRequest{}), s.Recv(&rsp))
	return fmt.Sprint(rsp.Greeting, err)
}

func echoes(names ...string) func(context.Context, client.Client) string {
	return func(ctx context.Context, c client.Client) string {
		_, text := openEcho(ctx, c, names)
		return text
	}
}

var compareStreams = []comparison{
	withStreams("a stream", echoes("a", "b", "end"), " a b EOF"),
	withStreams("an error of a stream's handler", echoes("a", "fail"), "a rpc error: code = NotFound desc = {\"id\":\"greeter\",\"code\":404"),
	withStreams("metadata of a stream", func(ctx context.Context, c client.Client) string {
		_, text := openEcho(metadata.NewContext(ctx, metadata.Metadata{"Foo": "bar"}), c, []string{"metadata"})
		return text
	}, "barapplication/grpc+proto"),
	withServer("headers of a stream", showHeaders, func(ctx context.Context, c client.Client) string { return openHello(ctx, c) }, "x-content-type=application/grpc+proto"),
	withServer("timeout of a stream", showHeaders, func(ctx context.Context, c client.Client) string {
		return openHello(ctx, c, client.WithStreamTimeout(time.Minute))
	}, "timeout=60000000000 "),
	withStreams("call wrappers of a stream", func(ctx context.Context, c client.Client) string {
		calls := ""
		_, text := openEcho(ctx, c, []string{"a", "end"}, client.WithCallWrapper(recordWrapper("w", &calls)))
		return text + calls
	}, " a EOF "),
	withStreams("a stream, and a wrapper with a deadline", func(ctx context.Context, c client.Client) string {
		limit := func(call client.CallFunc) client.CallFunc {
			return func(ctx context.Context, n *registry.Node, req client.Request, rsp any, o client.CallOptions) error {
				ctx, cancel := context.WithTimeout(ctx, time.Minute)
				defer cancel()
				return call(ctx, n, req, rsp, o)
			}
		}
		_, text := openEcho(ctx, c, []string{"a", "b", "end"}, client.WithCallWrapper(limit))
		return text
	}, " a b EOF"),
	withStreams("a stream without the service", func(ctx context.Context, c client.Client) string {
		_, err := c.Stream(ctx, c.NewRequest("other", "TestStreams.Echo", nil))
		return fmt.Sprint(err)
	}, "service other: not found"),
	withStreams("a stream with an unknown method", func(ctx context.Context, c client.Client) string {
		s, err := c.Stream(ctx, c.NewRequest("greeter", "TestStreams.Other", nil))
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(s.Recv(&proto.HelloResponse{}))
	}, "Unimplemented"),
	withStreams("a stream whose context has ended", func(ctx context.Context, c client.Client) string {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		_, text := openEcho(ctx, c, nil)
		return text
	}, `"code":408,"detail":"context canceled"`),
	withStreams("a stream that is closed", func(ctx context.Context, c client.Client) string {
		s, text := openEcho(ctx, c, []string{"a"})
		// go-micro's client closes the stream and its connection together, and Recv returns the error of either.
		return text + fmt.Sprint(s.Close(), s.Close(), s.Recv(&proto.HelloResponse{}) != nil)
	}, "a<nil> <nil> true"),
	withStreams("request and response of a stream", func(ctx context.Context, c client.Client) string {
		req := c.NewRequest("greeter", "TestStreams.Echo", nil)
		s, err := c.Stream(ctx, req)
		if err != nil {
			return err.Error()
		}
		text := fmt.Sprint(s.Request() == req, s.Error(), req.Codec() != nil)
		text += fmt.Sprint(s.Request().Codec().Write(&codec.Message{}, &proto.HelloRequest{Name: "a"}))
		text += fmt.Sprint(s.Request().Codec().Write(&codec.Message{Body: []byte("\n\x01b")}, nil))
		b, err := s.Response().Read()
		text += fmt.Sprintf("%q%v", b, err)
		var rsp proto.HelloResponse
		m := codec.Message{Id: "1", Header: map[string]string{"x": "y"}}
		text += fmt.Sprint(s.Response().Codec().ReadHeader(&m, codec.Response), s.Response().Codec().ReadBody(&rsp), rsp.Greeting, m)
		text += fmt.Sprint(s.Response().Header()["content-type"], s.Context() != nil)
		return text + fmt.Sprint(s.Request().Codec().(io.Closer).Close())
	}, `true <nil> true<nil><nil>"\x12\x01a"<nil><nil> <nil>b{ 0     map[content-type:application/grpc+proto x:y] []}`),
}

// TestClientDiffersFromGoMicros is the table of what go-micro's client does wrong.
func TestClientDiffersFromGoMicros(t *testing.T) {
	withDetails, err := status.New(codes.ResourceExhausted, "quota used up").WithDetails(&errdetails.QuotaFailure{})
	if err != nil {
		t.Fatal(err)
	}
	header := grpcmetadata.MD{}
	for _, d := range []struct {
		comparison
		theirs string
	}{
		{comparison{"a stream to an address that refuses, with a retry", func(t *testing.T, newClient newClientFunc) string {
			retries := 0
			retry := func(_ context.Context, _ client.Request, _ int, err error) (bool, error) {
				if err != nil {
					retries++
				}
				return true, nil
			}
			_, err := newClient(t, []string{"127.0.0.1:1"}, client.Retry(retry)).Stream(t.Context(), gomicro.NewRequest("greeter", "/a/b", "application/grpc", nil))
			return fmt.Sprint(retries, err != nil)
		}, "2 true"}, "0 true"},
		{withServer("call options of a call", greet, func(ctx context.Context, c client.Client) string {
			header = nil
			return hello(ctx, c, grpcc.CallOptions(grpc.Header(&header))) + fmt.Sprint(len(header["content-type"]))
		}, "Hello1"), "Hello0"},
		{withStreams("Error of a stream that failed", func(ctx context.Context, c client.Client) string {
			s, _ := openEcho(ctx, c, []string{"fail"})
			return fmt.Sprint(status.Code(s.Error()))
		}, "NotFound"), "OK"},
		{withServer("details of a status that are not go-micro's", fails(withDetails.Err()), func(ctx context.Context, c client.Client) string {
			if _, ok := c.(*Client); !ok {
				return "panic" // in another goroutine, which ends the process: microError asserts that the detail is an error
			}
			return hello(ctx, c)
		}, `"code":500,"detail":"quota used up"`), "panic"},
		{comparison{"https://HOST", func(t *testing.T, newClient newClientFunc) string {
			serverTLS, clientTLS := testCertificate(t)
			address, _ := startGRPC(t, greet, grpc.Creds(credentials.NewTLS(serverTLS)))
			return hello(t.Context(), newClient(t, nil, client.Retries(0), grpcc.AuthTLS(clientTLS)), client.WithAddress("https://"+address))
		}, "Hello"}, "too many colons in address"},
	} {
		t.Run(d.name, func(t *testing.T) {
			theirs, ours := d.do(t, newMicroClient), d.do(t, newPodClient)
			if !strings.Contains(theirs, d.theirs) || !strings.Contains(ours, d.want) || ours == theirs {
				t.Errorf("go-micro's client: %s\nwant:              %s\nours:              %s\nwant:              %s", theirs, d.theirs, ours, d.want)
			}
		})
	}
}
