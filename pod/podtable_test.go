package pod

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
	registryservice "github.com/micro/go-micro/v2/registry/service"
	util "github.com/micro/go-micro/v2/util/registry"
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
	kubetest.Eventually(t, 10*time.Second, "the valid registration is found", has(r, "greeter", "10.0.0.1:1"))
	ns.register("bad-1", "greeter", "v1", "10.0.0.2:1")
	kubetest.Eventually(t, 10*time.Second, "a corrected registration is found", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))
	if _, err := r.ListServices(); err != nil {
		t.Error(err)
	}
}

// readAsGoMicro reads services in all the ways in which go-micro and its tools read them,
// and modifies them, which a caller may do.
func readAsGoMicro(services []*registry.Service) {
	for _, filter := range []selector.Filter{selector.FilterEndpoint("x"), selector.FilterEndpoint(""), selector.FilterLabel("a", ""), selector.FilterVersion("")} {
		filter(services)
	}
	for _, strategy := range []selector.Strategy{selector.Random, selector.RoundRobin} {
		if n, err := strategy(services)(); err == nil {
			_ = n.Metadata["protocol"]
		}
	}
	all := util.Merge(util.Copy(services), services)
	util.Remove(all, util.Copy(services))
	for _, s := range services {
		registryservice.ToService(registryservice.ToProto(s)) // as go-micro's registry service sends it
		for _, e := range s.Endpoints {
			readValue(e.Request)
			readValue(e.Response)
			e.Metadata["a"] = "b"
		}
		for _, n := range s.Nodes {
			n.Metadata["a"] = "b"
		}
		s.Metadata["a"] = "b"
	}
}

// readValue reads a value as the micro command prints it.
func readValue(v *registry.Value) {
	if v == nil {
		return
	}
	_ = v.Name + v.Type
	for _, w := range v.Values {
		_ = w.Name
		readValue(w)
	}
}

// tableOf returns a table with one ready pod that carries an annotation.
func tableOf(annotation string, index *instanceIndex) podTable {
	table := newPodTable("", index)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p",
		Labels: map[string]string{podmeta.SelectorPrefix + "x": podmeta.TypeValue}, Annotations: map[string]string{podmeta.AnnotationPrefix + "x": annotation}}}
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	table.update(p)
	return table
}

func TestNoAnnotationCrashesClients(t *testing.T) {
	for _, annotation := range []string{
		`{"name":"x","endpoints":[null],"nodes":[{"id":"a","address":"b"}]}`,
		`{"name":"x","endpoints":[{"name":"x","request":{"values":[null,{"values":[null]}]}}],"nodes":[{"id":"a","address":"b"}]}`,
		`{"name":"x","metadata":null,"endpoints":null,"nodes":[{"id":"","address":"b","metadata":null}]}`,
	} {
		func() {
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("%s crashes its readers: %v", annotation, p)
				}
			}()
			table := tableOf(annotation, nil)
			s := &snapshot{table.pods["p"].instances}
			if len(s.instances) != 1 {
				t.Errorf("%s: %d instances, want 1", annotation, len(s.instances))
			}
			readAsGoMicro(s.services())
			readAsGoMicro(s.services()) // another copy, without what the first reader wrote
		}()
	}
}

func FuzzTable(f *testing.F) {
	f.Add([]byte(`{"name":"greeter","version":"v1","endpoints":[{"name":"x","request":{"values":[null]}},null],"nodes":[{"id":"a","address":"b"},null]}`))
	f.Add([]byte(`{"name":"greeter","endpoints":[null],"nodes":[{"id":"a","address":"b"}]}`))
	f.Add([]byte(`{"name":"x","endpoints":[{"name":"x","request":{"values":[{"values":[null]}]},"metadata":null}],"nodes":[{"address":"b","metadata":{"a":""}}]}`))
	f.Add([]byte(`null`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, b []byte) {
		var index instanceIndex
		table := tableOf(string(b), &index)
		for _, i := range table.pods["p"].instances {
			if i.Address == "" {
				t.Errorf("an instance without an address from %q", b)
			}
			if index.find(&i.Node) != i {
				t.Errorf("an instance that is not in the index from %q", b)
			}
		}
		readAsGoMicro((&snapshot{table.pods["p"].instances}).services())
		o := newObserver()
		o.table = table
		if all, _, _ := o.instances(); len(all) != len(table.pods["p"].instances) {
			t.Errorf("Observe yields %d instances of %q", len(all), b)
		}
		table.remove("p")
		if len(table.versions) != 0 || index.length() != 0 {
			t.Errorf("left after %q: %d versions", b, len(table.versions))
		}
	})
}
