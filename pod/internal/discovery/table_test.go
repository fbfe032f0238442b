package discovery

import (
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
	registryservice "github.com/micro/go-micro/v2/registry/service"
	util "github.com/micro/go-micro/v2/util/registry"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

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

// tableOfService returns the table of an informer of one service.
func tableOfService(service string, x *index) *table {
	t := newTable(service, x, podmeta.Limits{})
	return &t
}

// tableOf returns a table with one ready pod that carries an annotation.
func tableOf(annotation string, x *index) *allServices {
	table := newAllServices(x, podmeta.Limits{})
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
			table := tableOf(annotation, &index{})
			s := &Snapshot{table.pods["p"].instances}
			if len(s.Instances) != 1 {
				t.Errorf("%s: %d instances, want 1", annotation, len(s.Instances))
			}
			readAsGoMicro(s.Services())
			readAsGoMicro(s.Services()) // another copy, without what the first reader wrote
		}()
	}
}

// The instances of a version share the metadata of their nodes if it is equal.
func TestInstancesShareEqualMetadata(t *testing.T) {
	i := newServiceInformer("greeter")
	const annotation = `{"name":"greeter","version":"v1","metadata":{"a":"b"},"nodes":[{"id":"%[1]s","address":"10.0.0.1:1","metadata":{"broker":"http","protocol":"%[2]s"}}]}`
	protocols := map[string]string{"p-1": "grpc", "p-2": "mucp", "p-3": "grpc", "p-4": "grpc"}
	var pods []*corev1.Pod
	for _, name := range slices.Sorted(maps.Keys(protocols)) {
		pods = append(pods, podRegistering(name, map[string]string{"greeter": fmt.Sprintf(annotation, name, protocols[name])}))
	}
	i.Replace(pods)
	metadata := map[string]uintptr{} // of pods
	for _, instance := range i.Snapshot().Instances {
		if got := instance.Metadata["protocol"]; got != protocols[instance.Pod] || len(instance.Metadata) != 2 {
			t.Errorf("the metadata of %s is %v", instance.Pod, instance.Metadata)
		}
		metadata[instance.Pod] = reflect.ValueOf(instance.Metadata).Pointer()
	}
	if len(metadata) != 4 || metadata["p-3"] != metadata["p-4"] || metadata["p-2"] == metadata["p-3"] {
		t.Errorf("the maps of the pods are %x", metadata)
	}
}

// What a client keeps of an instance that it does not call, such as those outside its subset.
func TestInstanceTakesLittleMemory(t *testing.T) {
	const annotation = `{"name":"greeter","version":"latest","nodes":[{"id":"greeter-%d","address":"10.0.0.1:1","metadata":{"broker":"http","protocol":"grpc","registry":"kubernetes","server":"grpc","transport":"grpc"}}]}`
	const count = 5000
	i := newServiceInformer("greeter")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	func() {
		var listed []*corev1.Pod
		for n := range count {
			listed = append(listed, i.trim(podRegistering(fmt.Sprint("p-", n), map[string]string{"greeter": fmt.Sprintf(annotation, n)})))
		}
		i.Replace(listed)
	}()
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / count
	t.Logf("%d bytes for each instance", each)
	if each > 1200 {
		t.Errorf("an instance takes %d bytes, want at most 1200", each)
	}
	runtime.KeepAlive(i)
}

func FuzzTable(f *testing.F) {
	f.Add([]byte(`{"name":"greeter","version":"v1","endpoints":[{"name":"x","request":{"values":[null]}},null],"nodes":[{"id":"a","address":"b"},null]}`))
	f.Add([]byte(`{"name":"greeter","endpoints":[null],"nodes":[{"id":"a","address":"b"}]}`))
	f.Add([]byte(`{"name":"x","endpoints":[{"name":"x","request":{"values":[{"values":[null]}]},"metadata":null}],"nodes":[{"address":"b","metadata":{"a":""}}]}`))
	f.Add([]byte(`null`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, b []byte) {
		var x index
		table := tableOf(string(b), &x)
		for _, i := range table.pods["p"].instances {
			if i.Address == "" {
				t.Errorf("an instance without an address from %q", b)
			}
			if x.find(&i.Node) != i {
				t.Errorf("an instance that is not in the index from %q", b)
			}
		}
		readAsGoMicro((&Snapshot{table.pods["p"].instances}).Services())
		if all := table.observed(); len(all) != len(table.pods["p"].instances) {
			t.Errorf("Observe yields %d instances of %q", len(all), b)
		}
		table.remove("p")
		if len(table.versions) != 0 || len(x.byNode) != 0 {
			t.Errorf("left after %q: %d versions", b, len(table.versions))
		}
	})
}
