package rpc

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	corev1 "k8s.io/api/core/v1"
)

// orders are servers of a service with a fast method, Orders.Get, a slow one, Orders.Export, and a
// stream, Orders.Watch. Exports and streams end with the test.
type orders struct {
	addresses []string
	gets      []atomic.Int64
}

func startOrders(t *testing.T, n int) *orders {
	o := &orders{gets: make([]atomic.Int64, n)}
	for i := range n {
		address, _ := startGRPC(t, func(ctx context.Context, method string, _ []byte) ([]byte, error) {
			if strings.HasSuffix(method, "/Get") {
				o.gets[i].Add(1)
				time.Sleep(2 * time.Millisecond)
			} else {
				<-ctx.Done()
			}
			return marshal(&proto.HelloResponse{}), nil
		})
		o.addresses = append(o.addresses, address)
	}
	return o
}

// checkSpread makes 8 callers call Orders.Get, and fails the test if an instance gets 20 % more or
// fewer calls than the others on average.
func (o *orders) checkSpread(t *testing.T, c client.Client) {
	t.Helper()
	const callers, calls = 8, 250
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			for range calls {
				if err := c.Call(t.Context(), c.NewRequest("greeter", "Orders.Get", &proto.HelloRequest{}), &proto.HelloResponse{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	var got []int64
	isEven := true
	for i := range o.gets {
		n := o.gets[i].Load()
		got = append(got, n)
		isEven = isEven && math.Abs(float64(n)*float64(len(o.gets))/(callers*calls)-1) <= 0.2
	}
	t.Logf("calls by instance: %v", got)
	if !isEven {
		t.Error("the calls are not spread within 20 %")
	}
}

// Exports that run for long do not keep the fast calls away from their instances, although the
// client has never called the method before.
func TestFastCallsSpreadBesideExports(t *testing.T) {
	o := startOrders(t, 4)
	c, _ := newTestClient(t, o.addresses, client.Retries(0))
	ctx, cancel := context.WithCancel(t.Context())
	var exports sync.WaitGroup
	for range 3 {
		exports.Go(func() {
			_ = c.Call(ctx, c.NewRequest("greeter", "Orders.Export", &proto.HelloRequest{}), &proto.HelloResponse{}, client.WithRequestTimeout(time.Minute))
		})
	}
	defer exports.Wait()
	defer cancel()
	kubetest.Eventually(t, 10*time.Second, "the exports are in flight", func() error {
		if n := inFlightCalls(c); n != 3 {
			return fmt.Errorf("%d exports", n)
		}
		return nil
	})
	o.checkSpread(t, c)
}

// Calls are balanced by calls: an instance that joins and has no stream gets no more of them.
func TestFastCallsSpreadBesideStreams(t *testing.T) {
	o := startOrders(t, 4)
	c, inf := newTestClient(t, o.addresses[:3])
	for range 60 {
		s, err := c.Stream(t.Context(), c.NewRequest("greeter", "Orders.Watch", nil, client.StreamingRequest()))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
	}
	var pods []*corev1.Pod
	for i, a := range o.addresses {
		pods = append(pods, greeterPod(t, i, a))
	}
	inf.Replace(pods)
	o.checkSpread(t, c)
}
