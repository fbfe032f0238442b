package outcome

import (
	"testing"

	"github.com/micro/go-micro/v2/errors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const refusedText = `connection error: desc = "transport: Error while dialing: dial tcp 10.0.0.1:1: connect: connection refused"`

func TestOfStatus(t *testing.T) {
	for _, c := range []struct {
		status *status.Status
		micro  *errors.Error
		want   Outcome
	}{
		{nil, nil, Answered},
		{status.New(codes.OK, ""), nil, Answered},
		{status.New(codes.Unavailable, refusedText), nil, LostConnection},
		{status.New(codes.Unavailable, "error reading from server: EOF"), nil, LostConnection},
		{status.New(codes.Unavailable, `closing transport due to: connection error: desc = "error reading from server: EOF"`), nil, LostConnection},
		{status.New(codes.Unavailable, `closing transport due to: connection error: desc = "error reading from server: EOF", received prior goaway: code: NO_ERROR, debug data: "max_age"`), nil, Inconclusive},
		{status.New(codes.Unavailable, `closing transport due to: connection error: desc = "error reading from server: EOF", received prior goaway: code: ENHANCE_YOUR_CALM, debug data: "too_many_pings"`), nil, LostConnection},
		{status.New(codes.Unavailable, "the stream is rejected because server is draining the connection"), nil, Inconclusive},
		{status.New(codes.Unavailable, `connection error: desc = "error reading server preface: EOF"`), nil, FailedHandshake},
		{status.New(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: tls: first record does not look like a TLS handshake"`), nil, FailedHandshake},
		{status.New(codes.Unavailable, "write tcp 10.0.0.2:1->10.0.0.1:1: write: broken pipe"), nil, FailedHandshake},
		{status.New(codes.Unavailable, `connection error: desc = "error reading server preface: raw-read tcp 10.0.0.2:1->10.0.0.1:1: use of closed network connection"`), nil, LostConnection},
		{status.New(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: context deadline exceeded"`), nil, LostConnection},
		{status.New(codes.Internal, refusedText), nil, ServerError}, // the text counts only with UNAVAILABLE
		{status.New(codes.Unavailable, "the database: "+refusedText), nil, ServerError},
		{status.New(codes.Unavailable, "shutting down"), nil, ServerError},
		{status.New(codes.ResourceExhausted, "quota used up"), nil, Refused},
		{status.New(codes.ResourceExhausted, "overloaded"), errors.New("greeter", "overloaded", 429).(*errors.Error), Refused},
		{status.New(codes.ResourceExhausted, "grpc: received message larger than max (5 vs. 4)"), nil, Inconclusive},
		{status.New(codes.Internal, "nil pointer"), nil, ServerError},
		{status.New(codes.Unknown, "no such row"), nil, ServerError},
		{status.New(codes.DataLoss, "bad sector"), nil, ServerError},
		{status.New(codes.DeadlineExceeded, "context deadline exceeded"), nil, TimedOut},
		{status.New(codes.DeadlineExceeded, `latest balancer error: connection error: desc = "error reading server preface: EOF"`), nil, FailedHandshake},
		{status.New(codes.DeadlineExceeded, "latest balancer error: "+refusedText), nil, TimedOut},
		{status.New(codes.Canceled, "context canceled"), nil, Inconclusive},
		{status.New(codes.NotFound, "no such row"), nil, Answered},
		{status.New(codes.Unimplemented, "unknown method"), nil, Answered},
		{status.New(codes.Unknown, "too many"), errors.New("greeter", "too many", 429).(*errors.Error), Answered},
		{status.New(codes.Unknown, "odd"), errors.New("greeter", "odd", 499).(*errors.Error), Answered},
		{status.New(codes.Unknown, "failed"), errors.New("greeter", "failed", 500).(*errors.Error), ServerError},
		{status.New(codes.DeadlineExceeded, "too late"), errors.Timeout("greeter", "too late").(*errors.Error), Answered},
		{status.New(codes.Internal, "no such row"), errors.InternalServerError("greeter", "no such row").(*errors.Error), ServerError},
		{status.New(codes.Unavailable, refusedText), errors.New("greeter", refusedText, 503).(*errors.Error), ServerError},
	} {
		if got := OfStatus(c.status, c.micro); got != c.want {
			t.Errorf("OfStatus(%v, %v) = %v, want %v", c.status, c.micro, got, c.want)
		}
	}
}
