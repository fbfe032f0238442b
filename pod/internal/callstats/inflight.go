package callstats

import "sync/atomic"

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
