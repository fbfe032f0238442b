package pod_test

import (
	"context"
	"expvar"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-micro/v2/web"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

type Greeter struct{}

func (Greeter) Hello(_ context.Context, request *proto.HelloRequest, response *proto.HelloResponse) error {
	response.Greeting = "Hello " + request.Name + "!"
	return nil
}

// A gRPC service that also calls other services.
func ExampleLifecycle() {
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	service := micro.NewService(
		micro.Name("greeter"),
		micro.Server(grpcs.NewServer(server.Name("greeter"), server.Address(":9100"))),
		micro.Client(pod.NewClient(registry, grpcc.NewClient())), // chooses the instance that should answer first
		micro.Registry(registry), // registers the service and finds other services
		pod.Lifecycle(registry),  // health, readiness, drain
	)
	service.Init()
	if err := proto.RegisterGreeterHandler(service.Server(), new(Greeter)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := service.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func ExampleWebLifecycle() {
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	service := web.NewService(
		web.Name("page"),
		web.Address(":9200"),
		web.Registry(registry),
		pod.WebLifecycle(registry), // GET /healthz, GET /readyz, drain
	)
	service.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") })
	if err := service.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// The load balancer in front of the service needs 10 s to notice that a pod stops.
func ExampleDrainWait() {
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	web.NewService(web.Registry(registry), pod.WebLifecycle(registry, pod.DrainWait(10*time.Second)))
}

// Ticker streams a tick each second until its service drains.
type Ticker struct{}

func (Ticker) Ticks(ctx context.Context, stream server.Stream) error {
	for {
		select {
		case <-pod.Draining(ctx): // the client sees the end of the stream and opens it on another pod
			return nil
		case <-ctx.Done(): // the client is gone
			return ctx.Err()
		case now := <-time.After(time.Second):
			if err := stream.Send(&proto.HelloResponse{Greeting: now.String()}); err != nil {
				return err
			}
		}
	}
}

// Without Draining, an endless stream delays the stop until the pod's grace period ends,
// and is cut off.
func ExampleDraining() {
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	service := micro.NewService(micro.Server(grpcs.NewServer()), micro.Registry(registry), pod.Lifecycle(registry))
	if err := service.Server().Handle(service.Server().NewHandler(new(Ticker))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Server-sent events end in the same way.
func ExampleDraining_web() {
	http.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		for {
			select {
			case <-pod.Draining(r.Context()):
				return
			case <-r.Context().Done():
				return
			case now := <-time.After(time.Second):
				fmt.Fprintf(w, "data: %s\n\n", now)
				w.(http.Flusher).Flush()
			}
		}
	})
}

// Counters for a metrics library.
func ExampleWithEvents() {
	var picks, ejections, apiErrors expvar.Map
	registry := pod.NewRegistry(kubernetes.NewRegistry, pod.WithEvents(pod.Events{
		Picked:  func(service, pod, _ string) { picks.Add(service+"/"+pod, 1) },
		Ejected: func(service, pod, _ string, _ time.Duration, _ error) { ejections.Add(service+"/"+pod, 1) },
		APIError: func(operation string, err error) {
			if err != nil {
				apiErrors.Add(operation, 1)
			}
		},
	}))
	defer registry.Close()
	expvar.Publish("snapshot_age_seconds", expvar.Func(func() any { return time.Since(registry.LastContact()).Seconds() }))
}

// grpcurl -plaintext localhost:9100 list
func ExampleReflection() {
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	micro.NewService(micro.Server(grpcs.NewServer()), micro.Registry(registry), pod.Lifecycle(registry), pod.Reflection(registry))
}

// The registry waits 2 s instead of 5 s for the API server. NewRegistry makes no call, so
// this example also works outside a cluster.
func ExampleNewRegistry() {
	r := pod.NewRegistry(kubernetes.NewRegistry, registry.Timeout(2*time.Second))
	defer r.Close()
	fmt.Println(r, r.Options().Timeout)
	// Output: kubernetes 2s
}
