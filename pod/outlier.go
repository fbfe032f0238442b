package pod

import (
	"context"
	stderrors "errors"
	"sync/atomic"
	"time"

	"github.com/micro/go-micro/v2/errors"
)

const (
	// An instance that fails is ejected for baseEjectionTime, and four times as long
	// for each further failure in a row, up to maxEjectionTime; then one call tries
	// it. The names are those of outlier detection in Envoy and in gRPC (gRFC A50).
	// Calls that fail together, within baseEjectionTime, are one failure.
	baseEjectionTime = 5 * time.Second
	maxEjectionTime  = 80 * time.Second

	// maxRefusedEjectionTime is the longest ejection after a refused call. Such a
	// call costs a retry, not a timeout; and the error may be that of an old
	// connection to an instance that is back.
	maxRefusedEjectionTime = 10 * time.Second

	// An instance with calls in flight is stalled when its last answer is older than
	// stallTime and older than stallFactor times its usual latency. A stalled
	// instance gets no more calls while there are others, so that a frozen pod holds
	// one or two calls until they time out, not one of each caller.
	stallTime   = 10 * time.Millisecond
	stallFactor = 8
)

// callStats is what the selector knows about the calls to one instance. All times are
// those of clock, in nanoseconds; 0 means never. Safe for concurrent use.
type callStats struct {
	inFlight     atomic.Int64 // calls between Next and Mark
	lastAnswer   atomic.Int64 // when the instance last answered, or became busy
	usualLatency atomic.Int64 // time between two answers while busy, a moving average
	failures     atomic.Int64 // in a row
	lastFailure  atomic.Int64
	ejectedUntil atomic.Int64 // 0 if the instance has not failed
}

// started notes that a call to the instance begins.
func (c *callStats) started(now int64) {
	if c.inFlight.Add(1) == 1 {
		c.lastAnswer.Store(now)
	}
}

// ended notes how a call to the instance has ended.
func (c *callStats) ended(now int64, err error) {
	if c.inFlight.Add(-1) < 0 { // Mark without Next
		c.inFlight.Add(1)
	}
	switch {
	case isCanceled(err):
	case !isInstanceFault(err):
		usual := c.usualLatency.Load()
		c.usualLatency.Store(usual + (min(now-c.lastAnswer.Swap(now), int64(time.Second))-usual)/8)
		if c.failures.Load() != 0 {
			c.readmit()
		}
	default:
		if last := c.lastFailure.Load(); now-last >= int64(baseEjectionTime) && c.lastFailure.CompareAndSwap(last, now) {
			c.eject(now, err)
		}
	}
}

func (c *callStats) eject(now int64, err error) {
	duration, longest := baseEjectionTime<<(2*min(c.failures.Add(1)-1, 2)), maxRefusedEjectionTime
	if isTimeout(err) {
		longest = maxEjectionTime
	}
	c.ejectedUntil.Store(now + int64(min(duration, longest)))
}

// readmit ends an ejection and forgets the failures.
func (c *callStats) readmit() {
	c.failures.Store(0)
	c.lastFailure.Store(0)
	c.ejectedUntil.Store(0)
}

func (c *callStats) ejected(now int64) bool { return c.ejectedUntil.Load() > now }

// admit reports whether a call may go to the instance. Of the calls that find an
// ejection over, one is admitted: it tries the instance.
func (c *callStats) admit(now int64) bool {
	until := c.ejectedUntil.Load()
	return until == 0 || until > now || c.ejectedUntil.CompareAndSwap(until, now+2*int64(baseEjectionTime))
}

// stalled reports whether the instance has let its calls wait for much longer than
// usual. No instance is stalled for longer than maxEjectionTime: the caller must have
// forgotten a Mark.
func (c *callStats) stalled(now int64) bool {
	if c.inFlight.Load() == 0 {
		return false
	}
	quiet := now - c.lastAnswer.Load()
	return quiet > max(int64(stallTime), stallFactor*c.usualLatency.Load()) && quiet < int64(maxEjectionTime)
}

// isCanceled reports whether the caller cancelled the call.
func isCanceled(err error) bool { return isContextError(err, context.Canceled) }

// isTimeout reports whether the call ran out of time.
func isTimeout(err error) bool { return isContextError(err, context.DeadlineExceeded) }

// isContextError reports whether an error is that of a context. go-micro's client
// turns the error of a context into an error of its own, with the same text.
func isContextError(err, contextErr error) bool {
	if err == nil { // allocates nothing
		return false
	}
	var e *errors.Error
	return stderrors.Is(err, contextErr) || stderrors.As(err, &e) && e.Id == "go.micro.client" &&
		(e.Detail == contextErr.Error() || e.Code == 408 && stderrors.Is(contextErr, context.DeadlineExceeded))
}

// isInstanceFault reports whether the instance, or the connection to it, caused an
// error.
func isInstanceFault(err error) bool {
	if err == nil {
		return false
	}
	if stderrors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var e *errors.Error
	// go-micro's client gives its own id to an error that did not come from a handler,
	// and 408 to a call that ran out of time; but also 500 to a handler's plain error.
	return stderrors.As(err, &e) && (e.Code == 408 || e.Code == 500 && e.Id == "go.micro.client")
}
