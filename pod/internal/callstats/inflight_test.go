package callstats

import (
	"math/rand/v2"
	"testing"
)

func TestCallsInFlightAreCountedByClass(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var c callsInFlight
	var n [classes]int64
	for range 10_000 {
		of := class(random.IntN(int(classes)))
		if n[of] > 0 && random.IntN(2) == 0 {
			n[of]--
			c.end(of)
		} else if isOnly := c.start(of); isOnly != (n == [classes]int64{}) {
			t.Fatalf("the only call in flight: %v, with %v before", isOnly, n)
		} else {
			n[of]++
		}
		for k, want := range map[class]int64{fast: n[fast] + n[medium], medium: n[fast] + n[medium] + n[slow], slow: n[medium] + n[slow], long: n[long]} {
			if got := c.count(compared[k]); got != want {
				t.Fatalf("%v in flight: class %d counts %d, want %d", n, k, got, want)
			}
		}
		if got, want := c.count(allClasses), n[fast]+n[medium]+n[slow]+n[long]; got != want || c.any() != (want > 0) {
			t.Fatalf("%v in flight: %d in all, any: %v", n, got, c.any())
		}
	}
}

// The count is right again after more calls than a class can hold.
func TestCallsInFlightOverflow(t *testing.T) {
	for of := range classes {
		var c callsInFlight
		for range 70_000 {
			c.start(of)
		}
		for range 69_999 {
			c.end(of)
		}
		if c.count(allClasses) != 1 || c.count(compared[of]) != 1 {
			t.Errorf("class %d: %x, want one call", of, c.word.Load())
		}
	}
}
