package metrics

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/test/orders"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// newCaller starts a service and returns a function that calls it through a client of pod. No API server is needed: the
// service registers in memory, and the client has its address.
func newCaller(t testing.TB, withMetrics bool) (call func()) {
	address := freeAddress(t)
	r := pod.NewRegistry(kubernetes.NewRegistry)
	if withMetrics {
		New(r)
	}
	ctx, cancel := context.WithCancel(context.Background())
	service := micro.NewService(micro.Server(grpcs.NewServer(server.Address(address), server.Name("orders"))), micro.Client(pod.NewClient(r, grpcc.NewClient())),
		micro.Registry(memory.NewRegistry()), micro.Context(ctx), micro.HandleSignal(false), pod.Lifecycle(r, pod.DrainWait(0)))
	if err := orders.RegisterOrdersHandler(service.Server(), shop{}); err != nil {
		t.Fatal(err)
	}
	run(t, cancel, service)
	caller := orders.NewOrdersService("orders", service.Client())
	at, request := client.WithAddress(address), &orders.OrderRequest{}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := caller.GetOrder(context.Background(), request, at); err == nil {
			break
		} else if time.Since(begin) > 20*time.Second {
			t.Fatal(err)
		}
	}
	return func() {
		if _, err := caller.GetOrder(context.Background(), request, at); err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkCall makes calls, each of which ends in the client and in the server of this process. BenchmarkCount measures what on adds
// to off without the noise of a network, and also counts the attempt, which has no pod here.
func BenchmarkCall(b *testing.B) {
	for name, on := range map[string]bool{"off": false, "on": true} {
		b.Run(name, func(b *testing.B) {
			call := newCaller(b, on)
			b.ReportAllocs()
			for b.Loop() {
				call()
			}
		})
	}
}

func TestMetricsAddNoAllocationToCalls(t *testing.T) {
	allocations := func(call func()) float64 {
		const calls = 2000
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range calls {
			call()
		}
		runtime.ReadMemStats(&after)
		return float64(after.Mallocs-before.Mallocs) / calls
	}
	off, on := allocations(newCaller(t, false)), allocations(newCaller(t, true))
	if on > off+0.5 {
		t.Errorf("a call allocates %.2f times without metrics, %.2f times with metrics", off, on)
	}
}
