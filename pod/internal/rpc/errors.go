package rpc

import (
	"context"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/errors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func clientError(text string) error {
	return &errors.Error{Id: gomicro.ClientID, Code: 500, Detail: text, Status: "Internal Server Error"}
}

// contextError returns the error of a call whose context has ended.
func contextError(ctx context.Context) error {
	text := context.DeadlineExceeded.Error()
	if err := ctx.Err(); err != nil {
		text = err.Error()
	}
	return errors.New(gomicro.ClientID, text, 408)
}

// result returns what the result of a unary call, as grpc-go returned it, says about the
// instance, and the error that go-micro's client returns: the error of the handler if it is one
// of go-micro's, else the text of the gRPC status with the code 500. If the context has ended, the
// code is 408.
func result(ctx context.Context, err error) (outcome.Outcome, error) {
	if err == nil {
		return outcome.Answered, nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return outcome.Inconclusive, err
	}
	e := outcome.MicroError(s)
	o := outcome.OfCall(ctx, s, e)
	switch code := s.Code(); {
	case e != nil:
		return o, e
	case (code == codes.DeadlineExceeded || code == codes.Canceled) && outcome.HasEnded(ctx):
		return o, contextError(ctx)
	}
	return o, clientError(s.Message())
}
