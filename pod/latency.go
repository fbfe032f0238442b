package pod

import (
	"math"
	"sync/atomic"
	"time"
)

// decayTime is the mean lifetime of a latency that is higher than those that follow: it
// counts half after 7 s. It is also how long a choice remembers the latencies and the
// faults of an instance that gets no calls; then one call tries the instance. 10 s is the
// mean lifetime in Finagle (PeakEwma.scala), linkerd2-proxy and go-zero, whose estimate also decays
// without calls; kratos has 0.6 s.
const decayTime = 10 * time.Second

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

// load returns the estimate, 0 if nothing was measured, and the time since the last
// update.
func (p *peakEWMA) load(now int64) (estimate float64, elapsed time.Duration) {
	return unpack(p.word.Load(), now)
}

// callsInFlight counts the calls in flight to an instance and knows their mean age. Its
// zero value counts no call. It is safe for concurrent use and lock-free: the number of
// calls and the sum of their start times are one word.
type callsInFlight struct{ word atomic.Uint64 }

// The lower countBits bits are the number of calls. The upper bits are the sum of the
// start times in microseconds, modulo 2^44: the sum of the ages is smaller than 2^44 µs,
// which is 203 days.
const (
	countBits = 20
	maxCount  = 1<<countBits - 1
	sumMask   = 1<<(64-countBits) - 1
)

func micros(t int64) uint64 { return uint64(t) / 1000 & sumMask } //nolint:gosec // a time of clock is positive

// Load returns the number of calls in flight, at most maxCount.
func (c *callsInFlight) Load() int64 { return int64(c.word.Load() & maxCount) }

// meanAge returns how many calls are in flight and, on average, how many nanoseconds
// ago they started.
func (c *callsInFlight) meanAge(now int64) (calls, age int64) { return meanAge(c.word.Load(), now) }

func meanAge(word uint64, now int64) (calls, age int64) {
	n := word & maxCount
	if n == 0 {
		return 0, 0
	}
	sum := (n*micros(now) - word>>countBits) & sumMask
	if sum > sumMask/2 { // negative: another goroutine has started a call after now
		return int64(n), 0
	}
	return int64(n), int64(sum/n) * 1000 //nolint:gosec // the sum has 44 bits
}

// start records that a call begins and returns the number of calls in flight.
func (c *callsInFlight) start(now int64) int64 {
	for {
		word := c.word.Load()
		if word&maxCount == maxCount {
			return maxCount
		}
		if next := word + micros(now)<<countBits + 1; c.word.CompareAndSwap(word, next) {
			return int64(next & maxCount)
		}
	}
}

// end records that a call ends, which began at started, and returns its duration.
func (c *callsInFlight) end(now, started int64) (latency int64) {
	latency = max(0, now-started)
	for {
		word := c.word.Load()
		var next uint64
		switch word & maxCount {
		case 0: // its start did not count, since there were maxCount calls
			return latency
		case 1:
		default:
			next = word - micros(now-latency)<<countBits - 1
		}
		if c.word.CompareAndSwap(word, next) {
			return latency
		}
	}
}
