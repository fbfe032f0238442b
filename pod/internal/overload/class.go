package overload

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// The parameters of a limit.
const (
	// A window, in which calls are counted before the limit changes, takes at least windowTime and the usual duration of the
	// calls, and has at least minCalls. Envoy's adaptive concurrency filter has windows of 100 ms and 50 calls by
	// default; two of ours together are as long. A class without a limit has windows of calmWindowTime.
	windowTime     = 50 * time.Millisecond
	calmWindowTime = 20 * time.Millisecond
	minCalls       = 20

	// Calls wait for each other if they take overloaded times as long as normal in hotWindows windows in a row: a queue that lasts,
	// not a burst or a pause of the machine. These windows take 40 ms or more. CoDel waits for its interval of 100 ms (RFC 8289,
	// section 4.2), in which the queue would grow so long at three times the load that the wait of its calls decided the p99 of a minute.
	overloaded = 2
	hotWindows = 2

	// The limit is the product of the highest rate of rateWindows windows and the shortest duration of durationWindows. Those of BBR
	// are 10 round trips and 10 s. Here each cycle of gains contains a window that drains the queue, so a little more than a
	// cycle is enough. The rate is kept longer: if fewer calls in flight do not make calls shorter, such as those of a slow
	// database, the limit is then that of the rate before, and refuses no more calls.
	rateWindows     = 2 * durationWindows
	durationWindows = len(gains) + 2

	// As many calls are always admitted: so few wait at most minLimit times as long as they take, and a replica that becomes slow for
	// another reason refuses none of a few callers. Netflix's Gradient2Limit admits 20 at least, Envoy's filter 3.
	minLimit = 8

	// A limit ends calmTime after the last window with more refusals than fewRefused of its answers: with fewer, the calls would hardly
	// wait without the limit. kratos refuses calls for 1 s after the last refusal, and go-zero's cool-off takes 1 s,
	// too. A limit also ends if no window has ended for hangTime, because the calls hang.
	calmTime   = time.Second
	fewRefused = 0.2
	hangTime   = 10 * time.Second

	// Calls that take longer than maxDuration, such as those that wait for an event, say nothing about the load.
	maxDuration = 10 * time.Second
)

// gains multiply the limit in one window after the other. BBR: "cycles through a sequence of pacing_gain values [...] 5/4, 3/4, 1,
// 1, 1, 1, 1, 1". The first finds out whether the service can handle more, the second drains the queue. It is 0.5 here, as in BBR's
// ProbeRTT (draft-ietf-ccwg-bbr, BBR.ProbeRTTCwndGain): with 3/4, a queue of calls whose durations vary much was never empty.
var gains = [...]float64{1.25, 0.5, 1, 1, 1, 1, 1, 1}

const noLimit = math.MaxInt64

// class limits the calls of the methods that usually take about as long.
type class struct {
	inFlight atomic.Int64
	limit    atomic.Int64 // noLimit if the class is not overloaded
	refused  atomic.Int64 // calls since the window began
	adapted  atomic.Int64 // time of the end of the last window
	queue    queue        // for the CPUs

	mu      sync.Mutex
	window  window
	busy    int64   // time of the last window with more than a few refusals
	hot     int     // windows in a row in which calls took long
	normal  float64 // slowness of calls that do not wait; 1, or more if they have become slow for another reason
	since   int64   // calls that began before do not count, because they have waited with those of a higher limit
	samples [rateWindows]sample
	count   int // samples since the limit began
}

// window sums up the calls that have ended in it.
type window struct {
	began     int64 // 0 before the first one
	calls     int
	logs      float64 // sum of the logarithms of their slowness, the duration divided by the usual one
	squares   float64 // sum of the squares of these logarithms
	durations int64   // sum, in ns
	usual     int64   // sum of the usual durations
}

// sample is what a window says.
type sample struct {
	slowness float64 // geometric mean, which a rare long call does not change much
	least    float64 // the same less two standard errors: more may be chance
	most     float64 // the same plus two standard errors
	rate     float64 // calls in flight, by Little's law, divided by their slowness: those that did not wait
	refused  float64 // calls, divided by those that have ended
}

// end counts the end of a call.
func (c *class) end(now, began int64, m *Method) {
	duration := now - began
	c.inFlight.Add(-1)
	if duration > int64(maxDuration) {
		return
	}
	c.queue.work.Add(duration)
	c.mu.Lock()
	defer c.mu.Unlock()
	usual, w := m.usual.Load(), &c.window
	m.observe(now, duration, c.hot == 0 && c.limit.Load() == noLimit)
	switch {
	case usual == 0, began < c.since:
		return
	case w.began == 0:
		w.began = now
		return
	}
	w.calls++
	log := math.Log(float64(duration+int64(latencyFloor)) / float64(usual+int64(latencyFloor)))
	w.logs += log
	w.squares += log * log
	w.durations += duration
	w.usual += usual
	length := w.usual / int64(w.calls)
	if w.began == c.since {
		length *= 2 // at first only the short ones of the calls that count end
	}
	if elapsed := now - w.began; w.calls >= minCalls && elapsed >= max(int64(c.windowTime()), length) {
		n := float64(w.calls)
		log = w.logs / n
		margin := 2 * math.Sqrt(max(0, w.squares/n-log*log)/n)
		s := sample{slowness: math.Exp(log), least: math.Exp(log - margin), most: math.Exp(log + margin), refused: float64(c.refused.Swap(0)) / n}
		s.rate = float64(w.durations) / float64(elapsed) / s.slowness
		*w = window{began: now}
		c.adapted.Store(now)
		c.adapt(now, s)
	}
}

func (c *class) windowTime() time.Duration {
	if c.limit.Load() == noLimit {
		return calmWindowTime
	}
	return windowTime
}

// adapt sets the limit at the end of a window.
func (c *class) adapt(now int64, s sample) {
	if limit := c.limit.Load(); limit != noLimit {
		if c.inFlight.Load() > limit {
			c.since = now
		} else {
			c.follow(now, s)
		}
		return
	}
	c.normal = max(1, min(c.normal, s.slowness))
	if s.least < overloaded*c.normal {
		c.hot = 0
		return
	}
	if c.hot++; c.hot >= hotWindows {
		c.busy = now
		c.samples[0] = sample{most: c.normal, rate: s.rate}
		c.count = 1
		c.setLimit(now, 1, s) // the queue that is there is drained anyway
	}
}

// follow changes the limit. If only a few calls were refused, the service could perhaps have handled more: such a
// sample lowers no limit, as with BBR.
func (c *class) follow(now int64, s sample) {
	switch {
	case s.refused > fewRefused:
		c.busy = now
		c.samples[c.count%len(c.samples)] = s
		c.count++
		c.setLimit(now, gains[(c.count+1)%len(gains)], s)
	case now-c.busy >= int64(calmTime):
		c.lift()
	default:
		c.setLimit(now, gains[0], s)
	}
}

// setLimit sets the limit to the product of rate and duration, multiplied by a gain.
//
// Except to drain the queue, it adds the places that are free on average although the service has too many calls. If most calls
// are refused, the next one comes soon after one ends: of a full M/M/c/c system, 1/(load-1) places are free. If hardly any are
// refused, the calls in flight vary by their square root at random.
//
// The limit is rounded down. After a pause of the process many calls begin together, and a call that waits for one of these takes
// twice its time. A place too few leaves a worker idle for a part of the time only.
func (c *class) setLimit(now int64, gain float64, last sample) {
	rate := 0.
	for _, s := range c.samples[:min(c.count, len(c.samples))] {
		rate = max(rate, s.rate)
	}
	product := rate * c.slowness()
	limit := product * gain
	if gain >= 1 {
		limit += 1 / (last.refused + 1/math.Sqrt(product))
	}
	next := max(minLimit, int64(limit))
	if c.limit.Swap(next) > next {
		c.since = now
	}
}

// slowness returns the lowest slowness of durationWindows. It takes the most that each may have been: if durations vary much, the lowest
// of several windows is too low by chance.
func (c *class) slowness() float64 {
	lowest := math.MaxFloat64
	for i := max(0, c.count-durationWindows); i < c.count; i++ {
		lowest = min(lowest, c.samples[i%len(c.samples)].most)
	}
	return lowest
}

// mayRefuse counts the refusal of a call beyond the limit. It returns false if the limit has ended, because the calls hang.
func (c *class) mayRefuse(now int64) bool {
	if now-c.adapted.Load() < int64(hangTime) {
		c.refused.Add(1)
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.limit.Load() != noLimit {
		c.lift()
	}
	return false
}

// lift ends the limit. If calls are still slow although none waits, then this is normal now.
func (c *class) lift() {
	c.limit.Store(noLimit)
	c.hot, c.normal = 0, max(1, c.slowness())
}
