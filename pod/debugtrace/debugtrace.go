// Package debugtrace reads the spans that go-micro keeps of the last calls, so that a page can show traces without a
// collector. The live page of go-micro-web does. Use package pod/tracing to export traces.
//
// Every process with go-micro keeps 256 spans: of the calls of a client that belongs to a service of micro.NewService, and of the
// calls that a gRPC service serves. With POD_DEBUG_TRACE=on in the environment, it also keeps the attempts of calls that
// fail, and pod.Lifecycle answers Debug.Trace. Whoever reaches the port can then read the names, times, addresses and codes of errors
// of the spans, but no texts of errors, payloads and headers. Without the variable the functions of this package
// return nothing.
package debugtrace

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/debughandler"
	"github.com/micro/go-micro/v2/client"
	proto "github.com/micro/go-micro/v2/debug/service/proto"
	"github.com/micro/go-micro/v2/debug/trace"
	"github.com/micro/go-micro/v2/util/wrapper"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Variable is the environment variable that turns traces on with the value "on".
const Variable = debughandler.Variable

// maxAnswer is the size in bytes of the largest answer that Read accepts: 256 spans have about 50 KiB.
const maxAnswer = 256 << 10

// Kind says what a span is of.
type Kind string

// The kinds of spans.
const (
	Call    Kind = "call"    // of a client, with all its attempts
	Attempt Kind = "attempt" // of a call, that failed
	Handler Kind = "handler" // of a call that a service serves
)

// Span is a span of a trace.
type Span struct {
	Trace    string        `json:"trace"`
	ID       string        `json:"id"`
	Parent   string        `json:"parent,omitempty"` // absent at the beginning of a trace
	Name     string        `json:"name"`             // such as go-micro-srv.Greeter.Hello
	Kind     Kind          `json:"kind"`
	Started  time.Time     `json:"started"`
	Duration time.Duration `json:"duration"`          // in nanoseconds
	Error    string        `json:"error,omitempty"`   // such as 404 Not Found; absent if the call succeeded
	Address  string        `json:"address,omitempty"` // that an attempt has called
}

// On reports whether the environment turns traces on.
func On() bool { return debughandler.IsOn(os.Getenv) }

// Client returns a client whose calls have spans, and their failing attempts too. It is for clients that belong to no
// service of micro.NewService, such as those of web services; the others have spans already. Without POD_DEBUG_TRACE=on it
// returns c. Call it after pod.NewRegistry.
func Client(name string, c client.Client) client.Client {
	if !On() {
		return c
	}
	_ = c.Init(client.WrapCall(debughandler.Attempts(trace.DefaultTracer))) // the error would be that of an option
	return wrapper.TraceCall(name, trace.DefaultTracer, c)
}

// Own returns the spans that this process keeps, none without POD_DEBUG_TRACE=on.
func Own() ([]Span, error) {
	if !On() {
		return nil, nil
	}
	spans, err := trace.DefaultTracer.Read()
	if err != nil {
		return nil, fmt.Errorf("reading spans: %w", err)
	}
	return from(debughandler.Reduced(spans)), nil
}

// Read returns the spans that the gRPC service at an address keeps. The error has the code PermissionDenied if it has not turned
// Debug.Trace on. The call is in plaintext unless an option says otherwise: grpc.WithTransportCredentials(registry.Credentials(···)).
func Read(ctx context.Context, address string, opts ...grpc.DialOption) ([]Span, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer))}, opts...)...)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var answer proto.TraceResponse
	if err := conn.Invoke(ctx, "/Debug/Trace", &proto.TraceRequest{}, &answer); err != nil {
		return nil, err
	}
	return from(answer.Spans), nil
}

// from returns the spans of an answer.
func from(spans []*proto.Span) []Span {
	all := make([]Span, 0, len(spans))
	for _, s := range spans {
		kind := Handler
		switch {
		case s.Metadata["address"] != "":
			kind = Attempt
		case s.Type == proto.SpanType_OUTBOUND:
			kind = Call
		}
		all = append(all, Span{Trace: s.Trace, ID: s.Id, Parent: s.Parent, Name: s.Name, Kind: kind, Started: time.Unix(0, int64(s.Started)).UTC(), //nolint:gosec // an answer with another sign is odd, but harmless
			Duration: time.Duration(s.Duration), Error: s.Metadata["error"], Address: s.Metadata["address"]}) //nolint:gosec // as above
	}
	return all
}
