package pod_test

import (
	"fmt"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// Two lines more than without this package.
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
