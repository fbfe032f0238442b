package balancer

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

// staticRegistry is a registry that makes no connection.
type staticRegistry struct {
	registry.Registry
	services *discovery.Services
	choosers *Choosers
	events   []Events
	subset   int
	zone     func() string // of this process
	isClosed bool

	ignoreZones bool
}

// newStaticRegistry returns a registry, and the informer of the greeter, which knows n ready
// pods.
func newStaticRegistry(t testing.TB, n int) (*staticRegistry, *discovery.Informer) {
	t.Helper()
	r := &staticRegistry{}
	r.services = discovery.New(func() (discovery.API, error) {
		if r.isClosed {
			return discovery.API{}, errors.New("closed")
		}
		return discovery.API{API: &kubetest.Pods{}}, nil
	}, func() discovery.Settings { return discovery.Settings{Timeout: time.Minute} })
	t.Cleanup(r.services.Stop)
	r.choosers = NewChoosers(r.services, func() Options {
		return Options{Events: r.events, Subset: r.subset, Zone: r.zone, IgnoreZones: r.ignoreZones}
	})
	i, err := r.services.Synced(context.Background(), "greeter")
	if err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for n := range n {
		addresses = append(addresses, fmt.Sprint("10.0.0.1:", n+1))
	}
	i.Replace(readyPodsAt(t, addresses...))
	return r, i
}

func (r *staticRegistry) GetService(name string, _ ...registry.GetOption) ([]*registry.Service, error) {
	services, err := r.services.Get(name)
	if err == nil && len(services) == 0 {
		return nil, registry.ErrNotFound
	}
	return services, err
}

func (r *staticRegistry) observe(e Events) { r.events = append(r.events, e) }

func (r *staticRegistry) close() {
	r.isClosed = true
	r.services.Stop()
}

func newSelector(r registry.Registry) *Selector {
	return NewSelector(r, func(r registry.Registry) *Choosers {
		if s, ok := r.(*staticRegistry); ok {
			return s.choosers
		}
		return nil
	})
}

// readyPod returns a ready pod that has registered the greeter, at an address and in a version
// that depend on its number.
func readyPod(t testing.TB, i int) *corev1.Pod { return readyPodAt(t, i, fmt.Sprint("10.0.0.1:", i+1)) }

func readyPodAt(t testing.TB, i int, address string) *corev1.Pod {
	return kubetest.ReadyPod(t, fmt.Sprint("p-", i), kubetest.OneInstance("greeter", fmt.Sprint("v", i%2), address))
}

func readyPodsAt(t testing.TB, addresses ...string) (pods []*corev1.Pod) {
	for i, a := range addresses {
		pods = append(pods, readyPodAt(t, i, a))
	}
	return pods
}

func greeterService(id, address string) *registry.Service {
	s := kubetest.OneInstance("greeter", "v1", address)
	s.Nodes[0].Id = id
	return s
}
