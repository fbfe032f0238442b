package balancer

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A simulation runs calls against instances in virtual time: it takes the time of every
// choice and of every answer from a queue of events, so that a minute takes
// milliseconds, and its random numbers from a seed, so that every run is the same.
type simulation struct {
	instances int
	clients   int     // processes, each with a balancer of its own, 0 for 1
	rate      float64 // calls a second; they begin independently of each other (a Poisson process)
	callers   int     // instead of rate: each makes one call after the other, and pauses after each
	pause     time.Duration
	length    time.Duration
	retries   int           // further attempts of a call that failed
	joins     time.Duration // when one more instance becomes ready, 0 for never
	answer    answerFunc
	methods   []simulatedMethod // if calls are not all of one method, which answer answers

	seed     uint64
	random   *rand.Rand
	events   eventQueue
	attempts []simulatedAttempt
	calls    []simulatedCall
}

// answerFunc returns after what time and how an instance answers.
type answerFunc func(r *rand.Rand, instance int, now time.Duration) (time.Duration, outcome.Outcome)

// simulatedMethod is a method of the service, in which a share of the calls ends.
type simulatedMethod struct {
	name     string
	share    float64 // of the calls; the last method has the rest
	first    int     // number of calls in the first 100 ms, besides the share
	isStream bool
	answer   answerFunc
}

// simulatedAttempt is one attempt of a call.
type simulatedAttempt struct {
	begin    time.Duration
	method   string
	instance int
}

// simulatedCall is what a caller sees.
type simulatedCall struct {
	begin, latency time.Duration
	method         string
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

// candidate is what a simulation tests. previous is the instance of the attempt before, -1 for the first one.
type candidate interface {
	begin(now time.Duration, m *simulatedMethod, previous int) (instance int, end func(now time.Duration, o outcome.Outcome))
	join()
}

// candidates are what is compared, each for n instances.
var candidates = []struct {
	name string
	make func(n int, r *rand.Rand) candidate
}{
	{"random", func(n int, r *rand.Rand) candidate {
		return &simple{n: n, pick: func(b *simple) int { return r.IntN(b.n) }}
	}},
	{"round robin", func(n int, r *rand.Rand) candidate {
		last := r.IntN(n)
		return &simple{n: n, pick: func(b *simple) int { last = (last + 1) % b.n; return last }}
	}},
	{"least in flight", func(n int, r *rand.Rand) candidate {
		return &simple{n: n, pick: func(b *simple) int {
			i, j := r.IntN(b.n), r.IntN(max(1, b.n-1))
			if j >= i && b.n > 1 {
				j++
			}
			if b.inFlight[j] < b.inFlight[i] {
				i = j
			}
			return i
		}}
	}},
	{"pod", newPodCandidate},
}

// simple is a candidate that knows at most the calls in flight.
type simple struct {
	n        int
	inFlight [64]int
	pick     func(*simple) int
}

func (b *simple) join() { b.n++ }

func (b *simple) begin(time.Duration, *simulatedMethod, int) (int, func(time.Duration, outcome.Outcome)) {
	i := b.pick(b)
	b.inFlight[i]++
	return i, func(time.Duration, outcome.Outcome) { b.inFlight[i]-- }
}

// podCandidate is the choice of this package.
type podCandidate struct {
	chooser   *serviceChooser
	instances []*discovery.Instance
	index     map[*discovery.Instance]int
}

func newPodCandidate(n int, r *rand.Rand) candidate {
	b := &podCandidate{index: map[*discovery.Instance]int{}}
	b.chooser = &serviceChooser{instances: func() []*discovery.Instance { return b.instances }, random: r}
	for range n {
		b.join()
	}
	return b
}

func (b *podCandidate) join() {
	i := &discovery.Instance{Node: registry.Node{Address: fmt.Sprint("10.0.0.1:", len(b.index)+1)}, Service: &registry.Service{Name: "greeter"}, Pod: fmt.Sprint("p-", len(b.index))}
	b.index[i] = len(b.index)
	b.instances = append(b.instances, i)
}

const simulationEpoch = 1 << 62

func (b *podCandidate) begin(now time.Duration, m *simulatedMethod, previous int) (int, func(time.Duration, outcome.Outcome)) {
	a := Attempt{Method: Method{m.name, m.isStream}, Spare: time.Minute}
	if previous >= 0 {
		a.Previous = b.instances[previous]
	}
	all, zoned := b.chooser.members.of(b.instances, simulationEpoch+int64(now))
	c := b.chooser.choiceOf(b.chooser.pickBetter(all, zoned, a, simulationEpoch+int64(now)))
	if m.isStream {
		c.call = c.Instance.Calls.BecomeStream(simulationEpoch+int64(now), c.call)
	}
	return b.index[c.Instance], func(now time.Duration, o outcome.Outcome) {
		c.doneAt(simulationEpoch+int64(now), o, fmt.Errorf("outcome %d", o))
	}
}

func (s *simulation) at(t time.Duration, do func()) { heap.Push(&s.events, event{t, do}) }

func (s simulation) run(make func(int, *rand.Rand) candidate) *simulation {
	s.random = rand.New(rand.NewPCG(1, s.seed))
	if s.methods == nil {
		s.methods = []simulatedMethod{{name: "Greeter.Hello", share: 1, answer: s.answer}}
	}
	var clients []candidate
	for i := range max(1, s.clients) {
		b := make(s.instances, rand.New(rand.NewPCG(3, uint64(i))))
		clients = append(clients, b)
		if s.joins != 0 {
			s.at(s.joins, b.join)
		}
	}
	var arrive func(now time.Duration)
	arrive = func(now time.Duration) {
		s.attempt(clients[s.random.IntN(len(clients))], s.method(), now, now, s.retries, -1)
		if next := now + time.Duration(s.random.ExpFloat64()/s.rate*float64(time.Second)); next < s.length {
			s.at(next, func() { arrive(next) })
		}
	}
	if s.callers == 0 {
		s.at(0, func() { arrive(0) })
	}
	for i := range s.callers {
		t := time.Duration(s.random.Int64N(int64(s.pause)))
		s.at(t, func() { s.attempt(clients[i%len(clients)], s.method(), t, t, s.retries, -1) })
	}
	for i := range s.methods {
		m := &s.methods[i]
		for range m.first {
			t := time.Duration(s.random.Int64N(int64(100 * time.Millisecond)))
			s.at(t, func() { s.attempt(clients[s.random.IntN(len(clients))], m, t, t, s.retries, -1) })
		}
	}
	for len(s.events) > 0 {
		heap.Pop(&s.events).(event).do()
	}
	return &s
}

// method returns the method of the next call.
func (s *simulation) method() *simulatedMethod {
	last := len(s.methods) - 1
	if last > 0 {
		share := s.random.Float64()
		for i := range last {
			if share -= s.methods[i].share; share < 0 {
				return &s.methods[i]
			}
		}
	}
	return &s.methods[last]
}

func (s *simulation) attempt(b candidate, m *simulatedMethod, begin, now time.Duration, retries, previous int) {
	i, end := b.begin(now, m, previous)
	s.attempts = append(s.attempts, simulatedAttempt{now, m.name, i})
	latency, o := m.answer(s.random, i, now)
	s.at(now+latency, func() {
		end(now+latency, o)
		if o != outcome.Answered && retries > 0 {
			s.attempt(b, m, begin, now+latency, retries-1, i)
			return
		}
		s.calls = append(s.calls, simulatedCall{begin, now + latency - begin, m.name, o != outcome.Answered})
		if next := now + latency + s.pause; s.callers > 0 && next < s.length {
			s.at(next, func() { s.attempt(b, s.method(), next, next, s.retries, -1) })
		}
	})
}

// only returns the attempts and calls of one method.
func (s *simulation) only(method string) *simulation {
	return &simulation{
		instances: s.instances, length: s.length,
		attempts: slices.DeleteFunc(slices.Clone(s.attempts), func(a simulatedAttempt) bool { return a.method != method }),
		calls:    slices.DeleteFunc(slices.Clone(s.calls), func(c simulatedCall) bool { return c.method != method }),
	}
}

// imbalance returns by how much, in percent, the share of an instance differs at most from the
// others' mean.
func (s *simulation) imbalance(from, to time.Duration) (most float64) {
	for i := range s.instances {
		most = max(most, math.Abs(s.share(i, from, to)*float64(s.instances)-100))
	}
	return most
}

// share returns which share of the attempts that began in a period, in percent, went to
// an instance.
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
	return 100 * n / all
}

// percentile returns a percentile of the latencies of the calls that began in a period,
// in milliseconds.
func (s *simulation) percentile(p float64, from, to time.Duration) float64 {
	var all []time.Duration
	for _, c := range s.calls {
		if from <= c.begin && c.begin < to {
			all = append(all, c.latency)
		}
	}
	slices.Sort(all)
	return float64(all[int(p/100*float64(len(all)-1))]) / 1e6
}

// percent returns which share of the calls f is true for.
func (s *simulation) percent(f func(simulatedCall) bool) float64 {
	var n float64
	for _, c := range s.calls {
		if f(c) {
			n++
		}
	}
	return 100 * n / float64(len(s.calls))
}

func lognormal(r *rand.Rand, median time.Duration, sigma float64) time.Duration {
	return time.Duration(float64(median) * math.Exp(sigma*r.NormFloat64()))
}

// usual is the answer of an undisturbed instance of most simulations.
func usual(r *rand.Rand) time.Duration { return lognormal(r, 20*time.Millisecond, 0.25) }

// slowServer is the experiment of "Beyond Round Robin: Load Balancing for Latency"
// (Buoyant, 2016).
func slowServer(r *rand.Rand, instance int, now time.Duration) (time.Duration, outcome.Outcome) {
	if instance == 0 && 15*time.Second <= now && now < 45*time.Second {
		return 2 * time.Second, outcome.Answered
	}
	return lognormal(r, 167*time.Millisecond, 0.25), outcome.Answered
}

// failing returns the answers of instances of which the first fails at once from second 2
// on.
func failing(o outcome.Outcome) func(*rand.Rand, int, time.Duration) (time.Duration, outcome.Outcome) {
	return func(r *rand.Rand, instance int, now time.Duration) (time.Duration, outcome.Outcome) {
		if instance == 0 && now >= 2*time.Second {
			return 200 * time.Microsecond, o
		}
		return usual(r), outcome.Answered
	}
}

// workers returns the answers of instances that handle four calls at once each and let the
// others wait.
func workers(instances int, work func(r *rand.Rand, instance int) time.Duration) answerFunc {
	return newWorkers(instances).answer(work)
}

// pools are the workers of each instance, which all methods share: the times at which each is free.
type pools [][4]time.Duration

func newWorkers(instances int) pools { return make(pools, instances) }

func (p pools) answer(work func(r *rand.Rand, instance int) time.Duration) answerFunc {
	return func(r *rand.Rand, instance int, now time.Duration) (time.Duration, outcome.Outcome) {
		first := &p[instance][0]
		for i := range p[instance] {
			if w := &p[instance][i]; *w < *first {
				first = w
			}
		}
		*first = max(now, *first) + work(r, instance)
		return *first - now, outcome.Answered
	}
}

// logResults logs what each candidate has reached.
func logResults(t *testing.T, what string, results []float64, name func(candidate int) string) {
	t.Helper()
	line := ""
	for i, r := range results {
		line += fmt.Sprintf("  %s %.3f", name(i), r)
	}
	t.Logf("    %s:%s", what, line)
}

// Each row is one measure of one situation; for all measures, less is better. The choice
// of this package must stay below a limit, and must not be worse than the others.
func TestChoiceComparedWithOthers(t *testing.T) {
	t.Parallel()
	const second = time.Second
	type measure struct {
		what  string
		of    func(*simulation) float64
		limit float64 // for this package
		slack float64 // what the best of the others is multiplied with
	}
	var situations []struct {
		name     string
		sim      func() simulation
		measures []measure
	}
	add := func(name string, sim func() simulation, measures ...measure) {
		situations = append(situations, struct {
			name     string
			sim      func() simulation
			measures []measure
		}{name, sim, measures})
	}
	over1s := measure{"calls over 1 s (%)", func(s *simulation) float64 {
		return s.percent(func(c simulatedCall) bool { return c.latency >= second })
	}, 0.1, 0.2}
	add("one of 11 slow, 500 calls/s", func() simulation {
		return simulation{instances: 11, rate: 500, length: 60 * second, answer: slowServer}
	}, over1s)
	add("one of 11 slow, 1000 calls/s", func() simulation {
		return simulation{instances: 11, rate: 1000, length: 60 * second, answer: slowServer}
	}, over1s)
	for _, rate := range []float64{50, 500} {
		add(fmt.Sprintf("one of 10 ten times slower for 10 s, %v calls/s", rate), func() simulation {
			return simulation{instances: 10, rate: rate, length: 15 * second, answer: func(r *rand.Rand, instance int, now time.Duration) (time.Duration, outcome.Outcome) {
				latency := usual(r)
				if instance == 0 && now >= 5*second {
					latency *= 10
				}
				return latency, outcome.Answered
			}}
		}, measure{"its share (%)", func(s *simulation) float64 { return s.share(0, 5*second, 15*second) }, 2, 0.5},
			measure{"p99 after 3 s, to that before", func(s *simulation) float64 {
				return s.percentile(99, 8*second, 15*second) / s.percentile(99, 0, 5*second)
			}, 2, 0.5})
	}
	for _, failure := range []struct {
		what  string
		micro *errors.Error
		code  codes.Code
		text  string
	}{
		{"in transport", nil, codes.Unavailable, refusedText},
		{"with Unavailable", nil, codes.Unavailable, "shutting down"},
		{"with a go-micro error", errors.InternalServerError("greeter", "no database").(*errors.Error), codes.Internal, "no database"},
	} {
		o := outcome.OfStatus(status.New(failure.code, failure.text), failure.micro)
		for _, retries := range []int{0, 1} {
			add(fmt.Sprintf("one of 10 fails at once %s, %d retries", failure.what, retries), func() simulation {
				return simulation{instances: 10, rate: 200, length: 12 * second, retries: retries, answer: failing(o)}
			}, measure{"its share in the first second (%)", func(s *simulation) float64 { return s.share(0, 2*second, 3*second) }, 10, 1},
				measure{"its share afterwards (%)", func(s *simulation) float64 { return s.share(0, 3*second, 12*second) }, 1, 0.2},
				measure{"calls that fail (%)", func(s *simulation) float64 { return s.percent(func(c simulatedCall) bool { return c.failed }) }, 0.5, 1})
		}
	}
	add("one joins 9", func() simulation {
		return simulation{instances: 9, joins: 2 * second, rate: 500, length: 6 * second, answer: func(r *rand.Rand, _ int, _ time.Duration) (time.Duration, outcome.Outcome) {
			return usual(r), outcome.Answered
		}}
	}, measure{"fair share to its share in the first second, or the inverse", func(s *simulation) float64 {
		share := s.share(9, 2*second, 3*second)
		return max(share/10, 10/share)
	}, 1.5, math.Inf(1)}, measure{"the same afterwards", func(s *simulation) float64 {
		share := s.share(9, 3*second, 6*second)
		return max(share/10, 10/share)
	}, 1.2, math.Inf(1)})
	p99 := func(length time.Duration) func(*simulation) float64 {
		return func(s *simulation) float64 { return s.percentile(99, length/3, length) }
	}
	add("4 workers in each of 10 instances, 80 % busy", func() simulation {
		return simulation{instances: 10, clients: 3, rate: 0.8 * 40 / 0.0206, length: 6 * second, answer: workers(10, func(r *rand.Rand, _ int) time.Duration { return usual(r) })}
	}, measure{"p99 (ms)", p99(6 * second), 60, 1.15})
	add("as before, half of the instances 2.5 times slower", func() simulation {
		return simulation{instances: 10, clients: 3, rate: 0.7 * 28 / 0.0206, length: 6 * second, answer: workers(10, func(r *rand.Rand, instance int) time.Duration {
			if instance < 5 {
				return usual(r) * 5 / 2
			}
			return usual(r)
		})}
	}, measure{"p99 (ms)", p99(6 * second), 130, 1})
	rare := func(typical, slow time.Duration, share float64) func(*rand.Rand, int) time.Duration {
		return func(r *rand.Rand, _ int) time.Duration {
			if r.Float64() < share {
				return slow
			}
			return lognormal(r, typical, 0.25)
		}
	}
	fixed := func(latency time.Duration) answerFunc {
		return func(*rand.Rand, int, time.Duration) (time.Duration, outcome.Outcome) {
			return latency, outcome.Answered
		}
	}
	idle := func(typical time.Duration) answerFunc {
		return func(r *rand.Rand, _ int, _ time.Duration) (time.Duration, outcome.Outcome) {
			return lognormal(r, typical, 0.25), outcome.Answered
		}
	}
	const ms = time.Millisecond
	for _, clients := range []int{1, 3} {
		add(fmt.Sprintf("4 workers in each of 10 instances, 70 %% busy, 0.02 %% of the calls take 2 s, %d clients", clients), func() simulation {
			return simulation{instances: 10, clients: clients, rate: 0.7 * 40 / 0.00555, length: 10 * second, answer: workers(10, rare(5*ms, 2*second, 0.0002))}
		}, measure{"p99 (ms)", p99(10 * second), 15, 1.5})
	}
	add("as before, as a method of their own", func() simulation {
		w := newWorkers(10)
		return simulation{instances: 10, clients: 3, rate: 0.7 * 40 / 0.00555, length: 10 * second, methods: []simulatedMethod{
			{name: "slow", share: 0.0002, answer: w.answer(rare(2*second, 2*second, 0))}, {name: "fast", answer: w.answer(rare(5*ms, 0, 0))}}}
	}, measure{"p99 (ms)", p99(10 * second), 15, 1.5})
	for _, n := range []int{2, 10} {
		length := 60 / time.Duration(n) * second
		add(fmt.Sprintf("methods of 5 and 50 ms, half of the work each, 75 %% busy, %d instances", n), func() simulation {
			w := newWorkers(n)
			return simulation{instances: n, clients: 3, rate: 0.75 * float64(n) * 4 / (0.0103 * 10 / 11), length: length, methods: []simulatedMethod{
				{name: "slow", share: 1. / 11, answer: w.answer(rare(50*ms, 0, 0))}, {name: "fast", answer: w.answer(rare(5*ms, 0, 0))}}}
		}, measure{"p99 of the fast (ms)", func(s *simulation) float64 { return p99(length)(s.only("fast")) }, 150, 1.2},
			measure{"p99 of the slow (ms)", func(s *simulation) float64 { return p99(length)(s.only("slow")) }, 250, 1.2})
	}
	add("a method of 10 ms, 80 % busy", func() simulation {
		return simulation{instances: 10, clients: 3, rate: 0.8 * 40 / 0.0103, length: 6 * second, answer: workers(10, rare(10*ms, 0, 0))}
	}, measure{"p99 (ms)", p99(6 * second), 40, 1.2})
	for _, fast := range []time.Duration{2 * ms, 20 * ms, 150 * ms} {
		add(fmt.Sprintf("3 exports of 8 s on 4 instances, others take %s", fast), func() simulation {
			return simulation{instances: 4, rate: 8 / fast.Seconds(), length: 10 * second, methods: []simulatedMethod{
				{name: "export", first: 3, answer: fixed(8 * second)}, {name: "fast", answer: idle(fast)}}}
		}, measure{"imbalance of the fast (%)", func(s *simulation) float64 { return s.only("fast").imbalance(second, 7*second) }, 20, math.Inf(1)})
	}
	add("2 instances with 4 workers each, 75 % busy", func() simulation {
		return simulation{instances: 2, clients: 3, rate: 0.75 * 8 / 0.0206, length: 30 * second, answer: workers(2, func(r *rand.Rand, _ int) time.Duration { return usual(r) })}
	}, measure{"p99 (ms)", p99(30 * second), 90, 1.15})
	add("one of 2 ten times slower for 10 s", func() simulation {
		return simulation{instances: 2, rate: 200, length: 20 * second, answer: func(r *rand.Rand, instance int, now time.Duration) (time.Duration, outcome.Outcome) {
			if instance == 0 && now >= 10*second {
				return usual(r) * 10, outcome.Answered
			}
			return usual(r), outcome.Answered
		}}
	}, measure{"its share (%)", func(s *simulation) float64 { return s.share(0, 10*second, 20*second) }, 2, 0.5})
	add("all become 100 times slower", func() simulation {
		return simulation{instances: 10, clients: 3, rate: 500, length: 20 * second, answer: func(r *rand.Rand, _ int, now time.Duration) (time.Duration, outcome.Outcome) {
			if now >= 2*second {
				return 100 * lognormal(r, 10*ms, 0.25), outcome.Answered
			}
			return lognormal(r, 10*ms, 0.25), outcome.Answered
		}}
	}, measure{"imbalance in the first second (%)", func(s *simulation) float64 { return s.imbalance(2*second, 3*second) }, 200, math.Inf(1)},
		measure{"imbalance afterwards (%)", func(s *simulation) float64 { return s.imbalance(3*second, 20*second) }, 20, math.Inf(1)})
	add("one of 4 freezes", func() simulation {
		return simulation{instances: 4, rate: 400, length: 30 * second, answer: func(r *rand.Rand, instance int, now time.Duration) (time.Duration, outcome.Outcome) {
			if instance == 0 && now >= 2*second {
				return 5 * second, outcome.TimedOut
			}
			return usual(r), outcome.Answered
		}}
	}, measure{"calls that fail", func(s *simulation) float64 {
		return s.percent(func(c simulatedCall) bool { return c.failed }) * float64(len(s.calls)) / 100
	}, 12, 0.5})
	for _, n := range []int{2, 4} {
		add(fmt.Sprintf("100 idle streams, then the last of %d instances joins", n), func() simulation {
			return simulation{instances: n - 1, joins: second, rate: 400, length: 10 * second, methods: []simulatedMethod{
				{name: "stream", first: 100, isStream: true, answer: fixed(time.Hour)}, {name: "fast", answer: idle(5 * ms)}}}
		}, measure{"imbalance of the calls (%)", func(s *simulation) float64 { s.instances = n; return s.only("fast").imbalance(2*second, 10*second) }, 20, math.Inf(1)})
	}
	add("a stream a second, each for 20 s, beside calls", func() simulation {
		return simulation{instances: 4, rate: 401, length: 60 * second, methods: []simulatedMethod{
			{name: "stream", share: 1. / 401, isStream: true, answer: fixed(20 * second)}, {name: "fast", answer: idle(5 * ms)}}}
	}, measure{"imbalance of the calls (%)", func(s *simulation) float64 { return s.only("fast").imbalance(0, 60*second) }, 20, math.Inf(1)},
		measure{"imbalance of the streams (%)", func(s *simulation) float64 { return s.only("stream").imbalance(0, 60*second) }, 40, 0.8})

	begin := time.Now()
	for _, situation := range situations {
		results := make([][]float64, len(situation.measures))
		for _, b := range candidates {
			s := situation.sim().run(b.make)
			for i, m := range situation.measures {
				results[i] = append(results[i], m.of(s))
			}
		}
		t.Log(situation.name)
		for i, m := range situation.measures {
			logResults(t, m.what, results[i], func(j int) string { return candidates[j].name })
			last := len(candidates) - 1
			if got, others := results[i][last], slices.Min(results[i][:last]); got > m.limit || got > m.slack*others {
				t.Errorf("%s: %s: %.3f, want at most %.3f and %v of the best of the others, %.3f", situation.name, m.what, got, m.limit, m.slack, others)
			}
		}
	}
	t.Logf("%s", time.Since(begin).Round(time.Millisecond))
}

// The instance fails from second 2 to 20. After its ejection of 5 s one call tries the
// instance and fails, and after another 20 s one tries it and succeeds. There are so many
// calls in flight that the faults alone do not keep the calls away.
func TestChoiceProbesFailingInstanceWithOneCall(t *testing.T) {
	t.Parallel()
	s := simulation{instances: 3, rate: 1000, length: 36 * time.Second, answer: func(r *rand.Rand, instance int, now time.Duration) (time.Duration, outcome.Outcome) {
		if instance == 0 && 2*time.Second <= now && now < 20*time.Second {
			return time.Millisecond, outcome.ServerError
		}
		return lognormal(r, 200*time.Millisecond, 0.25), outcome.Answered
	}}.run(newPodCandidate)
	var bursts []int // calls to the instance that begin within a second of each other, after its first fault
	last := 2 * time.Second
	for _, a := range s.attempts {
		if a.instance == 0 && a.begin >= 2*time.Second {
			if len(bursts) == 0 || a.begin-last > time.Second {
				bursts = append(bursts, 0)
			}
			bursts[len(bursts)-1]++
			last = a.begin
		}
	}
	n := len(bursts)
	if n < 3 || bursts[n-2] != 1 {
		t.Fatalf("after its ejection one call tries the instance, and after the next one it gets its share; got %v", bursts)
	}
	sum := 0
	for _, b := range bursts[:n-2] {
		sum += b
	}
	if sum < 5 || sum > 6*5 {
		t.Errorf("%d calls went to the instance before its ejection", sum)
	}
	if share := s.share(0, 32*time.Second, 36*time.Second); share < 28 {
		t.Errorf("after its recovery one of 3 instances gets %.1f %% of the calls", share)
	}
}

// After the first slow answers, a slow instance has at most one call in flight.
func TestChoiceProbesSlowInstanceWithOneCall(t *testing.T) {
	t.Parallel()
	inFlight, most := 0, 0
	s := simulation{instances: 10, rate: 1000, length: 60 * time.Second}
	s.answer = func(r *rand.Rand, instance int, now time.Duration) (time.Duration, outcome.Outcome) {
		if instance != 0 || now < 2*time.Second || now > 40*time.Second {
			return usual(r), outcome.Answered
		}
		if now > 5*time.Second {
			inFlight++
			most = max(most, inFlight)
		}
		return time.Second, outcome.Answered
	}
	make := func(n int, r *rand.Rand) candidate {
		return &observed{newPodCandidate(n, r), func(instance int, begin time.Duration) {
			if instance == 0 && 5*time.Second < begin && begin <= 40*time.Second {
				inFlight--
			}
		}}
	}
	done := s.run(make)
	if most != 1 {
		t.Errorf("%d calls at once probe a slow instance, want 1", most)
	}
	if share := done.share(0, 50*time.Second, 60*time.Second); share < 8 {
		t.Errorf("after its recovery the instance gets %.1f %% of the calls", share)
	}
}

// observed is a candidate that reports the end of each call.
type observed struct {
	candidate
	ended func(instance int, begin time.Duration)
}

func (o *observed) begin(now time.Duration, m *simulatedMethod, previous int) (int, func(time.Duration, outcome.Outcome)) {
	i, end := o.candidate.begin(now, m, previous)
	return i, func(t time.Duration, result outcome.Outcome) { end(t, result); o.ended(i, now) }
}

// Faults that all instances share, even when all begin to fail at the same moment, eject
// no instance and do not move calls.
func TestChoiceIgnoresCommonFaults(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 4, 10} {
		for _, share := range []float64{0.02, 0.2, 0.5, 0.9, 1} {
			ejections := 0
			s := simulation{instances: n, rate: 500, length: 20 * time.Second, answer: func(r *rand.Rand, _ int, now time.Duration) (time.Duration, outcome.Outcome) {
				if now > 5*time.Second && r.Float64() < share {
					return usual(r), outcome.ServerError
				}
				return usual(r), outcome.Answered
			}}.run(func(n int, r *rand.Rand) candidate {
				b := newPodCandidate(n, r).(*podCandidate)
				b.chooser.events = []Events{{Ejected: func(string, string, string, time.Duration, error) { ejections++ }}}
				return b
			})
			if ejections > 0 {
				t.Errorf("%.0f %% of the calls to all of %d instances fail: %d ejections", 100*share, n, ejections)
			}
			for i := range n {
				if got, fair := s.share(i, 5*time.Second, 20*time.Second), 100/float64(n); got < fair*0.7 || got > fair*1.3 {
					t.Errorf("%.0f %% of the calls to all of %d instances fail: one gets %.1f %% of the calls", 100*share, n, got)
				}
			}
		}
	}
}

// An instance of which only some calls fail is ejected too.
func TestChoiceEjectsInstanceThatFailsSometimes(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 4, 10} {
		for _, share := range []float64{0.3, 0.6} {
			s := simulation{instances: n, rate: 500, length: 30 * time.Second, answer: func(r *rand.Rand, instance int, now time.Duration) (time.Duration, outcome.Outcome) {
				if instance == 0 && now > 2*time.Second && r.Float64() < share {
					return usual(r), outcome.ServerError
				}
				return usual(r), outcome.Answered
			}}.run(newPodCandidate)
			if got := s.share(0, 5*time.Second, 30*time.Second); got > 5 {
				t.Errorf("%.0f %% of the calls to one of %d instances fail: it gets %.1f %% of the calls", 100*share, n, got)
			}
		}
	}
}

// With faults too, at most half of the instances are ejected; the others are called
// according to their faults.
func TestChoiceEjectsAtMostHalfForFaults(t *testing.T) {
	t.Parallel()
	var b *podCandidate
	ejected := 0
	simulation{instances: 10, rate: 500, length: 20 * time.Second, answer: func(r *rand.Rand, instance int, now time.Duration) (time.Duration, outcome.Outcome) {
		n := 0
		for i := range b.index {
			if i.Calls.Ejected() {
				n++
			}
		}
		ejected = max(ejected, n)
		if instance < 7 && now > 2*time.Second {
			return time.Millisecond, outcome.ServerError
		}
		return usual(r), outcome.Answered
	}}.run(func(n int, r *rand.Rand) candidate { b = newPodCandidate(n, r).(*podCandidate); return b })
	if ejected > 5 || ejected < 4 {
		t.Errorf("%d of 10 instances were ejected, want at most half", ejected)
	}
}

// An open stream counts as a call in flight, but neither its length nor its silence says
// anything about the instance.
func TestChoiceCountsStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		choose := func() Choice { return chooseOne(t, s) }
		choose().Done(outcome.Answered, nil)
		chooser := r.choosers.find("greeter")
		var streams []Choice
		for range 10 {
			c, err := chooser.choose(Attempt{Method: Method{IsStream: true}})
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, c.AsStream())
		}
		for _, c := range s.Instances("greeter") {
			if c.InFlight != 5 {
				t.Errorf("%d of 10 streams on %s, want 5", c.InFlight, c.Address)
			}
		}
		time.Sleep(time.Minute)
		counts := map[*discovery.Instance]int{}
		for range 1000 {
			c := choose()
			counts[c.Instance]++
			c.Done(outcome.Answered, nil)
		}
		for i, n := range counts {
			if n < 400 {
				t.Errorf("%s, with 5 silent streams like the other, gets %d of 1000 calls", i.Address, n)
			}
		}
		for _, c := range streams {
			c.Done(outcome.Answered, nil)
		}
		for _, i := range inf.Snapshot().Instances {
			if n := i.Calls.Report(callstats.Clock()).InFlight; n != 0 {
				t.Errorf("after the streams: %d calls in flight", n)
			}
		}
		c := choose().AsStream()
		c.Done(outcome.TimedOut, timeout)
		if c.Instance.Calls.Report(callstats.Clock()).Failures != 0 {
			t.Error("the deadline of a stream is the instance's fault")
		}
		c = choose().AsStream()
		c.Done(outcome.LostConnection, refused)
		if !c.Instance.Calls.Ejected() {
			t.Error("an instance whose connection broke under a stream is not ejected")
		}
	})
}

// chooseAndDone measures calls that are answered at once.
func chooseAndDone(b *testing.B, s *Selector) {
	b.ReportAllocs()
	for b.Loop() {
		c, err := s.Choose("greeter", nil, nil)
		if err != nil {
			b.Fatal(err)
		}
		c.Done(outcome.Answered, nil)
	}
}

func BenchmarkChoice(b *testing.B) {
	for _, n := range []int{1, 10, 100, 10000} {
		b.Run(fmt.Sprint("instances=", n), func(b *testing.B) {
			r, inf := newStaticRegistry(b, n)
			s := newSelector(r)
			if _, err := s.Choose("greeter", nil, nil); err != nil { // makes the chooser
				b.Fatal(err)
			}
			for _, i := range inf.Snapshot().Instances { // measured, as in use
				now := callstats.Clock()
				i.Calls.End(now, i.Calls.Begin(now-int64(20*time.Millisecond), r.choosers.find("greeter").methods.Find("Greeter.Hello"), false), outcome.Answered)
			}
			b.Run("choose and done", func(b *testing.B) { chooseAndDone(b, s) })
			b.Run("parallel", func(b *testing.B) {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						c, _ := s.Choose("greeter", nil, nil)
						c.Done(outcome.Answered, nil)
					}
				})
			})
		})
	}
}
