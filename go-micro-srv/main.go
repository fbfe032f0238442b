// Command go-micro-srv serves the Greeter over gRPC on port 9100. It registers with the Kubernetes API
// server by writing labels and an annotation on its own pod; clients find it by its name, go-micro-srv.
//
// It runs in a pod. k8s/pod-rbac.yaml grants its service account the verbs list, watch and patch on
// pods. The manifest sets POD_NAME; Kubernetes sets KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT.
// Outside of the cluster it needs a kubeconfig and registers nothing (docs/laptop.md).
// --help lists go-micro's flags and MICRO_* variables.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/identity"
	"github.com/jiangjiancc/go_micro_k8s/pod/metrics"
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
		micro.Registry(registry), // registers with Kubernetes
		pod.Lifecycle(registry),  // health, readiness, drain
		pod.Reflection(registry), // grpcurl can list and call the Greeter
		metrics.Serve(registry),  // if POD_METRICS_ADDRESS is set
		identity.Serve(registry), // mutual TLS, if POD_IDENTITY is set
	)
	service.Init()

	if err := proto.RegisterGreeterHandler(service.Server(), new(Greeter)); err != nil {
		return fmt.Errorf("registering handler %q: %w", "Greeter", err)
	}
	return service.Run()
}
