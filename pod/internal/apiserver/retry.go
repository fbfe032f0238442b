package apiserver

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// The delay after a failed attempt grows from minDelay to maxDelay, less a random part,
// so that a thousand clients do not return at the same moment. No client waits longer
// than a second, unless the API server asks for more time, or refuses the request for a reason that
// somebody must change (Permanent): then the delay grows to MaxPermanentDelay.
const minDelay, maxDelay, MaxPermanentDelay = 100 * time.Millisecond, time.Second, 30 * time.Second

// Retry is the state of one operation that is repeated until it succeeds. Its zero value is
// ready for use, by one goroutine.
type Retry struct {
	delay  time.Duration // the last one
	reason string        // of the last failure; empty after a success
	limit  time.Duration // of the delay after the last failure
}

// digits are what differs between two errors of one kind: the port of the connection that was
// reset, the number of an HTTP/2 stream, the time at which a certificate had expired.
var digits = regexp.MustCompile(`[0-9]+`)

// Ended records the result of an attempt. It reports whether the result is news: a failure for
// another reason than in the attempt before, or a success after a failure.
func (r *Retry) Ended(err error) (news bool) {
	r.limit = maxDelay
	if Permanent(err) {
		r.limit = MaxPermanentDelay
	}
	reason := Reason(err)
	news, r.reason = reason != r.reason, reason
	return news
}

// Reason returns a text that two errors of the same kind share, and the empty text for nil. A server that closes a
// connection at once causes an EOF or a reset, by chance.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return "broken connection"
	}
	return digits.ReplaceAllString(err.Error(), "")
}

// Wait waits before the next attempt, for at least the given time or until ctx ends.
func (r *Retry) Wait(ctx context.Context, atLeast time.Duration) {
	r.delay = min(max(minDelay, 2*r.delay), max(r.limit, maxDelay))
	select {
	case <-ctx.Done():
	case <-time.After(max(r.delay/2+rand.N(r.delay/2), atLeast)):
	}
}

// ResetDelay makes the next delay the shortest again.
func (r *Retry) ResetDelay() { r.delay = 0 }

// Permanent reports whether the API server has refused a request, and will refuse it again until somebody
// changes a right, a manifest or an object.
func Permanent(err error) bool {
	code := statusCode(err)
	return isRefusal(code) && code != http.StatusConflict && code != http.StatusGone && code != http.StatusTooManyRequests
}

// Refused reports whether the API server has answered that it did not do what was asked.
func Refused(err error) bool { return isRefusal(statusCode(err)) }

func isRefusal(code int32) bool {
	return code >= http.StatusBadRequest && code < http.StatusInternalServerError && code != http.StatusRequestTimeout
}

// statusCode returns the code of an answer of the API server, 0 if there was none.
func statusCode(err error) int32 {
	if status := new(apierrors.StatusError); errors.As(err, &status) {
		return status.ErrStatus.Code
	}
	return 0
}

// Unreachable reports whether an error means that the API server cannot answer now: it, or a proxy
// or sidecar before it, does not listen yet, breaks the connection, does not answer in time, or answers
// that it is overloaded or starts.
func Unreachable(err error) bool {
	var status *apierrors.StatusError
	if errors.As(err, &status) {
		code := status.ErrStatus.Code
		return code >= http.StatusInternalServerError || code == http.StatusTooManyRequests
	}
	var operation *net.OpError
	var network net.Error
	return errors.As(err, &operation) || errors.As(err, &network) && network.Timeout() ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded)
}
