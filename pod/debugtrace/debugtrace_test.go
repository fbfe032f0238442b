package debugtrace

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	greeter "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

const secret = "the-secret-of-a-request"

// flakyGreeter fails as often as failures says.
type flakyGreeter struct{ failures atomic.Int32 }

func (g *flakyGreeter) Hello(_ context.Context, req *greeter.HelloRequest, _ *greeter.HelloResponse) error {
	if g.failures.Add(-1) >= 0 {
		return microerrors.InternalServerError("greeter", "cannot greet %s", req.Name)
	}
	return nil
}

// serve runs a Greeter with a Lifecycle until the end of the test, and returns its address.
func serve(t *testing.T, g *flakyGreeter, c client.Client) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	started, stopped := make(chan struct{}), make(chan error, 1)
	service := micro.NewService(micro.Server(grpcs.NewServer(server.Name("greeter"), grpcs.Listener(listener))), micro.Client(c), micro.Registry(memory.NewRegistry()),
		micro.Context(ctx), micro.HandleSignal(false), pod.Lifecycle(pod.NewRegistry(kubernetes.NewRegistry), pod.DrainWait(0)),
		micro.AfterStart(func() error { close(started); return nil }))
	if err := greeter.RegisterGreeterHandler(service.Server(), g); err != nil {
		t.Fatal(err)
	}
	go func() { stopped <- service.Run() }()
	t.Cleanup(func() {
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
	return listener.Addr().String()
}

// named returns the spans of a trace by their kind and error.
func named(spans []Span, trace string) map[string]Span {
	byKind := map[string]Span{}
	for _, s := range spans {
		if s.Trace == trace {
			byKind[strings.TrimSpace(string(s.Kind)+" "+s.Error)] = s
		}
	}
	return byKind
}

func TestSpans(t *testing.T) {
	t.Setenv(Variable, "on")
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	g, ofService := &flakyGreeter{}, pod.NewClient(registry, grpcc.NewClient())
	address := serve(t, g, ofService)
	for name, c := range map[string]client.Client{
		"a client of its own":   Client("caller", pod.NewClient(registry, grpcc.NewClient())),
		"go-micro's own client": Client("caller", grpcc.NewClient()),
	} {
		g.failures.Store(1)
		if _, err := greeter.NewGreeterService("greeter", c).Hello(t.Context(), &greeter.HelloRequest{Name: secret}, client.WithAddress(address)); err != nil {
			t.Fatal(err)
		}
		spans, err := Read(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		var call Span
		for _, s := range spans {
			if s.Kind == Call && s.Started.After(call.Started) {
				call = s
			}
		}
		got := named(spans, call.Trace)
		const failed = " 500 Internal Server Error"
		attempt, failing, answering := got["attempt"+failed], got["handler"+failed], got["handler"]
		if len(got) != 4 || call.Error != "" || call.Parent != "" || attempt.Parent != call.ID || failing.Parent != call.ID || answering.Parent != call.ID {
			t.Errorf("%s: a call with a retry has the spans %+v", name, got)
		}
		if attempt.Address != address || !strings.HasSuffix(call.Name, "greeter.Greeter.Hello") || attempt.Duration <= 0 || attempt.Started.Before(call.Started) {
			t.Errorf("%s: the attempt is %+v of call %+v", name, attempt, call)
		}
		own, err := Own()
		if got := named(own, call.Trace); err != nil || len(got) != 4 {
			t.Errorf("%s: the process has kept %+v, %v", name, got, err)
		}
	}
}

// The probes of Kubernetes do not push the calls out of the 256 spans.
func TestLastCallsAreJoined(t *testing.T) {
	t.Setenv(Variable, "on")
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	address := serve(t, &flakyGreeter{}, grpcc.NewClient())
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	caller := greeter.NewGreeterService("greeter", Client("caller", pod.NewClient(registry, grpcc.NewClient())))
	for range 100 {
		for range 3 {
			if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := caller.Hello(t.Context(), &greeter.HelloRequest{Name: secret}, client.WithAddress(address)); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(t.Context(), address); err != nil { // as somebody who watches the page
			t.Fatal(err)
		}
	}
	spans, err := Read(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	joined := map[string]map[Kind]bool{}
	for _, s := range spans {
		if !strings.HasSuffix(s.Name, ".Greeter.Hello") {
			t.Errorf("a span of another method: %+v", s)
		}
		if joined[s.Trace] == nil {
			joined[s.Trace] = map[Kind]bool{}
		}
		joined[s.Trace][s.Kind] = true
	}
	both := 0
	for _, kinds := range joined {
		if kinds[Call] && kinds[Handler] {
			both++
		}
	}
	if both < 100 {
		t.Errorf("%d of the last 100 calls have the spans of both sides", both)
	}
}

func TestOff(t *testing.T) {
	address := serve(t, &flakyGreeter{}, grpcc.NewClient())
	c := pod.NewClient(pod.NewRegistry(kubernetes.NewRegistry), grpcc.NewClient())
	if got := Client("caller", c); got != client.Client(c) || len(c.Options().CallOptions.CallWrappers) > 0 {
		t.Error("without the variable, the client is wrapped")
	}
	if own, err := Own(); own != nil || err != nil {
		t.Errorf("without the variable, the process's own spans are %v, %v", own, err)
	}
	if _, err := Read(t.Context(), address); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without the variable, a service answers %v", err)
	}
}

// With the variable, the client of a service keeps its failing attempts too; without it, it has no wrapper.
func TestClientOfService(t *testing.T) {
	for value, want := range map[string]int{"on": 1, "": 0} {
		t.Run(Variable+"="+value, func(t *testing.T) {
			t.Setenv(Variable, value)
			c := pod.NewClient(pod.NewRegistry(kubernetes.NewRegistry), grpcc.NewClient())
			serve(t, &flakyGreeter{}, c)
			if got := len(c.Options().CallOptions.CallWrappers); got != want {
				t.Errorf("the client has %d wrappers, want %d", got, want)
			}
		})
	}
}
