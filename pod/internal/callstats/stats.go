// Package callstats is what is known of the calls to one instance: how many are in flight,
// how long they take, and how they ended. From this it derives the load of the instance,
// and whether the instance should be ejected. Methods has what is known of each method of a
// service, whatever the instance, so that slow methods do not make an instance look slow.
//
// The package knows no instances and no services. The balancer tells each Stats when a call
// begins (Begin) and how it ended (End), and carries out what End returns: it ejects the
// instance (Eject), or readmits it (Readmit). Only the comparison with other instances
// takes more than one Stats (Resolve).
//
//	Available        whether calls should go to the instance
//	IsBetter         compares two instances for a choice
//	Stalled          whether the calls in flight have no answer for long
//	Begin            a call begins; it counts as in flight
//	BecomeStream     the call has opened a stream, whose length is no latency
//	StreamAnswered   the first message of the stream has arrived
//	End              the call or stream has ended; returns a Verdict
//	ProbeAnswered    an unresponsive instance has answered a probe
//	ProbeFailed      it has not
//	Resolve          decides whether a suspect gives more server errors than others
//	Eject            begins an ejection, longer each time
//	BeginTrial       whether a call is the one that tries the instance after its ejection
//	Readmit          ends the ejections
//
// All methods are lock-free, allocate nothing and are safe for concurrent use. Times are
// results of Clock. parameters.go has all constants with their sources.
package callstats

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
)

// Clock returns a monotonic time in nanoseconds, which is cheaper to read than the
// time of day. It is never 0, which stands for "never" in Stats.
func Clock() int64 { return int64(time.Since(epoch)) + 1<<62 }

var epoch = time.Now()

// Stats is what is known of the calls to one instance. Its zero value knows nothing. What each
// choice needs comes first: it fits in a cache line, because among many instances each line is a miss.
type Stats struct {
	inFlight       callsInFlight // without streams
	due            atomic.Int64  // when the instance is stalled unless it answers; 0 if no call was made since its last answer
	slowness       slowness
	errors         errorHistory
	noAnswer       noAnswer
	ejection       ejection
	failures       atomic.Int64 // times in a row that the instance should have been ejected
	lastAnswer     atomic.Int64
	answerInterval atomic.Int64 // time between two answers while busy, a moving average
	streams        atomic.Int64 // open streams
	lastFailure    atomic.Int64
}

// Call is one call or stream to an instance. It is small, so that functions return it in registers.
type Call struct {
	Started int64 // result of Clock
	method  *Method
	flags   uint8 // its class, and the flags below
	Mark    uint8 // whatever the caller of Begin has to remember of the call
}

const (
	classMask = uint8(classes) - 1
	isStream  = 1 << 6
	isTrial   = 1 << 7 // the call tries the instance after its ejection for server errors
)

func (c Call) class() class   { return class(c.flags & classMask) }
func (c Call) isStream() bool { return c.flags&isStream != 0 }
func (c Call) isTrial() bool  { return c.flags&isTrial != 0 }

// Slowness returns how long the call has taken until now, divided by the usual duration of its method, and
// 0 for a stream.
func (c Call) Slowness(now int64) float64 {
	if c.isStream() {
		return 0
	}
	return ratio(max(0, now-c.Started), c.method.usual())
}

// Begin records that a call of a method begins. tries is the result of BeginTrial.
func (s *Stats) Begin(now int64, m *Method, tries bool) Call {
	usual := m.usual()
	c := Call{Started: now, method: m, flags: uint8(classOf(usual))}
	if tries {
		c.flags |= isTrial
	}
	due := s.due.Load()
	if s.inFlight.start(c.class()) { // it is the only one
		due = 0
	}
	if next := s.answerDue(now, usual); due == 0 || next < due {
		s.due.Store(next)
	}
	return c
}

// answerDue returns when the instance is stalled without an answer to a call that begins. Calls are
// answered at an interval of their usual duration divided by their number (Little's law).
func (s *Stats) answerDue(now, usual int64) int64 {
	if usual == 0 {
		return math.MaxInt64
	}
	interval := float64(usual)
	if slowness := s.slowness.value(); slowness > 1 {
		interval *= float64(slowness)
	}
	if interval *= stallFactor; interval > float64(stallTime) {
		interval /= float64(s.inFlight.count(compared[classOf(usual)]))
	}
	return now + max(int64(stallTime), int64(interval))
}

// BecomeStream returns the call as a stream: it counts as in flight until its end, but its
// duration is not a latency, and its silence is not a stall.
func (s *Stats) BecomeStream(now int64, c Call) Call {
	s.streams.Add(1)
	s.inFlight.end(c.class())
	c.flags |= isStream
	return c
}

// Verdict says how the end of a call changes the health of the instance.
type Verdict int

// The verdicts. Suspected and TrialFailed need Resolve.
const (
	Unchanged   Verdict = iota
	Suspected           // the instance may give more server errors than the others
	TrialFailed         // the trial has ended with a server error or timed out
	ShouldEject         // the instance gave no answer, or more server errors than the others
	Recovered           // the instance has answered after failures
)

// StreamAnswered records the first header or message that a stream receives. It is the answer
// to the trial, because the stream itself may last for days.
func (s *Stats) StreamAnswered(c Call) Verdict {
	if s.ejection.endTrial(c) || s.isReadmittedBy(c) {
		return Recovered
	}
	return Unchanged
}

// isReadmittedBy reports whether the answer to a call ends the ejection.
func (s *Stats) isReadmittedBy(c Call) bool {
	e := &s.ejection
	if s.Unresponsive() {
		return s.noAnswer.isEndedBy(c) && (!e.forErrors.Load() || c.Started > e.began.Load())
	}
	return e.until.Load() != 0 && c.Started > e.began.Load()
}

// End records how a call or stream has ended, once.
func (s *Stats) End(now int64, c Call, o outcome.Outcome) Verdict {
	isBlamed := o != outcome.TimedOut || !c.isStream() && s.hadTimeToAnswer(now, c)
	var latency int64
	if c.isStream() {
		s.streams.Add(-1)
	} else {
		latency = max(0, now-c.Started)
		if s.inFlight.end(c.class()) && (o.IsAnswer() || s.noneWaits(now, c)) { // otherwise the next call sets it anew
			s.due.Store(0)
		}
	}
	wasTrial := s.ejection.endTrial(c)
	if o == outcome.TimedOut && !c.isStream() {
		s.slowness.atLeast(now, ratio(latency, c.method.usual()))
	}
	switch {
	case o == outcome.Inconclusive, !isBlamed:
		if wasTrial {
			s.ejection.repeatTrial(now)
		}
		return Unchanged
	case o == outcome.Refused: // it says nothing of the errors that the instance gives
		s.answered(now, c)
		s.slowness.refused(now)
		if wasTrial {
			s.ejection.repeatTrial(now)
		}
		if s.noAnswer.isEndedBy(c) && !s.ejection.forErrors.Load() {
			return Recovered
		}
		return Unchanged
	case o == outcome.ServerError:
		s.answered(now, c)
		s.slowness.atLeast(now, ratio(latency, c.method.usual()))
		if wasTrial {
			s.errors.add(true)
			return TrialFailed
		}
		if s.noAnswer.isEndedBy(c) {
			if !s.ejection.forErrors.Load() {
				return Recovered
			}
			s.noAnswer.since.Store(0)
		}
		return s.addServerError()
	case o == outcome.Answered:
		s.answered(now, c)
		s.errors.add(false)
		isReadmitted := wasTrial || s.isReadmittedBy(c)
		switch {
		case c.isStream():
		case isReadmitted:
			s.slowness.reset(now, ratio(latency, c.method.usual()))
		default:
			s.slowness.observe(now, ratio(latency, c.method.usual()))
			c.method.observe(latency)
		}
		if isReadmitted || s.failures.Load() != 0 && !s.Unresponsive() && !s.Ejected() {
			return Recovered
		}
		return Unchanged
	default:
		return s.endWithoutAnswer(now, c, o == outcome.LostConnection, wasTrial)
	}
}

// noneWaits reports whether the end of a call without an answer leaves no call that shows a stall: the
// call has ended before an answer was due, as one that its caller has cancelled, or it was the last one
// of its class and the next ones. A long call, such as an export, would otherwise keep the instance stalled.
func (s *Stats) noneWaits(now int64, c Call) bool {
	return now <= s.due.Load() || s.inFlight.count(compared[c.class()]) == 0
}

// addServerError adds a server error to the history.
func (s *Stats) addServerError() Verdict {
	s.errors.add(true)
	if s.errors.suspicious() && !s.Ejected() {
		return Suspected
	}
	return Unchanged
}

// answered records that the instance has sent an answer, good or bad.
func (s *Stats) answered(now int64, c Call) {
	if c.isStream() {
		return
	}
	last := s.lastAnswer.Load()
	if now-last < int64(minAnswerInterval) { // also if another goroutine read the clock later
		return
	}
	s.lastAnswer.Store(now)
	interval := min(now-max(last, c.Started), int64(maxAnswerInterval))
	if usual := s.answerInterval.Load(); usual != 0 {
		interval = usual + (interval-usual)/8
	}
	s.answerInterval.Store(interval)
}

// countFailure counts a failure and reports whether it is a new one: calls that fail
// together are one failure.
func (s *Stats) countFailure(now int64) bool {
	last := s.lastFailure.Load()
	if now-last < int64(baseEjectionTime) || !s.lastFailure.CompareAndSwap(last, now) {
		return false
	}
	s.failures.Add(1)
	return true
}

// hadTimeToAnswer reports whether the instance had time to answer one of the calls in
// flight, while a call that timed out was one of them.
func (s *Stats) hadTimeToAnswer(now int64, c Call) bool {
	needed := int64(firstAnswerTime)
	if usual := s.answerInterval.Load(); usual != 0 {
		needed = max(int64(stallTime), answerFactor*usual)
	}
	return now-max(s.lastAnswer.Load(), c.Started) >= needed
}

// Stalled reports whether the calls to the instance have waited much longer than usual.
// After maxEjectionTime the instance counts as stalled no more, because its calls are
// probably long on purpose.
func (s *Stats) Stalled(now int64) bool {
	due := s.due.Load()
	return now > due && due != 0 && now-due < int64(maxEjectionTime) && s.inFlight.any()
}

// Report is what a display shows of a Stats.
type Report struct {
	InFlight   int           // calls and streams
	Failures   int           // in a row; failures within baseEjectionTime count once
	EjectedFor time.Duration // how long the ejection still lasts; 0 without one
}

// Report returns the current numbers.
func (s *Stats) Report(now int64) Report {
	return Report{InFlight: int(s.inFlight.count(allClasses) + s.streams.Load()), Failures: int(s.failures.Load()),
		EjectedFor: max(0, time.Duration(s.ejection.until.Load()-now))}
}
