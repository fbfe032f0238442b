package zone

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// The parameters of Spill.
const (
	// Calls leave the zone when its answers take more than tolerance times as long as those of the other
	// zones. Linkerd's HAZL adds endpoints of other zones above 2.0 times its measure. This is too late: when
	// calls to instances with four workers take twice as long, one of a hundred takes four times as long.
	tolerance = 1.08

	// Each answer moves the share that may leave by gain times the distance from the tolerance. A new client
	// moves its calls into the zone over about 200 answers, slowly enough that the answers show in time if the zone
	// cannot serve all its clients. If all clients came at once, a queue would form before they learn of it, and those with
	// few calls would take half a minute to leave.
	gain = 0.06

	// The answers of an interval count as maxAnswers at most, and move the share by maxStep at most, so that a client
	// with many calls does not swing between the zones, and leaves a zone that cannot answer in 1 s.
	maxAnswers = 10
	maxStep    = 0.1
	interval   = 100 * time.Millisecond

	// At least minSpill of the calls may go to any zone, a third of them to the own one of three, so that it is
	// known how fast the other zones are.
	minSpill = 1. / 64

	// The answers of the other zones are an average of about the last memory. Calls come into the zone only after
	// firstAnswers of them: before, the choice is the same as without zones.
	memory       = 16
	firstAnswers = 8

	// An answer counts as one that takes maxSlowness times as long as usual at most, and so does a failed
	// call: an estimate is robust if an outlier counts for no more than a bound (Huber, 1964).
	maxSlowness = 2
)

// Spill is the share of the calls that may leave the zone. Its zero value is that of a client that knows
// nothing of the other zones: all. It is safe for concurrent use; nobody waits for a lock.
type Spill struct {
	kept          atomic.Uint32 // the share that must stay, times 2^32
	local, remote answers       // of the present interval
	due           atomic.Int64  // the end of the interval

	adjusting   sync.Mutex
	othersTake  float64 // slowness of the other zones, a moving average
	othersKnown int     // answers of the other zones, up to firstAnswers
}

// MayLeave reports whether a call may leave the zone. random is a random number.
func (s *Spill) MayLeave(random uint32) bool { return random >= s.kept.Load() }

// Share returns the share of the calls that may leave the zone.
func (s *Spill) Share() float64 { return 1 - float64(s.kept.Load())/(1<<32) }

// Ended records that a call to an instance of the own zone, or of another one, has ended. slowness is how
// long it took, divided by the usual duration of its method; infinite if it has failed.
func (s *Spill) Ended(now int64, isLocal bool, slowness float64) {
	if isLocal {
		s.local.add(slowness)
	} else {
		s.remote.add(slowness)
	}
	if now >= s.due.Load() && s.adjusting.TryLock() {
		defer s.adjusting.Unlock()
		if now >= s.due.Load() {
			s.due.Store(now + int64(interval))
			s.adjust()
		}
	}
}

// adjust moves the share by the answers of an interval. The caller holds the lock.
func (s *Spill) adjust() {
	if n, mean := s.remote.take(); n > 0 {
		if s.othersKnown == 0 {
			s.othersTake = mean
		} else {
			s.othersTake += (mean - s.othersTake) * (1 - math.Pow(1-1./memory, float64(n)))
		}
		s.othersKnown = min(s.othersKnown+n, firstAnswers)
	}
	n, mean := s.local.take()
	if n == 0 || s.othersKnown < firstAnswers {
		return
	}
	step := gain * float64(min(n, maxAnswers)) * (mean/s.othersTake - tolerance)
	share := s.Share() + max(-maxStep, min(step, maxStep))
	s.kept.Store(uint32((1 - min(max(share, minSpill), 1)) * (1 << 32)))
}

// answers are the number and the sum of answers, in one word.
type answers struct{ word atomic.Uint64 }

const (
	sumBits  = 40
	fraction = 1 << 10 // unit of the sum
)

func (a *answers) add(slowness float64) {
	a.word.Add(1<<sumBits | uint64(min(slowness, maxSlowness)*fraction))
}

// take returns the number of answers and their mean, and begins anew.
func (a *answers) take() (n int, mean float64) {
	word := a.word.Swap(0)
	if n = int(word >> sumBits); n == 0 {
		return 0, 0
	}
	return n, float64(word&(1<<sumBits-1)) / fraction / float64(n)
}
