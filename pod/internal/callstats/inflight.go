package callstats

import "sync/atomic"

// callsInFlight counts the calls in flight to an instance by their class, 16 bits each, in one word.
// It is safe for concurrent use and lock-free. The sum is right again when more than 65,535 calls
// of a class, which then look fewer, have ended.
type callsInFlight struct{ word atomic.Uint64 }

// Masks of the classes that a call is compared with.
const (
	allClasses = 1<<64 - 1
	perClass   = 16
)

var compared = [classes]uint64{
	fast:   0x0000_0000_ffff_ffff,
	medium: 0x0000_ffff_ffff_ffff,
	slow:   0x0000_ffff_ffff_0000,
	long:   0xffff_0000_0000_0000,
}

func (c *callsInFlight) start(of class) (isOnly bool) {
	one := uint64(1) << (perClass * of)
	return c.word.Add(one) == one
}

func (c *callsInFlight) end(of class) (areLeft bool) {
	return c.word.Add(-(uint64(1) << (perClass * of))) != 0
}

// count returns the number of calls in the classes of a mask.
func (c *callsInFlight) count(mask uint64) int64 {
	word := c.word.Load() & mask
	return int64(word * 0x0001_0001_0001_0001 >> (3 * perClass)) // the sum of the four fields, in the upper one
}

func (c *callsInFlight) any() bool { return c.word.Load() != 0 }
