package overload

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// refusal is the CPU time that a refused call takes.
const refusal = 30 * time.Microsecond

// processor is one CPU. A call waits for it, and uses it until it ends or is refused.
type processor struct {
	turn   chan struct{}
	random *rand.Rand
	calls  sync.WaitGroup
}

func newProcessor(t *testing.T) *processor {
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	return &processor{turn: make(chan struct{}, 1), random: rand.New(rand.NewPCG(1, 2))}
}

func (p *processor) run(m *Method, rate float64, length, work time.Duration) *load {
	l := &load{length: length}
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(time.Duration(p.random.ExpFloat64() / rate * float64(time.Second))) {
		p.calls.Go(func() {
			arrived := Clock()
			p.turn <- struct{}{} // first in, first out, like Go's scheduler
			defer func() { <-p.turn }()
			call, ok := m.Begin(arrived, Clock())
			if !ok {
				time.Sleep(refusal)
				l.mu.Lock()
				defer l.mu.Unlock()
				l.refused++
				return
			}
			time.Sleep(work)
			now := Clock()
			call.End(now)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.answered = append(l.answered, time.Duration(now-arrived))
		})
	}
	return l
}

// Handlers that use only the CPU: at three times the load goodput is 80 % of the capacity, and no answered call has waited long.
func TestThreeTimesTheLoadOfACPU(t *testing.T) {
	for work, goodput := range map[time.Duration]float64{
		200 * time.Microsecond: 0.6, // refusing two calls for each one that is answered takes 60 µs
		5 * time.Millisecond:   0.8,
		50 * time.Millisecond:  0.8,
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newProcessor(t)
			m, capacity := New().NewMethod(), 1/work.Seconds()
			calm := p.run(m, 0.5*capacity, max(10*time.Second, 200*work), work)
			start := p.run(m, 3*capacity, time.Second, work)
			over := p.run(m, 3*capacity, min(time.Minute, 20_000*work), work)
			p.calls.Wait()
			p.run(m, 0.5*capacity, 2*time.Second, work)
			after := p.run(m, 0.5*capacity, 10*time.Second, work)
			p.calls.Wait()
			t.Logf("calls of %v: goodput %.2f, p99 %v, in the first second %v", work, over.goodput()/capacity, over.p99(), start.p99())
			if calm.refusals() > 0 || after.share() > 0.001 {
				t.Errorf("%d calls are refused before the overload, %d after it", calm.refusals(), after.refusals())
			}
			if over.goodput() < goodput*capacity || over.p99() > max(maxWait, work)+work+time.Millisecond {
				t.Errorf("goodput is %.2f of the capacity, and the p99 %v", over.goodput()/capacity, over.p99())
			}
			if most := 2 * max(waitInterval, someCalls*work); start.p99() > most {
				t.Errorf("the p99 of the first second is %v, want at most %v", start.p99(), most)
			}
		})
	}
}

// At the edge of the capacity only the calls of long queues are refused.
func TestCPULoadAtTheCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcessor(t)
		m := New().NewMethod()
		const work = 5 * time.Millisecond
		for _, rate := range []float64{0.5, 0.7, 0.9, 1.1} {
			l := p.run(m, rate/work.Seconds(), time.Minute, work)
			t.Logf("%.1f of the capacity: %.3f refused, p99 %v", rate, l.share(), l.p99())
			if excess := max(0, 1-1/rate); l.share() > excess+0.12 {
				t.Errorf("want at most %.2f refused", excess+0.12)
			}
		}
		p.calls.Wait()
	})
}

// Calls that wait for a CPU that something else uses are not refused: that would not make the others faster.
func TestComputationInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcessor(t)
		m := New().NewMethod()
		end := make(chan struct{})
		for range 3 { // goroutines that have the CPU for 10 ms each time
			p.calls.Go(func() {
				for {
					select {
					case p.turn <- struct{}{}:
						time.Sleep(10 * time.Millisecond)
						<-p.turn
					case <-end:
						return
					}
				}
			})
		}
		l := p.run(m, 100, time.Minute, 200*time.Microsecond)
		close(end)
		p.calls.Wait()
		if l.refusals() > 0 || l.p99() < maxWait {
			t.Errorf("%d of %d calls are refused, and the p99 is %v", l.refusals(), l.answers(), l.p99())
		}
	})
}
