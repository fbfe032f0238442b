package callstats

import "sync/atomic"

// noAnswer is what is known of an instance that gave no answer. Its zero value is that of an
// instance that has always answered.
type noAnswer struct {
	since     atomic.Int64 // when a call last ended without an answer; 0 after an answer
	isLost    atomic.Bool  // because the connection was lost
	isUnusual atomic.Bool  // the call timed out although its method is usually much faster
	probed    atomic.Int64 // start of the last probe that was answered
}

// Unresponsive reports whether a call to the instance has ended without an answer, and the
// instance has not answered since.
func (s *Stats) Unresponsive() bool { return s.noAnswer.since.Load() != 0 }

// begin records that a call has ended without an answer.
func (n *noAnswer) begin(now int64, isLost, isUnusual bool) {
	n.isLost.Store(isLost)
	n.isUnusual.Store(isUnusual)
	n.since.Store(now)
}

// isEndedBy reports whether the answer to a call shows that the instance answers again. After a
// timeout any late answer does. After a lost connection only the answer to a call that began
// later does: the connection may have broken just after an earlier answer.
func (n *noAnswer) isEndedBy(c Call) bool {
	since := n.since.Load()
	return since != 0 && (c.Started > since || !n.isLost.Load())
}

// endWithoutAnswer records that a call has ended without an answer, by the fault of the instance.
//
// A timeout alone does not eject: the method may always take longer than its deadline, or this
// process may have paused. A probe has to fail, too. If it is answered, the timeout of a method that is
// usually much faster counts as a server error, so that an instance whose handlers hang is compared
// with the others.
func (s *Stats) endWithoutAnswer(now int64, c Call, isLost, wasTrial bool) Verdict {
	probed := s.noAnswer.probed.Load()
	usual := c.method.usual()
	isUnusual := usual != 0 && now-c.Started >= answerFactor*usual
	switch {
	case c.Started <= probed: // the call was sent through a connection older than that of the probe
		if wasTrial {
			s.ejection.repeatTrial(now)
		}
		return Unchanged
	case isLost:
		s.noAnswer.begin(now, true, false)
		if s.countFailure(now) {
			return ShouldEject
		}
		return Unchanged
	case wasTrial && isUnusual:
		s.noAnswer.begin(now, false, true)
		s.errors.add(true)
		return TrialFailed
	case wasTrial:
		s.ejection.repeatTrial(now)
	case now-probed >= int64(ProbeInterval): // otherwise the next probe is not due yet
	case isUnusual:
		return s.addServerError()
	default:
		return Unchanged
	}
	s.noAnswer.begin(now, false, isUnusual)
	return Unchanged
}

// ProbeAnswered records that the instance has answered a probe that began at a time.
func (s *Stats) ProbeAnswered(now, started int64) Verdict {
	s.noAnswer.probed.Store(started)
	if s.noAnswer.since.Swap(0) == 0 { // a call was answered before
		return Unchanged
	}
	switch {
	case s.ejection.forErrors.Load():
		return Unchanged
	case s.failures.Load() == 0 && s.noAnswer.isUnusual.Load():
		return s.addServerError()
	case s.failures.Load() == 0:
		return Unchanged
	}
	s.slowness.reset(now, 0)
	return Recovered
}

// ProbeFailed records that the instance has not answered a probe.
func (s *Stats) ProbeFailed(now int64) Verdict {
	if s.Unresponsive() && s.ejection.until.Load() <= now && s.countFailure(now) {
		return ShouldEject
	}
	return Unchanged
}
