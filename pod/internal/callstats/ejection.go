package callstats

import (
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
)

// ejection is the ejection of an instance, and its repetitions until the instance has
// recovered. Its zero value is that of an instance without one.
type ejection struct {
	inARow atomic.Int64 // number of ejections since the last recovery
	since  atomic.Int64 // start of the first of them
	until  atomic.Int64 // end of the last of them, or of its trial; 0 without one
	trial  trial
}

// trial is the one call that tries an instance after its ejection. It is due when the time
// of the ejection is over, and then running until it ends. Another call begins a new trial
// if the running one takes longer than twice baseEjectionTime.
type trial struct {
	running  atomic.Bool // the trial is in flight
	required atomic.Bool // only the trial ends the ejection: other answers belong to calls that began before it
}

// end reports whether a call that has ended is the trial.
func (t *trial) end(c Call) bool { return c.IsTrial && t.running.CompareAndSwap(true, false) }

// Eject begins an ejection and returns its duration. The outcome is that of the call that
// caused it. After a timeout, the late answer of any call ends the ejection.
func (s *Stats) Eject(now int64, o outcome.Outcome) time.Duration {
	e := &s.ejection
	longest := maxEjectionTime
	if o == outcome.LostConnection {
		longest = MaxLostConnectionEjection
	}
	e.trial.required.Store(o != outcome.TimedOut)
	duration := baseEjectionTime
	for range min(e.inARow.Add(1)-1, 2) { // the third is the longest
		duration *= ejectionGrowth
	}
	duration = min(duration, longest)
	e.since.CompareAndSwap(0, now)
	e.until.Store(now + int64(duration))
	return duration
}

// Ejected reports whether the instance is ejected, or its trial is running.
func (s *Stats) Ejected(now int64) bool { return s.ejection.until.Load() > now }

// BeginTrial reports whether a call that begins now is the trial.
func (s *Stats) BeginTrial(now int64) bool {
	e := &s.ejection
	until := e.until.Load()
	if until == 0 || until > now || !e.until.CompareAndSwap(until, now+2*int64(baseEjectionTime)) {
		return false
	}
	e.trial.running.Store(true)
	return true
}

// repeatTrial makes the next call the trial, because the last one was inconclusive.
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
	e := &s.ejection
	e.inARow.Store(0)
	e.until.Store(0)
	e.trial.required.Store(false)
	since := e.since.Swap(0)
	if since != 0 {
		s.errors.clear()
	}
	return since
}
