package discovery

import (
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/jiangjiancc/go_micro_k8s/test/process"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// message describes a message of 12 fields, three of them amounts of money, as go-micro registers
// protobuf messages: with the fields of the generated struct.
func message(name string) *registry.Value {
	field := func(name, kind string, values ...*registry.Value) *registry.Value {
		return &registry.Value{Name: name, Type: kind, Values: values}
	}
	internals := func(state ...*registry.Value) []*registry.Value {
		return []*registry.Value{field("state", "MessageState", state...), field("sizeCache", "int32"), field("unknownFields", "[]uint8")}
	}
	v := field(name, name, internals(field("NoUnkeyedLiterals", "NoUnkeyedLiterals"), field("DoNotCompare", "DoNotCompare"), field("DoNotCopy", "DoNotCopy"))...)
	for _, f := range []string{"order_id", "customer_id", "currency", "created_at", "updated_at", "status", "note", "warehouse", "carrier"} {
		v.Values = append(v.Values, field(f, "string"))
	}
	for _, f := range []string{"net_amount", "tax_amount", "total_amount"} {
		v.Values = append(v.Values, field(f, "Money", append(internals(), field("currency_code", "string"), field("units", "int64"), field("nanos", "int32"))...))
	}
	return v
}

// serviceOf returns a service with so many methods.
func serviceOf(name, version, address string, methods int) *registry.Service {
	s := kubetest.OneInstance(name, version, address)
	for i := range methods {
		method := fmt.Sprintf("Orders.Method%02d", i)
		s.Endpoints = append(s.Endpoints, &registry.Endpoint{Name: method, Request: message(fmt.Sprintf("Method%02dRequest", i)),
			Response: message(fmt.Sprintf("Method%02dResponse", i)), Metadata: map[string]string{}})
	}
	return s
}

func TestServicesWithManyMethodsAreFound(t *testing.T) {
	for _, methods := range []int{0, 1, 12, 40, 70} {
		bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
			want := serviceOf("orders", "v1", "10.0.0.1:1", methods)
			want.Metadata = map[string]string{"team": "orders"}
			p := kubetest.ReadyPod(t, "p", want)
			size := len(p.Annotations[podmeta.AnnotationPrefix+"orders"])
			pods.Put(p)
			for range 2 { // a caller may modify the result
				all, err := s.Get("orders")
				if err != nil || len(all) != 1 {
					t.Fatalf("%d methods, %d bytes: Get returned %d services, %v", methods, size, len(all), err)
				}
				got, _ := json.Marshal(all[0])
				if text, _ := json.Marshal(want); string(got) != string(text) {
					t.Errorf("%d methods: Get returned %.200s, want %.200s", methods, got, text)
				}
				readAsGoMicro(all)
			}
			if all, err := s.List(); err != nil || len(all) != 1 {
				t.Errorf("%d methods, %d bytes: List returned %d services, %v", methods, size, len(all), err)
			}
			for all, err := range s.Observe(t.Context()) {
				if err != nil || len(all) != 1 || len(all[0].Endpoints()) != methods {
					t.Errorf("%d methods: Observe yields %v, %v", methods, all, err)
				}
				break
			}
		})
	}
}

// The plugin takes endpoints and metadata of a version from the first pod that the API server lists,
// which it does in the order of names.
func TestEndpointsAreThoseOfTheFirstPod(t *testing.T) {
	bubble(t, func(t *testing.T, s *Services, pods *kubetest.Pods) {
		for i := range 9 {
			changed := serviceOf("orders", "v1", fmt.Sprint("10.0.0.1:", i), i+1)
			changed.Metadata = map[string]string{"pod": fmt.Sprint(i)}
			pods.Put(kubetest.ReadyPod(t, fmt.Sprint("p-", i), changed))
		}
		check := func(want int) {
			t.Helper()
			for range 50 {
				pods.Put(kubetest.ReadyPod(t, "z", serviceOf("orders", "v1", "10.0.0.2:1", 1))) // publishes again
				pods.Put(kubetest.ReadyPod(t, "z", serviceOf("orders", "v1", "10.0.0.2:2", 1)))
				all, err := s.Get("orders")
				if err != nil || len(all) != 1 || len(all[0].Endpoints) != want || all[0].Metadata["pod"] != fmt.Sprint(want-1) {
					t.Fatalf("Get returned %d endpoints and metadata %v, %v; want those of pod %d", len(all[0].Endpoints), all[0].Metadata, err, want-1)
				}
			}
		}
		check(1)
		pods.Delete("p-0")
		check(2)
	})
}

// An instance stays the same whether its pod comes from a LIST or from a watch.
func TestListAndWatchMakeTheSameInstance(t *testing.T) {
	i := newServiceInformer("orders")
	p := kubetest.ReadyPod(t, "p", serviceOf("orders", "v1", "10.0.0.1:1", 20))
	before := reflect.ValueOf(*p.DeepCopy()).Interface()
	i.Replace([]*corev1.Pod{i.trim(p)})
	listed := i.Snapshot().Instances[0]
	i.Update(p)
	i.Replace([]*corev1.Pod{i.trim(p)})
	if got := i.Snapshot().Instances; len(got) != 1 || got[0] != listed || len(got[0].endpointText().endpoints()) != 20 {
		t.Errorf("the snapshot has the instances %v", got)
	}
	if !reflect.DeepEqual(before, *p) {
		t.Error("the pod was modified")
	}
}

// The pods of a version may all be replaced while the API server cannot be reached. The next LIST then contains only new
// pods, with the same endpoints; a pod of a StatefulSet also has its old name.
func TestEndpointsOfReplacedPodsStay(t *testing.T) {
	pod := func(name, uid, address string) *corev1.Pod {
		p := kubetest.ReadyPod(t, name, serviceOf("orders", "v1", address, 20))
		p.UID = types.UID(uid)
		return p
	}
	for name, replace := range map[string]func(i *Informer){
		"LIST":                   func(i *Informer) { i.Replace([]*corev1.Pod{i.trim(pod("new", "2", "10.0.0.2:1"))}) },
		"LIST with the old name": func(i *Informer) { i.Replace([]*corev1.Pod{i.trim(pod("old", "2", "10.0.0.2:1"))}) },
		"event":                  func(i *Informer) { i.Update(pod("old", "2", "10.0.0.2:1")) },
	} {
		i := newServiceInformer("orders")
		i.Update(pod("old", "1", "10.0.0.1:1"))
		replace(i)
		all := i.Snapshot().Services()
		if len(all) != 1 || all[0].Nodes[0].Address != "10.0.0.2:1" || len(all[0].Endpoints) != 20 {
			t.Errorf("%s: the service has the nodes %v and %d endpoints, want the new one and 20", name, all[0].Nodes, len(all[0].Endpoints))
		}
		for _, p := range []string{"old", "new"} {
			i.Delete(pod(p, "2", "10.0.0.2:1"))
		}
		if x := i.pods.(*table).endpoints; len(x.byNumber)+x.bytes+len(x.unused) != 0 {
			t.Errorf("%s: after the last pod %d texts with %d bytes stay", name, len(x.byNumber), x.bytes)
		}
	}
}

func TestEndpointsAreKeptOnceAndReleased(t *testing.T) {
	table := tableOfService("orders", &index{})
	update := func(p *corev1.Pod) {
		table.update(p)
		table.dropUnused()
	}
	for n := range 100 {
		update(kubetest.ReadyPod(t, fmt.Sprint("p-", n), serviceOf("orders", "v1", fmt.Sprint("10.0.0.1:", n), 20)))
	}
	text := podmeta.CutEndpoints(kubetest.ReadyPod(t, "p", serviceOf("orders", "v1", "10.0.0.1:1", 20)).Annotations[podmeta.AnnotationPrefix+"orders"], func(e string) uint64 {
		if n := len(table.endpoints.byNumber); n != 1 || table.endpoints.bytes != len(e) {
			t.Errorf("%d texts with %d bytes for 100 pods, want one with %d", n, table.endpoints.bytes, len(e))
		}
		return 0
	})
	invalid := kubetest.ReadyPod(t, "p-0", serviceOf("orders", "v1", "10.0.0.1:1", 1))
	invalid.Annotations[podmeta.AnnotationPrefix+"orders"] = strings.Replace(text, `"orders"`, `"other"`, 1)
	update(invalid)
	for n := range 100 {
		update(kubetest.ReadyPod(t, fmt.Sprint("p-", n), serviceOf("orders", "v2", "10.0.0.1:1", n)))
		table.remove(fmt.Sprint("p-", n))
		table.dropUnused()
	}
	if x := table.endpoints; len(x.byNumber)+x.bytes+len(x.unused) != 0 {
		t.Errorf("left: %d texts, %d bytes", len(x.byNumber), x.bytes)
	}
}

// hostileAnnotation returns a registration with as many bytes as Kubernetes allows and as many JSON
// objects as the reader accepts, different for each number.
func hostileAnnotation(number int) string {
	s := fmt.Sprintf(`{"name":"orders","version":"v1","endpoints":[{"name":"%d"}`, number) + strings.Repeat(`,{"name":"`+strings.Repeat("x", 18)+`"}`, 8000)
	return s + `,{"name":"` + strings.Repeat("x", podmeta.MaxPodBytes-len(s)-200) + `"}],"nodes":[{"id":"a","address":"10.0.0.1:1"}]}`
}

// TestFiveThousandHostilePods lists 5,000 pods of one service that have all registered different
// endpoints, as large as Kubernetes allows: 1.3 GB. 16 MiB of them are kept. Calls find all instances.
func TestFiveThousandHostilePods(t *testing.T) {
	const count = 5000
	i := newServiceInformer("orders")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	annotation := hostileAnnotation(1000000)
	begin := process.Time(t)
	func() {
		var listed []*corev1.Pod
		for n := range count {
			different := strings.Replace(annotation, "1000000", fmt.Sprint(1000001+n), 1)
			listed = append(listed, i.trim(podRegistering(fmt.Sprint("p-", n), map[string]string{"orders": different})))
		}
		i.Replace(listed)
	}()
	used := process.Time(t) - begin
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d pods of %d bytes: %d KiB stay, %.2f ms of processor time for each", count, len(annotation), grown>>10, float64(used.Microseconds())/count/1000)
	if n := len(i.Snapshot().Instances); n != count {
		t.Errorf("%d instances, want %d", n, count)
	}
	if grown > 40<<20 {
		t.Errorf("the heap has grown by %d KiB, want at most 40 MiB", grown>>10)
	}
	begin = process.Time(t)
	all := i.Snapshot().Services()
	if len(all) != 1 || len(all[0].Nodes) != count {
		t.Errorf("%d versions", len(all))
	}
	if used := process.Time(t) - begin; used > time.Second {
		t.Errorf("GetService took %s", used)
	}
	runtime.KeepAlive(i)
}

// BenchmarkUpdate measures the event of a pod whose readiness has changed.
func BenchmarkUpdate(b *testing.B) {
	for _, methods := range []int{1, 9, 40} {
		p := kubetest.ReadyPod(b, "p", serviceOf("orders", "v1", "10.0.0.1:1", methods))
		b.Run(fmt.Sprint(methods, " methods"), func(b *testing.B) {
			i := newServiceInformer("orders")
			b.SetBytes(int64(len(p.Annotations[podmeta.AnnotationPrefix+"orders"])))
			for b.Loop() {
				i.Update(p)
			}
		})
	}
}
