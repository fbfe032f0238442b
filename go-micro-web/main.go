// Command go-micro-web answers HTTP requests with the name of its pod. Below /registry/ it serves a live page
// of the registry (package dashboard). It registers with the Kubernetes API server as go-micro-web.
//
// It listens on port 9200 and runs in a pod. k8s/pod-rbac.yaml allows its service account to list, watch and
// patch pods. Its manifest sets POD_NAME; Kubernetes sets HOSTNAME, KUBERNETES_SERVICE_HOST and
// KUBERNETES_SERVICE_PORT. Outside of the cluster it needs a kubeconfig and registers nothing
// (docs/laptop.md). The flags and MICRO_* variables of go-micro apply; --help lists them.
package main

import (
	"fmt"
	"net/http"
	"os"

	"github.com/jiangjiancc/go_micro_k8s/go-micro-web/dashboard"
	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/identity"
	"github.com/jiangjiancc/go_micro_k8s/pod/metrics"
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
		web.Registry(registry), // registers with Kubernetes
		web.Address(DefaultServerPort),
		pod.WebLifecycle(registry),  // health, readiness, drain
		metrics.ServeWeb(registry),  // if POD_METRICS_ADDRESS is set
		identity.ServeWeb(registry)) // calls over mutual TLS, if POD_IDENTITY is set

	service.HandleFunc("/", podName)
	service.Handle("/registry/", dashboard.New(registry)) // the live page

	if err := service.Init(); err != nil {
		return fmt.Errorf("reading flags: %w", err)
	}
	return service.Run()
}

func podName(writer http.ResponseWriter, request *http.Request) {
	_, _ = writer.Write([]byte(os.Getenv("HOSTNAME")))
}
