package overload

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// The parameters of a queue for the CPUs.
const (
	// A call waits long if it waits for longer than maxWait, or its usual duration if that is longer. DAGOR has 20 ms, too. With Go's
	// 10 ms, for which a goroutine may run before others get the CPU, twice as many calls are refused at the edge of the capacity.
	maxWait = 20 * time.Millisecond

	// Calls are refused if all of them wait long for waitInterval, as with CoDel, whose target and interval are 5 and 100 ms (RFC 8289),
	// and for the time that some calls take: a few that come at once are no overload.
	waitInterval = 100 * time.Millisecond
	someCalls    = 10

	// minShare is the least share of the CPUs that the calls must use themselves. Otherwise they wait for something else, such as
	// a computation in the background, and refusing them would not make the others faster.
	minShare = 0.25
)

// queue refuses the calls that have waited long for a CPU before their handler began. DAGOR, which protects WeChat, measures this time,
// too (Zhou et al., "Overload Control for Scaling WeChat Microservices", SoCC 2018), because it says nothing about what the handler
// waits for. While calls are refused, no call that is answered has waited long.
type queue struct {
	work      atomic.Int64 // sum of the durations of the calls
	short     atomic.Int64 // time when a call began that had not waited long
	isRefused atomic.Bool  // calls that have waited long are refused

	mu      sync.Mutex
	began   int64 // of the period in which calls are counted
	worked  int64 // work when it began
	calls   int
	refused int
	busy    int64 // time of the last period with more than a few refusals
}

// admit decides about a call that has waited, and usually takes this time, 0 if that is not known. It returns false if the call must be
// refused.
func (q *queue) admit(now, waited, usual int64) bool {
	long := waited > max(int64(maxWait), usual)
	if usual == 0 || !long && !q.isRefused.Load() {
		q.short.Store(now)
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.isRefused.Load():
	case q.short.Load() >= q.began:
		q.begin(now)
		return true
	case now-q.began < max(int64(waitInterval), someCalls*usual):
		return true
	case q.share(now) < minShare:
		q.begin(now)
		return true
	default:
		q.isRefused.Store(true)
		q.busy = now
		q.begin(now)
	}
	q.calls++
	if long {
		q.refused++
	}
	if now-q.began >= max(int64(waitInterval), someCalls*usual) {
		if float64(q.refused) > fewRefused*float64(q.calls-q.refused) {
			q.busy = now
		}
		q.isRefused.Store(now-q.busy < int64(calmTime) && q.share(now) >= minShare)
		q.begin(now)
	}
	return !long
}

func (q *queue) begin(now int64) {
	q.began, q.worked, q.calls, q.refused = now, q.work.Load(), 0, 0
}

// share returns the share of the CPUs that the calls have used since the period began, if they have only used CPUs.
func (q *queue) share(now int64) float64 {
	return float64(q.work.Load()-q.worked) / float64(now-q.began) / float64(runtime.GOMAXPROCS(0))
}
