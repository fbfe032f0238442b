// Package outcome says what the end of a call tells about the instance that was called.
//
// A call can fail for three kinds of reasons. The instance did not answer: the call timed
// out, or the connection was lost. The instance gave a bad answer, a server error or a refusal. Or the
// instance has nothing to do with it: the caller cancelled, the client itself failed, or the
// handler answered with an error of its own, such as NOT_FOUND, which is an answer like any
// other.
//
// OfStatus classifies the gRPC status of a call. OfCall corrects the result with what
// only the client knows, such as whether the deadline had passed.
package outcome

import (
	"context"
	"slices"
	"strings"
	"time"

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
	Refused                       // the instance has too many calls, or the caller has used up its share
	Inconclusive                  // the caller cancelled the call, or the client itself failed, or the server has announced the end of the connection

	// FailedHandshake is a connection whose TLS or HTTP/2 handshake failed, by the fault of the
	// instance or of the client's settings. The client decides which, and reports LostConnection
	// or ServerError instead.
	FailedHandshake
)

var names = [...]string{"answered", "timed_out", "lost_connection", "server_error", "refused", "inconclusive", "failed_handshake"}

// String returns the name of the outcome in metrics.
func (o Outcome) String() string { return names[o] }

// IsAnswer reports whether the instance has sent an answer, good or bad.
func (o Outcome) IsAnswer() bool { return o == Answered || o == ServerError || o == Refused }

// OfStatus classifies the gRPC status with which a call has ended, nil for OK, and the
// go-micro error that the server put into the status, nil if there is none.
//
// Server errors are those that Envoy's outlier detection counts: it maps the gRPC status to
// an HTTP status and counts 5xx. Two codes are judged differently: RESOURCE_EXHAUSTED
// is a refusal, because the ejection of an overloaded instance would overload the others, too,
// and UNIMPLEMENTED does not count, because an instance of an older version is healthy. A go-micro
// error counts if its code is at least 500.
func OfStatus(s *status.Status, e *errors.Error) Outcome {
	switch {
	case e == nil:
	case e.Code >= 500:
		return ServerError
	case s.Code() == codes.ResourceExhausted: // a go-micro error of a handler has another status
		return Refused
	default:
		return Answered
	}
	switch text := s.Message(); s.Code() {
	case codes.Canceled:
		return Inconclusive
	case codes.DeadlineExceeded:
		if cause, ok := strings.CutPrefix(text, waitingPrefix); ok && ofUnavailable(cause) == FailedHandshake {
			return FailedHandshake
		}
		return TimedOut
	case codes.Unavailable, codes.ResourceExhausted, codes.Internal, codes.Unknown, codes.DataLoss:
		switch {
		case strings.HasPrefix(text, clientErrorPrefix):
			return Inconclusive
		case s.Code() == codes.Unavailable:
			return ofUnavailable(text)
		case s.Code() == codes.ResourceExhausted:
			return Refused
		}
		return ServerError
	default:
		return Answered
	}
}

// OfCall is OfStatus with what the client knows besides: whether the caller cancelled, and whether the
// deadline had passed or the server sent the status DEADLINE_EXCEEDED because of a deadline of its own.
func OfCall(ctx context.Context, s *status.Status, e *errors.Error) Outcome {
	switch {
	case ctx.Err() == context.Canceled:
		return Inconclusive
	case s.Code() == codes.DeadlineExceeded && e == nil && !HasEnded(ctx):
		return ServerError
	}
	return OfStatus(s, e)
}

// HasEnded reports whether a context has ended. Its timer may fire a little after its deadline.
func HasEnded(ctx context.Context) bool {
	if ctx.Err() != nil {
		return true
	}
	deadline, ok := ctx.Deadline()
	return ok && !time.Now().Before(deadline)
}

// MicroError returns the error that a go-micro server put into a status, nil if there is none.
func MicroError(s *status.Status) *errors.Error {
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

// clientErrorPrefix begins the errors that grpc-go itself makes in the client, such as that
// of a message that is too large or of a connection that was closed by the client.
const clientErrorPrefix = "grpc: "

// waitingPrefix begins the error of a call that has waited for a connection until its deadline. The
// error of the last attempt to connect follows.
const waitingPrefix = "latest balancer error: "

// ofUnavailable classifies the text of the status UNAVAILABLE, which grpc-go's transport and
// picker send and servers send, too.
func ofUnavailable(text string) Outcome {
	startsWith := func(prefix string) bool { return strings.HasPrefix(text, prefix) }
	contains := func(part string) bool { return strings.Contains(text, part) }
	switch {
	case slices.ContainsFunc(goAwayTexts, startsWith), startsWith(closingText) && contains(goAwayNoError):
		return Inconclusive
	case slices.ContainsFunc(handshakeTexts, startsWith) && !slices.ContainsFunc(timeoutTexts, contains):
		return FailedHandshake
	case slices.ContainsFunc(handshakeTexts, startsWith), slices.ContainsFunc(lostConnectionTexts, startsWith):
		return LostConnection
	}
	return ServerError
}

// NeverConnected reports whether the text of LostConnection says that there was no connection to
// carry the call.
func NeverConnected(text string) bool {
	return strings.Contains(text, `connection error: desc = "transport: `) || strings.Contains(text, `connection error: desc = "error reading server preface: `)
}

const (
	closingText   = "closing transport due to: "
	goAwayNoError = "received prior goaway: code: NO_ERROR" // a planned end, such as that of keepalive.ServerParameters.MaxConnectionAge
)

var (
	goAwayTexts = []string{
		"the connection is draining",
		"the stream is rejected because server is draining the connection",
	}
	handshakeTexts = []string{
		`connection error: desc = "transport: authentication handshake failed: `,
		`connection error: desc = "error reading server preface: `,
		"write tcp ",
	}
	timeoutTexts = []string{ // in handshakeTexts, of a process that is frozen
		"context deadline exceeded",
		"use of closed network connection",
	}
	lostConnectionTexts = []string{
		`connection error: desc = "transport: `,
		`connection error: desc = "error reading`,
		`connection error: desc = "keepalive ping failed`,
		"error reading from server: ",
		closingText,
		"transport is closing",
		"unexpected HTTP status code received from server: ",
	}
)
