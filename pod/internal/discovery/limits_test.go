package discovery

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/jiangjiancc/go_micro_k8s/test/process"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What podmeta.Limits accepts of one pod, beside endpoints.
const maxNodesPerAnnotation, maxAnnotationBytes, maxAnnotationsPerPod = 16, 32 << 10, 32

// podRegistering returns a running, ready pod with two IPs and the given annotations, by
// service.
func podRegistering(name string, annotations map[string]string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{podmeta.TypeLabel: podmeta.TypeValue}, Annotations: map[string]string{}}}
	for service, value := range annotations {
		p.Labels[podmeta.SelectorPrefix+podmeta.LabelName(service)] = podmeta.TypeValue
		p.Annotations[podmeta.AnnotationPrefix+podmeta.LabelName(service)] = value
	}
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	return p
}

// registrationOf returns an annotation with one node for each address.
func registrationOf(service string, addresses ...string) string {
	s := registry.Service{Name: service, Version: "v1"}
	for _, a := range addresses {
		s.Nodes = append(s.Nodes, &registry.Node{Id: a, Address: a})
	}
	b, _ := json.Marshal(s)
	return string(b)
}

// captureLog returns the log lines about skipped registrations that f causes. Replacing the
// logger instead would be a data race with goroutines that other tests have left.
func captureLog(t *testing.T, f func()) []string {
	t.Helper()
	begin := time.Now()
	f()
	return kubetest.LogLines(t, begin, "Skipping the registration")
}

func repeat(n int, address string) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = address
	}
	return all
}

func TestRegistrationsOverALimitAreSkipped(t *testing.T) {
	const own = "10.0.0.1:1"
	many := map[string]string{}
	for i := range maxAnnotationsPerPod + 1 {
		service := fmt.Sprintf("service-%02d", i)
		many[service] = registrationOf(service, own)
	}
	large := func(service string, bytes int) string {
		r := registrationOf(service, own)
		return strings.Replace(r, `"v1"`, `"v1`+strings.Repeat("x", bytes-len(r))+`"`, 1)
	}
	for _, c := range []struct {
		name        string
		annotations map[string]string
		want        int    // instances
		log         string // "" for no line
	}{
		{"as many nodes as allowed", map[string]string{"a": registrationOf("a", repeat(maxNodesPerAnnotation, own)...)}, maxNodesPerAnnotation, ""},
		{"one node too many", map[string]string{"a": registrationOf("a", repeat(maxNodesPerAnnotation+1, own)...), "b": registrationOf("b", own)}, 1, "17 nodes"},
		{"as many bytes as allowed", map[string]string{"a": large("a", maxAnnotationBytes)}, 1, ""},
		{"one byte too many", map[string]string{"a": large("a", maxAnnotationBytes+1), "b": registrationOf("b", own)}, 1, "32769 bytes beside its endpoints"},
		{"one annotation too many", many, maxAnnotationsPerPod, "32 registrations"},
		{"too many bytes together", map[string]string{"a": large("a", maxAnnotationBytes), "b": large("b", maxAnnotationBytes), "c": registrationOf("c", own)}, 2, "65536 bytes"},
		{"too many JSON objects", map[string]string{"a": `{"name":"a","other":[` + strings.Repeat("{},", 1100) + `{}],"nodes":[{"id":"x","address":"10.0.0.1:1"}]}`}, 0, "1024"},
		{"a service that does not match the annotation's key", map[string]string{"a": registrationOf("other", own)}, 0, `"other"`},
		{"name that the plugin rewrites", map[string]string{"a b/c": registrationOf("a b/c", own)}, 1, ""},
		{"second IP of the pod", map[string]string{"a": registrationOf("a", "[fd00:0::1]:1")}, 1, ""},
		{"address without a port", map[string]string{"a": registrationOf("a", "10.0.0.1")}, 1, ""},
		{"address of another pod", map[string]string{"a": registrationOf("a", own, "10.0.0.2:1")}, 0, `"10.0.0.2:1"`},
		{"host name", map[string]string{"a": registrationOf("a", "go-micro-srv:1")}, 0, `"go-micro-srv:1"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := newAllServices(&index{}, podmeta.Limits{})
			var got int
			log := captureLog(t, func() {
				for range 3 {
					table.update(podRegistering("p", c.annotations))
				}
				got = len(table.pods["p"].instances)
			})
			if got != c.want {
				t.Errorf("%d instances, want %d; log: %q", got, c.want, log)
			}
			if c.log == "" && len(log) > 0 || c.log != "" && (len(log) != 1 || !strings.Contains(log[0], c.log) || !strings.Contains(log[0], `pod "p"`)) {
				t.Errorf("the log is %q, want one line with %q", log, c.log)
			}
		})
	}
}

func TestAnyAddress(t *testing.T) {
	table := tableOfService("a", &index{})
	table.limits.AnyAddress = true
	table.update(podRegistering("p", map[string]string{"a": registrationOf("a", "gateway.example:443")}))
	if got := len(table.pods["p"].instances); got != 1 {
		t.Errorf("%d instances, want 1", got)
	}
}

// TestAddressesFollowPodIP changes the IP of a pod, as a new sandbox does.
func TestAddressesFollowPodIP(t *testing.T) {
	table := tableOfService("a", &index{})
	p := podRegistering("p", map[string]string{"a": registrationOf("a", "10.0.0.2:1")})
	table.update(p)
	before := len(table.pods["p"].instances)
	p.Status.PodIP, p.Status.PodIPs = "10.0.0.2", []corev1.PodIP{{IP: "10.0.0.2"}}
	if changed := table.update(p); !changed || before != 0 || len(table.pods["p"].instances) != 1 {
		t.Errorf("changed: %v, %d instances before and %d after, want 0 and 1", changed, before, len(table.pods["p"].instances))
	}
	if q := trimmed(p); len(q.Status.PodIPs) != 1 || q.Status.PodIP != "10.0.0.2" {
		t.Errorf("trimmed has the IPs %q and %v", q.Status.PodIP, q.Status.PodIPs)
	}
}

// TestHostilePodUsesLittleMemory registers and deregisters new services with the largest
// annotations again and again, which took 100 MB before there were limits.
func TestHostilePodUsesLittleMemory(t *testing.T) {
	all := newAllServices(&index{}, podmeta.Limits{})
	o, i := newInformer(all), newServiceInformer("many")
	o.Update(podRegistering("good", map[string]string{"good": registrationOf("good", "10.0.0.1:1")}))
	log := captureLog(t, func() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for n := range 500 {
			annotations := map[string]string{}
			for k := range 8 {
				service := fmt.Sprintf("s-%d-%d", n, k)
				annotations[service] = registrationOf(service, repeat(maxNodesPerAnnotation, "10.0.0.1:1")...)
			}
			annotations["many"] = registrationOf("many", repeat(1000, "10.0.0.1:1")...)
			annotations[fmt.Sprint("bad-", n)] = "{"
			p := podRegistering("bad", annotations)
			o.Update(p)
			i.Update(p)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 1<<20 {
			t.Errorf("the heap has grown by %d KiB, want at most 1 MiB", grown>>10)
		}
		runtime.KeepAlive(o)
		runtime.KeepAlive(i)
	})
	if want := 1 + 8*maxNodesPerAnnotation + maxDeregisteredPerPod; len(all.observed()) > want {
		t.Errorf("%d instances, want at most %d", len(all.observed()), want)
	}
	if len(log) > 2*maxWarningsPerPod { // lines of the observer and of the informer
		t.Errorf("%d lines in the log: %q", len(log), log)
	}
}

func TestTotalOfDeregisteredInstancesIsBounded(t *testing.T) {
	table := newAllServices(&index{}, podmeta.Limits{})
	pods := 2 * maxDeregistered / maxDeregisteredPerPod
	for n := range pods {
		name := fmt.Sprint("p-", n)
		for _, services := range [][2]string{{"a", "b"}, {"c", "d"}, {"e", "f"}} {
			table.update(podRegistering(name, map[string]string{
				services[0]: registrationOf(services[0], repeat(maxNodesPerAnnotation, "10.0.0.1:1")...),
				services[1]: registrationOf(services[1], repeat(maxNodesPerAnnotation, "10.0.0.1:1")...)}))
		}
	}
	all := table.observed()
	if registered := pods * 2 * maxNodesPerAnnotation; len(all) != registered+maxDeregistered {
		t.Errorf("%d instances, %d of them registered, want %d deregistered instances", len(all), registered, maxDeregistered)
	}
}

// registerTwice registers 10 pods of each service, and then each pod again with
// another version. Every pod has its own version, which is the worst case.
func registerTwice(table *allServices, services int) {
	for _, round := range []string{"v1", "v2"} {
		for s := range services {
			for p := range 10 {
				service := fmt.Sprintf("service-%d", s)
				r := strings.Replace(registrationOf(service, "10.0.0.1:1"), "v1", fmt.Sprintf("%s-%d", round, p), 1)
				table.update(podRegistering(fmt.Sprintf("%s-%d", service, p), map[string]string{service: r}))
			}
		}
	}
}

// TestDecodingIsLinear checks that the time for each registration does not depend
// on the number of services. It measures the processor time of this process, because other
// processes do not slow it down.
func TestDecodingIsLinear(t *testing.T) {
	const tables, services = 20, 25
	cost := func(tables, services int) time.Duration {
		begin := process.Time(t)
		for range tables {
			table := newAllServices(&index{}, podmeta.Limits{})
			registerTwice(table, services)
		}
		return process.Time(t) - begin
	}
	few, many := time.Hour, time.Hour
	for range 3 {
		few, many = min(few, cost(tables, services)), min(many, cost(1, tables*services))
	}
	t.Logf("as many registrations take %s with %d services, %s with %d", few, services, many, tables*services)
	if many > 4*few {
		t.Errorf("as many registrations take %s with %d services and %s with %d, want at most 4 times as long", many, tables*services, few, services)
	}
}

// BenchmarkRegister measures 500 services of 10 pods each.
func BenchmarkRegister(b *testing.B) {
	for b.Loop() {
		table := newAllServices(&index{}, podmeta.Limits{})
		registerTwice(table, 500)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/10000, "µs/registration")
}
