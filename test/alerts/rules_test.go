// Package alerts tests the alerts and the dashboard of k8s/components/monitoring-operator: with recorded series and the
// real durations, each alert fires when it should, and not a moment before.
package alerts

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// read decodes a file of the component. A field that the type does not have is an error.
func read(t *testing.T, file string, into any) {
	t.Helper()
	if err := decode(component, file, into); err != nil {
		t.Fatal(err)
	}
}

func readRules(t *testing.T) []rulefmt.RuleGroup {
	t.Helper()
	groups, err := rulesOf(component)
	if err != nil {
		t.Fatal(err)
	}
	return groups
}

// record returns the recording of series in the notation of promtool's unit tests. A series gets the labels of the scraped
// pod that it does not have.
func record(t *testing.T, series ...string) *recording {
	t.Helper()
	r := &recording{labels: map[uint64]labels.Labels{}, samples: map[uint64][]chunks.Sample{}}
	for _, s := range series {
		l, values, err := promQL.ParseSeriesDesc(s)
		if err != nil {
			t.Fatalf("reading the series %q: %v", s, err)
		}
		b := labels.NewBuilder(l)
		for name, value := range map[string]string{"namespace": "go-micro", "job": "shop", "pod": "shop-1", "container": "shop"} {
			if !l.Has(name) {
				b.Set(name, value)
			}
		}
		for i, v := range values {
			at := time.Duration(i) * scrapeInterval
			if r.last = max(r.last, at); !v.Omitted {
				r.add(b.Labels(), sample{at.Milliseconds(), v.Value})
			}
		}
	}
	return r
}

func evaluate(t *testing.T, r *recording, groups []rulefmt.RuleGroup) []firing {
	t.Helper()
	fired, err := r.evaluate(t.Context(), groups)
	if err != nil {
		t.Fatal(err)
	}
	return fired
}

func TestPodMonitor(t *testing.T) {
	var m monitoring.PodMonitor
	read(t, "podmonitor.yaml", &m)
	if m.APIVersion != "monitoring.coreos.com/v1" || m.Kind != monitoring.PodMonitorsKind || len(m.Spec.PodMetricsEndpoints) != 1 {
		t.Fatalf("podmonitor.yaml has the kind %s of %s and %d endpoints", m.Kind, m.APIVersion, len(m.Spec.PodMetricsEndpoints))
	}
	e := m.Spec.PodMetricsEndpoints[0]
	if e.Port == nil || *e.Port != "metrics" || e.Interval != monitoring.Duration(model.Duration(scrapeInterval).String()) {
		t.Errorf("podmonitor.yaml scrapes %v", e)
	}
}

// healthy are the series of services on a normal day of 7 hours: rollouts, one call of 2,000 that fails, and short faults.
var healthy = []string{
	// 10 calls a second, of which one of 2,000 fails, and another one of 10 has an answer that is an error of its handler.
	`rpc_client_call_duration_seconds_count{server_address="orders",rpc_method="Orders.GetOrder",rpc_response_status_code="OK"} 0+135x800 0+135x880`,
	`rpc_client_call_duration_seconds_count{server_address="orders",rpc_method="Orders.GetOrder",rpc_response_status_code="NOT_FOUND"} 0+15x800 0+15x880`,
	`rpc_client_call_duration_seconds_count{server_address="orders",rpc_method="Orders.GetOrder",rpc_response_status_code="UNAVAILABLE"} 0+0.075x800 0+0.075x880`,
	`rpc_client_call_duration_seconds_bucket{server_address="orders",rpc_method="Orders.GetOrder",rpc_response_status_code="OK",le="0.01"} 0+130x1681`,
	`rpc_client_call_duration_seconds_bucket{server_address="orders",rpc_method="Orders.GetOrder",rpc_response_status_code="OK",le="1"} 0+134x1681`,
	`rpc_client_call_duration_seconds_bucket{server_address="orders",rpc_method="Orders.GetOrder",rpc_response_status_code="OK",le="10"} 0+135x1681`,
	`rpc_client_call_duration_seconds_bucket{server_address="orders",rpc_method="Orders.GetOrder",rpc_response_status_code="OK",le="+Inf"} 0+135x1681`,
	// One of 2 instances is ejected for 5 s and then for 20 s, and an ejection of the other is refused.
	`micro_client_ejected{server_address="orders"} 0x400 1 0 1x2 0x1276`,
	`micro_client_ejections_refused_total{server_address="orders",cause="no_answer"} 0x401 1x1279`,
	`micro_registry_instances{server_address="orders",state="ready"} 2x1681`,
	`micro_registry_instances{server_address="orders",state="not_ready"} 0x1681`,
	// The API server does not answer for a minute; the pod that starts meanwhile registers after 100 s.
	`micro_registry_snapshot_age_seconds 3x100 15 30 45 60 3x1577`,
	`micro_registry_registered{service_name="shop"} 1x1681`,
	`micro_registry_registered{service_name="shop",pod="shop-2"} _x99 0x6 1x1574`,
	`micro_api_patches_total 2x1681`,
	`micro_api_patches_total{pod="shop-2"} _x99 0 20 40 41x1577`,
	// A pod drains for 10 minutes, because a download takes so long, and ends in time.
	`micro_registry_registered{service_name="files",pod="files-1"} 1x200 0x40 stale`,
	`micro_lifecycle_drain_seconds{service_name="files",pod="files-1"} _x200 1+15x40 stale`,
	`micro_lifecycle_drain_left_seconds{service_name="files",pod="files-1"} _x200 896-15x40 stale`,
	`micro_lifecycle_in_flight{service_name="files",pod="files-1"} 8x200 1x40 stale`,
	// A pod with the usual grace period of 30 s has served its last call when 12 s are left.
	`micro_lifecycle_drain_seconds{service_name="orders",pod="orders-1"} _x300 1+14x1 stale`,
	`micro_lifecycle_drain_left_seconds{service_name="orders",pod="orders-1"} _x300 26-14x1 stale`,
	`micro_lifecycle_in_flight{service_name="orders",pod="orders-1"} 8x300 2 0 stale`,
	`micro_lifecycle_cut_off_calls_total{pod="orders-1"} 0x302 stale`,
	`micro_lifecycle_cut_off_calls_total 0x1681`,
}

func TestHealthyServicesRaiseNoAlert(t *testing.T) {
	for _, f := range evaluate(t, record(t, healthy...), readRules(t)) {
		t.Error(f, f.annotations)
	}
}

// failing returns the series of 10 calls a second. After 6 hours a share of them fails for so long, and then none for 40 minutes.
func failing(share float64, duration time.Duration) []string {
	const callsPerScrape = 150
	before, scrapes := 6*time.Hour/scrapeInterval, duration/scrapeInterval
	bad := callsPerScrape * share
	calls := func(code string, usual, meanwhile float64) string {
		first, last := usual*float64(before), usual*float64(before)+meanwhile*float64(scrapes)
		return fmt.Sprintf(`rpc_client_call_duration_seconds_count{server_address="orders",rpc_method="Orders.GetOrder",rpc_response_status_code=%q} 0+%fx%d %f+%fx%d %f+%fx160`,
			code, usual, before-1, first, meanwhile, scrapes-1, last, usual)
	}
	return []string{calls("OK", callsPerScrape, callsPerScrape-bad), calls("UNAVAILABLE", 0, bad), calls("NOT_FOUND", 1, 1)}
}

// latency returns the series of calls of which a share takes between 1 s and 2.5 s.
func latency(share float64) []string {
	bucket := func(le string, perScrape float64) string {
		return fmt.Sprintf(`rpc_client_call_duration_seconds_bucket{server_address="orders",rpc_method="Orders.GetOrder",rpc_response_status_code="OK",le=%q} 0+%fx60`, le, perScrape)
	}
	return []string{bucket("0.01", 100*(1-share)), bucket("1", 100*(1-share)), bucket("2.5", 100), bucket("+Inf", 100)}
}

// drain returns the series of a pod that stops at 60 s and is scraped 1 s and 16 s later, with so many calls in flight.
func drain(left, inFlight, inFlightLater int) []string {
	return []string{
		`micro_lifecycle_drain_seconds{service_name="shop"} _x4 1 16 stale`,
		fmt.Sprintf(`micro_lifecycle_drain_left_seconds{service_name="shop"} _x4 %d %d stale`, left, left-15),
		fmt.Sprintf(`micro_lifecycle_in_flight{service_name="shop"} 9x3 %d %d stale`, inFlight, inFlightLater),
		`micro_lifecycle_cut_off_calls_total 0x5 stale`,
		`up 1x80`, // the recording goes on
	}
}

// In a series, ax3 is the value a at 4 scrapes, a+bx3 grows by b, _x3 are 3 scrapes without the metric, and stale is its end.
func TestAlerts(t *testing.T) {
	const (
		registered = `micro_registry_registered{service_name="shop"} `
		ejected    = `micro_client_ejected{server_address="orders"} `
		refused    = `micro_client_ejections_refused_total{server_address="orders",cause="no_answer"} `
		ready      = `micro_registry_instances{server_address="orders",state="ready"} `
		patches    = `micro_api_patches_total `
	)
	for _, c := range []struct {
		name   string
		series []string
		want   []string // what fires, and at which evaluation it begins and ends
		text   string   // in an annotation
	}{
		{"never registered", []string{registered + "0x12"}, []string{"MicroNotRegistered from 2m0s to the end"}, "Service shop is not registered on pod shop-1"},
		{"registration lost", []string{registered + "1x3 0x9 1x10"}, []string{"MicroNotRegistered from 3m0s to 3m30s"}, ""},
		{"registration lost for less than 2 minutes", []string{registered + "1x3 0x7 1x10"}, nil, ""},
		{"deregistered to stop", []string{registered + "1x3 0x40", `micro_lifecycle_drain_seconds{service_name="shop"} _x4 1+15x40`}, nil, ""},
		{"another service of the process stops", []string{registered + "1x3 0x40", `micro_lifecycle_drain_seconds{service_name="web"} _x4 1+15x40`},
			[]string{"MicroNotRegistered from 3m0s to the end"}, ""},

		{"no contact", []string{`micro_registry_snapshot_age_seconds 5x3 20+15x11 5x3`}, []string{"MicroRegistryStale from 2m0s to 4m0s"}, "nothing for 2m 50s"},
		{"contact after a minute", []string{`micro_registry_snapshot_age_seconds 0+15x4 0+15x4`}, nil, ""},

		{"contested registration", []string{patches + "2+0.5x80"}, []string{"MicroPatchStorm from 12m30s to the end"}, "10 PATCH requests"},
		{"refused patches for 4 minutes", []string{patches + "0+15x16 240x60"}, nil, ""},
		{"two registrations", []string{patches + "0 2 2 4x60"}, nil, ""},

		{"ejected, with trials", []string{ready + "4x40", ejected + "0x3 1x2 0 1x8 0x1 1x4 0x20"}, []string{"MicroInstanceEjected from 6m0s to 7m0s"}, "instance of orders does not recover"},
		{"ejected for less than 5 minutes", []string{ready + "4x40", ejected + "0x3 1x16 0x20"}, nil, ""},

		{"half ejected", []string{ready + "4x40", ejected + "0x3 2x5 0x20"}, []string{"MicroHalfEjected from 3m0s to 3m30s"}, "Half of the instances of orders"},
		{"half ejected for less than 2 minutes", []string{ready + "4x40", ejected + "0x3 2x3 0x20"}, nil, ""},
		{"half of a subset ejected", []string{ready + "100x40", ejected + "0x3 5x15 0x20", refused + "0x3 1+1x4 5x40"}, []string{"MicroHalfEjected from 3m0s to 4m0s"}, ""},
		{"one refused ejection", []string{ready + "1x40", refused + "0x3 1x40"}, nil, ""},

		{"slow calls", latency(0.02), []string{"MicroSlowCalls from 10m30s to the end"}, "Orders.GetOrder of orders are slow"},
		{"few slow calls", latency(0.009), nil, ""},

		{"all calls fail for 2 minutes", failing(1, 2*time.Minute), []string{"MicroErrorBudgetBurnsFast from 6h3m0s to 6h7m0s"}, "of the calls have failed in the last hour"},
		{"all calls fail for 45 seconds", failing(1, 45*time.Second), nil, ""},
		{"all calls fail for 3 minutes", failing(1, 3*time.Minute), []string{"MicroErrorBudgetBurnsFast from 6h3m0s to 6h8m0s", "MicroErrorBudgetBurns from 6h17m30s to 6h33m0s"}, ""},
		{"one call of a hundred fails", failing(0.01, 5*time.Hour), []string{"MicroErrorBudgetBurns from 9h52m30s to 11h12m0s"}, "of the calls have failed in the last 6 hours"},
		{"one call of two hundred fails", failing(0.005, 6*time.Hour), nil, ""},

		{"calls cut off", []string{`micro_lifecycle_cut_off_calls_total 0x3 2 stale`, `up 1x80`}, []string{"MicroCallsCutOff from 1m0s to the end"}, "too short for 2 of its calls"},
		{"calls in flight at the end of the drain", drain(29, 7, 2), []string{"MicroCallsCutOff from 1m30s to 12m30s"}, "Pod shop-1 has stopped"},
		{"calls end in time", drain(29, 7, 0), nil, ""},
		{"calls in flight 15 s before the end of the drain", drain(30, 7, 2), nil, ""},
		{"a short grace period and short calls", drain(14, 7, 0), nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			var texts strings.Builder
			for _, f := range evaluate(t, record(t, c.series...), readRules(t)) {
				got = append(got, f.String())
				fmt.Fprintln(&texts, f.annotations)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%q fire, want %q", got, c.want)
			}
			if !strings.Contains(texts.String(), c.text) {
				t.Errorf("the annotations do not contain %q: %s", c.text, &texts)
			}
		})
	}
}

// TestEachAlertHasAnnotations checks what people read when an alert fires.
func TestEachAlertHasAnnotations(t *testing.T) {
	for _, g := range readRules(t) {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			if s := r.Annotations["summary"]; s == "" || len(s) > 100 || strings.HasSuffix(s, ".") {
				t.Errorf("%s: the summary is %q, want a short line", r.Alert, s)
			}
			if d := r.Annotations["description"]; !strings.HasSuffix(d, ".") {
				t.Errorf("%s: the description is %q, want sentences", r.Alert, d)
			}
			if s := r.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("%s has the severity %q", r.Alert, s)
			}
		}
	}
}
