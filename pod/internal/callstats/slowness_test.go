package callstats

import (
	"math"
	"testing"
	"time"
)

const ms = int64(time.Millisecond)

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > want/100 {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestSlownessRisesInStepsAndDecays(t *testing.T) {
	var p slowness
	check := func(what string, now int64, want float64) {
		t.Helper()
		e, _ := p.estimate(now)
		near(t, what, e, want)
	}
	const tick = 1 << 20
	check("before the first call", begin, 0)
	p.observe(begin, 100)
	check("after a first call that is 100 times slower than usual", begin, 1.25)
	p = slowness{}
	p.observe(begin, 0.5)
	check("after a fast first call", begin, 0.5)
	p.observe(begin+tick, 100)
	check("after a call that is 100 times slower than usual", begin, 1.25)
	p.observe(begin+tick, 100)
	check("after another one at the same time", begin, 1.25)
	for i := range int64(3) {
		p.observe(begin+(2+i)*tick, 100)
	}
	const peak = 1.25 * 1.25 * 1.25 * 1.25
	check("after three more", begin, peak)
	p.observe(begin+4*tick, 1)
	check("after a usual call at the same time", begin, peak)
	now := begin + 4*tick + int64(decayTime)/2
	half := math.Exp(-0.5)
	p.observe(now, 1)
	check("after a usual call, half of decayTime later", now, peak*half+1-half)
	p.reset(now, 10)
	p.atLeast(now, 1)
	check("after a call that failed at once", now, 10)
	p.atLeast(now, 30)
	check("after a call that failed late", now, 12.5)
	for end := now + int64(decayTime); now < end; now += 100_000 { // shorter than a tick
		p.observe(now, 1)
	}
	check("after many usual calls", now, 1+11.5/math.E)
	_, elapsed := p.estimate(now + 3*int64(decayTime))
	near(t, "the time since the last call", float64(elapsed), 3*float64(decayTime))
	p.observe(now+3*int64(decayTime), 1)
	check("after a usual call, 3 times decayTime later", now+3*int64(decayTime), 1)
	p = slowness{}
	p.atLeast(begin, 10)
	check("an instance that only failed", begin, 0)
}

// A goroutine may have read the clock before another one that has updated the estimate.
func TestSlownessIgnoresClockThatIsBehind(t *testing.T) {
	var p slowness
	p.observe(begin, 1)
	if _, elapsed := p.estimate(begin - 500*ms); elapsed != 0 {
		t.Errorf("%s have elapsed, want 0", elapsed)
	}
	p.observe(begin-500*ms, 0.5)
	e, _ := p.estimate(begin)
	near(t, "the estimate", e, 1)
}
