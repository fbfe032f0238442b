package pod

import (
	"context"
	stderrors "errors"
	"fmt"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// newStaticRegistry returns a registry that knows n ready pods and makes no connection.
func newStaticRegistry(t testing.TB, n int) (*Registry, *discovery.Informer) {
	t.Helper()
	r := newRegistry(apiserver.ProcessEnvironment, nil)
	pods := &kubetest.Pods{}
	r.setServices(discovery.New(func() (discovery.API, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.closed {
			return discovery.API{}, stderrors.New("using the registry: it is closed")
		}
		return discovery.API{API: pods}, nil
	}, r.readSettings))
	t.Cleanup(func() { r.services.Stop() })
	inf, err := r.services.Synced(context.Background(), "greeter")
	if err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for i := range n {
		addresses = append(addresses, fmt.Sprint("10.0.0.1:", i+1))
	}
	inf.Replace(readyPodsAt(t, addresses...))
	return r, inf
}

// readyPodAt returns a pod that is ready and has the greeter's annotation, at an address and in a version that depends
// on its number.
func readyPodAt(t testing.TB, i int, address string) *corev1.Pod {
	name := fmt.Sprint("p-", i)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{podmeta.SelectorPrefix + "greeter": podmeta.TypeValue},
		Annotations: map[string]string{podmeta.AnnotationPrefix + "greeter": string(annotation(t, name, "greeter", fmt.Sprint("v", i%2), address))}}}
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	return p
}

func readyPodsAt(t testing.TB, addresses ...string) (pods []*corev1.Pod) {
	for i, a := range addresses {
		pods = append(pods, readyPodAt(t, i, a))
	}
	return pods
}
