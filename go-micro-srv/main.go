// Command go-micro-srv serves the Greeter over gRPC and registers it with the Kubernetes API server:
// it labels and annotates its own pod, and clients find it there by its name, go-micro-srv.
//
// It listens on port 9100. It runs in a pod, whose service account k8s/pod-rbac.yaml allows to patch
// pods, and needs POD_NAME, from its manifest, and what Kubernetes gives every pod:
// KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT. go-micro's own flags and MICRO_* variables apply; --help lists them.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

var (
	DefaultServiceName = "go-micro-srv"
	DefaultServerPort  = ":9100"
)

type Greeter struct{}

func (g Greeter) Hello(ctx context.Context, request *proto.HelloRequest, response *proto.HelloResponse) error {
	response.Greeting = "Hello " + request.Name + "!"
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "running %q: %v\n", DefaultServiceName, err)
		os.Exit(1)
	}
}

func run() error {
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	service := micro.NewService(
		micro.Name(DefaultServiceName),
		micro.Server(grpcs.NewServer(server.Address(DefaultServerPort), server.Name(DefaultServiceName))),
		micro.Client(grpcc.NewClient()),
		micro.Registry(registry), // registers to Kubernetes
		pod.Lifecycle(registry),  // health, readiness, drain
		pod.Reflection(registry), // grpcurl lists and calls it
	)
	service.Init()

	if err := proto.RegisterGreeterHandler(service.Server(), new(Greeter)); err != nil {
		return fmt.Errorf("registering handler %q: %w", "Greeter", err)
	}
	return service.Run()
}
