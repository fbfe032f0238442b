// Package callstats is what is known of the calls to one instance: how many are in flight,
// how long they take, and how they ended. From this it derives the load of the instance,
// and whether the instance should be ejected.
//
// The package knows no instances and no services. The balancer tells each Stats when a call
// begins (Begin) and how it ended (End), and carries out what End returns: it ejects the
// instance (Eject), or readmits it (Readmit). Only the comparison with other instances
// takes more than one Stats (Resolve).
//
//	Begin          a call begins; it counts as in flight
//	BecomeStream   the call has opened a stream, whose length is no latency
//	End            the call or stream has ended; returns a Verdict
//	Resolve        decides whether a suspect gives more server errors than others
//	Eject          begins an ejection, longer each time
//	BeginTrial     whether a call is the one that tries the instance after its ejection
//	Readmit        ends the ejections
//	Load, Stalled  compare instances for a choice
//
// All methods are lock-free, allocate nothing and are safe for concurrent use. Times are
// results of Clock. parameters.go has all constants with their sources.
package callstats

import (
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
)

// Clock returns a monotonic time in nanoseconds, which is cheaper to read than the
// time of day. It is never 0, which stands for "never" in Stats.
func Clock() int64 { return int64(time.Since(epoch)) + 1<<62 }

var epoch = time.Now()

// Stats is what is known of the calls to one instance. Its zero value knows nothing.
type Stats struct {
	inFlight       callsInFlight // without streams
	streams        atomic.Int64  // open streams
	latency        peakEWMA
	errors         errorHistory
	lastAnswer     atomic.Int64 // when the instance last answered, or became busy
	answerInterval atomic.Int64 // time between two answers while busy, a moving average
	failures       atomic.Int64 // times in a row that the instance should have been ejected
	lastFailure    atomic.Int64
	ejection       ejection
}

// Call is one call or stream to an instance.
type Call struct {
	Started  int64 // result of Clock
	IsStream bool
	IsTrial  bool // the call tries the instance after its ejection
}

// Begin records that a call begins. isTrial is the result of BeginTrial.
func (s *Stats) Begin(now int64, isTrial bool) Call {
	if s.inFlight.start(now) == 1 {
		s.lastAnswer.Store(now)
	}
	return Call{Started: now, IsTrial: isTrial}
}

// BecomeStream returns the call as a stream: it counts as in flight until its end, but its
// duration is not a latency, and its silence is not a stall.
func (s *Stats) BecomeStream(now int64, c Call) Call {
	s.streams.Add(1)
	s.inFlight.end(now, c.Started)
	c.IsStream = true
	return c
}

// Verdict says how the end of a call changes the health of the instance.
type Verdict int

// The verdicts. Suspected and TrialFailed need Resolve.
const (
	Unchanged   Verdict = iota
	Suspected           // the instance may give more server errors than the others
	TrialFailed         // the trial has ended with a server error
	ShouldEject         // the instance gave no answer, or more server errors than the others
	Recovered           // the instance has answered after failures
)

// End records how a call or stream has ended, once.
func (s *Stats) End(now int64, c Call, o outcome.Outcome) Verdict {
	isBlamed := o != outcome.TimedOut || !c.IsStream && s.hadTimeToAnswer(now)
	var latency int64
	if c.IsStream {
		s.streams.Add(-1)
	} else {
		latency = s.inFlight.end(now, c.Started)
	}
	wasTrial := s.ejection.trial.end(c)
	if o == outcome.TimedOut && !c.IsStream {
		s.latency.atLeast(now, latency)
	}
	switch {
	case o == outcome.Inconclusive, !isBlamed:
		if wasTrial {
			s.ejection.repeatTrial(now)
		}
		return Unchanged
	case o == outcome.ServerError:
		s.answered(now, c)
		s.latency.atLeast(now, latency)
		s.errors.add(true)
		switch {
		case wasTrial:
			return TrialFailed
		case s.errors.suspicious() && !s.Ejected(now):
			return Suspected
		}
		return Unchanged
	case o == outcome.Answered:
		s.answered(now, c)
		s.errors.add(false)
		switch {
		case c.IsStream:
		case wasTrial:
			s.latency.reset(now, latency)
		default:
			s.latency.observe(now, latency)
		}
		if s.failures.Load() == 0 || s.ejection.trial.required.Load() && !wasTrial {
			return Unchanged
		}
		return Recovered
	case s.countFailure(now):
		return ShouldEject
	default:
		return Unchanged
	}
}

// answered records that the instance has sent an answer, good or bad.
func (s *Stats) answered(now int64, c Call) {
	if c.IsStream {
		return
	}
	interval := min(now-s.lastAnswer.Swap(now), int64(maxAnswerInterval))
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
// flight. Its caller has not yet subtracted the call that timed out from inFlight.
func (s *Stats) hadTimeToAnswer(now int64) bool {
	needed := int64(firstAnswerTime)
	if usual := s.answerInterval.Load(); usual != 0 {
		needed = max(int64(stallTime), answerFactor*usual)
	}
	return now-s.lastAnswer.Load() >= needed
}

// Stalled reports whether the calls to the instance have waited much longer than usual.
// After maxEjectionTime the instance counts as stalled no more, because its calls are
// probably long on purpose.
func (s *Stats) Stalled(now int64) bool {
	if s.inFlight.Load() == 0 {
		return false
	}
	quiet := now - s.lastAnswer.Load()
	return quiet > max(int64(stallTime), stallFactor*s.answerInterval.Load()) && quiet < int64(maxEjectionTime)
}

// Report is what a display shows of a Stats.
type Report struct {
	InFlight   int           // calls and streams
	Failures   int           // in a row; failures within baseEjectionTime count once
	EjectedFor time.Duration // how long the ejection still lasts; 0 without one
}

// Report returns the current numbers.
func (s *Stats) Report(now int64) Report {
	return Report{InFlight: int(s.inFlight.Load() + s.streams.Load()), Failures: int(s.failures.Load()),
		EjectedFor: max(0, time.Duration(s.ejection.until.Load()-now))}
}
