package tracing

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/web"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
)

func TestSpansOfRequests(t *testing.T) {
	recorded := tracetest.NewSpanRecorder()
	before := otel.GetTracerProvider()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorded)))
	t.Cleanup(func() { otel.SetTracerProvider(before) })
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders/{id}", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.HandleFunc("/any", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	mux.HandleFunc("/panic", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("/stream", func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush() })
	srv := httptest.NewServer(Handler(mux))
	defer srv.Close()
	const traceID, spanID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, c := range []struct {
		method, path, name, status, description string
	}{
		{"GET", "/orders/1?secret=2", "GET /orders/{id}", "200", ""},
		{"POST", "/any", "POST /any", "502", "Bad Gateway"},
		{"STRANGE", "/any", "_OTHER /any", "502", "Bad Gateway"},
		{"GET", "/unknown", "HTTP", "404", ""},
		{"GET", "/panic", "GET /panic", "500", "Internal Server Error"},
		{"GET", "/stream", "GET /stream", "200", ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, srv.URL+c.path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("traceparent", "00-"+traceID+"-"+spanID+"-01")
		if rsp, err := http.DefaultClient.Do(req); err == nil {
			rsp.Body.Close()
		}
		for end := time.Now().Add(10 * time.Second); len(recorded.Ended()) == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) { // it ends after the response
		}
		all := recorded.Ended()
		recorded.Reset()
		if len(all) != 1 {
			t.Fatalf("%s: %d spans", c.name, len(all))
		}
		s, attributes := all[0], attributesOf(all[0])
		if s.Name() != c.name || attributes["http.response.status_code"] != c.status || s.Status().Description != c.description || len(attributes) > 3 {
			t.Errorf("%s %s: the span %q has %v and the status %v", c.method, c.path, s.Name(), attributes, s.Status())
		}
		if s.SpanContext().TraceID().String() != traceID || s.Parent().SpanID().String() != spanID {
			t.Errorf("%s %s: the span has the trace %s and the parent %s", c.method, c.path, s.SpanContext().TraceID(), s.Parent().SpanID())
		}
	}
}

// The request of a browser, the call that it causes, and the service that answers are one trace.
func TestOneTraceFromRequestToService(t *testing.T) {
	c := startCollector(t)
	shopAddress, stopShop := startService(t, "shop", newClient(t), shop{})
	l := listen(t)
	address := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{})
	service := web.NewService(web.Name("front"), web.Address(address), web.Registry(memory.NewRegistry()), web.Context(ctx), web.HandleSignal(false),
		web.AfterStart(func() error { close(started); return nil }), pod.WebLifecycle(pod.NewRegistry(kubernetes.NewRegistry), pod.DrainWait(0)), ExportWeb())
	caller := Client(newClient(t), otel.GetTracerProvider())
	service.Handle("/order", Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if err := getOrder(r.Context(), caller, client.WithAddress(shopAddress)); err != nil {
			t.Error(err)
		}
	})))
	ended := make(chan error, 1)
	go func() { ended <- service.Run() }()
	select {
	case <-started:
	case err := <-ended:
		t.Fatal(err)
	}
	for _, path := range []string{"/order", "/readyz"} {
		rsp, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		rsp.Body.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	stopShop()
	request, answer := c.find(t, "front", "/order", tracev1.Span_SPAN_KIND_SERVER), c.find(t, "shop", "GetOrder", tracev1.Span_SPAN_KIND_SERVER)
	call := c.find(t, "front", "GetOrder", tracev1.Span_SPAN_KIND_INTERNAL)
	if string(call.ParentSpanId) != string(request.SpanId) || string(answer.TraceId) != string(request.TraceId) {
		t.Errorf("the request %v, the call %v, and the answer %v are not one trace", request, call, answer)
	}
	if len(c.spans) != 4 {
		t.Errorf("%d spans are exported, want 4: the probe has none", len(c.spans))
	}
}

func TestWebServiceExportsNothingUnlessConfigured(t *testing.T) {
	before, o := otel.GetTracerProvider(), web.Options{}
	ExportWeb()(&o)
	if len(o.BeforeStart) != 0 || len(o.AfterStop) != 0 || otel.GetTracerProvider() != before {
		t.Error("the option has changed something")
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	ExportWeb()(&o)
	if len(o.BeforeStart) != 1 || o.BeforeStart[0]() == nil {
		t.Error("another protocol is not refused")
	}
}
