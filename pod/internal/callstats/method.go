package callstats

import (
	"hash/maphash"
	"sync/atomic"
	"time"
)

// Methods knows how long each method of a service usually takes, on whatever instance. With it
// the calls of fast and slow methods can be compared: a call of 2 s is slow for a method that usually
// takes 5 ms. Its zero value knows no method. It has a fixed size: methods beyond its size share one
// estimate.
type Methods struct {
	known [maxMethods]Method
	rest  Method
}

// Method is what is known of one method. It is one word, so that Find takes no lock: a hash of
// the name that is not 0, and the usual duration, in ticks of 1024 ns, 0 if it is not known.
type Method struct{ word atomic.Uint64 }

const (
	maxMethods = 256 // services have some ten methods; a proxy may pass on any name
	maxProbes  = 16
	tickBits   = 10
)

var seed = maphash.MakeSeed()

// Find returns the method with a name.
func (m *Methods) Find(name string) *Method {
	h := maphash.String(seed, name)
	tag := h>>32 | 1
	for i := range uint64(maxProbes) {
		found := &m.known[(h+i)%maxMethods]
		word := found.word.Load()
		if word == 0 && found.word.CompareAndSwap(0, tag<<32) {
			return found
		}
		if found.word.Load()>>32 == tag {
			return found
		}
	}
	return &m.rest
}

// usual returns the usual duration in nanoseconds, 0 if it is not known.
func (m *Method) usual() int64 { return int64(uint32(m.word.Load())) << tickBits } //nolint:gosec // the lower half

// observe adds the duration of an answered call. The usual duration moves to a longer or shorter one
// by 3 %, whatever the difference, and so becomes the median (Ma, Muthukrishnan and Sandler, "Frugal
// Streaming for Estimating Quantiles", 2013): a rare long call does not count more than any other.
// A difference of less than a quarter writes nothing, because many goroutines share the word.
func (m *Method) observe(duration int64) {
	word := m.word.Load()
	usual := int64(uint32(word)) //nolint:gosec // the lower half
	ticks := min(max(1, duration>>tickBits), 1<<31)
	switch step := usual>>5 + 1; {
	case usual == 0:
		usual = ticks
	case ticks > usual+usual/4:
		usual += step
	case ticks < usual-usual/4:
		usual = max(1, usual-step)
	default:
		return
	}
	m.word.CompareAndSwap(word, word>>32<<32|uint64(usual)) // if another call has moved it, this one need not
}

// class is a range of usual durations. Calls are balanced by calls of the same class and of the next
// ones, and long calls only by long calls, so that an export does not keep fast calls away from its
// instance. The latency of the fast calls shows whether the export slows them down.
type class uint8

// The classes. Methods whose duration is not known yet are long: many are called for the first time
// while others are in use, and they may be exports.
const (
	fast    class = iota // under 10 ms
	medium               // under 100 ms
	slow                 // under 1 s
	long                 // longer, or not known
	classes              // number of classes
)

func classOf(usual int64) class {
	switch {
	case usual == 0, usual >= int64(time.Second):
		return long
	case usual < int64(10*time.Millisecond):
		return fast
	case usual < int64(100*time.Millisecond):
		return medium
	}
	return slow
}
