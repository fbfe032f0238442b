package pod

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
)

// TestServiceStartsBeforeItsSidecar starts a service and a client while every connection to the API server breaks, as in the first
// second of a pod whose sidecar starts later. See docs/mesh.md.
func TestServiceStartsBeforeItsSidecar(t *testing.T) {
	n := kubetest.NewNamespace(t)
	n.CreatePod("server-0")
	n.CreateReadyPod("client-0")
	sidecar := n.StartRelay(t)
	sidecar.Cut()
	begin := time.Now()
	svc := startGreeter(t, sidecar.Through(n.Environment("server-0")), 0)
	registry := newRegistry(sidecar.Through(n.Environment("client-0")), kubernetes.NewRegistry)
	defer registry.Close()
	c := NewClient(registry, grpcc.NewClient(dialOptions(grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", svc.address) // the address of the pod does not exist
	}))))
	if err := callHello(t.Context(), c); err == nil || !strings.Contains(err.Error(), "list pods in namespace") {
		t.Errorf("before the sidecar is up, a call returns %v, want an error that names the request to the API server", err)
	}
	time.Sleep(time.Until(begin.Add(time.Second)))
	if n.Registered("server-0", "greeter") {
		t.Error("the service is registered before the sidecar is up")
	}
	sidecar.Restore()
	up := time.Now()
	kubetest.Eventually(t, 20*time.Second, "the service is registered", func() error {
		if !n.Registered("server-0", "greeter") {
			return errors.New("not on its pod")
		}
		return nil
	})
	t.Logf("registered %s after the sidecar was up", time.Since(up).Round(time.Millisecond))
	n.SetStatus("server-0", corev1.PodRunning, corev1.ConditionTrue)
	kubetest.Eventually(t, 20*time.Second, "the client is answered", func() error { return callHello(t.Context(), c) })
	select {
	case err := <-svc.runErr:
		t.Errorf("the service has ended: %v", err)
	default:
	}
	if lines := kubetest.LogLines(t, begin, n.Name, "retrying"); len(lines) > 2 {
		t.Errorf("%d lines in the log: %q", len(lines), lines)
	}
}
