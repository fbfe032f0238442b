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
		{status.New(codes.Internal, refusedText), nil, ServerError}, // the text counts only with UNAVAILABLE
		{status.New(codes.Unavailable, "the database: "+refusedText), nil, ServerError},
		{status.New(codes.Unavailable, "shutting down"), nil, ServerError},
		{status.New(codes.ResourceExhausted, "quota used up"), nil, ServerError},
		{status.New(codes.ResourceExhausted, "grpc: received message larger than max (5 vs. 4)"), nil, Inconclusive},
		{status.New(codes.Internal, "nil pointer"), nil, ServerError},
		{status.New(codes.Unknown, "no such row"), nil, ServerError},
		{status.New(codes.DataLoss, "bad sector"), nil, ServerError},
		{status.New(codes.DeadlineExceeded, "context deadline exceeded"), nil, TimedOut},
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
