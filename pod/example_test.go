package pod_test

import (
	"fmt"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// A service needs only two more lines to use this package: the registry and the client.
func Example() {
	registry := pod.NewRegistry(kubernetes.NewRegistry) // the plugin's constructor itself, not its result
	service := micro.NewService(
		micro.Name("greeter"),
		micro.Server(grpcs.NewServer()),
		micro.Client(pod.NewClient(registry, grpcc.NewClient())),
		micro.Registry(registry),
	)
	fmt.Println(service.Options().Registry, service.Client().Options().Selector)
	// Output: kubernetes pod
}
