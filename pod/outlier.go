package pod

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/logger"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// An instance that fails is ejected for baseEjectionTime, and four times as long
	// for each further ejection in a row, up to maxEjectionTime; then one call tries
	// it. The names are those of outlier detection in Envoy and in gRPC (gRFC A50).
	// Calls that fail together, within baseEjectionTime, are one failure.
	baseEjectionTime = 5 * time.Second
	maxEjectionTime  = 80 * time.Second

	// maxRefusedEjectionTime is the longest ejection after a call whose connection
	// failed. Such a call costs a retry, not a timeout, and the error may come from an
	// old connection to an instance that is back.
	maxRefusedEjectionTime = 10 * time.Second

	// At most one of minInstancesPerEjection instances is ejected, which is half of
	// them. It is better to call an instance that may fail than to overload the
	// instances that work. Envoy ignores ejections when fewer than 50 % of the hosts are left (its panic
	// threshold); gRFC A50 has max_ejection_percent.
	minInstancesPerEjection = 2

	// An instance with calls in flight is stalled when its last answer is older than
	// stallTime and older than stallFactor times its usual latency. A stalled
	// instance gets no more calls while there are others, so that only one or
	// two calls of this process, not one of each goroutine, wait for a frozen pod until
	// they time out.
	stallTime   = 10 * time.Millisecond
	stallFactor = 8

	// A timeout is the instance's fault only if the instance had time to answer: if
	// it had calls in flight and answered none of them for stallTime and for
	// answerFactor times its usual latency. An instance that has never answered gets
	// firstAnswerTime, because the connection to it may be new.
	answerFactor    = 2
	firstAnswerTime = 50 * time.Millisecond
)

// callStats is what the selector knows about the calls to one instance. All times are
// results of clock, in nanoseconds; 0 means never. It is safe for concurrent use.
type callStats struct {
	inFlight       callsInFlight // calls between choose and done, without streams
	streams        atomic.Int64  // open streams
	latency        peakEWMA
	history        faultHistory
	lastAnswer     atomic.Int64 // when the instance last answered, or became busy
	answerInterval atomic.Int64 // time between two answers while busy, a moving average
	failures       atomic.Int64 // failures in a row
	lastFailure    atomic.Int64
	ejections      atomic.Int64 // ejections in a row
	ejectedSince   atomic.Int64 // start of the first ejection in a row
	ejectedUntil   atomic.Int64 // 0 if no ejection is running or waiting for its trial
	trial          atomic.Bool  // the trial, the one call after an ejection, is in flight
	needsTrial     atomic.Bool  // only the trial ends the ejection: other answers belong to calls that began before it
}

// started records that a call to the instance begins.
func (c *callStats) started(now int64) {
	if c.inFlight.start(now) == 1 {
		c.lastAnswer.Store(now)
	}
}

// transition says how the end of a call changes the instance's health.
type transition int

const (
	unchanged    transition = iota
	suspected               // the instance may fail more often than the others
	faultedAgain            // the trial of an ejected instance has ended with a fault
	failed                  // the instance should be ejected
	recovered               // the instance has answered after failures
)

// ended records how the call or stream of a choice has ended.
func (c *callStats) ended(now int64, call choice, o outcome) transition {
	isStream := call.isStream
	blamed := o != timedOut || !isStream && c.hadTimeToAnswer(now)
	var latency int64
	if isStream {
		c.streams.Add(-1)
	} else {
		latency = c.inFlight.end(now, call.started)
	}
	wasTrial := call.isTrial && c.trial.CompareAndSwap(true, false)
	if o == timedOut && !isStream {
		c.latency.atLeast(now, latency)
	}
	switch {
	case o == inconclusive, !blamed:
		if wasTrial && c.ejectedUntil.Load() != 0 {
			c.ejectedUntil.Store(now) // the next call is the trial
		}
		return unchanged
	case o == faulted:
		c.answered(now, isStream)
		c.latency.atLeast(now, latency)
		c.history.add(true)
		switch {
		case wasTrial:
			return faultedAgain
		case c.history.suspicious() && !c.ejected(now):
			return suspected
		}
		return unchanged
	case o == answered:
		c.answered(now, isStream)
		c.history.add(false)
		switch {
		case isStream:
		case wasTrial:
			c.latency.reset(now, latency)
		default:
			c.latency.observe(now, latency)
		}
		if c.failures.Load() == 0 || c.needsTrial.Load() && !wasTrial {
			return unchanged
		}
		return recovered
	case c.failed(now):
		return failed
	default:
		return unchanged
	}
}

// answered records that the instance has sent an answer, good or not.
func (c *callStats) answered(now int64, isStream bool) {
	if isStream {
		return
	}
	interval := min(now-c.lastAnswer.Swap(now), int64(time.Second))
	if usual := c.answerInterval.Load(); usual != 0 {
		interval = usual + (interval-usual)/8
	}
	c.answerInterval.Store(interval)
}

// failed counts a failure and reports whether it is a new one: calls that fail together
// are one failure.
func (c *callStats) failed(now int64) bool {
	last := c.lastFailure.Load()
	if now-last < int64(baseEjectionTime) || !c.lastFailure.CompareAndSwap(last, now) {
		return false
	}
	c.failures.Add(1)
	return true
}

// hadTimeToAnswer reports whether the instance had time to answer one of the calls in
// flight. Its caller has not yet subtracted the call that timed out from inFlight.
func (c *callStats) hadTimeToAnswer(now int64) bool {
	needed := int64(firstAnswerTime)
	if usual := c.answerInterval.Load(); usual != 0 {
		needed = max(int64(stallTime), answerFactor*usual)
	}
	return now-c.lastAnswer.Load() >= needed
}

// eject begins an ejection and returns its duration.
func (c *callStats) eject(now int64, o outcome) time.Duration {
	longest := maxEjectionTime
	if o == lostConnection {
		longest = maxRefusedEjectionTime
	}
	c.needsTrial.Store(o != timedOut)
	duration := min(baseEjectionTime<<(2*min(c.ejections.Add(1)-1, 2)), longest)
	c.ejectedSince.CompareAndSwap(0, now)
	c.ejectedUntil.Store(now + int64(duration))
	return duration
}

// readmit ends an ejection, forgets the failures, and returns when the first ejection
// in a row began, 0 if there was none.
func (c *callStats) readmit() (ejectedSince int64) {
	c.failures.Store(0)
	c.lastFailure.Store(0)
	c.ejections.Store(0)
	c.ejectedUntil.Store(0)
	c.needsTrial.Store(false)
	since := c.ejectedSince.Swap(0)
	if since != 0 {
		c.history.clear()
	}
	return since
}

func (c *callStats) ejected(now int64) bool { return c.ejectedUntil.Load() > now }

// beginTrial reports whether a call is the trial: the one call that tries an instance
// after its ejection.
func (c *callStats) beginTrial(now int64) bool {
	until := c.ejectedUntil.Load()
	if until == 0 || until > now || !c.ejectedUntil.CompareAndSwap(until, now+2*int64(baseEjectionTime)) {
		return false
	}
	c.trial.Store(true)
	return true
}

// stalled reports whether the calls to the instance have waited much longer than usual.
// After maxEjectionTime the instance counts as stalled no more, because its calls are
// probably long on purpose.
func (c *callStats) stalled(now int64) bool {
	if c.inFlight.Load() == 0 {
		return false
	}
	quiet := now - c.lastAnswer.Load()
	return quiet > max(int64(stallTime), stallFactor*c.answerInterval.Load()) && quiet < int64(maxEjectionTime)
}

// eject ejects an instance whose call has failed, unless too many are ejected already.
func (s *serviceChooser) eject(i *instance, now int64, o outcome, cause error) {
	duration := s.beginEjection(i, now, o)
	if duration == 0 {
		return
	}
	logger.Warnf("Client [pod] Ejecting instance %s of service %q on pod %q for %s: %v", i.Address, i.service.Name, i.pod, duration, cause)
	for _, e := range s.events {
		if e.Ejected != nil {
			e.Ejected(i.service.Name, i.pod, i.Address, duration, cause)
		}
	}
}

// beginEjection returns the duration of the ejection, 0 if too many instances are ejected
// already or the instance has left.
func (s *serviceChooser) beginEjection(i *instance, now int64, o outcome) time.Duration {
	s.ejecting.Lock()
	defer s.ejecting.Unlock()
	instances := s.informer.snapshot().instances
	exists, ejected := false, 1 // the instance itself
	for _, other := range instances {
		if other == i {
			exists = true
		} else if other.ejected(now) {
			ejected++
		}
	}
	if !exists || ejected*minInstancesPerEjection > len(instances) {
		return 0
	}
	return i.eject(now, o)
}

// readmit ends the ejection of an instance, if it is ejected.
func (s *serviceChooser) readmit(i *instance, now int64) {
	since := i.readmit()
	if since == 0 {
		return
	}
	after := time.Duration(now - since).Round(time.Millisecond)
	logger.Infof("Client [pod] Instance %s of service %q on pod %q is back, %s after its ejection", i.Address, i.service.Name, i.pod, after)
	for _, e := range s.events {
		if e.Readmitted != nil {
			e.Readmitted(i.service.Name, i.pod, i.Address, after)
		}
	}
}

// outcome is what the error of a call says about the instance.
type outcome int

const (
	answered       outcome = iota // the instance answered, possibly with an error of its handler
	timedOut                      // no answer came in time
	lostConnection                // there is no connection to the instance, or it broke
	faulted                       // the instance answered with a fault of the server, such as UNAVAILABLE
	inconclusive                  // the caller cancelled the call, or the client itself failed
)

// outcomeOfStatus classifies the gRPC status with which a call has ended, nil for OK, and
// the go-micro error that the server put into the status, nil if there is none.
//
// The faults of a server are those that Envoy's outlier detection counts: it maps the gRPC
// status to an HTTP status and counts 5xx. Two codes are judged differently:
// RESOURCE_EXHAUSTED counts, because an overloaded instance answers it at once and must
// not attract more calls, and UNIMPLEMENTED does not, because an instance of an older version is healthy. A
// go-micro error counts if its code is at least 500.
func outcomeOfStatus(s *status.Status, e *errors.Error) outcome {
	if e != nil {
		if e.Code >= 500 {
			return faulted
		}
		return answered
	}
	switch text := s.Message(); s.Code() {
	case codes.OK:
		return answered
	case codes.Canceled:
		return inconclusive
	case codes.DeadlineExceeded:
		return timedOut
	case codes.Unavailable, codes.ResourceExhausted, codes.Internal, codes.Unknown, codes.DataLoss:
		switch {
		case isClientFault(text):
			return inconclusive
		case s.Code() == codes.Unavailable && isLostConnection(text):
			return lostConnection
		}
		return faulted
	default:
		return answered
	}
}

// isClientFault reports whether grpc-go itself made an error in the client, such as that of a
// message that is too large or of a connection that go-micro has closed.
func isClientFault(text string) bool { return strings.HasPrefix(text, "grpc: ") }

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
