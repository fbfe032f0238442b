// Command go-micro-client calls the Greeter of go-micro-srv every 10 seconds and prints the answer,
// "Server Hello XXX!", or the error. It finds the servers through the Kubernetes API server, and
// registers there as go-micro-client, on port 9300 with its manifest and on a free port without it.
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
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/identity"
	"github.com/jiangjiancc/go_micro_k8s/pod/metrics"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

var (
	DefaultServiceName = "go-micro-client"
	DefaultSrvName     = "go-micro-srv"
)

func main() {
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	service := micro.NewService(
		micro.Name(DefaultServiceName),
		micro.Client(pod.NewClient(registry, grpcc.NewClient())), // chooses the instance that should answer first
		micro.Registry(registry),                                 // finds go-micro-srv in Kubernetes
		pod.Lifecycle(registry),                                  // health, readiness, drain
		metrics.Serve(registry),                                  // if POD_METRICS_ADDRESS is set
		identity.Serve(registry),                                 // mutual TLS, if POD_IDENTITY is set
	)
	service.Init()
	go registryRPCHandler(service.Client())
	if err := service.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "running %q: %v\n", DefaultServiceName, err)
		os.Exit(1)
	}
}

func registryRPCHandler(s client.Client) {
	greeter := proto.NewGreeterService(DefaultSrvName, s)
	timer := time.NewTicker(time.Second * 10)
	defer timer.Stop()
	for range timer.C {
		rsp, err := greeter.Hello(context.TODO(), &proto.HelloRequest{Name: "XXX"})
		if err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("Server", rsp.Greeting)
		}
	}
}
