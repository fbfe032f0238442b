package callstats

import (
	"math"
	"sync/atomic"
	"time"
)

// slowness is how much slower an instance is than is usual for the methods that are called: an
// exponentially weighted moving average over time that rises at once (Finagle, PeakEwma.scala;
// tower, load/peak_ewma.rs), but for each answer by maxRise at most. Without this limit, as there,
// each rare long call would keep an instance without calls for as long as the average decays. An
// estimate is robust if an outlier counts for no more than a bound (Huber, "Robust Estimation of a
// Location Parameter", 1964).
//
// Its zero value has measured nothing. It is safe for concurrent use and lock-free: the estimate, a
// float32, and the time of the last update, in ticks of 2^20 ns, are one word.
type slowness struct{ word atomic.Uint64 }

func pack(estimate float64, now int64) uint64 {
	return uint64(math.Float32bits(float32(estimate)))<<32 | uint64(ticksOf(now))
}

// ticksOf wraps, which is wrong only for an instance that got no call for 52 days.
func ticksOf(now int64) uint32 { return uint32(now >> 20) } //nolint:gosec // wraps on purpose

func unpack(word uint64, now int64) (estimate float64, elapsed time.Duration) {
	ticks := ticksOf(now) - uint32(word) //nolint:gosec // the lower half
	if ticks > math.MaxUint32-1000 {     // negative: another goroutine read the clock later
		ticks = 0
	}
	return float64(math.Float32frombits(uint32(word >> 32))), time.Duration(ticks) << 20
}

// ratio returns a duration divided by the usual one.
func ratio(duration, usual int64) float64 {
	if usual == 0 {
		return 1
	}
	return float64(duration+int64(latencyFloor)) / float64(usual+int64(latencyFloor))
}

// observe adds the slowness of an answered call. Of the answers within one tick only the first counts:
// when a machine pauses for a moment, all calls in flight are long for one reason.
func (p *slowness) observe(now int64, next float64) {
	for {
		word := p.word.Load()
		estimate, elapsed := unpack(word, now)
		if elapsed == 0 && estimate != 0 {
			return
		}
		value := min(next, max(estimate, 1)*maxRise)
		if value < estimate && elapsed < decayTime {
			decay := math.Exp(-float64(elapsed) / float64(decayTime))
			value = estimate*decay + value*(1-decay)
		}
		if p.word.CompareAndSwap(word, pack(value, now)) {
			return
		}
	}
}

// atLeast adds a call that has told only that the instance is not faster, such as a call
// that failed at once or timed out. It never lowers the estimate.
func (p *slowness) atLeast(now int64, next float64) {
	for {
		word := p.word.Load()
		estimate, _ := unpack(word, now)
		if estimate != 0 { // a fault says nothing about the latency of an instance that has never answered
			estimate = max(estimate, min(next, estimate*maxRise))
		}
		if p.word.CompareAndSwap(word, pack(estimate, now)) {
			return
		}
	}
}

// refused adds a refused call, which takes no time, as one that is refusalSlowness times as long as usual. Otherwise
// an instance that refuses calls would attract more of them.
func (p *slowness) refused(now int64) {
	for {
		word := p.word.Load()
		estimate, _ := unpack(word, now)
		estimate = max(estimate, min(refusalSlowness, max(estimate, 1)*maxRise))
		if p.word.CompareAndSwap(word, pack(estimate, now)) {
			return
		}
	}
}

// reset forgets the estimate and begins with a call.
func (p *slowness) reset(now int64, next float64) { p.word.Store(pack(next, now)) }

// value returns the estimate, 0 if nothing was measured.
func (p *slowness) value() float32 { return math.Float32frombits(uint32(p.word.Load() >> 32)) }

// estimate returns the estimate, 0 if nothing was measured, and the time since the last
// update.
func (p *slowness) estimate(now int64) (estimate float64, elapsed time.Duration) {
	return unpack(p.word.Load(), now)
}
