package pod

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/micro/go-micro/v2/registry"
)

// A simulation runs calls against instances in virtual time: it takes the time of every
// choice and of every answer from a queue of events, so that a minute takes
// milliseconds, and its random numbers from a seed, so that every run is the same.
type simulation struct {
	instances int
	clients   int     // processes, each with a balancer of its own, 0 for 1
	rate      float64 // calls a second; they begin independently of each other (a Poisson process)
	length    time.Duration
	retries   int           // further attempts of a call that failed
	joins     time.Duration // when one more instance becomes ready, 0 for never
	answer    func(r *rand.Rand, instance int, now time.Duration) (time.Duration, outcome)

	random   *rand.Rand
	events   eventQueue
	attempts []attempt
	calls    []call
}

// attempt is one attempt of a call.
type attempt struct {
	begin    time.Duration
	instance int
}

// call is what a caller sees.
type call struct {
	begin, latency time.Duration
	failed         bool
}

type event struct {
	at time.Duration
	do func()
}

type eventQueue []event

func (q eventQueue) Len() int           { return len(q) }
func (q eventQueue) Less(i, j int) bool { return q[i].at < q[j].at }
func (q eventQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)        { *q = append(*q, x.(event)) }
func (q *eventQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// balancer is what a simulation tests.
type balancer interface {
	begin(now time.Duration) (instance int, end func(now time.Duration, o outcome))
	join()
}

// balancers are the candidates, each for n instances.
var balancers = []struct {
	name string
	make func(t testing.TB, n int, r *rand.Rand) balancer
}{
	{"random", func(_ testing.TB, n int, r *rand.Rand) balancer {
		return &simple{n: n, pick: func(b *simple) int { return r.IntN(b.n) }}
	}},
	{"round robin", func(_ testing.TB, n int, r *rand.Rand) balancer {
		last := r.IntN(n)
		return &simple{n: n, pick: func(b *simple) int { last = (last + 1) % b.n; return last }}
	}},
	{"least in flight", func(_ testing.TB, n int, r *rand.Rand) balancer {
		return &simple{n: n, pick: func(b *simple) int {
			i, j := r.IntN(b.n), r.IntN(b.n-1)
			if j >= i {
				j++
			}
			if b.inFlight[j] < b.inFlight[i] {
				i = j
			}
			return i
		}}
	}},
	{"pod", newPodBalancer},
}

// simple is a balancer that knows at most the calls in flight.
type simple struct {
	n        int
	inFlight [64]int
	pick     func(*simple) int
}

func (b *simple) join() { b.n++ }

func (b *simple) begin(time.Duration) (int, func(time.Duration, outcome)) {
	i := b.pick(b)
	b.inFlight[i]++
	return i, func(time.Duration, outcome) { b.inFlight[i]-- }
}

// podBalancer is the choice of this package.
type podBalancer struct {
	pool  *pool
	index map[*instance]int
}

func newPodBalancer(_ testing.TB, n int, r *rand.Rand) balancer {
	inf := newInformer("greeter", nil)
	b := &podBalancer{&pool{informer: inf, random: r}, map[*instance]int{}}
	for range n {
		b.join()
	}
	return b
}

func (b *podBalancer) join() {
	i := &instance{Node: registry.Node{Address: fmt.Sprint("10.0.0.1:", len(b.index)+1)}, service: &registry.Service{Name: "greeter"}, pod: fmt.Sprint("p-", len(b.index))}
	b.index[i] = len(b.index)
	b.pool.informer.current.Store(&snapshot{instances: append(slices.Clone(b.pool.informer.snapshot().instances), i)})
}

const simulationEpoch = 1 << 62

func (b *podBalancer) begin(now time.Duration) (int, func(time.Duration, outcome)) {
	c, err := b.pool.choose(b.pool.informer.snapshot().instances, simulationEpoch+int64(now))
	if err != nil {
		panic(err)
	}
	return b.index[c.instance], func(now time.Duration, o outcome) {
		c.doneAt(simulationEpoch+int64(now), o, fmt.Errorf("outcome %d", o))
	}
}

func (s *simulation) at(t time.Duration, do func()) { heap.Push(&s.events, event{t, do}) }

func (s simulation) run(t testing.TB, make func(testing.TB, int, *rand.Rand) balancer) *simulation {
	s.random = rand.New(rand.NewPCG(1, 2))
	var clients []balancer
	for i := range max(1, s.clients) {
		b := make(t, s.instances, rand.New(rand.NewPCG(3, uint64(i))))
		clients = append(clients, b)
		if s.joins != 0 {
			s.at(s.joins, b.join)
		}
	}
	var arrive func(now time.Duration)
	arrive = func(now time.Duration) {
		s.attempt(clients[s.random.IntN(len(clients))], now, now, s.retries)
		if next := now + time.Duration(s.random.ExpFloat64()/s.rate*float64(time.Second)); next < s.length {
			s.at(next, func() { arrive(next) })
		}
	}
	s.at(0, func() { arrive(0) })
	for len(s.events) > 0 {
		heap.Pop(&s.events).(event).do()
	}
	return &s
}

func (s *simulation) attempt(b balancer, begin, now time.Duration, retries int) {
	i, end := b.begin(now)
	s.attempts = append(s.attempts, attempt{now, i})
	latency, o := s.answer(s.random, i, now)
	s.at(now+latency, func() {
		end(now+latency, o)
		if o != answered && retries > 0 {
			s.attempt(b, begin, now+latency, retries-1)
			return
		}
		s.calls = append(s.calls, call{begin, now + latency - begin, o != answered})
	})
}

// share returns which share of the attempts that began in a period went to an instance.
func (s *simulation) share(instance int, from, to time.Duration) float64 {
	var all, n float64
	for _, a := range s.attempts {
		if from <= a.begin && a.begin < to {
			all++
			if a.instance == instance {
				n++
			}
		}
	}
	return n / all
}

// percentile returns a percentile of the latencies of the calls that began in a period.
func (s *simulation) percentile(p float64, from, to time.Duration) time.Duration {
	var all []time.Duration
	for _, c := range s.calls {
		if from <= c.begin && c.begin < to {
			all = append(all, c.latency)
		}
	}
	slices.Sort(all)
	return all[int(p*float64(len(all)-1))]
}

// count returns the share of the calls for which f is true.
func (s *simulation) count(f func(call) bool) float64 {
	var n float64
	for _, c := range s.calls {
		if f(c) {
			n++
		}
	}
	return n / float64(len(s.calls))
}

func lognormal(r *rand.Rand, median time.Duration, sigma float64) time.Duration {
	return time.Duration(float64(median) * math.Exp(sigma*r.NormFloat64()))
}

func BenchmarkChoice(b *testing.B) {
	for _, n := range []int{1, 10, 100, 10000} {
		b.Run(fmt.Sprint("instances=", n), func(b *testing.B) {
			r, inf := newStaticRegistry(b, n)
			s := NewSelector(r)
			for _, i := range inf.snapshot().instances { // measured, as in use
				i.latency.observe(clock(), 20*ms)
			}
			if _, err := s.choose("greeter", nil); err != nil { // makes the pool
				b.Fatal(err)
			}
			b.Run("choose and done", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					c, err := s.choose("greeter", nil)
					if err != nil {
						b.Fatal(err)
					}
					c.done(answered, nil)
				}
			})
			b.Run("parallel", func(b *testing.B) {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						c, _ := s.choose("greeter", nil)
						c.done(answered, nil)
					}
				})
			})
		})
	}
}
