package kubetest

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pods is an API server without a network for tests of readers: it holds pods and tells its
// watchers about each change, in the goroutine of the test, before the method that makes
// the change returns. Its zero value holds no pods. It implements podwatch.API.
type Pods struct {
	mu       sync.Mutex
	pods     map[string]*corev1.Pod
	watchers map[*podWatcher]bool
	err      error
	lists    int
}

type podWatcher struct {
	selector apiserver.Selector
	trim     func(*corev1.Pod) *corev1.Pod
	handler  apiserver.Handler[*corev1.Pod]
}

// ListWatchPods passes the selected pods and all changes to h until ctx ends.
func (f *Pods) ListWatchPods(ctx context.Context, selector apiserver.Selector, trim func(*corev1.Pod) *corev1.Pod, h apiserver.Handler[*corev1.Pod]) {
	w := &podWatcher{selector, trim, h}
	f.mu.Lock()
	if f.watchers == nil {
		f.watchers = map[*podWatcher]bool{}
	}
	f.watchers[w] = true
	f.list(w)
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.watchers, w)
}

// list answers a watcher's LIST. The caller holds f.mu.
func (f *Pods) list(w *podWatcher) {
	f.lists++
	if f.err != nil {
		w.handler.StateChanged(f.err)
		return
	}
	var selected []*corev1.Pod
	for _, p := range f.pods {
		if w.selects(p) {
			selected = append(selected, w.trim(p))
		}
	}
	w.handler.Replace(selected)
}

// Put creates or changes a pod. The caller must not modify p afterwards.
func (f *Pods) Put(p *corev1.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pods == nil {
		f.pods = map[string]*corev1.Pod{}
	}
	before := f.pods[p.Name]
	f.pods[p.Name] = p
	for w := range f.watchers {
		if w.selects(p) {
			w.handler.Update(w.trim(p))
		} else if w.selects(before) {
			w.handler.Delete(w.trim(before))
		}
	}
}

// Delete deletes a pod.
func (f *Pods) Delete(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pods[name]
	delete(f.pods, name)
	for w := range f.watchers {
		if w.selects(p) {
			w.handler.Delete(w.trim(p))
		}
	}
}

// Fail makes all requests fail, and with nil succeed again.
func (f *Pods) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	for w := range f.watchers {
		if err != nil {
			w.handler.StateChanged(err)
			continue
		}
		w.handler.StateChanged(nil)
		f.list(w)
	}
}

// Requests returns the number of LISTs so far and of watchers now.
func (f *Pods) Requests() (lists, watchers int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lists, len(f.watchers)
}

// selects reports whether the watcher selects a pod, which may be nil. Selectors have at most
// one label and one field, the name.
func (w *podWatcher) selects(p *corev1.Pod) bool {
	if p == nil {
		return false
	}
	if key, value, ok := strings.Cut(w.selector.Labels, "="); ok && p.Labels[key] != value {
		return false
	}
	name, ok := strings.CutPrefix(w.selector.Fields, "metadata.name=")
	return !ok || p.Name == name
}

// ReadyPod returns a pod that can receive calls and has registered the services.
func ReadyPod(t testing.TB, name string, services ...*registry.Service) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{podmeta.TypeLabel: podmeta.TypeValue}, Annotations: map[string]string{}}}
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	for _, s := range services {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		key := podmeta.LabelName(s.Name)
		p.Labels[podmeta.SelectorPrefix+key], p.Annotations[podmeta.AnnotationPrefix+key] = podmeta.TypeValue, string(b)
	}
	return p
}

// OneInstance returns a service with one instance, as a server passes it to Register.
func OneInstance(service, version, address string) *registry.Service {
	return &registry.Service{Name: service, Version: version, Endpoints: []*registry.Endpoint{},
		Nodes: []*registry.Node{{Id: service + "-" + address, Address: address, Metadata: map[string]string{"protocol": "grpc"}}}}
}
