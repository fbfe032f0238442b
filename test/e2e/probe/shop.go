package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/configwatch"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-micro/v2/web"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// shop serves as one of the services of preflight/testdata/mended: with the name, the address and the limits that their code has after
// the changes of docs/adopting.md.
func shop(name string, configMaps []string) error {
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	if name == "shop.web.user" {
		return shopPage(name, registry)
	}
	for _, m := range configMaps {
		go func() {
			if err := printConfigMap(m); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}()
	}
	address := map[string]string{"account": ":8080", "friends": ":9100"}[name] // stock takes it from MICRO_SERVER_ADDRESS
	service := micro.NewService(
		micro.Server(grpcs.NewServer(server.Name(name), server.Address(address))),
		micro.Client(grpcc.NewClient()),
		micro.Registry(registry),
		pod.Lifecycle(registry),
	)
	service.Init()
	if err := proto.RegisterGreeterHandler(service.Server(), shopGreeter(name)); err != nil {
		return err
	}
	return service.Run()
}

type shopGreeter string

func (g shopGreeter) Hello(_ context.Context, req *proto.HelloRequest, rsp *proto.HelloResponse) error {
	rsp.Greeting = fmt.Sprintf("%s greets %s", string(g), req.Name)
	return nil
}

// printConfigMap prints a ConfigMap after each change.
func printConfigMap(name string) error {
	for cfg, err := range configwatch.New("", name).Follow(context.Background()) {
		if err != nil {
			return err
		}
		fmt.Printf("ConfigMap %s: %v\n", name, cfg.Map())
	}
	return nil
}

// shopPage serves a page that calls the other services, and takes uploads of 5 MiB.
func shopPage(name string, registry *pod.Registry) error {
	c := pod.NewClient(registry, grpcc.NewClient())
	service := web.NewService(web.Name(name), web.Address(os.Getenv("SERVICE_ADDRESS")), web.Registry(registry), pod.WebLifecycle(registry, pod.BodyLimit(5<<20, time.Minute)))
	service.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		for _, other := range []string{"account", "friends", "stock"} {
			rsp, err := proto.NewGreeterService(other, c).Hello(r.Context(), &proto.HelloRequest{Name: name})
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
			fmt.Fprintln(w, rsp.Greeting)
		}
	})
	service.HandleFunc("/received", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "received %d bytes, error %v", n, err)
	})
	service.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) { // uploads to itself
		rsp, err := http.Post("http://"+os.Getenv("POD_IP")+os.Getenv("SERVICE_ADDRESS")+"/received", "application/octet-stream", bytes.NewReader(make([]byte, 5<<20)))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer rsp.Body.Close()
		_, _ = io.Copy(w, rsp.Body)
	})
	return service.Run()
}
