package tracing

import (
	"net/http"
	"slices"
	"strings"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Handler returns a handler whose requests have spans of OpenTelemetry's global provider, such as that of ExportWeb. They join
// the trace of the header traceparent, and calls with the context of the request join them:
//
//	service.Handle("/", tracing.Handler(mux))
//
// The name of a span is the method and the pattern of http.ServeMux that matches the request, such as "GET /orders/{id}". Paths and queries are not exported,
// because they may hold secrets.
func Handler(next http.Handler) http.Handler {
	var hub events.Hub
	hub.Set(&events.Callbacks{ServedRequest: func(r *http.Request, s events.ServedRequest) {
		endRequest(trace.SpanFromContext(r.Context()), r.Method, s)
	}})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, _ = otel.Tracer(scope).Start(ctx, "HTTP", trace.WithSpanKind(trace.SpanKindServer))
		hub.ServeRequest("", w, r.WithContext(ctx), next)
	})
}

// methods are those that the conventions know.
var methods = []string{http.MethodConnect, http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPatch, http.MethodPost, http.MethodPut, http.MethodTrace, "QUERY"}

// endRequest ends the span of a request. The names of attributes are those of OpenTelemetry's conventions for HTTP, which are stable.
func endRequest(span trace.Span, method string, s events.ServedRequest) {
	defer span.End()
	if !span.IsRecording() {
		return
	}
	if !slices.Contains(methods, method) {
		method = "_OTHER"
	}
	span.SetAttributes(attribute.String("http.request.method", method), attribute.Int("http.response.status_code", s.Status))
	if s.Route != "" {
		route := s.Route[strings.IndexByte(s.Route, ' ')+1:] // without the method
		span.SetName(method + " " + route)
		span.SetAttributes(attribute.String("http.route", route))
	}
	if s.Status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, http.StatusText(s.Status))
	}
}
