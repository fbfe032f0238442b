package callstats

import (
	"math"
	"sync/atomic"
	"time"
)

// peakEWMA estimates the latency of an instance, in nanoseconds: an exponentially
// weighted moving average over time that jumps up to a higher latency at once (Finagle,
// PeakEwma.scala; tower, load/peak_ewma.rs). Its zero value has measured nothing. It is
// safe for concurrent use and lock-free: the estimate, a float32, and the time of the last
// update, in ticks of 2^20 ns, are one word.
type peakEWMA struct{ word atomic.Uint64 }

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

// observe adds the latency of an answered call.
func (p *peakEWMA) observe(now, latency int64) {
	for {
		word := p.word.Load()
		estimate, elapsed := unpack(word, now)
		next := float64(latency)
		if next <= estimate && elapsed == 0 {
			return
		}
		if next < estimate && elapsed < decayTime {
			decay := math.Exp(-float64(elapsed) / float64(decayTime))
			next = estimate*decay + next*(1-decay)
		}
		if p.word.CompareAndSwap(word, pack(next, now)) {
			return
		}
	}
}

// atLeast adds a call that has told only that the latency is not lower, such as a call
// that failed at once or timed out. It never lowers the estimate.
func (p *peakEWMA) atLeast(now, latency int64) {
	for {
		word := p.word.Load()
		estimate, _ := unpack(word, now)
		if estimate != 0 { // a fault says nothing about the latency of an instance that has never answered
			estimate = max(estimate, float64(latency))
		}
		if p.word.CompareAndSwap(word, pack(estimate, now)) {
			return
		}
	}
}

// reset forgets the estimate and begins with a latency.
func (p *peakEWMA) reset(now, latency int64) { p.word.Store(pack(float64(latency), now)) }

// estimate returns the estimate, 0 if nothing was measured, and the time since the last
// update.
func (p *peakEWMA) estimate(now int64) (estimate float64, elapsed time.Duration) {
	return unpack(p.word.Load(), now)
}
