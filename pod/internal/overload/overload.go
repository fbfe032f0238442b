// Package overload limits the calls in flight of a service that gets more calls than it can handle, so that it answers as
// many as it can in about their usual time, and refuses the others at once.
//
// Without a limit, the calls beyond the capacity wait, until all of them take so long that callers give up. Nobody
// knows the capacity in advance: it is that of the CPUs, of a pool of workers, or of a database. But calls that
// wait take longer than usual. So the package learns how long the calls of each Method usually take. While they take
// twice as long, it admits only as many at a time as BBR would (Cardwell et al., "BBR: Congestion-Based
// Congestion Control", ACM Queue, 2016): the highest rate of answers multiplied by the shortest duration. kratos' ratelimit has
// this product too (aegis, ratelimit/bbr), but refuses calls only while the CPU is busy, and does not see workers or a database.
//
//	Limiter   one for each service; it has a limit for each class of methods
//	Method    is asked before a call begins (Begin), and knows the usual duration of its calls
//	Call      a call in flight, whose end must be reported (End)
//	class     limits the calls of methods that usually take about as long, such as 10 to 100 ms
//	queue     refuses those of its calls that have waited too long for a CPU
//
// Handlers that use a CPU all the time are never many in flight: the calls wait before their handler begins. A queue for each
// class refuses those that have waited for too long.
//
// There is no limit as long as no calls wait for each other, however many are in flight. Slow methods do not take
// the places of fast ones, because they are in another class.
//
// All methods are safe for concurrent use and allocate nothing. Times are results of Clock.
package overload

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Clock returns a monotonic time in nanoseconds.
func Clock() int64 { return int64(time.Since(epoch)) + 1<<62 }

var epoch = time.Now()

// bounds are the upper bounds of the usual durations of the classes; callstats has the same.
var bounds = [...]int64{int64(10 * time.Millisecond), int64(100 * time.Millisecond), int64(time.Second), math.MaxInt64}

// Limiter limits the calls in flight of one service.
type Limiter struct{ classes [len(bounds)]class }

// New returns a Limiter.
func New() *Limiter {
	l := &Limiter{}
	for i := range l.classes {
		l.classes[i].limit.Store(noLimit)
	}
	return l
}

// NewMethod returns a further method. The caller bounds their number.
func (l *Limiter) NewMethod() *Method {
	m := &Method{limiter: l}
	m.class.Store(&l.classes[len(bounds)-1]) // its calls may be slow
	return m
}

func (l *Limiter) classOf(usual int64) *class {
	i := 0
	for usual >= bounds[i] {
		i++
	}
	return &l.classes[i]
}

// Call is one call in flight.
type Call struct {
	method *Method
	class  *class
	began  int64
}

// Begin begins a call that arrived before it got a CPU. It returns false if the call must be refused. A nil method has no limit.
func (m *Method) Begin(arrived, now int64) (Call, bool) {
	if m == nil {
		return Call{}, true
	}
	c := m.class.Load()
	if !c.queue.admit(now, now-arrived, m.usual.Load()) {
		return Call{}, false
	}
	if n := c.inFlight.Add(1); n > c.limit.Load() && c.mayRefuse(now) {
		c.inFlight.Add(-1)
		return Call{}, false
	}
	return Call{m, c, now}, true
}

// End ends a call that Begin has admitted, once.
func (c Call) End(now int64) {
	if c.class != nil {
		c.class.end(now, c.began, c.method)
	}
}

// The usual duration of a method is at first that of blockCalls calls: the very first that end are the short ones. It
// follows shorter blocks by a quarter of the difference, and the first firstBlocks in both directions. Later it rises with
// the time constant riseTime only, and never while calls wait, so that the queue of an overload does not become usual.
const (
	blockCalls  = 100
	firstBlocks = 10
	riseTime    = 10 * time.Minute

	// latencyFloor is added to each duration: a scheduler's hiccup of a millisecond says nothing. callstats has the same.
	latencyFloor = time.Millisecond
)

// Method is one method of a service.
type Method struct {
	limiter *Limiter
	class   atomic.Pointer[class] // follows the usual duration
	usual   atomic.Int64          // geometric mean of the durations, which a rare long call does not change much; 0 if not known

	mu     sync.Mutex
	blocks int // that have ended
	calls  int // of the current block
	began  int64
	logs   float64 // sum of the logarithms of the durations
}

// observe adds the duration of a call. mayRise is false while calls wait for each other.
func (m *Method) observe(now, duration int64, mayRise bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.calls == 0 {
		m.began = now
	}
	m.calls++
	m.logs += math.Log(float64(duration + int64(latencyFloor)))
	if m.calls < blockCalls {
		return
	}
	usual, block := float64(m.usual.Load()), math.Exp(m.logs/float64(m.calls))-float64(latencyFloor)
	weight := 0.
	switch {
	case m.blocks == 0:
		weight = 1
	case block < usual, mayRise && m.blocks < firstBlocks:
		weight = 0.25
	case mayRise:
		weight = 1 - math.Exp(-float64(now-m.began)/float64(riseTime))
	}
	m.setUsual(int64(max(1, usual+weight*(block-usual))))
	m.blocks++
	m.calls, m.logs = 0, 0
}

// setUsual sets the usual duration. The class follows when the duration is clearly in another one, so that it does not
// change to and fro, and when it has no limit, which the other one would have to find out again.
func (m *Method) setUsual(usual int64) {
	first := m.usual.Swap(usual) == 0
	if m.class.Load().limit.Load() != noLimit {
		return
	}
	if c := m.limiter.classOf(usual); first || c == m.limiter.classOf(usual*5/4) && c == m.limiter.classOf(usual*4/5) {
		m.class.Store(c)
	}
}
