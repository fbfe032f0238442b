// Package debughandler stands in front of go-micro's handler Debug, which every service has and which
// answers everyone who reaches the port: Debug.Log with the log, Debug.Cache with cached responses,
// Debug.Trace with the errors of calls, whose text may contain data of users, and Debug.Stats.
//
// Debug.Trace can be turned on. It then answers with the names, times and errors' codes of spans, and the addresses of
// attempts that failed, and with nothing that came from a request or goes into a response.
package debughandler

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	proto "github.com/micro/go-micro/v2/debug/service/proto"
	"github.com/micro/go-micro/v2/debug/trace"
	microerrors "github.com/micro/go-micro/v2/errors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Variable is the environment variable that turns on Debug.Trace with the value "on".
const Variable = "POD_DEBUG_TRACE"

// IsOn reports whether the environment turns Debug.Trace on.
func IsOn(getenv func(string) string) bool { return getenv(Variable) == "on" }

// Handler answers the calls of the methods of Debug. Make it with New. It is safe for concurrent use.
type Handler struct {
	refusals map[string]error // by method
	tracer   trace.Tracer     // of Debug.Trace; nil if it is off
}

// New returns the handler for a process with these environment variables. Its Debug.Trace reads the
// spans of a tracer.
func New(getenv func(string) string, tracer trace.Tracer) *Handler {
	h := &Handler{refusals: map[string]error{}}
	for _, method := range []string{"Log", "Stats", "Cache"} {
		h.refusals[method] = refusal(fmt.Sprintf("Debug.%s is off, because it would answer every caller", method))
	}
	if IsOn(getenv) {
		h.tracer = tracer
	} else {
		h.refusals["Trace"] = refusal(fmt.Sprintf("Debug.Trace is off: set %s=on in the pod of the service, and it answers every caller with spans without payloads and headers", Variable))
	}
	return h
}

// refusal returns the status PERMISSION_DENIED, which go-micro's client reads as an error with code 403.
func refusal(text string) error {
	s := status.New(codes.PermissionDenied, text)
	if detailed, err := s.WithDetails(&microerrors.Error{Id: "go.micro.server", Code: http.StatusForbidden, Detail: text, Status: http.StatusText(http.StatusForbidden)}); err == nil {
		s = detailed
	}
	return s.Err()
}

// MethodOf returns the method of Debug that go-micro's server calls for a path, such as Trace for
// /Debug/Trace and /shop.Debug/Trace, and "" for the path of another handler's method.
func MethodOf(path string) string {
	service, method, found := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if !found || service != "Debug" && !strings.HasSuffix(service, ".Debug") {
		return ""
	}
	return method
}

// Serve answers a call of a method. Debug.Health, and methods that do not exist, it leaves to next.
func (h *Handler) Serve(method string, stream grpc.ServerStream, next func() error) error {
	if err := h.refusals[method]; err != nil {
		return err
	}
	if method != "Trace" {
		return next()
	}
	var req proto.TraceRequest
	if err := stream.RecvMsg(&req); err != nil {
		return err
	}
	spans, err := h.tracer.Read(trace.ReadTrace(req.Id))
	if err != nil {
		return fmt.Errorf("reading spans: %w", err)
	}
	return stream.SendMsg(&proto.TraceResponse{Spans: Reduced(spans)})
}

// On reports whether Debug.Trace is on.
func (h *Handler) On() bool { return h.tracer != nil }

// Reduced returns spans for everyone to see.
func Reduced(spans []*trace.Span) (all []*proto.Span) {
	for _, s := range spans {
		kind := proto.SpanType_INBOUND
		if s.Type == trace.SpanTypeRequestOutbound {
			kind = proto.SpanType_OUTBOUND
		}
		all = append(all, &proto.Span{Trace: s.Trace, Id: s.Id, Parent: s.Parent, Name: s.Name, Type: kind,
			Started: uint64(s.Started.UnixNano()), Duration: uint64(s.Duration.Nanoseconds()), Metadata: metadata(s)}) //nolint:gosec // as go-micro's Debug.Trace; neither is negative
	}
	return all
}

// metadata returns whether a span failed, with the code of go-micro's error, but not its text, and the address that an attempt has
// called.
func metadata(s *trace.Span) map[string]string {
	text, failed := s.Metadata["error"]
	if !failed {
		return nil
	}
	reduced := map[string]string{"error": "unknown"}
	if e := microerrors.Parse(text); e.Code > 0 {
		reduced["error"] = strings.TrimSpace(fmt.Sprintf("%d %s", e.Code, http.StatusText(int(e.Code))))
	}
	if a, err := netip.ParseAddrPort(s.Metadata[address]); err == nil {
		reduced[address] = a.String()
	}
	return reduced
}
