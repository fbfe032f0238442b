package metrics

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/configwatch"
	"github.com/micro/go-micro/v2/metadata"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc/codes"
)

// newMetrics returns metrics, their callbacks and a function that gathers them. Their registry makes no connection.
func newMetrics(t testing.TB, status func() pod.Status, more ...prometheus.Collector) (*Metrics, pod.Events, func() map[string]*dto.MetricFamily) {
	t.Helper()
	m := New(pod.NewRegistry(kubernetes.NewRegistry))
	if status != nil {
		m.status = status
	}
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(append(more, m)...)
	return m, m.events(), func() map[string]*dto.MetricFamily {
		t.Helper()
		all, err := r.Gather()
		if err != nil {
			t.Fatal(err)
		}
		families := map[string]*dto.MetricFamily{}
		for _, f := range all {
			families[f.GetName()] = f
		}
		return families
	}
}

func statusOf(pods ...string) pod.Status {
	now := time.Now()
	s := pod.Status{LastContact: now, Services: []pod.ServiceStatus{{Name: "shop", State: pod.LifecycleReady, Registered: true, InFlight: 3},
		{Name: "old", State: pod.LifecycleDraining, StopBegan: now, DrainEnds: now.Add(time.Minute)}, {Name: "gone", State: pod.LifecycleStopped},
		{Name: "in-etcd", State: pod.LifecycleReady, OtherRegistry: true}},
		Called: []pod.CalledService{{Name: "orders", Instances: map[pod.State]int{pod.Ready: len(pods), pod.NodeUnreachable: 1}}}}
	for _, p := range pods {
		s.Called[0].Calls = append(s.Called[0].Calls, pod.InstanceCalls{Pod: p, InFlight: 2})
	}
	return s
}

// happen calls each callback at least once.
func happen(e pod.Events) {
	e.CallEnded(context.Background(), pod.Call{Service: "orders", Method: "Orders.GetOrder", Attempts: 2, Duration: time.Millisecond})
	e.ServedCall(context.Background(), pod.ServedCall{Service: "shop", Method: "Shop/Buy", Code: codes.NotFound})
	e.ServedRequest(&http.Request{Method: "GET"}, pod.ServedRequest{Route: "GET /cart", Status: 200})
	e.AttemptEnded(pod.Attempt{Service: "orders", Pod: "orders-1", Zone: "same", Outcome: "answered"})
	e.RetryDecided(context.Background(), pod.Retry{Service: "orders", IsHedge: true})
	e.RetryDecided(context.Background(), pod.Retry{Service: "orders", Refusal: "over_budget"})
	e.EjectionDecided(pod.Ejection{Service: "orders", Cause: "no_answer"})
	e.EjectionDecided(pod.Ejection{Service: "orders", Cause: "server_errors", Refused: true})
	e.ConnectionChanged("orders", "", "", pod.ConnectionOpened)
	e.ConnectionChanged("orders", "", "", pod.ConnectionLost)
	e.APIError(`watching service "orders"`, errors.New("cut"))
	e.Patched("shop", nil)
	e.SkippedRegistration("", "", nil)
	e.Drained("shop", time.Second, 2)
}

var rowOfTable = regexp.MustCompile("(?m)^\\| `((?:rpc|http|micro)_[a-z_]+)` \\| (counter|gauge|histogram) \\| (.*?) \\| (.*) \\|$")

// TestDocumentListsAllMetrics compares the tables of the documents with what is exported, in both directions.
func TestDocumentListsAllMetrics(t *testing.T) {
	status := statusOf("orders-1")
	_, events, gather := newMetrics(t, func() pod.Status { return status }, ConfigMap(followed(t)))
	happen(events)
	exported := map[string]string{}
	for name, f := range gather() {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		exported[name] = fmt.Sprintln(strings.ToLower(f.GetType().String()), labels)
		if name == "micro_config_reloads_total" { // without a cluster there is no contact, and no age
			exported["micro_config_age_seconds"] = fmt.Sprintln("gauge", labels)
		}
	}
	for _, page := range []string{"observability.md", "observability_zh.md"} {
		text, err := os.ReadFile("../../docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		documented := map[string]string{}
		for _, row := range rowOfTable.FindAllStringSubmatch(string(text), -1) {
			labels := strings.Fields(strings.NewReplacer("`", "", ",", "").Replace(row[3]))
			slices.Sort(labels)
			documented[row[1]] = fmt.Sprintln(row[2], labels)
			if f := gather()[row[1]]; page == "observability.md" && f != nil && f.GetHelp() != row[4]+"." {
				t.Errorf("%s: the meaning of %s is %q, exported is %q", page, row[1], row[4], f.GetHelp())
			}
		}
		for name := range exported {
			if documented[name] != exported[name] {
				t.Errorf("%s: %s is documented as %q, exported as %q", page, name, documented[name], exported[name])
			}
			delete(documented, name)
		}
		if len(documented) > 0 {
			t.Errorf("%s: nothing exports %v", page, documented)
		}
	}
}

// A service that registers in another registry has no registration that could be missing.
func TestOtherRegistryHasNoRegistration(t *testing.T) {
	_, _, gather := newMetrics(t, func() pod.Status { return statusOf() })
	services := func(metric string) (names []string) {
		for _, m := range gather()[metric].GetMetric() {
			names = append(names, m.GetLabel()[0].GetValue())
		}
		return names
	}
	if got, want := services("micro_registry_registered"), []string{"old", "shop"}; !slices.Equal(got, want) {
		t.Errorf("the registrations are those of %q, want %q", got, want)
	}
	if got, want := services("micro_lifecycle_in_flight"), []string{"in-etcd", "old", "shop"}; !slices.Equal(got, want) {
		t.Errorf("the lifecycles are those of %q, want %q", got, want)
	}
}

func followed(t testing.TB) *configwatch.ConfigMap {
	c := configwatch.New("go-micro", "settings")
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func count(families map[string]*dto.MetricFamily) (n int) {
	for _, f := range families {
		n += len(f.GetMetric())
	}
	return n
}

// liveHeap returns the bytes of the heap that are in use.
func liveHeap() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// The registry of 5,000 pods takes 7.1 MiB (test/bench/RESULTS.md, First call), and 100 connections take 5.5 MB: with 1 MB of the metrics
// the sum stays below 20 MB.
func TestSeriesOfCalledPods(t *testing.T) {
	const all, called = 5000, 100
	var pods []string
	for i := range all {
		pods = append(pods, fmt.Sprint("orders-", i))
	}
	status := statusOf(pods...)
	heap := liveHeap()
	m, events, gather := newMetrics(t, func() pod.Status { return status })
	before := count(gather())
	for i := range called {
		for _, o := range outcomes {
			events.AttemptEnded(pod.Attempt{Service: "orders", Pod: pods[i], Outcome: o})
		}
	}
	if n := count(gather()) - before; n != 6*called+1 {
		t.Errorf("%d called pods of %d have %d series, want 6 each and one for inconclusive attempts", called, all, n)
	}
	if grown := liveHeap() - heap; grown > 1<<20 {
		t.Errorf("the metrics of %d called pods of %d take %d bytes", called, all, grown)
	} else {
		t.Logf("the metrics take %d kB", grown/1000)
	}
	status = statusOf(pods[:50]...)
	age := func(seconds int64) {
		for _, p := range m.attempts.byPod.all() {
			p.last.Add(-seconds)
		}
	}
	age(31)
	if n := len(gather()["micro_client_attempts_total"].GetMetric()); n != 50*5+1 {
		t.Errorf("31 s after the end of 50 pods, %d series of attempts are left, want those of the 50 others, and of inconclusive attempts", n)
	}
	age(20)
	if n := len(gather()["micro_client_attempts_total"].GetMetric()); n != 50*5+1 {
		t.Errorf("%d series, want those of the 50 pods that are routable, and of inconclusive attempts", n)
	}
}

func TestPodsAreForgottenWithoutScrapes(t *testing.T) {
	m, events, _ := newMetrics(t, func() pod.Status { return pod.Status{} })
	for i := range 1000 {
		events.AttemptEnded(pod.Attempt{Service: "orders", Pod: fmt.Sprint("orders-", i), Outcome: "answered"})
		for _, p := range m.attempts.byPod.all() {
			p.last.Add(-1)
		}
		m.attempts.cleaned.Add(-1)
	}
	if n := len(m.attempts.byPod.all()); n > 70 {
		t.Errorf("%d pods are kept, of 1000 that have gone one a second", n)
	}
}

func TestAttemptsByZone(t *testing.T) {
	_, events, gather := newMetrics(t, func() pod.Status { return pod.Status{} })
	for _, zone := range []string{"same", "other", "same", "", "same"} {
		events.AttemptEnded(pod.Attempt{Service: "orders", Pod: "orders-1", Zone: zone, Outcome: "answered"})
	}
	counts := map[string]float64{}
	for _, m := range gather()["micro_client_zone_attempts_total"].GetMetric() {
		counts[fmt.Sprint(m.GetLabel()[0].GetValue(), " ", m.GetLabel()[1].GetValue())] = m.GetCounter().GetValue()
	}
	if want := map[string]float64{"orders same": 3, "orders other": 1}; !maps.Equal(counts, want) {
		t.Errorf("counted %v, want %v", counts, want)
	}
}

// Retries and second attempts are counted apart from those that are refused.
func TestRetriesAreCounted(t *testing.T) {
	_, events, gather := newMetrics(t, nil)
	events.CallEnded(context.Background(), pod.Call{Service: "orders", Attempts: 3})
	events.CallEnded(context.Background(), pod.Call{Service: "orders", Attempts: 1})
	for _, r := range []pod.Retry{{}, {}, {IsHedge: true}, {Refusal: "over_budget"}, {Refusal: "over_budget", IsHedge: true}, {Refusal: "chain_stopped"}, {Refusal: "pushed_back"}} {
		r.Service = "orders"
		events.RetryDecided(context.Background(), r)
	}
	got := map[string]float64{}
	for _, name := range []string{"micro_client_retries_total", "micro_client_hedges_total", "micro_client_retries_refused_total"} {
		for _, m := range gather()[name].GetMetric() {
			labels := ""
			for _, l := range m.GetLabel() {
				labels += " " + l.GetValue()
			}
			got[name+labels] = m.GetCounter().GetValue()
		}
	}
	want := map[string]float64{"micro_client_retries_total orders": 2, "micro_client_hedges_total orders": 1, "micro_client_retries_refused_total over_budget orders": 2,
		"micro_client_retries_refused_total chain_stopped orders": 1, "micro_client_retries_refused_total pushed_back orders": 1}
	if !maps.Equal(got, want) {
		t.Errorf("counted: %v, want %v", got, want)
	}
}

func TestMethodsAndRoutesAreBounded(t *testing.T) {
	_, events, gather := newMetrics(t, func() pod.Status { return pod.Status{} })
	for i := range 10_000 {
		events.CallEnded(context.Background(), pod.Call{Service: "orders", Method: fmt.Sprint("Orders.M", i)})
		events.ServedRequest(&http.Request{Method: fmt.Sprint("M", i)}, pod.ServedRequest{Route: "", Status: 404})
	}
	families := gather()
	if n := len(families["rpc_client_call_duration_seconds"].GetMetric()); n != maxSeries+1 {
		t.Errorf("10,000 methods of a client have %d series, want %d", n, maxSeries+1)
	}
	if n := len(families["http_server_request_duration_seconds"].GetMetric()); n != 1 {
		t.Errorf("10,000 invented HTTP methods have %d series, want 1", n)
	}
}

func TestExemplarsOncePerBucketAndSecond(t *testing.T) {
	_, events, gather := newMetrics(t, func() pod.Status { return pod.Status{} })
	const id = "1b5a4cb6-6c4e-4a36-9d0f-0a2f3ad1d4b7"
	ctx := metadata.NewContext(t.Context(), metadata.Metadata{"Micro-Trace-Id": id})
	bad := metadata.NewContext(t.Context(), metadata.Metadata{"Micro-Trace-Id": "an invented \xff id"})
	events.CallEnded(bad, pod.Call{Service: "orders", Method: "Orders.GetOrder", Duration: 3 * time.Second})
	events.CallEnded(ctx, pod.Call{Service: "orders", Method: "Orders.GetOrder", Duration: time.Millisecond})
	found := map[float64]string{}
	for _, b := range gather()["rpc_client_call_duration_seconds"].GetMetric()[0].GetHistogram().GetBucket() {
		if e := b.GetExemplar(); e != nil {
			found[b.GetUpperBound()] = e.GetLabel()[0].GetName() + "=" + e.GetLabel()[0].GetValue()
		}
	}
	if len(found) != 1 || found[0.001] != "trace_id="+id {
		t.Errorf("the exemplars are %v", found)
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	_, events, _ := newMetrics(t, func() pod.Status { return pod.Status{} })
	happen(events)
	if n := testing.AllocsPerRun(1000, func() {
		events.CallEnded(context.Background(), pod.Call{Service: "orders", Method: "Orders.GetOrder", Attempts: 2, Duration: time.Millisecond})
		events.ServedCall(context.Background(), pod.ServedCall{Service: "shop", Method: "Shop/Buy", Code: codes.NotFound})
		events.AttemptEnded(pod.Attempt{Service: "orders", Pod: "orders-1", Zone: "same", Outcome: "answered"})
	}); n != 0 {
		t.Errorf("counting a call allocates %v times", n)
	}
}

// BenchmarkCount is what metrics add to a call in the client, and in the server.
func BenchmarkCount(b *testing.B) {
	_, events, _ := newMetrics(b, func() pod.Status { return pod.Status{} })
	happen(events)
	ctx := context.Background()
	b.Run("client", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			events.CallEnded(ctx, pod.Call{Service: "orders", Method: "Orders.GetOrder", Attempts: 1, Duration: time.Millisecond})
			events.AttemptEnded(pod.Attempt{Service: "orders", Pod: "orders-1", Outcome: "answered"})
		}
	})
	b.Run("server", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			events.ServedCall(ctx, pod.ServedCall{Service: "shop", Method: "Shop/Buy", Code: codes.NotFound})
		}
	})
}
