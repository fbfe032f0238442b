package overload

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// usual is the usual duration of the simulated calls.
const usual = 10 * time.Millisecond

// service is a simulated service. Its calls need a worker if it has any.
type service struct {
	limiter *Limiter
	workers chan struct{}
	random  *rand.Rand
	calls   sync.WaitGroup
	paused  atomic.Int64 // the process pauses until then
}

// awaitPause waits for the end of a pause.
func (s *service) awaitPause() {
	for d := s.paused.Load() - Clock(); d > 0; d = s.paused.Load() - Clock() {
		time.Sleep(time.Duration(d))
	}
}

func newService(workers int) *service {
	s := &service{limiter: New(), random: rand.New(rand.NewPCG(1, 2))}
	if workers > 0 {
		s.workers = make(chan struct{}, workers)
	}
	return s
}

// load is what became of the calls of one method.
type load struct {
	mu       sync.Mutex
	answered []time.Duration
	refused  int
	length   time.Duration
}

// snapshot returns what has become of the calls until now: the last ones may be in flight.
func (l *load) snapshot() (answered []time.Duration, refused int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.answered), l.refused
}

func (l *load) answers() int     { answered, _ := l.snapshot(); return len(answered) }
func (l *load) refusals() int    { _, refused := l.snapshot(); return refused }
func (l *load) goodput() float64 { return float64(l.answers()) / l.length.Seconds() }

func (l *load) share() float64 { // of refused calls
	return float64(l.refusals()) / float64(max(1, l.refusals()+l.answers()))
}

func (l *load) p99() time.Duration {
	answered, _ := l.snapshot()
	if len(answered) == 0 {
		return 0
	}
	slices.Sort(answered)
	return answered[len(answered)*99/100]
}

// run makes calls of a method at random times, so many a second, for some time. duration is how long the work of a call takes.
func (s *service) run(m *Method, rate float64, length time.Duration, duration func() time.Duration) *load {
	l := &load{length: length}
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(time.Duration(s.random.ExpFloat64() / rate * float64(time.Second))) {
		d := duration()
		s.calls.Go(func() { s.call(m, l, d) })
	}
	return l
}

func (s *service) call(m *Method, l *load, d time.Duration) {
	s.awaitPause()
	began := Clock()
	call, ok := m.Begin(began, began)
	if !ok {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.refused++
		return
	}
	if s.workers != nil {
		s.workers <- struct{}{}
	}
	time.Sleep(d)
	s.awaitPause()
	if s.workers != nil {
		<-s.workers
	}
	now := Clock()
	call.End(now)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answered = append(l.answered, time.Duration(now-began))
}

// varying returns durations with a logarithm of the standard deviation sigma.
func (s *service) varying(median time.Duration, sigma float64) func() time.Duration {
	return func() time.Duration {
		return time.Duration(float64(median) * math.Exp(sigma*s.random.NormFloat64()))
	}
}

// Three times the load for a minute: goodput of 80 % of the capacity, and a p99 of the answered calls of twice that without load. A
// small service has few calls to learn from, and its p99 includes the beginning of the overload.
func TestThreeTimesTheLoad(t *testing.T) {
	for _, p := range []struct {
		workers int
		sigma   float64
		p99     float64
	}{{8, 0, 2}, {32, 0, 2}, {8, 0.3, 2}, {16, 1, 2}, {2, 0, 15}} {
		synctest.Test(t, func(t *testing.T) {
			s := newService(p.workers)
			m, work := s.limiter.NewMethod(), s.varying(usual, p.sigma)
			capacity := float64(p.workers) / (usual.Seconds() * math.Exp(p.sigma*p.sigma/2))
			calm := s.run(m, 0.3*capacity, time.Minute, work)
			over := s.run(m, 3*capacity, time.Minute, work)
			s.run(m, 0.5*capacity, 2*time.Second, work)
			after := s.run(m, 0.5*capacity, 10*time.Second, work)
			s.calls.Wait()
			goodput, p99 := over.goodput()/capacity, float64(over.p99())/float64(calm.p99())
			t.Logf("%d workers, sigma %v: goodput %.2f, p99 %v, %.1f times that without load", p.workers, p.sigma, goodput, over.p99(), p99)
			if goodput < 0.8 || p99 > p.p99 {
				t.Errorf("want goodput of at least 0.8, and a p99 of at most %v times that without load", p.p99)
			}
			if calm.refusals() > 0 || after.share() > 0.001 {
				t.Errorf("%d calls are refused before the overload, %d of 10 s after it", calm.refusals(), after.refusals())
			}
		})
	}
}

// The same on a machine that is not ideal: a call of 10 ms takes a little longer, and the process pauses while it has many calls. After a
// pause many calls begin together, so that a call that waits for one of them waits long. The servers of the benchmark, which have one
// CPU for 8,000 calls a second, pause for more than 2 ms 9 times a second.
func TestThreeTimesTheLoadOfABusyMachine(t *testing.T) {
	for name, p := range map[string]struct {
		every, least, more time.Duration // the mean time between pauses, their least length, and the mean of what is added to it
		p99                float64
	}{
		"long pauses":  {500 * time.Millisecond, 3 * time.Millisecond, 6 * time.Millisecond, 1.8},
		"short pauses": {110 * time.Millisecond, 2 * time.Millisecond, 2 * time.Millisecond, 1.6},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newService(8)
			m, pauses := s.limiter.NewMethod(), rand.New(rand.NewPCG(3, 4))
			random := func(mean time.Duration) time.Duration { return time.Duration(pauses.ExpFloat64() * float64(mean)) }
			work := func() time.Duration { return usual + time.Duration(s.random.Int64N(int64(1200*time.Microsecond))) }
			const capacity = 8 / 0.0106
			calm := s.run(m, 0.3*capacity, time.Minute, work)
			done := make(chan struct{})
			go func() {
				for {
					select {
					case <-time.After(random(p.every)):
						s.paused.Store(Clock() + int64(p.least+random(p.more)))
					case <-done:
						return
					}
				}
			}()
			over := s.run(m, 3*capacity, time.Minute, work)
			close(done)
			s.calls.Wait()
			goodput, p99 := over.goodput()/capacity, float64(over.p99())/float64(calm.p99())
			t.Logf("%s: goodput %.2f, p99 %v, %.2f times that without load", name, goodput, over.p99(), p99)
			if goodput < 0.8 || p99 > p.p99 {
				t.Errorf("%s: want goodput of at least 0.8, and a p99 of at most %v times that without load", name, p.p99)
			}
		})
	}
}

// At the edge of the capacity the calls that wait are few, and so are the calls that are refused.
func TestLoadAtTheCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(8)
		m, work := s.limiter.NewMethod(), s.varying(usual, 0.3)
		s.run(m, 400, 10*time.Second, work)
		for _, rate := range []float64{0.7, 0.9, 1.1, 1.5} {
			l := s.run(m, rate*8/usual.Seconds(), time.Minute, work)
			t.Logf("%.1f of the capacity: %.3f refused, p99 %v", rate, l.share(), l.p99())
			if excess := max(0, 1-1/rate); l.share() > excess+0.12 || l.p99() > 60*time.Millisecond {
				t.Errorf("want at most %.2f refused, and a p99 of at most 60 ms", excess+0.12)
			}
		}
		s.calls.Wait()
	})
}

// A slow method that needs no worker has many calls in flight. It neither lowers the limit of the fast one, nor is it refused.
func TestSlowMethodsAndFastOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, other := newService(8), newService(0)
		fast, slow := s.limiter.NewMethod(), s.limiter.NewMethod()
		const capacity = 8 / 0.002
		var exports *load
		var running sync.WaitGroup
		running.Go(func() { exports = other.run(slow, 50, 50*time.Second, other.varying(2*time.Second, 0)) })
		calm := s.run(fast, 0.7*capacity, 20*time.Second, s.varying(2*time.Millisecond, 0))
		over := s.run(fast, 3*capacity, 20*time.Second, s.varying(2*time.Millisecond, 0))
		running.Wait()
		s.calls.Wait()
		other.calls.Wait()
		if calm.refusals() > 0 || exports.refusals() > 0 {
			t.Errorf("%d fast and %d slow calls are refused, although there are free workers", calm.refusals(), exports.refusals())
		}
		if g := over.goodput() / capacity; g < 0.8 {
			t.Errorf("goodput of the fast calls %.2f of the capacity, want 0.8", g)
		}
	})
}

// Slow calls with the same workers take them away from fast ones: what is left is used.
func TestSlowMethodWithTheSameWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(8)
		other := newService(0)
		other.workers = s.workers
		fast, slow := s.limiter.NewMethod(), s.limiter.NewMethod()
		var running sync.WaitGroup
		running.Go(func() { other.run(slow, 0.5, 80*time.Second, other.varying(2*time.Second, 0)) }) // 1 of 8 workers
		calm := s.run(fast, 300, 20*time.Second, s.varying(2*time.Millisecond, 0))
		over := s.run(fast, 3*8/0.002, 30*time.Second, s.varying(2*time.Millisecond, 0))
		running.Wait()
		s.calls.Wait()
		other.calls.Wait()
		if calm.refusals() > 0 {
			t.Errorf("%d fast calls are refused because of slow ones", calm.refusals())
		}
		if g := over.goodput() * 0.002 / 8; g < 0.65 {
			t.Errorf("goodput of the fast calls %.2f of the capacity, want at least 0.65 of the 0.87 that the slow calls leave", g)
		}
	})
}

// Calls that do not wait are not refused, whatever happens besides.
func TestNothingIsRefusedWithoutAQueue(t *testing.T) {
	for name, test := range map[string]struct {
		rate     float64
		duration func(*service) time.Duration
	}{
		"a cache": {1000, func(s *service) time.Duration {
			return []time.Duration{100 * time.Microsecond, 20 * time.Millisecond}[s.random.IntN(2)]
		}},
		"a rare stop": {1000, func(s *service) time.Duration { return []time.Duration{usual, time.Second}[s.random.IntN(100)/99] }},
		"long polls":  {20, func(s *service) time.Duration { return s.varying(time.Minute, 1)() }},
		"a few calls": {0.5, func(s *service) time.Duration { return s.varying(usual, 1)() }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newService(0)
				l := s.run(s.limiter.NewMethod(), test.rate, 5*time.Minute, func() time.Duration { return test.duration(s) })
				s.calls.Wait()
				if l.share() > 1e-4 {
					t.Errorf("%d of %d calls are refused although none waits", l.refusals(), l.answers())
				}
			})
		})
	}
}

func TestBurstsWithoutAQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := newService(0), &load{}
		m := s.limiter.NewMethod()
		for range 20 {
			for range 1000 {
				s.calls.Go(func() { s.call(m, l, usual) })
			}
			time.Sleep(time.Second)
		}
		s.calls.Wait()
		if l.refusals() > 0 {
			t.Errorf("%d of 20000 calls are refused although none waits", l.refusals())
		}
	})
}

// A dependency becomes slow: fewer calls in flight do not make it faster. Then it becomes fast again.
func TestSlowDependency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(0)
		m := s.limiter.NewMethod()
		s.run(m, 2000, 10*time.Second, s.varying(usual, 0))
		first := s.run(m, 2000, 2*time.Second, s.varying(5*usual, 0))
		later := s.run(m, 2000, time.Minute, s.varying(5*usual, 0))
		t.Logf("%d of 4000 calls are refused at first", first.refusals())
		if first.refusals() > 2000 || later.share() > 0.01 { // twice at most: with the other duration it gets to another class
			t.Errorf("%d of 4000 calls are refused at first, %d of %d later, although none waits", first.refusals(), later.refusals(), later.answers())
		}
		if again := s.run(m, 2000, 10*time.Second, s.varying(usual, 0)); again.refusals() > 0 {
			t.Errorf("%d calls are refused after the dependency has recovered", again.refusals())
		}
		s.calls.Wait()
		if got := time.Duration(m.usual.Load()); got > 2*usual {
			t.Errorf("the usual duration is %v", got)
		}
	})
}

// The first calls of a process are slow, as with empty caches. They are not the usual ones.
func TestSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(8)
		m := s.limiter.NewMethod()
		first := s.run(m, 50, 5*time.Second, s.varying(10*usual, 0))
		calm := s.run(m, 400, 10*time.Second, s.varying(usual, 0))
		over := s.run(m, 3*800, time.Minute, s.varying(usual, 0))
		s.calls.Wait()
		if first.refusals()+calm.refusals() > 0 {
			t.Errorf("%d of the first calls are refused, and %d after them", first.refusals(), calm.refusals())
		}
		if over.goodput() < 0.8*800 || over.p99() > 2*usual {
			t.Errorf("then goodput is %.0f a second of 800, and the p99 %v", over.goodput(), over.p99())
		}
	})
}

// A service is overloaded from its first call on.
func TestOverloadFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(8)
		m := s.limiter.NewMethod()
		s.run(m, 3*800, 5*time.Second, s.varying(usual, 0))
		l := s.run(m, 3*800, time.Minute, s.varying(usual, 0))
		s.calls.Wait()
		if l.goodput() < 0.8*800 || l.p99() > 3*usual {
			t.Errorf("goodput is %.0f a second of 800, and the p99 %v", l.goodput(), l.p99())
		}
	})
}

// Pauses of the process, such as those of a CPU limit, are hardly an overload.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(8)
		m := s.limiter.NewMethod()
		s.run(m, 400, 5*time.Second, s.varying(usual, 0))
		var pauses sync.WaitGroup
		pauses.Go(func() {
			for range 20 {
				for range cap(s.workers) {
					s.workers <- struct{}{}
				}
				time.Sleep(80 * time.Millisecond)
				for range cap(s.workers) {
					<-s.workers
				}
				time.Sleep(2 * time.Second)
			}
		})
		l := s.run(m, 400, 40*time.Second, s.varying(usual, 0))
		pauses.Wait()
		s.calls.Wait()
		t.Logf("%.4f of the calls are refused", l.share())
		if l.share() > 0.03 {
			t.Errorf("%d of %d calls are refused because of pauses of 80 ms", l.refusals(), l.answers())
		}
	})
}

// The capacity changes while there are too many calls.
func TestLimitFollowsTheCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(16)
		m := s.limiter.NewMethod()
		hold := func(n int) { // workers
			for range n {
				s.workers <- struct{}{}
			}
		}
		hold(8)
		s.run(m, 400, 5*time.Second, s.varying(usual, 0))
		s.run(m, 2400, 5*time.Second, s.varying(usual, 0))
		for _, workers := range []int{4, 16} {
			if workers == 4 {
				hold(4)
			} else {
				for range 12 {
					<-s.workers
				}
			}
			capacity := float64(workers) / usual.Seconds()
			s.run(m, 3*capacity, 5*time.Second, s.varying(usual, 0))
			l := s.run(m, 3*capacity, 10*time.Second, s.varying(usual, 0))
			if l.goodput() < 0.8*capacity || l.p99() > 35*time.Millisecond { // 4 workers have minLimit calls
				t.Errorf("with %d workers goodput is %.2f of the capacity, and the p99 %v", workers, l.goodput()/capacity, l.p99())
			}
		}
		s.calls.Wait()
	})
}

// Calls that hang hold their places. Those that come later are not refused for ever.
func TestCallsThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(8)
		m := s.limiter.NewMethod()
		s.run(m, 400, 5*time.Second, s.varying(usual, 0))
		s.run(m, 2400, 5*time.Second, s.varying(usual, 0))
		other := newService(0)
		other.run(m, 100, 5*time.Second, s.varying(time.Hour, 0))
		other.run(m, 100, 10*time.Second, s.varying(usual, 0))
		if l := other.run(m, 100, 10*time.Second, s.varying(usual, 0)); l.refusals() > 0 {
			t.Errorf("%d calls are refused", l.refusals())
		}
		s.calls.Wait()
		other.calls.Wait()
	})
}

func TestBeginAndEndAllocateNothing(t *testing.T) {
	m := New().NewMethod()
	if n := testing.AllocsPerRun(1000, func() {
		c, _ := m.Begin(Clock(), Clock())
		c.End(Clock())
	}); n != 0 {
		t.Errorf("a call allocates %v times", n)
	}
	var none *Method
	c, ok := none.Begin(Clock(), Clock())
	if c.End(Clock()); !ok {
		t.Error("a call without a method is refused")
	}
}

func BenchmarkCall(b *testing.B) {
	m := New().NewMethod()
	b.ReportAllocs()
	for b.Loop() {
		c, _ := m.Begin(Clock(), Clock())
		c.End(Clock())
	}
}

// One of four replicas takes 100 ms for each call instead of one or two: the fault replica-slow, with its 8 callers that make calls 20 ms
// apart. They choose the better one of two replicas, or any. No call is refused, because another replica would have answered it.
func TestSlowReplica(t *testing.T) {
	for _, choices := range []int{1, 2} {
		synctest.Test(t, func(t *testing.T) {
			var (
				methods         [4]*Method
				mu              sync.Mutex
				inFlight        [4]int
				isSlow          bool
				refused, onSlow int
				callers         sync.WaitGroup
				random          = rand.New(rand.NewPCG(5, 6))
			)
			for i := range methods {
				methods[i] = New().NewMethod()
			}
			begin := func() (replica int, work time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				replica = random.IntN(len(methods))
				for range choices - 1 {
					if other := random.IntN(len(methods)); inFlight[other] < inFlight[replica] {
						replica = other
					}
				}
				inFlight[replica]++
				if isSlow && replica == 0 {
					onSlow++
					return replica, 100 * time.Millisecond
				}
				return replica, time.Millisecond + time.Duration(random.Int64N(int64(time.Millisecond)))
			}
			finish := func(replica int, ok bool) {
				mu.Lock()
				defer mu.Unlock()
				inFlight[replica]--
				if !ok {
					refused++
				}
			}
			end := time.Now().Add(time.Minute)
			for range 8 {
				callers.Go(func() {
					for time.Now().Before(end) {
						time.Sleep(20 * time.Millisecond)
						replica, work := begin()
						call, ok := methods[replica].Begin(Clock(), Clock())
						if ok {
							time.Sleep(work)
							call.End(Clock())
						}
						finish(replica, ok)
					}
				})
			}
			for _, slow := range []bool{true, false} {
				time.Sleep(15 * time.Second)
				mu.Lock()
				isSlow = slow
				mu.Unlock()
			}
			callers.Wait()
			if refused > 0 || onSlow < 200 {
				t.Errorf("choosing among %d: %d of %d calls of the slow replica are refused", choices, refused, onSlow)
			}
		})
	}
}
