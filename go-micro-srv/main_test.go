package main

import (
	"context"
	"testing"

	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
)

// serve starts the Greeter on a free loopback port and registers it in an in-memory registry.
func serve(t *testing.T) (server.Server, registry.Registry) {
	t.Helper()
	services := memory.NewRegistry()
	srv := grpcs.NewServer(
		server.Name(DefaultServiceName),
		server.Address("127.0.0.1:0"),
		server.Registry(services),
	)
	if err := proto.RegisterGreeterHandler(srv, new(Greeter)); err != nil {
		t.Fatal(err)
	}
	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Stop(); err != nil {
			t.Error(err)
		}
	})
	return srv, services
}

func TestHello(t *testing.T) {
	_, services := serve(t)
	find := selector.NewSelector(selector.Registry(services))
	t.Cleanup(func() { _ = find.Close() })
	greeter := proto.NewGreeterService(DefaultServiceName, grpcc.NewClient(client.Selector(find)))

	for _, tt := range []struct{ name, request, want string }{
		{"the name the client sends", "XXX", "Hello XXX!"},
		{"no name", "", "Hello !"},
		{"more than ASCII", "Zo\u00eb", "Hello Zo\u00eb!"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rsp, err := greeter.Hello(context.Background(), &proto.HelloRequest{Name: tt.request})
			if err != nil {
				t.Fatal(err)
			}
			if rsp.Greeting != tt.want {
				t.Errorf("greeting is %q, want %q", rsp.Greeting, tt.want)
			}
		})
	}
}

// TestRegistration checks the registration that the Kubernetes registry would write
// into the pod's annotation, and that Stop removes it.
func TestRegistration(t *testing.T) {
	srv, services := serve(t)

	found, err := services.GetService("go-micro-srv")
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || len(found[0].Nodes) != 1 || len(found[0].Endpoints) != 1 {
		t.Fatalf("found %+v, want one version with one node and one endpoint", found)
	}
	if got, want := found[0].Nodes[0].Address, srv.Options().Address; got != want {
		t.Errorf("the registered address is %q, the server listens on %q", got, want)
	}
	endpoint := found[0].Endpoints[0]
	if got := [...]string{endpoint.Name, endpoint.Request.Type, endpoint.Response.Type}; got != [...]string{"Greeter.Hello", "HelloRequest", "HelloResponse"} {
		t.Errorf("endpoint, request and response are %q", got)
	}

	if err := srv.Stop(); err != nil {
		t.Fatal(err)
	}
	if left, _ := services.GetService("go-micro-srv"); len(left) != 0 && len(left[0].Nodes) != 0 {
		t.Errorf("node %+v is still registered after Stop", left[0].Nodes[0])
	}
}
