package rpc

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podwatch"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

// The tests of this package need no API server: they give pods to real informers, and call
// servers on loopback.

// newTestClient returns a Client that knows greeters at addresses, and their informer.
func newTestClient(t testing.TB, addresses []string, opts ...client.Option) (*Client, *discovery.Informer) {
	t.Helper()
	return newObservedClient(t, addresses, balancer.Events{}, opts...)
}

// newObservedClient is newTestClient with callbacks for the events of the balancer.
func newObservedClient(t testing.TB, addresses []string, events balancer.Events, opts ...client.Option) (*Client, *discovery.Informer) {
	t.Helper()
	services := newServices(t, &kubetest.Pods{})
	inf, err := services.Synced(t.Context(), "greeter")
	if err != nil {
		t.Fatal(err)
	}
	var pods []*corev1.Pod
	for i, a := range addresses {
		pods = append(pods, greeterPod(t, i, a))
	}
	inf.Replace(pods)
	return newClientFrom(t, services, grpcc.NewClient(opts...), events), inf
}

// newServices returns services that read from an API server.
func newServices(t testing.TB, api podwatch.API) *discovery.Services {
	s := discovery.New(func() (discovery.API, error) { return discovery.API{API: api}, nil }, func() discovery.Settings { return discovery.Settings{Timeout: time.Minute, AnyAddress: true} })
	t.Cleanup(s.Stop)
	return s
}

// noPath is the network.
func noPath() Path { return nil }

// noCredentials are those of plaintext.
func noCredentials() Credentials { return nil }

// newClientOf returns a Client that calls services.
func newClientOf(t testing.TB, services *discovery.Services, opts ...client.Option) *Client {
	return newClientFrom(t, services, grpcc.NewClient(opts...))
}

// newClientFrom returns a Client that calls services with the options of a client of go-micro.
func newClientFrom(t testing.TB, services *discovery.Services, grpcClient client.Client, events ...balancer.Events) *Client {
	if grpcClient.Options().Selector == selector.DefaultSelector {
		r := testRegistry{services: services}
		choosers := balancer.NewChoosers(services, func() balancer.Options { return balancer.Options{Events: events} })
		_ = grpcClient.Init(client.Selector(balancer.NewSelector(r, func(registry.Registry) *balancer.Choosers { return choosers })))
	}
	c := New(grpcClient, services.InstanceOf, noPath, noCredentials, nil)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// testRegistry is as much of a registry as a selector reads.
type testRegistry struct {
	registry.Registry
	services *discovery.Services
}

func (r testRegistry) GetService(name string, _ ...registry.GetOption) ([]*registry.Service, error) {
	return r.services.Get(name)
}

// silentAPI is an API server that does not answer.
type silentAPI struct{}

func (silentAPI) ListWatchPods(ctx context.Context, _ apiserver.Selector, _ func(*corev1.Pod) *corev1.Pod, _ apiserver.Handler[*corev1.Pod]) {
	<-ctx.Done()
}

// greeterPod returns the i-th pod, which has registered a greeter at an address.
func greeterPod(t testing.TB, i int, address string) *corev1.Pod {
	return kubetest.ReadyPod(t, fmt.Sprint("p-", i), kubetest.OneInstance("greeter", fmt.Sprint("v", i%2), address))
}

// newInstance returns an instance at an address, and the function with which it leaves the registry.
func newInstance(address string) (*discovery.Instance, func()) {
	return discovery.NewInstance(registry.Node{Address: address}, &registry.Service{Name: "greeter"}, "p-0")
}

func instancesOf(c *Client) []balancer.InstanceCalls {
	if s := c.settings.Load().selector; s != nil {
		return s.Instances("greeter")
	}
	return nil
}

// checkNoLeak fails the test if it leaves a goroutine behind. Call it first.
func checkNoLeak(t *testing.T) {
	kubetest.CheckNoLeak(t, "github.com/micro/go-micro/v2/registry/memory.(*Registry).ttlPrune",
		"github.com/micro/go-micro/v2/registry/cache.(*cache).watch.func1") // selectors of tests before this one watch again now and then
}
