// Command go-micro-web answers every HTTP request with the name of the pod that serves it, but for
// /registry/, where it shows the registry live (page.go). It registers itself with the Kubernetes API
// server as go-micro-web.
//
// It listens on port 9200. It runs in a pod, whose service account k8s/pod-rbac.yaml allows to list, watch
// and patch pods, and needs POD_NAME, from its manifest, and what Kubernetes gives every pod: HOSTNAME, which it
// answers, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT. go-micro's own flags and MICRO_* variables apply; --help lists them.
package main

import (
	"fmt"
	"net/http"
	"os"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2/web"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

var (
	DefaultServiceName = "go-micro-web"
	DefaultServerPort  = ":9200"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "running %q: %v\n", DefaultServiceName, err)
		os.Exit(1)
	}
}

func run() error {
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	service := web.NewService(
		web.Name(DefaultServiceName),
		web.Registry(registry), // registers to Kubernetes
		web.Address(DefaultServerPort),
		pod.WebLifecycle(registry)) // health, readiness, drain

	service.HandleFunc("/", podName)
	service.Handle("/registry/", newPage(registry)) // for people: who is registered, live

	if err := service.Init(); err != nil {
		return fmt.Errorf("reading flags: %w", err)
	}
	return service.Run()
}

func podName(writer http.ResponseWriter, request *http.Request) {
	_, _ = writer.Write([]byte(os.Getenv("HOSTNAME")))
}
