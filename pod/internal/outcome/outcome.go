// Package outcome says what the end of a call tells about the instance that was called.
//
// A call can fail for three kinds of reasons. The instance did not answer: the call timed
// out, or the connection was lost. The instance gave a bad answer, a server error. Or the
// instance has nothing to do with it: the caller cancelled, the client itself failed, or the
// handler answered with an error of its own, such as NOT_FOUND, which is an answer like any
// other.
//
// OfStatus classifies the gRPC status of a call. The client corrects the result with what
// only the client knows, such as whether the deadline had passed.
package outcome

import (
	"slices"
	"strings"

	"github.com/micro/go-micro/v2/errors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Outcome is what the end of a call says about the instance.
type Outcome int

// The outcomes of a call.
const (
	Answered       Outcome = iota // the instance answered, possibly with an error of its handler
	TimedOut                      // no answer came in time
	LostConnection                // there is no connection to the instance, or it broke
	ServerError                   // the instance answered with an error of the server, such as UNAVAILABLE
	Inconclusive                  // the caller cancelled the call, or the client itself failed
)

// OfStatus classifies the gRPC status with which a call has ended, nil for OK, and the
// go-micro error that the server put into the status, nil if there is none.
//
// Server errors are those that Envoy's outlier detection counts: it maps the gRPC status to
// an HTTP status and counts 5xx. Two codes are judged differently: RESOURCE_EXHAUSTED
// counts, because an overloaded instance answers it at once and must not attract more calls,
// and UNIMPLEMENTED does not, because an instance of an older version is healthy. A go-micro
// error counts if its code is at least 500.
func OfStatus(s *status.Status, e *errors.Error) Outcome {
	if e != nil {
		if e.Code >= 500 {
			return ServerError
		}
		return Answered
	}
	switch text := s.Message(); s.Code() {
	case codes.Canceled:
		return Inconclusive
	case codes.DeadlineExceeded:
		return TimedOut
	case codes.Unavailable, codes.ResourceExhausted, codes.Internal, codes.Unknown, codes.DataLoss:
		switch {
		case strings.HasPrefix(text, clientErrorPrefix):
			return Inconclusive
		case s.Code() == codes.Unavailable && isLostConnection(text):
			return LostConnection
		}
		return ServerError
	default:
		return Answered
	}
}

// clientErrorPrefix begins the errors that grpc-go itself makes in the client, such as that
// of a message that is too large or of a connection that was closed by the client.
const clientErrorPrefix = "grpc: "

func isLostConnection(text string) bool {
	return slices.ContainsFunc(lostConnectionTexts, func(prefix string) bool { return strings.HasPrefix(text, prefix) })
}

// lostConnectionTexts are the beginnings of the messages that grpc-go's transport and
// picker send with the status UNAVAILABLE.
var lostConnectionTexts = []string{
	`connection error: desc = "transport: `,
	`connection error: desc = "error reading`,
	`connection error: desc = "keepalive ping failed`,
	"error reading from server: ",
	"closing transport due to: ",
	"transport is closing",
	"the connection is draining",
	"the stream is rejected because server is draining the connection",
	"unexpected HTTP status code received from server: ",
}
