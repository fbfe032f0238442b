package dashboard

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2/registry"
)

func TestViewIsBounded(t *testing.T) {
	deep := &registry.Value{Type: "T"}
	for range 1000 {
		deep = &registry.Value{Type: "T", Values: []*registry.Value{deep, nil}}
	}
	big := greeterInstance(1, pod.Ready)
	big.Version, big.Endpoints = strings.Repeat("v", 1<<20), nil
	for i := range 10000 {
		big.Endpoints = append(big.Endpoints, &registry.Endpoint{Name: fmt.Sprint(i), Request: deep})
	}
	_, _, srv := serve(t, big)
	if _, body := get(t, srv.URL+root+"services.json"); len(body) > 64<<10 {
		t.Errorf("services.json is %d bytes, want at most 64 KiB", len(body))
	}
}
