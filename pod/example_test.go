package pod_test

import (
	"fmt"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// With this package a service has two lines more than without it.
func Example() {
	registry := pod.NewRegistry(kubernetes.NewRegistry) // the plugin's constructor, not a call of it
	service := micro.NewService(
		micro.Name("greeter"),
		micro.Server(grpcs.NewServer()),
		micro.Client(grpcc.NewClient()),
		micro.Registry(registry),
		micro.Selector(pod.NewSelector(registry)),
	)
	fmt.Println(service.Options().Registry, service.Client().Options().Selector)
	// Output: kubernetes pod
}
