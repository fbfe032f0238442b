package pod

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestMalformedAnnotationAffectsOnlyItsPod(t *testing.T) {
	ns := newNamespace(t)
	r := ns.openRegistry("reader")
	for i, text := range []string{"", "{", "null", "[]", `{"name":7}`, `{"name":"greeter","nodes":[null,{}]}`, `{"name":"other","nodes":[{"id":"x","address":"y"}]}`, strings.Repeat("[", 10000)} {
		name := fmt.Sprint("bad-", i)
		ns.CreateReadyPod(name)
		ns.Register(name, "greeter", text)
	}
	ns.CreateReadyPod("good")
	ns.register("good", "greeter", "v1", "10.0.0.1:1")
	kubetest.Eventually(t, 2*time.Second, "the good one", has(r, "greeter", "10.0.0.1:1"))
	ns.register("bad-1", "greeter", "v1", "10.0.0.2:1")
	kubetest.Eventually(t, 2*time.Second, "a bad one mended", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))
	if _, err := r.ListServices(); err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"name":"greeter","version":"v1","endpoints":[{"name":"x","request":{"values":[null]}},null],"nodes":[{"id":"a","address":"b"},null]}`))
	f.Add([]byte(`null`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := decode(b); err != nil {
			return
		}
		var index instanceIndex
		table := newPodTable("", &index)
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p",
			Labels: map[string]string{selectorPrefix + "x": typeValue}, Annotations: map[string]string{annotationPrefix + "x": string(b)}}}
		p.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
		table.update(p)
		for _, i := range table.pods["p"].instances {
			if i.Address == "" {
				t.Errorf("an instance without an address from %q", b)
			}
		}
		_ = (&snapshot{table.pods["p"].instances}).services()
		table.remove("p")
		if len(table.versions) != 0 || index.length() != 0 {
			t.Errorf("left after %q: %d versions", b, len(table.versions))
		}
	})
}
