package rpc

import (
	"context"
	stderrors "errors"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/client/selector"
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

// selectError returns the error of a selector as go-micro's client does.
func selectError(service string, err error) error {
	if stderrors.Is(err, selector.ErrNotFound) {
		return errors.InternalServerError(gomicro.ClientID, "service %s: %s", service, err.Error())
	}
	return errors.InternalServerError(gomicro.ClientID, "error selecting %s node: %s", service, err.Error())
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
	e := microErrorOf(s)
	o := grpcOutcome(ctx, s, e)
	switch code := s.Code(); {
	case e != nil:
		return o, e
	case (code == codes.DeadlineExceeded || code == codes.Canceled) && contextEnded(ctx):
		return o, contextError(ctx)
	}
	return o, clientError(s.Message())
}

// microErrorOf returns the error that a go-micro server put into a status, nil if there is none.
func microErrorOf(s *status.Status) *errors.Error {
	for _, detail := range s.Details() {
		if e, ok := detail.(*errors.Error); ok {
			return e
		}
	}
	if e := errors.Parse(s.Message()); e.Code > 0 {
		return e
	}
	return nil
}

// grpcOutcome is outcome.OfStatus with what the client knows besides: whether the caller
// cancelled, and whether the deadline had passed or the server sent the status DEADLINE_EXCEEDED
// because of a deadline of its own.
func grpcOutcome(ctx context.Context, s *status.Status, e *errors.Error) outcome.Outcome {
	switch {
	case ctx.Err() == context.Canceled:
		return outcome.Inconclusive
	case s.Code() == codes.DeadlineExceeded && e == nil && !contextEnded(ctx):
		return outcome.ServerError
	}
	return outcome.OfStatus(s, e)
}

// contextEnded reports whether a context has ended. Its timer may fire a little after its
// deadline.
func contextEnded(ctx context.Context) bool {
	if ctx.Err() != nil {
		return true
	}
	deadline, ok := ctx.Deadline()
	return ok && !time.Now().Before(deadline)
}
