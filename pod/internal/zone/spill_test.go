package zone

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// client makes calls of which each takes as long as a function says, so many a second, from a time on.
type client struct {
	Spill
	now    int64
	rate   int
	random *rand.Rand
}

func newClient(rate int) *client {
	return &client{now: 1 << 62, rate: rate, random: rand.New(rand.NewPCG(1, 2))}
}

// call makes calls for a time and returns the share of those that left one of three zones.
func (c *client) call(d time.Duration, slowness func(isLocal bool) float64) float64 {
	all, left := 0, 0
	for range int(d.Seconds() * float64(c.rate)) {
		c.now += int64(time.Second) / int64(c.rate)
		isLocal := !c.MayLeave(c.random.Uint32()) || c.random.IntN(3) == 0
		all++
		if !isLocal {
			left++
		}
		c.Ended(c.now, isLocal, slowness(isLocal)*math.Exp(0.25*c.random.NormFloat64()))
	}
	return float64(left) / float64(all)
}

func alike(bool) float64 { return 1 }

func slow(local, others float64) func(bool) float64 {
	return func(isLocal bool) float64 {
		if isLocal {
			return local
		}
		return others
	}
}

func TestSpillBeginsAsWithoutZones(t *testing.T) {
	var s Spill
	for range 100 {
		if !s.MayLeave(rand.Uint32()) {
			t.Fatal("nothing is known of other zones, and a call stays")
		}
		s.Ended(1, true, 1)
	}
}

// The calls of many clients come into the zone so slowly that its answers show when it has too many of them.
func TestSpillFallsSlowly(t *testing.T) {
	for _, rate := range []int{4, 20, 1000} {
		c := newClient(rate)
		for c.Share() == 1 { // the other zones are not known yet
			c.call(time.Second/time.Duration(rate), alike)
		}
		c.call(time.Second/2, alike)
		if share := c.Share(); share < 0.5 {
			t.Errorf("%d calls a second: %.1f %% may leave after half a second", rate, 100*share)
		}
	}
}

func TestSpillIsSmallWhileAllAreAlike(t *testing.T) {
	for _, rate := range []int{1, 20, 1000} {
		c := newClient(rate)
		c.call(10*time.Minute, alike)
		if left := c.call(5*time.Minute, alike); left > 0.05 || left < 0.01 {
			t.Errorf("%d calls a second to zones that are alike: %.1f %% leave", rate, 100*left)
		}
	}
}

func TestSpillFollowsTheSlowerSide(t *testing.T) {
	for _, rate := range []int{20, 1000} {
		c := newClient(rate)
		c.call(time.Minute, alike)
		c.call(5*time.Second, slow(2, 1))
		if left := c.call(5*time.Second, slow(2, 1)); left < 0.6 {
			t.Errorf("%d calls a second, the own zone is twice as slow: %.1f %% leave, want two thirds", rate, 100*left)
		}
		c.call(time.Minute, alike)
		if left := c.call(time.Minute, alike); left > 0.05 {
			t.Errorf("%d calls a second, the own zone is fast again: %.1f %% leave", rate, 100*left)
		}
		if left := c.call(time.Minute, slow(1, 3)); left > 0.05 {
			t.Errorf("%d calls a second, the other zones are slow: %.1f %% leave", rate, 100*left)
		}
		if left := c.call(time.Minute, slow(1.5, 1.5)); left > 0.07 {
			t.Errorf("%d calls a second, all are slow: %.1f %% leave", rate, 100*left)
		}
	}
}

// A call that fails counts as a slow one.
func TestSpillLeavesAZoneThatFails(t *testing.T) {
	c := newClient(200)
	c.call(time.Minute, alike)
	c.call(2*time.Second, slow(math.Inf(1), 1))
	if c.Share() != 1 {
		t.Errorf("2 s after all calls in the own zone fail, %.1f %% of the calls may leave", 100*c.Share())
	}
	c.call(10*time.Second, slow(math.Inf(1), math.Inf(1)))
	if c.Share() > 0.1 {
		t.Errorf("all calls fail in all zones, and %.1f %% of the calls may leave", 100*c.Share())
	}
}

func TestSpillIsConcurrentAndAllocatesNothing(t *testing.T) {
	var s Spill
	var now int64 = 1
	if n := testing.AllocsPerRun(1000, func() {
		now += int64(interval) / 3
		s.MayLeave(1)
		s.Ended(now, now%2 == 0, 1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range int64(10_000) {
				s.Ended(now+i*int64(time.Millisecond), i%3 == 0, 1)
				s.MayLeave(1)
			}
		})
	}
	all.Wait()
	if s.Share() != minSpill {
		t.Errorf("%.1f %% of the calls may leave, with all answers alike", 100*s.Share())
	}
}
