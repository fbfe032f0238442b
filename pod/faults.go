package pod

import (
	"math"
	"math/bits"
	"sync/atomic"
)

const (
	// An instance is suspected of failing more than the others after faultsInARow faults
	// in a row (Envoy's outlier detection: consecutive_5xx is 5), or when minFaultShare
	// of its last 63 calls were faults.
	faultsInARow  = 5
	minFaultShare = 0.2

	// A suspect is ejected if so many faults in a row of an instance as good as the others
	// would happen once in ten million calls, or if its share of faults is
	// successRateStdevs standard deviations above the other instances' mean (gRFC A50 and
	// Envoy: success_rate_stdev_factor is 1.9) and binomialStdevs standard deviations
	// above what 63 calls give by chance.
	chanceOfRun       = 1e-7
	successRateStdevs = 1.9
	binomialStdevs    = 5

	// Up to maxCompared other instances are looked at, because the time must not grow
	// with their number.
	maxCompared = 64
)

// faultHistory is the outcomes of the last 63 calls that an instance answered, the last
// one in the lowest bit: 1 for a fault, 0 for any other answer. The highest bit that is set
// marks their number. Its zero value is an empty history. It is safe for concurrent use.
//
// A history counts calls, where gRFC A50 and Envoy have an interval of 10 s and at least
// 100 calls in it, for two reasons. It has a verdict within a second, and when the whole
// service begins to fail, as with its database, the histories of all instances show it
// at once.
type faultHistory struct{ word atomic.Uint64 }

const fullHistory = 1 << 63

func (h *faultHistory) add(fault bool) {
	for {
		word := h.word.Load()
		next := max(word, 1)<<1 | word&fullHistory
		if fault {
			next++
		}
		if word == next || h.word.CompareAndSwap(word, next) { // equal: 63 good answers, or 63 faults
			return
		}
	}
}

func (h *faultHistory) clear() { h.word.Store(0) }

// last returns how many of the last n calls are known and how many of them were faults.
func (h *faultHistory) last(n int) (calls, faults int) {
	word := h.word.Load()
	calls = min(max(0, bits.Len64(word)-1), n)
	return calls, bits.OnesCount64(word & (1<<calls - 1))
}

// inARow returns the number of faults since the last good answer, at most 63.
func (h *faultHistory) inARow() int {
	word := h.word.Load()
	return min(bits.TrailingZeros64(^word), max(0, bits.Len64(word)-1))
}

// share returns the share of faults in the last 63 calls. Calls that are not known count
// as good.
func (h *faultHistory) share() float64 {
	_, faults := h.last(63)
	return float64(faults) / 63
}

func (h *faultHistory) suspicious() bool {
	return h.inARow() >= faultsInARow || h.share() >= minFaultShare
}

// failsMoreThanOthers reports whether a suspected instance fails so much more often than
// the other instances of its service that chance is no explanation. It returns false if
// too little is known of the others, and if they fail alike: then the fault is that of
// the service or of its callers.
func (s *serviceChooser) failsMoreThanOthers(suspect *instance, now int64) bool {
	instances := s.informer.snapshot().instances
	var others, calls, faults, recentCalls, recentFaults, sum, squares float64
	first := s.intN(max(1, len(instances)))
	for i := range min(len(instances), maxCompared+1) {
		other := instances[(first+i)%len(instances)]
		if other == suspect || other.ejected(now) {
			continue
		}
		c, f := other.history.last(63)
		rc, rf := other.history.last(16)
		calls, faults, recentCalls, recentFaults = calls+float64(c), faults+float64(f), recentCalls+float64(rc), recentFaults+float64(rf)
		if share := float64(f) / float64(max(c, 16)); c > 0 {
			others, sum, squares = others+1, sum+share, squares+share*share
		}
	}
	if calls == 0 {
		return false
	}
	mean := faults / calls
	// The upper end of the 95 % confidence interval of the others' share, by Agresti and
	// Coull: what was not seen yet may happen in the next call.
	upper := (max(mean, recentFaults/recentCalls)*calls + 2) / (calls + 4)
	upper += 2 * math.Sqrt(upper*(1-upper)/(calls+4))
	if run := suspect.history.inARow(); run >= faultsInARow && math.Pow(min(1, upper), float64(run)) <= chanceOfRun {
		return true
	}
	_, own := suspect.history.last(63)
	pooled := (faults + float64(own)) / (calls + 63) // as in a two-proportion z-test
	excess := suspect.history.share() - mean
	return excess >= minFaultShare &&
		excess >= successRateStdevs*math.Sqrt(max(0, squares/others-sum/others*sum/others)) &&
		excess >= binomialStdevs*math.Sqrt(pooled*(1-pooled)*(1./63+1/calls))
}
