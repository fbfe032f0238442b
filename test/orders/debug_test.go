package orders

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	greeter "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	debug "github.com/micro/go-micro/v2/debug/service/proto"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const secret = "the-secret-of-a-request"

type failingGreeter struct{}

func (failingGreeter) Hello(_ context.Context, req *greeter.HelloRequest, _ *greeter.HelloResponse) error {
	return microerrors.NotFound("greeter", "nobody is called %s", req.Name)
}

// serve runs a service with a Lifecycle until the end of the test, and returns a connection to it.
func serve(t *testing.T, register func(server.Server) error) *grpc.ClientConn {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	kube, started, stopped := pod.NewRegistry(kubernetes.NewRegistry), make(chan struct{}), make(chan error, 1)
	service := micro.NewService(micro.Server(grpcs.NewServer(server.Name("orders-test"), grpcs.Listener(listener))), micro.Client(grpcc.NewClient()),
		micro.Registry(memory.NewRegistry()), micro.Context(ctx), micro.HandleSignal(false), pod.Lifecycle(kube, pod.DrainWait(0)),
		micro.AfterStart(func() error { close(started); return nil }))
	if err := register(service.Server()); err != nil {
		t.Fatal(err)
	}
	go func() { stopped <- service.Run() }()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-started:
	case err := <-stopped:
		t.Fatal(err)
	}
	return conn
}

// The services have spans with errors, whose text contains data of a request.
var services = map[string]struct {
	register func(server.Server) error
	method   string
	request  any
	response any
}{
	"Greeter": {func(s server.Server) error { return greeter.RegisterGreeterHandler(s, failingGreeter{}) }, "/Greeter/Hello", &greeter.HelloRequest{Name: secret}, &greeter.HelloResponse{}},
	"Orders": {func(s server.Server) error {
		return RegisterOrdersHandler(s, &handler{created: new(published), shipped: new(published)})
	}, "/orders.Orders/SplitOrder", &OrderRequest{Id: secret}, &OrderResponse{}},
}

func TestDebugAnswersNobody(t *testing.T) {
	for name, svc := range services {
		conn := serve(t, svc.register)
		for _, method := range []string{"/Debug/Log", "/Debug/Stats", "/Debug/Trace", "/Debug/Cache", "/go.micro.Debug/Trace", "/a.b.Debug/Log"} {
			err := conn.Invoke(t.Context(), method, &debug.TraceRequest{}, &debug.TraceResponse{})
			if text := status.Convert(err).Message(); status.Code(err) != codes.PermissionDenied || !strings.Contains(text, " is off") || strings.HasSuffix(method, "Trace") != strings.Contains(text, "POD_DEBUG_TRACE=on") {
				t.Errorf("%s: %s answers %v", name, method, err)
			}
		}
		if err := conn.Invoke(t.Context(), "/Debug/Health", &debug.HealthRequest{}, &debug.HealthResponse{}); err != nil {
			t.Errorf("%s: Debug.Health, which says nothing but ok, answers %v", name, err)
		}
		if err := conn.Invoke(t.Context(), "/NoDebug/Log", &debug.HealthRequest{}, &debug.HealthResponse{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: the method of a handler that does not exist answers %v", name, err)
		}
	}
}

func TestDebugTraceIsReduced(t *testing.T) {
	t.Setenv("POD_DEBUG_TRACE", "on")
	for name, svc := range services {
		conn := serve(t, svc.register)
		id := "trace-of-" + name + "-" + time.Now().String()
		if err := conn.Invoke(inTrace(t.Context(), id), svc.method, svc.request, svc.response); name == "Greeter" && status.Code(err) != codes.NotFound {
			t.Fatal(err)
		}
		var answer debug.TraceResponse
		if err := conn.Invoke(t.Context(), "/Debug/Trace", &debug.TraceRequest{Id: id}, &answer); err != nil {
			t.Fatal(err)
		}
		if len(answer.Spans) != 1 || strings.Contains(answer.String(), secret) {
			t.Fatalf("%s: Debug.Trace answers %v", name, answer.Spans)
		}
		span := answer.Spans[0]
		method := strings.ReplaceAll(svc.method[strings.LastIndexAny(svc.method[:len(svc.method)-len("/Hello")], "./")+1:], "/", ".")
		if !strings.HasSuffix(span.Name, method) || span.Trace != id || span.Type != debug.SpanType_INBOUND || span.Started == 0 {
			t.Errorf("%s: the span of %s is %v", name, method, span)
		}
		if name == "Greeter" && (len(span.Metadata) != 1 || span.Metadata["error"] != "404 Not Found") {
			t.Errorf("%s: the metadata of a failed call are %v", name, span.Metadata)
		}
		for _, method := range []string{"/Debug/Log", "/Debug/Stats", "/Debug/Cache"} {
			if err := conn.Invoke(t.Context(), method, &debug.StatsRequest{}, &debug.StatsResponse{}); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s: %s answers %v", name, method, err)
			}
		}
	}
}

// go-micro's own client reads the refusal as an error with code 403.
func TestRefusalForGoMicrosClient(t *testing.T) {
	conn := serve(t, services["Orders"].register)
	c := grpcc.NewClient()
	err := c.Call(t.Context(), c.NewRequest("orders-test", "Debug.Stats", &debug.StatsRequest{}), &debug.StatsResponse{}, client.WithAddress(conn.Target()))
	if e := microerrors.Parse(err.Error()); e.Code != 403 || !strings.Contains(e.Detail, "Debug.Stats is off") {
		t.Errorf("the error is %v", err)
	}
}

// inTrace returns a context with go-micro's headers of a trace.
func inTrace(ctx context.Context, id string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "micro-trace-id", id, "micro-span-id", "parent")
}
