package pod_test

import (
	"context"
	"fmt"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	microregistry "github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/etcd"
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

// Hello may be executed twice: a call that takes longer than 98 % of the calls gets a second attempt.
func ExampleHedge() {
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	greeter := proto.NewGreeterService("greeter", pod.NewClient(registry, grpcc.NewClient()))
	response, err := greeter.Hello(context.Background(), &proto.HelloRequest{Name: "XXX"}, pod.Hedge())
	fmt.Println(response, err)
}

// A client of services with hundreds of instances calls 20 instances of each.
func ExampleSubset() {
	registry := pod.NewRegistry(kubernetes.NewRegistry, pod.Subset(20))
	greeter := proto.NewGreeterService("greeter", pod.NewClient(registry, grpcc.NewClient()))
	_, err := greeter.Hello(context.Background(), &proto.HelloRequest{Name: "XXX"})
	fmt.Println(err)
}

// A service moves from etcd to pods: it registers in both and finds the instances of both.
func ExampleAlso() {
	old := etcd.NewRegistry(microregistry.Addrs("etcd:2379"))
	registry := pod.NewRegistry(kubernetes.NewRegistry, pod.Also(old)) // without pod.Also when all services have moved
	service := micro.NewService(
		micro.Name("greeter"),
		micro.Server(grpcs.NewServer()),
		micro.Client(pod.NewClient(registry, grpcc.NewClient())),
		micro.Registry(registry),
		pod.Lifecycle(registry),
	)
	fmt.Println(service.Options().Registry)
	// Output: kubernetes
}
