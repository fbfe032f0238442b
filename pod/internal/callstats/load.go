package callstats

import "math"

// Kind is what calls are compared by.
type Kind struct {
	mask    uint64 // the classes of the calls that count
	streams bool   // streams count
}

// AnyKind is that of a call of which nothing is known.
var AnyKind = Kind{mask: allClasses}

// StreamKind is that of a stream: streams are balanced by streams. A stream counts as a long
// call until it is open.
var StreamKind = Kind{mask: compared[long], streams: true}

// Kind returns that of a call of the method.
func (m *Method) Kind() Kind {
	if usual := m.usual(); usual != 0 {
		return Kind{mask: compared[classOf(usual)]}
	}
	return AnyKind
}

// IsBetter reports whether a call or stream should rather go to the instance than to another one.
//
// The load is the number of calls in flight of the kind, including the new one, times the square of
// the slowness, times 2 for each server error since the last good answer. Finagle and linkerd2-proxy
// take the latency itself. With the square, an instance that is ten times slower is no alternative to
// ten calls in flight on a fast one, because servers handle calls concurrently. Estimates that do not
// clearly differ are left out. An instance that was never measured counts as fast as the other, so
// that it fills up like every other instance. If the other fails as well, server errors count less,
// and not at all if half of its answers are server errors.
//
// After decayTime without an answer, neither the slowness nor the server errors count while no call
// is in flight, so that one call tries a slow or failing instance again. While this call is in flight
// they count.
func (s *Stats) IsBetter(other *Stats, k Kind, now int64) bool {
	n, m := s.calls(k), other.calls(k)
	a, b := s.slowness.value(), other.slowness.value()
	areAlike := a < latencyTolerance*b && b < latencyTolerance*a || a == 0 || b == 0
	if areAlike && !s.errors.lastIsError() && !other.errors.lastIsError() {
		return n < m // the usual case
	}
	x, y := float64(n), float64(m)
	counts, othersCounts := s.isRecent(now), other.isRecent(now)
	if !areAlike && counts && othersCounts {
		x, y = x*float64(a)*float64(a), y*float64(b)*float64(b)
	}
	if counts {
		x *= s.penalty(other)
	}
	if othersCounts {
		y *= other.penalty(s)
	}
	return x < y
}

// calls returns the number of calls in flight of a kind, including a new one.
func (s *Stats) calls(k Kind) int64 {
	n := s.inFlight.count(k.mask) + 1
	if k.streams {
		n += s.streams.Load()
	}
	return n
}

// isRecent reports whether what the last answers say still counts.
func (s *Stats) isRecent(now int64) bool {
	_, elapsed := s.slowness.estimate(now)
	return elapsed < decayTime || s.inFlight.any()
}

// penalty returns by how much server errors raise the load, compared with another instance.
func (s *Stats) penalty(other *Stats) float64 {
	n := s.errors.inARow()
	if n == 0 {
		return 1
	}
	return math.Exp2(float64(n) * max(0, 1-2*other.errors.share()))
}
