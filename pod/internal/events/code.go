package events

import (
	"context"
	"errors"

	microerrors "github.com/micro/go-micro/v2/errors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// codesOfErrors are the gRPC codes that go-micro's server sends for the codes of its errors (server/grpc/error.go).
var codesOfErrors = map[int32]codes.Code{
	200: codes.OK, 400: codes.InvalidArgument, 401: codes.Unauthenticated, 403: codes.PermissionDenied, 404: codes.NotFound,
	408: codes.DeadlineExceeded, 409: codes.AlreadyExists, 412: codes.FailedPrecondition, 500: codes.Internal, 501: codes.Unimplemented, 503: codes.Unavailable,
}

// ServedCode returns the code that grpc-go's server sends for the error of a handler.
func ServedCode(err error) codes.Code {
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	return status.FromContextError(err).Code()
}

// CodeOf returns the gRPC code of a call: sent, which the server or grpc-go has sent, or, if there
// is none, that of the error. A call that found no instance, so that there was no attempt, is UNAVAILABLE.
func CodeOf(ctx context.Context, sent codes.Code, attempts int, err error) codes.Code {
	switch {
	case err == nil:
		return codes.OK
	case ctx.Err() == context.Canceled:
		return codes.Canceled
	case sent != codes.OK && sent != codes.Canceled: // not that of an attempt which a faster one has cancelled
		return sent
	}
	var e *microerrors.Error // on the heap, only for calls that fail in the client
	if !errors.As(err, &e) {
		return status.Code(err)
	}
	if e.Code == 500 && attempts == 0 {
		return codes.Unavailable
	}
	if c, ok := codesOfErrors[e.Code]; ok {
		return c
	}
	return codes.Unknown
}
