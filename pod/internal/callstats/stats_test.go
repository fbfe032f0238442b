package callstats

import (
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
)

const (
	begin = int64(1 << 62)
	sec   = int64(time.Second)
)

// caller makes calls at times that the test sets.
type caller struct {
	t     *testing.T
	stats Stats
	now   int64
}

func newCaller(t *testing.T) *caller { return &caller{t: t, now: begin} }

// call makes a call that takes some milliseconds.
func (c *caller) call(took int64, o outcome.Outcome) Verdict {
	call := c.stats.Begin(c.now, c.stats.BeginTrial(c.now))
	c.now += took * ms
	return c.stats.End(c.now, call, o)
}

func (c *caller) want(what string, got, want Verdict) {
	c.t.Helper()
	if got != want {
		c.t.Errorf("%s: the verdict is %d, want %d", what, got, want)
	}
}

func (c *caller) report(what string, want Report) {
	c.t.Helper()
	if got := c.stats.Report(c.now); got != want {
		c.t.Errorf("%s: %+v, want %+v", what, got, want)
	}
}

func TestClockIsMonotonicAndNeverZero(t *testing.T) {
	a := Clock()
	time.Sleep(2 * time.Millisecond)
	if b := Clock(); a < begin || b-a < 2*ms || b-a > 60*sec {
		t.Errorf("%d, then %d", a, b)
	}
}

func TestCallsAndStreamsCountUntilTheirEnd(t *testing.T) {
	c := newCaller(t)
	a, b := c.stats.Begin(c.now, false), c.stats.Begin(c.now, false)
	c.report("two calls", Report{InFlight: 2})
	b = c.stats.BecomeStream(c.now+20*ms, b)
	c.report("a call and a stream", Report{InFlight: 2})
	if c.stats.inFlight.Load() != 1 {
		t.Errorf("%d calls besides the stream", c.stats.inFlight.Load())
	}
	c.now += 500 * ms
	c.want("the end of the stream", c.stats.End(c.now, b, outcome.Answered), Unchanged)
	c.report("a call", Report{InFlight: 1})
	if e, _ := c.stats.latency.estimate(c.now); e != 0 {
		t.Errorf("the length of a stream is a latency of %v", e)
	}
	if c.stats.answerInterval.Load() != 0 {
		t.Error("the end of a stream is an answer to a call")
	}
	c.want("the end of the call", c.stats.End(c.now, a, outcome.Answered), Unchanged)
	c.report("nothing", Report{})
	if e, _ := c.stats.latency.estimate(c.now); e < 499e6 || e > 501e6 {
		t.Errorf("the latency is %v, want 500 ms", e)
	}
}

func TestNoAnswerEjects(t *testing.T) {
	for o, took := range map[outcome.Outcome]int64{outcome.LostConnection: 1, outcome.TimedOut: 50} { // a timeout at once is not the instance's fault
		c := newCaller(t)
		c.want("the first", c.call(100, o), ShouldEject)
		c.want("together with it", c.call(100, o), Unchanged)
		c.report("one failure", Report{Failures: 1})
		c.now += 4800 * ms
		c.want("less than 5 s later", c.call(99, o), Unchanged)
		c.want("5 s later", c.call(took, o), ShouldEject)
		c.report("two failures", Report{Failures: 2})
	}
	c := newCaller(t)
	stream := c.stats.BecomeStream(c.now, c.stats.Begin(c.now, false))
	c.now += 3600 * sec
	c.want("the deadline of a stream", c.stats.End(c.now, stream, outcome.TimedOut), Unchanged)
	stream = c.stats.BecomeStream(c.now, c.stats.Begin(c.now, false))
	c.want("the connection of a stream", c.stats.End(c.now, stream, outcome.LostConnection), ShouldEject)
	if e, _ := c.stats.latency.estimate(c.now); e != 0 {
		t.Errorf("a stream has the latency %v", e)
	}
}

func TestTimeoutIsBlamedOnlyAfterTimeToAnswer(t *testing.T) {
	for _, c := range []struct {
		what     string
		interval int64 // usual, in ms
		took     int64
		want     Verdict
	}{
		{"never answered, just less than 50 ms", 0, 49, Unchanged},
		{"never answered, 50 ms", 0, 50, ShouldEject},
		{"fast, less than 10 ms", 1, 9, Unchanged},
		{"fast, 10 ms", 1, 10, ShouldEject},
		{"100 ms, less than twice as long", 100, 199, Unchanged},
		{"100 ms, twice as long", 100, 200, ShouldEject},
	} {
		r := newCaller(t)
		if c.interval > 0 {
			r.want("a good answer", r.call(c.interval, outcome.Answered), Unchanged)
		}
		r.want(c.what, r.call(c.took, outcome.TimedOut), c.want)
	}
	c := newCaller(t)
	slow := c.stats.Begin(c.now, false)
	for range 100 {
		c.call(10, outcome.Answered)
	}
	c.want("it answers others", c.stats.End(c.now, slow, outcome.TimedOut), Unchanged)
	c.report("nothing is left", Report{})
	if e, _ := c.stats.latency.estimate(c.now); e < 999e6 {
		t.Errorf("after a timeout of 1 s the latency is %v", e)
	}
}

func TestAnswerIntervalIsAnAverage(t *testing.T) {
	c := newCaller(t)
	c.call(80, outcome.Answered)
	c.call(160, outcome.Answered)
	if got := c.stats.answerInterval.Load(); got != 90*ms {
		t.Errorf("after 80 and 160 ms: %d ms, want 90", got/ms)
	}
	c.call(160, outcome.ServerError)
	if got := c.stats.answerInterval.Load(); got != 90*ms+70*ms/8 {
		t.Errorf("after a server error: %d", got)
	}
	c.stats = Stats{}
	c.call(30_000, outcome.Answered)
	if got := c.stats.answerInterval.Load(); got != sec {
		t.Errorf("after 30 s: %d ms, want 1000", got/ms)
	}
	c.now += 3600 * sec // without calls
	call := c.stats.Begin(c.now, false)
	c.now += 20 * ms
	c.stats.Begin(c.now, false)
	c.stats.End(c.now, call, outcome.Answered)
	if got := c.stats.answerInterval.Load(); got != sec-980*ms/8 {
		t.Errorf("the time without calls counts: %d ms", got/ms)
	}
}

func TestStalled(t *testing.T) {
	c := newCaller(t)
	check := func(what string, want bool) {
		t.Helper()
		if got := c.stats.Stalled(c.now); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	c.now += 3600 * sec
	check("idle", false)
	call := c.stats.Begin(c.now, false)
	c.now += 10 * ms
	check("silent for 10 ms", false)
	c.now++
	check("silent for longer", true)
	c.now += 79 * sec
	check("silent for 79 s", true)
	c.now += sec
	check("silent for over 80 s, on purpose", false)
	c.stats.End(c.now, call, outcome.Inconclusive)
	check("idle again", false)
	c.stats = Stats{}
	c.call(100, outcome.Answered)
	c.stats.Begin(c.now, false)
	c.now += 800 * ms
	check("silent for 8 times as long as usual", false)
	c.now++
	check("silent for longer than that", true)
}

func TestEjectionsGrow(t *testing.T) {
	for _, c := range []struct {
		o    outcome.Outcome
		want []time.Duration
	}{
		{outcome.TimedOut, []time.Duration{5, 20, 80, 80, 80}},
		{outcome.ServerError, []time.Duration{5, 20, 80, 80}},
		{outcome.LostConnection, []time.Duration{5, 10, 10, 10}},
	} {
		r := newCaller(t)
		for i, want := range c.want {
			first := r.now
			if got := r.stats.Eject(r.now, c.o); got != want*time.Second {
				t.Errorf("ejection %d after the outcome %d: %s, want %d s", i+1, c.o, got, want)
			}
			r.now = first + int64(want)*sec - 1
			if !r.stats.Ejected(r.now) || r.stats.BeginTrial(r.now) {
				t.Errorf("ejection %d ends too early", i+1)
			}
			r.report("before its end", Report{EjectedFor: 1})
			r.now++
			if r.stats.Ejected(r.now) {
				t.Errorf("ejection %d ends too late", i+1)
			}
			r.report("at its end", Report{})
		}
	}
}

func TestTrial(t *testing.T) {
	ejected := func(o outcome.Outcome) *caller {
		c := newCaller(t)
		if v := c.call(100, o); v != ShouldEject {
			t.Fatalf("the verdict is %d", v)
		}
		c.now += int64(c.stats.Eject(c.now, o))
		return c
	}
	c := ejected(outcome.LostConnection)
	trial := c.stats.Begin(c.now, c.stats.BeginTrial(c.now))
	if !trial.IsTrial || c.stats.BeginTrial(c.now) || !c.stats.Ejected(c.now) {
		t.Error("not exactly one call is the trial")
	}
	c.now += 10*sec - 1
	if c.stats.BeginTrial(c.now) {
		t.Error("a second trial before 10 s are over")
	}
	c.want("the answer", c.stats.End(c.now, trial, outcome.Answered), Recovered)
	if e, _ := c.stats.latency.estimate(c.now); e < 9.9e9 {
		t.Errorf("the latency of the trial is %v", e)
	}

	c = ejected(outcome.LostConnection)
	c.stats.Begin(c.now, c.stats.BeginTrial(c.now)) // never ends
	c.now += 10 * sec
	if !c.stats.BeginTrial(c.now) {
		t.Error("no other trial after 10 s")
	}

	for o, want := range map[outcome.Outcome]Verdict{outcome.LostConnection: Unchanged, outcome.ServerError: Unchanged, outcome.TimedOut: Recovered} {
		c = newCaller(t)
		earlier := c.stats.Begin(c.now, false)
		c.now += 100 * ms
		c.stats.countFailure(c.now)
		c.stats.Eject(c.now, o)
		c.want("the late answer of an earlier call", c.stats.End(c.now, earlier, outcome.Answered), want)
	}

	c = ejected(outcome.TimedOut)
	c.want("an inconclusive trial", c.call(1, outcome.Inconclusive), Unchanged)
	if !c.stats.BeginTrial(c.now) {
		t.Error("the next call is not the trial")
	}
	c = ejected(outcome.TimedOut)
	c.want("a trial without time to answer", c.call(1, outcome.TimedOut), Unchanged)
	if !c.stats.BeginTrial(c.now) {
		t.Error("the next call is not the trial, again")
	}
	c = ejected(outcome.TimedOut)
	c.stats.End(c.now, c.stats.Begin(c.now, false), outcome.Inconclusive)
	if trial := c.stats.BeginTrial(c.now); !trial {
		t.Error("an inconclusive call has taken the trial")
	}

	c = ejected(outcome.LostConnection)
	c.want("a server error", c.call(1, outcome.ServerError), TrialFailed)
	c.want("the same call twice is no trial", c.stats.End(c.now, Call{Started: c.now, IsTrial: true}, outcome.ServerError), Unchanged)

	c = newCaller(t)
	c.want("an inconclusive call without an ejection", c.call(1, outcome.Inconclusive), Unchanged)
	if c.stats.BeginTrial(c.now + 100*sec) {
		t.Error("a trial without an ejection")
	}
}

// The trial replaces what was known of the latency.
func TestTrialResetsLatency(t *testing.T) {
	c := newCaller(t)
	c.call(5000, outcome.Answered)
	c.call(50_000, outcome.LostConnection)
	c.now += int64(c.stats.Eject(c.now, outcome.LostConnection))
	c.want("the trial", c.call(20, outcome.Answered), Recovered)
	if e, _ := c.stats.latency.estimate(c.now); e < 19e6 || e > 21e6 {
		t.Errorf("the latency is %v, want 20 ms", e)
	}
}

func TestReadmitForgets(t *testing.T) {
	c := newCaller(t)
	if since := c.stats.Readmit(); since != 0 {
		t.Errorf("without an ejection: %d", since)
	}
	c.call(1, outcome.ServerError)
	c.stats.Readmit()
	if c.stats.errors.inARow() != 1 {
		t.Error("without an ejection the history is forgotten")
	}
	c.call(100, outcome.LostConnection)
	first := c.now
	c.now += int64(c.stats.Eject(c.now, outcome.LostConnection))
	c.now += int64(c.stats.Eject(c.now, outcome.LostConnection))
	if since := c.stats.Readmit(); since != first {
		t.Errorf("the first ejection began at %d, want %d", since, first)
	}
	if c.stats.errors.inARow() != 0 || c.stats.ejection.trial.required.Load() {
		t.Error("the history is left")
	}
	c.report("readmitted", Report{})
	if c.stats.BeginTrial(c.now) || c.stats.Readmit() != 0 {
		t.Error("the ejection is not over")
	}
	c.want("a failure at once", c.call(100, outcome.LostConnection), ShouldEject)
	if d := c.stats.Eject(c.now, outcome.TimedOut); d != 5*time.Second {
		t.Errorf("the next ejection takes %s", d)
	}
}

func TestServerErrorsMakeSuspicious(t *testing.T) {
	c := newCaller(t)
	for range 63 {
		c.call(1, outcome.Answered)
	}
	for i := range 5 {
		c.want("a server error", c.call(1, outcome.ServerError), map[bool]Verdict{true: Suspected}[i == 4])
	}
	c.stats.Eject(c.now, outcome.ServerError)
	c.want("while it is ejected", c.call(1, outcome.ServerError), Unchanged)
	if c.stats.errors.inARow() != 6 {
		t.Error("it does not count")
	}
	c = newCaller(t)
	for i := range 13 { // a fifth of 63 is 12.6
		c.call(1, outcome.Answered)
		c.want("every second answer", c.call(1, outcome.ServerError), map[bool]Verdict{true: Suspected}[i == 12])
	}
}

func TestResolve(t *testing.T) {
	suspect := func() *caller {
		c := newCaller(t)
		for range 5 {
			c.call(1, outcome.ServerError)
		}
		return c
	}
	var good, bad Stats
	for range 63 {
		good.errors.add(false)
		bad.errors.add(true)
	}
	others := func(all ...*Stats) func(func(*Stats) bool) {
		return func(yield func(*Stats) bool) {
			for _, s := range all {
				if !yield(s) {
					return
				}
			}
		}
	}
	c := suspect()
	c.want("the others are good", c.stats.Resolve(Suspected, c.now, others(&good, &good)), ShouldEject)
	c.report("it is a failure", Report{Failures: 1})
	c.want("at once again", c.stats.Resolve(TrialFailed, c.now, others(&good, &good)), Unchanged)
	c = suspect()
	c.want("the others fail, too", c.stats.Resolve(Suspected, c.now, others(&bad)), Unchanged)
	c.want("the others fail like the trial", c.stats.Resolve(TrialFailed, c.now, others(&bad)), Recovered)
	c.report("it is no failure", Report{})
}

func TestLoadOfMoreCallsAndHigherLatencyIsHigher(t *testing.T) {
	type state struct {
		inFlight, streams int
		latency           int64 // in ms; 0 if not measured
		age               int64 // of the calls in flight, in ms
		errors            int   // in a row
		idle              time.Duration
	}
	make := func(s state) Load {
		var stats Stats
		now := begin + 3600*sec
		last := now - int64(s.idle)
		for range 30 - s.errors {
			stats.errors.add(false)
		}
		for range s.errors {
			stats.errors.add(true)
		}
		if s.latency > 0 {
			stats.latency.observe(last, s.latency*ms)
		}
		stats.lastAnswer.Store(last)
		for range s.inFlight {
			stats.inFlight.start(now - s.age*ms)
		}
		stats.streams.Store(int64(s.streams))
		return stats.Load(now)
	}
	for _, c := range []struct {
		what          string
		better, worse state
	}{
		{"fewer calls", state{inFlight: 1, latency: 20}, state{inFlight: 2, latency: 20}},
		{"fewer streams", state{streams: 1, latency: 20}, state{streams: 2, latency: 20}},
		{"a latency over twice as low", state{latency: 20}, state{latency: 42}},
		{"fewer calls and a latency not twice as high", state{inFlight: 1, latency: 40}, state{inFlight: 2, latency: 20}},
		{"3 calls, not one of 4 with the square of twice the latency", state{inFlight: 2, latency: 20}, state{inFlight: 0, latency: 42}},
		{"5 calls are worse than one of twice the latency", state{inFlight: 0, latency: 42}, state{inFlight: 4, latency: 20}},
		{"low latencies are equal", state{inFlight: 0, latency: 1}, state{inFlight: 1, latency: 0}},
		{"a call in flight that already takes longer", state{inFlight: 1, latency: 20}, state{inFlight: 1, latency: 20, age: 500}},
		{"never measured, with a call in flight that takes long", state{inFlight: 1, latency: 20}, state{inFlight: 1, age: 500}},
		{"as fast as the other, if never measured", state{}, state{inFlight: 1, latency: 500}},
		{"the other way round", state{latency: 500}, state{inFlight: 1}},
		{"no server error", state{inFlight: 1, latency: 20}, state{latency: 20, errors: 2}},
		{"each server error doubles", state{inFlight: 6, latency: 20}, state{latency: 20, errors: 3}},
		{"not more than that", state{latency: 20, errors: 3}, state{inFlight: 8, latency: 20}},
		{"what is 10 s old does not count", state{latency: 500, errors: 5, idle: 10 * time.Second}, state{inFlight: 1, latency: 20}},
		{"what is younger counts", state{inFlight: 1, latency: 20}, state{latency: 500, idle: 9900 * time.Millisecond}},
		{"with a call in flight what is old counts", state{inFlight: 2, latency: 20}, state{inFlight: 1, latency: 500, age: 1, idle: 20 * time.Second}},
		{"errors, while a call is in flight", state{inFlight: 2, latency: 20}, state{inFlight: 1, latency: 20, errors: 3, age: 1, idle: 20 * time.Second}},
		{"calls of over 80 s are long on purpose", state{inFlight: 1, latency: 20, age: 80_001}, state{inFlight: 2, latency: 20, age: 1}},
		{"calls of 80 s are not", state{inFlight: 2, latency: 20, age: 1}, state{inFlight: 1, latency: 20, age: 80_000}},
	} {
		b, w := make(c.better), make(c.worse)
		if !b.Less(w) || w.Less(b) {
			t.Errorf("%s: %v and %v, want true and false", c.what, b.Less(w), w.Less(b))
		}
	}
	equal := make(state{inFlight: 1, latency: 20})
	if equal.Less(equal) {
		t.Error("a load is less than itself")
	}
	recent, old := make(state{inFlight: 1, idle: time.Second}), make(state{inFlight: 1, idle: 2 * time.Second})
	if !recent.Less(old) || old.Less(recent) {
		t.Error("of equal loads with calls in flight, that with the last answer is not less")
	}
	if recent, old := make(state{idle: time.Second}), make(state{idle: 2 * time.Second}); recent.Less(old) || old.Less(recent) {
		t.Error("the last answer counts without calls in flight")
	}
}

// Server errors that the other instance has, too, count less.
func TestCommonServerErrorsDoNotCount(t *testing.T) {
	history := func(pattern func(int) bool) Load {
		var s Stats
		for i := range 64 {
			s.errors.add(pattern(i))
		}
		s.latency.observe(begin, 20*ms)
		s.inFlight.start(begin)
		return s.Load(begin)
	}
	half := history(func(i int) bool { return i < 63 && (i%2 == 1 || i == 62) }) // 32 of the last 63
	run := history(func(i int) bool { return i > 60 })
	if run.Less(half) || half.Less(run) {
		t.Error("errors in a row count although half of the other's answers are errors")
	}
	good := history(func(int) bool { return false })
	if !good.Less(run) || run.Less(good) {
		t.Error("errors in a row do not count")
	}
}
