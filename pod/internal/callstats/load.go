package callstats

import "math"

// Load is what a choice compares.
type Load struct {
	calls   float64 // calls and streams in flight, including the new one
	latency float64 // in nanoseconds, 0 if nothing was measured
	age     float64 // mean age of the calls in flight, in nanoseconds
	errors  float64 // server errors since the last good answer
	stats   *Stats  // for what few comparisons need: among many instances each read misses the cache
}

// Load returns the load of the instance.
//
// Calls in flight for longer than the estimate of the latency raise it before they end.
// After decayTime without an answer, neither the estimate nor the server errors count while
// no call is in flight, so that one call tries a slow or failing instance again. While this
// call is in flight they count. The age of calls that are older than maxEjectionTime does
// not count: they are long on purpose, such as long polls.
func (s *Stats) Load(now int64) Load {
	calls, age := s.inFlight.meanAge(now)
	if age > int64(maxEjectionTime) {
		age = 0
	}
	l := Load{calls: float64(calls + s.streams.Load() + 1), age: float64(age), stats: s}
	if latency, elapsed := s.latency.estimate(now); calls > 0 || elapsed < decayTime {
		l.errors = float64(s.errors.inARow())
		if latency != 0 {
			l.latency = max(latency, l.age)
		}
	}
	return l
}

// Less reports whether a call should rather go to the instance with the load l than to the
// one with the load m.
//
// The load is the number of calls in flight, including the new one, times the square of the
// latency, times 2 for each server error since the last good answer. Finagle and
// linkerd2-proxy take the latency itself. With the square, an instance that is ten times
// slower is no alternative to ten calls in flight on a fast one, because servers handle
// calls concurrently. Latencies that do not clearly differ are left out. An instance that
// was never measured counts as fast as the other, so that it fills up like every other
// instance. If the other fails as well, server errors count less, and not at all if half of
// its answers are server errors.
func (l Load) Less(m Load) bool {
	if l.latency == 0 {
		l.latency = max(m.latency, l.age)
	}
	if m.latency == 0 {
		m.latency = max(l.latency, m.age)
	}
	r := (l.latency + float64(latencyFloor)) / (m.latency + float64(latencyFloor))
	if 1/r < latencyTolerance && r < latencyTolerance {
		r = 1
	}
	x, y := l.calls*r*r*l.penalty(m), m.calls*m.penalty(l)
	return x < y || x == y && l.calls > 1 && l.stats.lastAnswer.Load() > m.stats.lastAnswer.Load() // the instance that answered last is not stalled
}

// penalty returns by how much server errors raise a load, compared with another.
func (l Load) penalty(other Load) float64 {
	if l.errors == 0 {
		return 1
	}
	return math.Exp2(l.errors * max(0, 1-2*other.stats.errors.share()))
}
