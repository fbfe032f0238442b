package callstats

import (
	"iter"
	"math"
)

// Resolve decides about an instance of which End has returned Suspected or TrialFailed. others
// are the instances that it is compared with, at most MaxCompared of them, without those that
// are ejected. Resolve returns ShouldEject if the instance gives so many more server errors than
// the others that chance is no explanation, and Recovered if the trial has failed like calls to
// the others.
func (s *Stats) Resolve(v Verdict, now int64, others iter.Seq[*Stats]) Verdict {
	switch {
	case s.failsMoreThan(others):
		if s.countFailure(now) {
			return ShouldEject
		}
	case v == TrialFailed:
		return Recovered
	}
	return Unchanged
}

// failsMoreThan returns false if too little is known of the others, and if they fail alike:
// then the fault is that of the service or of its callers.
func (s *Stats) failsMoreThan(others iter.Seq[*Stats]) bool {
	var n, answers, errors, recentAnswers, recentErrors, sum, squares float64
	for other := range others {
		a, e := other.errors.last(maxAnswers)
		ra, re := other.errors.last(16)
		answers, errors, recentAnswers, recentErrors = answers+float64(a), errors+float64(e), recentAnswers+float64(ra), recentErrors+float64(re)
		if share := float64(e) / float64(max(a, 16)); a > 0 {
			n, sum, squares = n+1, sum+share, squares+share*share
		}
	}
	if answers == 0 {
		return false
	}
	mean := errors / answers
	// The upper end of the 95 % confidence interval of the others' share, by Agresti and
	// Coull: what was not seen yet may happen in the next call.
	upper := (max(mean, recentErrors/recentAnswers)*answers + 2) / (answers + 4)
	upper += 2 * math.Sqrt(upper*(1-upper)/(answers+4))
	if run := s.errors.inARow(); run >= errorsInARow && math.Pow(min(1, upper), float64(run)) <= chanceOfRun {
		return true
	}
	_, own := s.errors.last(maxAnswers)
	pooled := (errors + float64(own)) / (answers + maxAnswers) // as in a two-proportion z-test
	excess := s.errors.share() - mean
	return excess >= minErrorShare &&
		excess >= successRateStdevs*math.Sqrt(max(0, squares/n-sum/n*sum/n)) &&
		excess >= binomialStdevs*math.Sqrt(pooled*(1-pooled)*(1./maxAnswers+1/answers))
}
