package rpc

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
)

// A client whose interceptors answer health checks themselves, replace the errors of the network, or refuse
// health checks. What they say is no answer of the instance, and does not keep it out either.
func TestInterceptorIsNoAnswerToProbe(t *testing.T) {
	refused := status.Error(codes.PermissionDenied, "by policy")
	for name, intercept := range map[string]func(invoke func() error) error{
		"answers itself":  func(func() error) error { return nil },
		"replaces errors": func(invoke func() error) error { _ = invoke(); return refused },
		"refuses":         func(func() error) error { return refused },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := startRelayed(t, 0), startRelayed(t, 0)
			var probes atomic.Int64
			c, inf := newTestClient(t, []string{a.address, b.address}, client.Retries(0), dialOptions(grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, rsp any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
					next := func() error { return invoke(ctx, method, req, rsp, cc, opts...) }
					if !strings.HasPrefix(method, "/grpc.health") {
						return next()
					}
					defer probes.Add(1)
					return intercept(next)
				})))
			bad := instanceAt(t, inf, a.address)
			eventually(t, "both replicas are called", func() bool {
				_ = export(c, 10*time.Second)
				return a.exports.Load() > 0 && b.exports.Load() > 0
			})
			a.relay.Cut()
			eventually(t, "the replica is out of rotation, and probed twice", func() bool {
				_ = export(c, 10*time.Second)
				return probes.Load() >= 2
			})
			if !isOut(bad) {
				t.Error("a replica is back although it cannot be reached")
			}
			a.relay.Restore()
			eventually(t, "the replica is back", func() bool { _ = export(c, 10*time.Second); return !isOut(bad) })
		})
	}
}

// A closed client that is still called does not take the probes of a client beside it.
func TestClosedClientTakesNoProbe(t *testing.T) {
	a, b := startRelayed(t, 0), startRelayed(t, 0)
	services := newServices(t, &kubetest.Pods{})
	inf, err := services.Synced(t.Context(), "greeter")
	if err != nil {
		t.Fatal(err)
	}
	inf.Replace([]*corev1.Pod{greeterPod(t, 0, a.address), greeterPod(t, 1, b.address)})
	choosers := balancer.NewChoosers(services, func() balancer.Options { return balancer.Options{} })
	newClient := func() *Client {
		s := balancer.NewSelector(testRegistry{services: services}, func(registry.Registry) *balancer.Choosers { return choosers })
		return newClientOf(t, services, client.Selector(s), client.Retries(0))
	}
	c, closed := newClient(), newClient()
	bad := instanceAt(t, inf, a.address)
	eventually(t, "both replicas are called", func() bool {
		_ = export(c, 10*time.Second)
		return a.exports.Load() > 0 && b.exports.Load() > 0
	})
	a.relay.Cut()
	eventually(t, "the replica is out of rotation", func() bool { _ = export(c, 10*time.Second); return isOut(bad) })
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	a.relay.Restore()
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	callers.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(100 * time.Microsecond) {
			_ = export(closed, 10*time.Second)
		}
	})
	defer callers.Wait()
	defer cancel()
	for range 50 {
		time.Sleep(200 * time.Millisecond)
		if _ = export(c, 10*time.Second); !isOut(bad) {
			return
		}
	}
	t.Error("the replica is not back after 50 calls of the client that is open")
}
