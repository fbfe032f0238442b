package callstats

import (
	"sync/atomic"
	"time"
)

// ejection is the ejection of an instance, and its repetitions until the instance has
// recovered. Its zero value is that of an instance without one.
type ejection struct {
	until     atomic.Int64 // end of the last ejection, or of its trial; 0 without one
	began     atomic.Int64 // start of the last ejection
	inARow    atomic.Int64 // number of ejections since the last recovery
	since     atomic.Int64 // start of the first of them
	forErrors atomic.Bool  // the last ejection was for server errors, not for no answer
	trial     atomic.Bool  // a trial is in flight
}

// Eject begins an ejection and returns its duration. forErrors tells whether it is for server
// errors, so that a trial ends it, or for no answer, so that any answer ends it.
func (s *Stats) Eject(now int64, forErrors bool) time.Duration {
	e := &s.ejection
	duration := baseEjectionTime
	for range min(e.inARow.Add(1)-1, 2) { // the third is the longest
		duration *= ejectionGrowth
	}
	duration = min(duration, maxEjectionTime)
	e.forErrors.Store(forErrors)
	e.since.CompareAndSwap(0, now)
	e.began.Store(now)
	e.until.Store(now + int64(duration))
	return duration
}

// Ejected reports whether the instance is ejected. After the time of the ejection it is
// so until an answer has ended the ejection.
func (s *Stats) Ejected() bool { return s.ejection.until.Load() != 0 }

// Available reports whether a call should go to the instance: it is neither ejected nor
// unresponsive, or the call may be the trial that is due. A call may be the trial if it can be
// retried; if no such call comes within trialGrace, any call may.
func (s *Stats) Available(now int64, canRetry bool) bool {
	if s.noAnswer.since.Load() != 0 {
		return false
	}
	until := s.ejection.until.Load()
	return until == 0 || canRetry && until <= now || until+int64(trialGrace) <= now
}

// BeginTrial reports whether a call of a method that begins now is the trial, the one call that
// tries the instance after it was ejected for server errors. Until the end of trialGrace a call can
// only be the trial if its spare time suffices for its usual duration and for that of a retry. If
// the trial takes longer than maxTrialTime, as a stream without messages does, another call
// becomes the trial.
func (s *Stats) BeginTrial(now int64, spare time.Duration, m *Method) bool {
	e := &s.ejection
	until := e.until.Load()
	if until == 0 || until > now || s.Unresponsive() {
		return false
	}
	if until+int64(trialGrace) > now && (spare <= 0 || int64(spare) < 2*m.usual()) {
		return false
	}
	if !e.until.CompareAndSwap(until, now+int64(maxTrialTime)) {
		return false
	}
	e.trial.Store(true)
	return true
}

// endTrial reports whether a call that has ended is the trial.
func (e *ejection) endTrial(c Call) bool { return c.isTrial() && e.trial.CompareAndSwap(true, false) }

// repeatTrial makes another call the trial, because the last one was inconclusive.
func (e *ejection) repeatTrial(now int64) {
	if e.until.Load() != 0 {
		e.until.Store(now)
	}
}

// Readmit ends the ejection, forgets the failures, and returns when the first ejection
// in a row began, 0 if there was none.
func (s *Stats) Readmit() (ejectedSince int64) {
	s.failures.Store(0)
	s.lastFailure.Store(0)
	s.noAnswer.since.Store(0)
	e := &s.ejection
	e.inARow.Store(0)
	e.until.Store(0)
	e.forErrors.Store(false)
	since := e.since.Swap(0)
	if since != 0 {
		s.errors.clear()
	}
	return since
}
