// Package metrics exports the metrics of a service to Prometheus, and to everything else that reads its format.
//
// One line adds it to a service. It does nothing unless POD_METRICS_ADDRESS is set:
//
//	micro.NewService(···, pod.Lifecycle(registry), metrics.Serve(registry))
//	web.NewService(···, pod.WebLifecycle(registry), metrics.ServeWeb(registry))
//
// A program that has a prometheus.Registerer of its own registers a collector there, before the registry is used:
//
//	prometheus.MustRegister(metrics.New(registry))
//
// docs/observability.md lists all metrics. Those of calls have the names of OpenTelemetry's conventions,
// rpc.server.call.duration, rpc.client.call.duration and http.server.request.duration. Those that
// OpenTelemetry does not know begin with micro_.
//
// # Series
//
// The number of series is bounded by the program and by the pods that it calls, not by its callers: a method that a
// server does not have counts as _OTHER, as does an HTTP method that nobody knows and a path without a handler. A pod that was never
// called has no series, a called one at most six, and they vanish within 60 s of its end. No series has the id
// of an instance.
//
// # Exemplars
//
// Readers that ask for OpenMetrics get exemplars: for each bucket of a duration, at most once a second, the id of the trace
// of a call, as go-micro sends it in Micro-Trace-Id.
package metrics

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// Metrics are the metrics of a registry, its clients, and the services with a Lifecycle or WebLifecycle that use it. It is a
// prometheus.Collector. Make it with New. It is safe for concurrent use.
type Metrics struct {
	status   func() pod.Status
	vectors  []prometheus.Collector
	attempts attempts

	clientCalls series[clientCall, *duration]
	servedCalls series[servedCall, *duration]
	requests    series[request, *duration]
	retries     series[string, prometheus.Counter]
	hedges      series[string, prometheus.Counter]
	refused     series[refusedRetry, prometheus.Counter]
	zones       series[zoneAttempt, prometheus.Counter]

	ejections, refusals, opened, ended, apiErrors func(labels ...string) prometheus.Counter
	patches, skipped, cutOff                      prometheus.Counter
	open                                          *prometheus.GaugeVec
}

type clientCall struct {
	service, method string
	code            codes.Code
}

type refusedRetry struct{ service, reason string }

type zoneAttempt struct{ service, zone string }

type servedCall struct {
	method string
	code   codes.Code
}

type request struct {
	method, route string
	status        int
}

// New returns the metrics of a registry. Call it once for each registry, before the registry is used.
func New(r *pod.Registry) *Metrics {
	m := &Metrics{status: r.Status}
	clientCalls := m.histogram("rpc_client_call_duration_seconds", "Duration of calls, with their retries, and of streams, by called service.", labelServer, labelRPCMethod, labelRPCCode)
	m.clientCalls.create = func(c clientCall) *duration {
		return newDuration(clientCalls.WithLabelValues(c.service, c.method, codeName(c.code)))
	}
	m.clientCalls.overflow = func(c clientCall) clientCall { return clientCall{other, other, c.code} }
	servedCalls := m.histogram("rpc_server_call_duration_seconds", "Duration of calls and streams that the service has served.", labelRPCMethod, labelRPCCode)
	m.servedCalls.create = func(c servedCall) *duration {
		return newDuration(servedCalls.WithLabelValues(c.method, codeName(c.code)))
	}
	m.servedCalls.overflow = func(c servedCall) servedCall { return servedCall{other, c.code} }
	requests := m.histogram("http_server_request_duration_seconds", "Duration of HTTP requests that the service has served.", labelHTTPMethod, labelHTTPRoute, labelHTTPStatus)
	m.requests.create = func(q request) *duration {
		return newDuration(requests.WithLabelValues(q.method, q.route, strconv.Itoa(q.status)))
	}
	m.requests.overflow = func(q request) request { return request{other, other, q.status} }
	m.attempts.called = func() []pod.CalledService { return m.status().Called }
	m.attempts.byPod.create = func(calledPod) *podAttempts { return &podAttempts{} }
	retries := m.counters("micro_client_retries_total", "Retries of calls.", labelServer)
	m.retries.create = func(service string) prometheus.Counter { return retries(service) }
	m.retries.overflow = func(string) string { return other }
	hedges := m.counters("micro_client_hedges_total", "Second attempts of calls with the option Hedge.", labelServer)
	m.hedges.create = func(service string) prometheus.Counter { return hedges(service) }
	m.hedges.overflow = func(string) string { return other }
	refused := m.counters("micro_client_retries_refused_total", "Retries, and second attempts of Hedge, that were refused, by reason.", labelServer, labelReason)
	m.refused.create = func(r refusedRetry) prometheus.Counter { return refused(r.service, r.reason) }
	m.refused.overflow = func(r refusedRetry) refusedRetry { return refusedRetry{other, r.reason} }
	zones := m.counters("micro_client_zone_attempts_total", "Attempts of calls, and streams, that have ended, by the zone of the called pod; none while its zone or that of this process is not known.", labelServer, labelServerZone)
	m.zones.create = func(z zoneAttempt) prometheus.Counter { return zones(z.service, z.zone) }
	m.zones.overflow = func(z zoneAttempt) zoneAttempt { return zoneAttempt{other, z.zone} }
	m.ejections = m.counters("micro_client_ejections_total", "Ejections of instances.", labelServer, labelCause)
	m.refusals = m.counters("micro_client_ejections_refused_total", "Ejections that were refused because half of the instances are ejected already.", labelServer, labelCause)
	m.opened = m.counters("micro_client_connections_opened_total", "Connections to instances that were opened.", labelServer)
	m.ended = m.counters("micro_client_disconnects_total", "Connections to instances that have ended or could not be made.", labelServer, labelReason)
	m.open = add(m, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "micro_client_connections", Help: "Open connections to instances."}, []string{labelServer}))
	m.apiErrors = m.counters("micro_api_errors_total", "Times that requests to the API server began to fail, or failed with another error than before.", labelOperation)
	m.patches = add(m, prometheus.NewCounter(prometheus.CounterOpts{Name: "micro_api_patches_total", Help: "PATCH requests for the process's own pod."}))
	m.skipped = add(m, prometheus.NewCounter(prometheus.CounterOpts{Name: "micro_registry_skipped_registrations_total", Help: "Registrations of other pods that were skipped because they are invalid."}))
	m.cutOff = add(m, prometheus.NewCounter(prometheus.CounterOpts{Name: "micro_lifecycle_cut_off_calls_total", Help: "Calls, messages or requests that a stop has cut off."}))
	_ = r.Init(pod.WithEvents(m.events())) // returns no error
	return m
}

// add registers a vector with the collector.
func add[C prometheus.Collector](m *Metrics, c C) C {
	m.vectors = append(m.vectors, c)
	return c
}

func (m *Metrics) histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	return add(m, prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets[:]}, labels))
}

func (m *Metrics) counters(name, help string, labels ...string) func(...string) prometheus.Counter {
	return add(m, prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)).WithLabelValues
}

// events are the callbacks that count.
func (m *Metrics) events() pod.Events {
	return pod.Events{
		CallEnded: func(ctx context.Context, c pod.Call) {
			m.clientCalls.get(clientCall{c.Service, c.Method, c.Code}).observe(c.Duration, func() string { return clientTrace(ctx) })
			if c.Attempts > 1 {
				m.retries.get(c.Service).Add(float64(c.Attempts - 1))
			}
		},
		RetryDecided: func(_ context.Context, r pod.Retry) {
			switch {
			case r.Refusal != "":
				m.refused.get(refusedRetry{r.Service, r.Refusal}).Inc()
			case r.IsHedge:
				m.hedges.get(r.Service).Inc()
			}
		},
		ServedCall: func(ctx context.Context, c pod.ServedCall) {
			m.servedCalls.get(servedCall{c.Method, c.Code}).observe(c.Duration, func() string { return serverTrace(ctx) })
		},
		ServedRequest: func(r *http.Request, s pod.ServedRequest) {
			m.requests.get(request{methodOf(r), routeOf(s.Route), s.Status}).observe(s.Duration, func() string { return r.Header.Get("Micro-Trace-Id") })
		},
		AttemptEnded: func(a pod.Attempt) {
			m.attempts.ended(a)
			if a.Zone != "" {
				m.zones.get(zoneAttempt{a.Service, a.Zone}).Inc()
			}
		},
		EjectionDecided: func(e pod.Ejection) {
			if e.Refused {
				m.refusals(e.Service, e.Cause).Inc()
			} else {
				m.ejections(e.Service, e.Cause).Inc()
			}
		},
		ConnectionChanged: func(service, _, _ string, change pod.ConnectionChange) {
			switch change {
			case pod.ConnectionOpened:
				m.opened(service).Inc()
				m.open.WithLabelValues(service).Inc()
			case pod.ConnectionClosed, pod.ConnectionLost:
				m.open.WithLabelValues(service).Dec()
				fallthrough
			default:
				m.ended(service, string(change)).Inc()
			}
		},
		APIError: func(operation string, err error) {
			if err != nil {
				m.apiErrors(operationOf(operation)).Inc()
			}
		},
		Patched:             func(string, error) { m.patches.Inc() },
		SkippedRegistration: func(string, string, error) { m.skipped.Inc() },
		Drained:             func(_ string, _ time.Duration, cutOff int) { m.cutOff.Add(float64(cutOff)) },
	}
}

func codeName(c codes.Code) string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return other
}

// methodOf returns the HTTP method, _OTHER for one that RFC 9110 and RFC 5789 do not define.
func methodOf(r *http.Request) string {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return r.Method
	}
	return other
}

// routeOf returns the path of a pattern of http.ServeMux.
func routeOf(pattern string) string {
	if _, path, ok := strings.Cut(pattern, " "); ok {
		return path
	}
	if pattern == "" {
		return other
	}
	return pattern
}

// operationOf returns an operation of the log without the name of the service.
func operationOf(operation string) string {
	verb, rest, _ := strings.Cut(operation, " ")
	switch {
	case verb == "writing":
		return "patch_pod"
	case strings.HasPrefix(rest, "this process"):
		return "watch_own_pod"
	default:
		return "watch_pods"
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, v := range m.vectors {
		v.Describe(ch)
	}
	for _, d := range statusDescs {
		ch <- d
	}
	for _, d := range []*prometheus.Desc{attemptsDesc, inFlightDesc, ejectedDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, v := range m.vectors {
		v.Collect(ch)
	}
	s := m.status()
	collectStatus(s, ch)
	m.attempts.collect(s.Called, ch)
}
