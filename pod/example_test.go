package pod_test

import (
	"context"
	"fmt"
	"os/signal"
	"syscall"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/config/source/env"
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

// The body runs with the configuration of now, and again after each change of the
// ConfigMap, until SIGTERM.
func ExampleConfigMap_Follow() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	for cfg, err := range pod.NewConfigMap("", "go-micro-config").Follow(ctx, env.NewSource()) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(cfg.Get("DB_HOST").String("localhost"), cfg.Get("app.yaml", "db", "port").Int(5432))
	}
}
