package callstats

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

const ms = int64(time.Millisecond)

func TestPeakEWMAJumpsUpAndDecays(t *testing.T) {
	const begin = 1 << 62
	var p peakEWMA
	if e, _ := p.estimate(begin); e != 0 {
		t.Errorf("before the first call: %v", e)
	}
	near := func(what string, got, want float64) {
		if math.Abs(got-want) > want/100 {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	p.observe(begin, 20*ms)
	e, _ := p.estimate(begin)
	near("after the first call", e, 20e6)
	p.observe(begin, 200*ms)
	e, _ = p.estimate(begin)
	near("after a slow call", e, 200e6)
	p.observe(begin, 20*ms)
	e, _ = p.estimate(begin)
	near("after a fast call at the same time", e, 200e6)
	now := begin + int64(decayTime)/2
	p.observe(now, 20*ms)
	e, _ = p.estimate(now)
	half := math.Exp(-0.5)
	near("after a fast call, half of decayTime later", e, 200e6*half+20e6*(1-half))
	p.atLeast(now, ms)
	e, _ = p.estimate(now)
	near("after a call that failed at once", e, 200e6*half+20e6*(1-half))
	p.atLeast(now, 300*ms)
	for end := now + int64(decayTime); now < end; now += 100_000 { // shorter than a tick
		p.observe(now, 20*ms)
	}
	e, _ = p.estimate(now)
	near("after many fast calls", e, 20e6+(300-20)*1e6/math.E)
	_, elapsed := p.estimate(now + 3*int64(decayTime))
	near("the time since the last call", float64(elapsed), 3*float64(decayTime))
	p.observe(now+3*int64(decayTime), 20*ms)
	e, _ = p.estimate(now + 3*int64(decayTime))
	near("after a fast call, 3 times decayTime later", e, 20e6)
	var unmeasured peakEWMA
	unmeasured.atLeast(begin, ms)
	if e, _ := unmeasured.estimate(begin); e != 0 {
		t.Errorf("an instance that only failed has the latency %v", e)
	}
}

func TestCallsInFlightConservesDurations(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const begin = 1<<62 + 1<<60 // the sum of the start times wraps
	var c callsInFlight
	var starts []int64
	var sum, measured int64
	now := int64(begin)
	for len(starts) > 0 || now == begin || now < begin+1000*ms {
		now += random.Int64N(ms)
		if now < begin+1000*ms && (len(starts) < 2 || random.IntN(2) == 0) {
			starts = append(starts, now)
			c.start(now)
			continue
		}
		i := random.IntN(len(starts))
		started := starts[i]
		starts = append(starts[:i], starts[i+1:]...)
		sum += now - started
		measured += c.end(now, started)
		if got := c.Load(); got != int64(len(starts)) {
			t.Fatalf("%d calls in flight, want %d", got, len(starts))
		}
	}
	if c.word.Load() != 0 {
		t.Errorf("after the last call: %x", c.word.Load())
	}
	if measured != sum {
		t.Errorf("the calls took %d ns, measured are %d", sum, measured)
	}
	c.end(now, now)
	if c.Load() != 0 {
		t.Error("an end without a start counts")
	}
	for range maxCount + 10 {
		c.start(now)
	}
	if calls, age := c.meanAge(now + 5*ms); calls != maxCount || age != 5*ms {
		t.Errorf("%d calls in flight of age %d", calls, age)
	}
}

func TestMeanAgeIsThatOfTheCallsThatAreLeft(t *testing.T) {
	const begin = 1 << 62
	var c callsInFlight
	starts := []int64{begin, begin + 10*ms, begin + 50*ms}
	for _, s := range starts {
		c.start(s)
	}
	now := int64(begin + 100*ms)
	for _, step := range []struct{ ended, calls, age int64 }{{-1, 3, 80 * ms}, {1, 2, 75 * ms}, {0, 1, 50 * ms}, {2, 0, 0}} {
		if step.ended >= 0 {
			if took := c.end(now, starts[step.ended]); took != now-starts[step.ended] {
				t.Errorf("the call took %d, want %d", took, now-starts[step.ended])
			}
		}
		if calls, age := c.meanAge(now); calls != step.calls || age != step.age {
			t.Errorf("%d calls of mean age %d, want %d of %d", calls, age, step.calls, step.age)
		}
	}
	c.start(now + ms) // by a goroutine that read the clock later
	if calls, age := c.meanAge(now); calls != 1 || age != 0 {
		t.Errorf("%d calls of mean age %d, want 1 of 0", calls, age)
	}
	if took := c.end(now, now+ms); took != 0 {
		t.Errorf("a call that begins later took %d", took)
	}
}

// A goroutine may have read the clock before another one that has updated the estimate.
func TestPeakEWMAIgnoresClockThatIsBehind(t *testing.T) {
	const begin = 1 << 62
	var p peakEWMA
	p.observe(begin, 20*ms)
	if _, elapsed := p.estimate(begin - 500*ms); elapsed != 0 {
		t.Errorf("%s have elapsed, want 0", elapsed)
	}
	p.observe(begin-500*ms, 10*ms)
	if e, _ := p.estimate(begin); e < 19e6 || e > 21e6 {
		t.Errorf("the estimate is %v, want 20 ms", e)
	}
}
