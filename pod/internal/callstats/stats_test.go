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
	t      *testing.T
	stats  Stats
	method Method
	now    int64
}

func newCaller(t *testing.T) *caller { return &caller{t: t, now: begin} }

// tries reports whether a call that could be retried is the trial.
func (c *caller) tries() bool { return c.stats.BeginTrial(c.now, time.Minute, &c.method) }

// call makes a call that takes some milliseconds.
func (c *caller) call(took int64, o outcome.Outcome) Verdict {
	call := c.stats.Begin(c.now, &c.method, c.tries())
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
	a, b := c.stats.Begin(c.now, &c.method, false), c.stats.Begin(c.now, &c.method, false)
	c.report("two calls", Report{InFlight: 2})
	b = c.stats.BecomeStream(c.now+20*ms, b)
	c.report("a call and a stream", Report{InFlight: 2})
	if n := c.stats.inFlight.count(allClasses); n != 1 {
		t.Errorf("%d calls besides the stream", n)
	}
	c.now += 500 * ms
	c.want("the end of the stream", c.stats.End(c.now, b, outcome.Answered), Unchanged)
	c.report("a call", Report{InFlight: 1})
	if e, _ := c.stats.slowness.estimate(c.now); e != 0 || c.method.usual() != 0 {
		t.Errorf("the length of a stream is a latency: %v, %d", e, c.method.usual())
	}
	if c.stats.answerInterval.Load() != 0 {
		t.Error("the end of a stream is an answer to a call")
	}
	c.want("the end of the call", c.stats.End(c.now, a, outcome.Answered), Unchanged)
	c.report("nothing", Report{})
	near(t, "the latency", float64(c.method.usual()), 500e6)
}

func TestLostConnectionEjects(t *testing.T) {
	c := newCaller(t)
	c.want("the first", c.call(100, outcome.LostConnection), ShouldEject)
	c.want("together with it", c.call(100, outcome.LostConnection), Unchanged)
	c.report("one failure", Report{Failures: 1})
	c.now += 4800 * ms
	c.want("less than 5 s later", c.call(99, outcome.LostConnection), Unchanged)
	c.want("5 s later", c.call(1, outcome.LostConnection), ShouldEject)
	c.report("two failures", Report{Failures: 2})

	c = newCaller(t)
	stream := c.stats.BecomeStream(c.now, c.stats.Begin(c.now, &c.method, false))
	c.now += 3600 * sec
	c.want("the deadline of a stream", c.stats.End(c.now, stream, outcome.TimedOut), Unchanged)
	if c.stats.Unresponsive() {
		t.Error("the deadline of a stream is blamed")
	}
	stream = c.stats.BecomeStream(c.now, c.stats.Begin(c.now, &c.method, false))
	c.want("the connection of a stream", c.stats.End(c.now, stream, outcome.LostConnection), ShouldEject)
	if e, _ := c.stats.slowness.estimate(c.now); e != 0 {
		t.Errorf("a stream has the slowness %v", e)
	}
}

func TestTimeoutEjectsIfTheProbeFails(t *testing.T) {
	c := newCaller(t)
	c.want("the timeout", c.call(50, outcome.TimedOut), Unchanged)
	if !c.stats.Unresponsive() || c.stats.Available(c.now, true) {
		t.Error("after a timeout the instance is available")
	}
	c.want("the probe", c.stats.ProbeFailed(c.now), ShouldEject)
	c.stats.Eject(c.now, false)
	c.now += 5*sec - 1
	c.want("during the ejection", c.stats.ProbeFailed(c.now), Unchanged)
	c.now++
	c.want("after the ejection", c.stats.ProbeFailed(c.now), ShouldEject)
	c.stats.Eject(c.now, false)
	c.now += 100 * sec
	if c.stats.Available(c.now, true) || c.tries() || !c.stats.Ejected() {
		t.Error("a call tries the instance without an answer")
	}
	c.want("an answered probe", c.stats.ProbeAnswered(c.now, c.now-1), Recovered)
	c.stats.Readmit()
	if !c.stats.Available(c.now, false) {
		t.Error("not available after an answer")
	}
	c.want("a probe after an answer", c.stats.ProbeFailed(c.now), Unchanged)
	if e, _ := c.stats.slowness.estimate(c.now); e != 0 {
		t.Errorf("the slowness is still %v", e)
	}
}

// A timeout of an instance that answers the probe counts as a server error if the method is usually
// much faster.
func TestTimeoutCountsAsServerErrorIfTheProbeIsAnswered(t *testing.T) {
	for _, usual := range []int64{0, 26, 200} { // 0: never answered
		c := newCaller(t)
		if usual > 0 {
			c.method.observe(usual * ms)
		}
		for range 20 {
			c.want("a timeout", c.call(51, outcome.TimedOut), Unchanged)
			c.now++
			c.want("an answered probe", c.stats.ProbeAnswered(c.now, c.now), Unchanged)
			c.now++
			c.want("a timeout until the next probe", c.call(51, outcome.TimedOut), Unchanged)
			c.now += 1000 * ms
		}
		if n := c.stats.errors.inARow(); n != 0 {
			t.Errorf("usual %d ms: %d server errors, want none", usual, n)
		}
	}
	c := newCaller(t)
	c.method.observe(25 * ms)
	for i := range 5 {
		c.want("a timeout", c.call(50, outcome.TimedOut), Unchanged)
		c.now += 1000 * ms
		c.want("an answered probe", c.stats.ProbeAnswered(c.now, c.now), map[bool]Verdict{true: Suspected}[i == 4])
		if c.stats.Unresponsive() {
			t.Fatal("still unresponsive")
		}
		c.now += 1000 * ms
	}
	c.want("another probe", c.stats.ProbeAnswered(c.now, c.now), Unchanged)
	c.now++
	c.want("a timeout until the next probe", c.call(50, outcome.TimedOut), Suspected)
	if c.stats.Unresponsive() {
		t.Error("unresponsive within a second after an answered probe")
	}
	if n := c.stats.errors.inARow(); n != 6 {
		t.Errorf("%d server errors, want 6", n)
	}
}

func TestTimeoutIsBlamedOnlyAfterTimeToAnswer(t *testing.T) {
	for _, c := range []struct {
		what     string
		interval int64 // usual, in ms
		took     int64
		want     bool
	}{
		{"never answered, just less than 50 ms", 0, 49, false},
		{"never answered, 50 ms", 0, 50, true},
		{"fast, less than 10 ms", 1, 9, false},
		{"fast, 10 ms", 1, 10, true},
		{"100 ms, less than twice as long", 100, 199, false},
		{"100 ms, twice as long", 100, 200, true},
	} {
		r := newCaller(t)
		if c.interval > 0 {
			r.want("a good answer", r.call(c.interval, outcome.Answered), Unchanged)
		}
		r.want(c.what, r.call(c.took, outcome.TimedOut), Unchanged)
		if got := r.stats.Unresponsive(); got != c.want {
			t.Errorf("%s: unresponsive is %v", c.what, got)
		}
	}
	c := newCaller(t)
	slow := c.stats.Begin(c.now, &c.method, false)
	for range 100 {
		c.call(10, outcome.Answered)
	}
	c.want("it answers others", c.stats.End(c.now, slow, outcome.TimedOut), Unchanged)
	c.report("nothing is left", Report{})
	if e, _ := c.stats.slowness.estimate(c.now); e < 1.2 {
		t.Errorf("after a timeout of 1 s the slowness is %v", e)
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
	call := c.stats.Begin(c.now, &c.method, false)
	c.now += 20 * ms
	c.stats.Begin(c.now, &c.method, false)
	c.stats.End(c.now, call, outcome.Answered)
	if got := c.stats.answerInterval.Load(); got != sec-980*ms/8 {
		t.Errorf("the time without calls counts: %d ms", got/ms)
	}
	last := c.now
	for range 3 { // the answers that come together count as one
		c.now += ms / 30
		c.stats.End(c.now, c.stats.Begin(last, &c.method, false), outcome.Answered)
	}
	if got := c.stats.lastAnswer.Load(); got != last {
		t.Errorf("an answer %d µs after the last one counts", (got-last)/1000)
	}
	c.now += ms / 30
	c.stats.End(c.now, c.stats.Begin(last, &c.method, false), outcome.Answered)
	if got := c.stats.lastAnswer.Load(); got != c.now {
		t.Errorf("the last answer came %d µs ago", (c.now-got)/1000)
	}
}

func TestStalled(t *testing.T) {
	c := newCaller(t)
	c.method.observe(ms)
	check := func(what string, want bool) {
		t.Helper()
		if got := c.stats.Stalled(c.now); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	c.now += 3600 * sec
	check("idle", false)
	call := c.stats.Begin(c.now, &c.method, false)
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
	c = newCaller(t)
	check("never measured", false)
	c.call(100, outcome.Answered)
	c.stats.Begin(c.now, &c.method, false)
	c.now += 799 * ms
	check("silent for 8 times as long as usual", false)
	c.now += 2 * ms
	check("silent for longer than that", true)
	c = newCaller(t)
	c.call(100, outcome.Answered)
	for range 10 {
		c.stats.Begin(c.now, &c.method, false)
	}
	c.now += 79 * ms
	check("silent for 8 times the usual interval between 10 answers", false)
	c.now += 2 * ms
	check("silent for longer than the interval", true)
	c = newCaller(t)
	c.call(100, outcome.Answered)
	c.stats.slowness.reset(c.now, 4)
	c.stats.Begin(c.now, &c.method, false)
	c.now += 3199 * ms
	check("a slow instance, silent for 8 times as long as it usually is", false)
	c.now += 2 * ms
	check("a slow instance, silent for longer", true)
}

// A long call is neither a stall, nor does it hide or cause one of other calls.
func TestLongCallIsNoStall(t *testing.T) {
	var export Method
	var first Call
	for _, isKnown := range []bool{false, true} {
		c := newCaller(t)
		c.method.observe(2 * ms)
		if isKnown {
			export.observe(8 * sec)
		}
		first = c.stats.Begin(c.now, &export, false)
		c.now += 7 * sec
		if c.stats.Stalled(c.now) {
			t.Error("a call that usually takes 8 s is a stall after 7 s")
		}
		c.call(2, outcome.Answered)
		c.now += sec / 2
		if c.stats.Stalled(c.now) {
			t.Error("the instance has answered its other calls")
		}
		hangs := c.stats.Begin(c.now, &c.method, false)
		c.now += 17 * ms
		if !c.stats.Stalled(c.now) {
			t.Error("a fast call that hangs beside an export is no stall")
		}
		alsoHangs := c.stats.Begin(c.now, &c.method, false)
		c.stats.End(c.now, hangs, outcome.Inconclusive)
		if !c.stats.Stalled(c.now) {
			t.Error("a second call that hangs is no stall once the first is cancelled")
		}
		c.stats.End(c.now, alsoHangs, outcome.Inconclusive)
		if c.stats.Stalled(c.now) {
			t.Error("only the export is in flight")
		}
		cancelled := c.stats.Begin(c.now, &c.method, false)
		c.now += ms
		c.stats.End(c.now, cancelled, outcome.Inconclusive)
		c.now += 20 * ms
		if c.stats.Stalled(c.now) {
			t.Error("a call that was cancelled at once makes the instance look stalled")
		}
		c.stats.End(c.now, first, outcome.Answered)
		if c.stats.Stalled(c.now + 20*ms) {
			t.Error("an idle instance is stalled")
		}
	}
}

func TestEjectionsGrow(t *testing.T) {
	for _, forErrors := range []bool{false, true} {
		r := newCaller(t)
		for i, want := range []time.Duration{5, 20, 80, 80, 80} {
			first := r.now
			if got := r.stats.Eject(r.now, forErrors); got != want*time.Second {
				t.Errorf("ejection %d: %s, want %d s", i+1, got, want)
			}
			r.now = first + int64(want)*sec - 1
			if !r.stats.Ejected() || r.tries() || r.stats.Available(r.now, true) {
				t.Errorf("ejection %d ends too early", i+1)
			}
			r.report("before its end", Report{EjectedFor: 1})
			r.now++
			if !r.stats.Available(r.now, true) {
				t.Errorf("ejection %d ends too late", i+1)
			}
			r.report("at its end", Report{})
		}
	}
}

// ejectedCaller returns a caller of an instance whose ejection for server errors has just ended.
func ejectedCaller(t *testing.T) *caller {
	c := newCaller(t)
	c.stats.countFailure(c.now)
	c.now += int64(c.stats.Eject(c.now, true))
	return c
}

func TestTrial(t *testing.T) {
	c := ejectedCaller(t)
	trial := c.stats.Begin(c.now, &c.method, c.tries())
	if !trial.isTrial() || c.tries() || c.stats.Available(c.now, true) {
		t.Error("not exactly one call is the trial")
	}
	c.now += 10*sec - 1
	if c.tries() {
		t.Error("a second trial before 10 s are over")
	}
	c.want("the answer", c.stats.End(c.now, trial, outcome.Answered), Recovered)

	c = ejectedCaller(t)
	c.stats.Begin(c.now, &c.method, c.tries()) // never ends
	c.now += 10 * sec
	if !c.tries() {
		t.Error("no other trial after 10 s")
	}

	c = ejectedCaller(t)
	c.want("an inconclusive trial", c.call(1, outcome.Inconclusive), Unchanged)
	if !c.tries() {
		t.Error("the next call is not the trial")
	}
	c = ejectedCaller(t)
	c.want("a trial without time to answer", c.call(1, outcome.TimedOut), Unchanged)
	if !c.tries() {
		t.Error("the next call is not the trial, again")
	}
	c = ejectedCaller(t)
	c.stats.End(c.now, c.stats.Begin(c.now, &c.method, false), outcome.Inconclusive)
	if !c.tries() {
		t.Error("an inconclusive call has taken the trial")
	}

	c = ejectedCaller(t)
	c.want("a server error", c.call(1, outcome.ServerError), TrialFailed)
	c.want("the same call twice is no trial", c.stats.End(c.now, Call{Started: c.now, method: &c.method, flags: isTrial}, outcome.ServerError), Unchanged)
	c = ejectedCaller(t)
	c.want("a timeout of a method that was never answered", c.call(50, outcome.TimedOut), Unchanged)
	c.want("the probe", c.stats.ProbeAnswered(c.now, c.now), Unchanged)
	if !c.stats.Ejected() || !c.tries() {
		t.Error("the next call is not the trial after a timeout that says nothing")
	}
	c = ejectedCaller(t)
	c.method.observe(20 * ms)
	c.want("a timeout", c.call(50, outcome.TimedOut), TrialFailed)
	c.now += 100 * sec
	if !c.stats.Unresponsive() || c.tries() {
		t.Error("another call tries an instance that has let the trial time out before a probe is answered")
	}
	c.want("the probe", c.stats.ProbeAnswered(c.now, c.now), Unchanged)
	if !c.stats.Ejected() || !c.tries() {
		t.Error("a probe ends the ejection for server errors, or the next trial is not due")
	}

	c = newCaller(t)
	c.want("an inconclusive call without an ejection", c.call(1, outcome.Inconclusive), Unchanged)
	if c.now += 100 * sec; c.tries() {
		t.Error("a trial without an ejection")
	}
}

func TestTrialNeedsTimeForARetry(t *testing.T) {
	for _, test := range []struct {
		spare time.Duration
		after int64
		want  bool
	}{
		{0, 0, false},
		{time.Second, 0, false},
		{1199 * time.Millisecond, 0, false},
		{1201 * time.Millisecond, 0, true},
		{0, 5*sec - 1, false},
		{0, 5 * sec, true},
	} {
		c := ejectedCaller(t)
		c.now += test.after
		c.method.observe(600 * ms)
		if got := c.stats.BeginTrial(c.now, test.spare, &c.method); got != test.want {
			t.Errorf("with %s left, %d ns after the ejection: %v", test.spare, test.after, got)
		}
	}
}

// Whether the answer to a call ends an ejection depends on what the ejection is for, and on when
// the call began.
func TestAnswersEndEjections(t *testing.T) {
	const earlier, later = true, false
	for _, test := range []struct {
		what      string
		fail      outcome.Outcome
		isEarlier bool
		answer    outcome.Outcome
		want      Verdict
	}{
		{"a late answer after a timeout", outcome.TimedOut, earlier, outcome.Answered, Recovered},
		{"an answer after a timeout", outcome.TimedOut, later, outcome.Answered, Recovered},
		{"a server error after a timeout", outcome.TimedOut, later, outcome.ServerError, Recovered},
		{"an earlier answer, and a lost connection", outcome.LostConnection, earlier, outcome.Answered, Unchanged},
		{"an earlier server error, and a lost connection", outcome.LostConnection, earlier, outcome.ServerError, Unchanged},
		{"an answer after a lost connection", outcome.LostConnection, later, outcome.Answered, Recovered},
		{"a server error after a lost connection", outcome.LostConnection, later, outcome.ServerError, Recovered},
		{"an earlier answer, and server errors", outcome.ServerError, earlier, outcome.Answered, Unchanged},
		{"an answer after server errors", outcome.ServerError, later, outcome.Answered, Recovered},
		{"another server error", outcome.ServerError, later, outcome.ServerError, Unchanged},
	} {
		c := newCaller(t)
		call := c.stats.Begin(c.now, &c.method, false)
		c.now++
		if c.call(50, test.fail); test.fail == outcome.TimedOut {
			c.want("the probe", c.stats.ProbeFailed(c.now), ShouldEject)
		}
		c.stats.countFailure(c.now)
		c.stats.Eject(c.now, test.fail == outcome.ServerError)
		c.now++
		if !test.isEarlier {
			call = c.stats.Begin(c.now, &c.method, false)
		}
		c.now++
		c.want(test.what, c.stats.End(c.now, call, test.answer), test.want)
	}
}

// The first message of a stream is an answer.
func TestStreamAnswered(t *testing.T) {
	c := newCaller(t)
	stream := c.stats.BecomeStream(c.now, c.stats.Begin(c.now, &c.method, false))
	c.want("without an ejection", c.stats.StreamAnswered(stream), Unchanged)
	c = ejectedCaller(t)
	stream = c.stats.BecomeStream(c.now, c.stats.Begin(c.now, &c.method, c.tries()))
	c.want("of the trial", c.stats.StreamAnswered(stream), Recovered)
	c.stats.Readmit()
	c.now += 3600 * sec
	c.want("the end of the stream", c.stats.End(c.now, stream, outcome.ServerError), Unchanged)
}

// A call that began before a probe was answered says nothing about the instance after it.
func TestFailuresOfCallsBeforeAnAnsweredProbe(t *testing.T) {
	for _, o := range []outcome.Outcome{outcome.LostConnection, outcome.TimedOut} {
		c := newCaller(t)
		earlier := c.stats.Begin(c.now, &c.method, false)
		c.call(100, outcome.LostConnection)
		c.want("the probe", c.stats.ProbeAnswered(c.now+ms, c.now), Recovered)
		c.stats.Readmit()
		c.now += 10 * sec
		c.want("a call that began before", c.stats.End(c.now, earlier, o), Unchanged)
		if c.stats.Unresponsive() {
			t.Errorf("outcome %d: unresponsive again", o)
		}
	}
}

// The trial replaces what was known of the latency.
func TestTrialResetsLatency(t *testing.T) {
	c := newCaller(t)
	c.call(20, outcome.Answered)
	for range 10 {
		c.call(5000, outcome.Answered)
	}
	if e, _ := c.stats.slowness.estimate(c.now); e < 8 {
		t.Errorf("after slow calls: %v", e)
	}
	c.call(50_000, outcome.ServerError)
	c.now += int64(c.stats.Eject(c.now, true))
	c.want("the trial", c.call(20, outcome.Answered), Recovered)
	if e, _ := c.stats.slowness.estimate(c.now); e > 1.1 {
		t.Errorf("after the trial: %v", e)
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
	c.now += int64(c.stats.Eject(c.now, false))
	c.now += int64(c.stats.Eject(c.now, false))
	if since := c.stats.Readmit(); since != first {
		t.Errorf("the first ejection began at %d, want %d", since, first)
	}
	if c.stats.errors.inARow() != 0 || c.stats.Unresponsive() || !c.stats.Available(c.now, false) {
		t.Error("the history is left")
	}
	c.report("readmitted", Report{})
	if c.tries() || c.stats.Readmit() != 0 {
		t.Error("the ejection is not over")
	}
	c.want("a failure at once", c.call(100, outcome.LostConnection), ShouldEject)
	if d := c.stats.Eject(c.now, false); d != 5*time.Second {
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
	c.stats.Eject(c.now, true)
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

func TestInstanceWithLessLoadIsBetter(t *testing.T) {
	type state struct {
		calls    [classes]int // in flight
		streams  int
		slowness float64 // 0 if not measured
		errors   int     // in a row
		idle     time.Duration
	}
	now := begin + 3600*sec
	make := func(s state) *Stats {
		var stats Stats
		for range 30 - s.errors {
			stats.errors.add(false)
		}
		for range s.errors {
			stats.errors.add(true)
		}
		if s.slowness > 0 {
			stats.slowness.reset(now-int64(s.idle), s.slowness)
		}
		for c, n := range s.calls {
			for range n {
				stats.inFlight.start(class(c))
			}
		}
		stats.streams.Store(int64(s.streams))
		return &stats
	}
	kindOf := func(usual int64) Kind {
		var m Method
		m.observe(usual)
		return m.Kind()
	}
	fastKind := kindOf(2 * ms)
	n := func(n int) [classes]int { return [classes]int{fast: n} }
	for _, c := range []struct {
		what          string
		kind          Kind
		better, worse state
	}{
		{"fewer calls", fastKind, state{calls: n(1), slowness: 1}, state{calls: n(2), slowness: 1}},
		{"fewer calls of the next class", fastKind, state{slowness: 1}, state{calls: [classes]int{medium: 1}, slowness: 1}},
		{"exports do not count for fast calls", fastKind, state{calls: [classes]int{long: 9, slow: 9}}, state{calls: n(1)}},
		{"exports do not count for calls of 150 ms", kindOf(150 * ms), state{calls: [classes]int{long: 9}}, state{calls: [classes]int{slow: 1}}},
		{"exports are balanced by exports", kindOf(8 * sec), state{calls: [classes]int{fast: 9, medium: 9, slow: 9}}, state{calls: [classes]int{long: 1}}},
		{"everything counts for an unknown method", new(Method).Kind(), state{calls: [classes]int{1, 1, 1, 1}}, state{calls: [classes]int{2, 1, 1, 1}}},
		{"streams do not count for calls", fastKind, state{streams: 9}, state{calls: n(1)}},
		{"streams are balanced by streams", StreamKind, state{calls: n(9), streams: 1}, state{streams: 2}},
		{"a stream that is opened counts as one", StreamKind, state{calls: n(9), streams: 1}, state{calls: [classes]int{long: 2}}},
		{"over twice as fast", fastKind, state{slowness: 1}, state{slowness: 2.1}},
		{"fewer calls and not twice as slow", fastKind, state{calls: n(1), slowness: 1.9}, state{calls: n(2), slowness: 1}},
		{"3 calls, not one of 4 with the square of twice the slowness", fastKind, state{calls: n(2), slowness: 1}, state{slowness: 2.1}},
		{"5 calls are worse than one that is twice as slow", fastKind, state{slowness: 2.1}, state{calls: n(4), slowness: 1}},
		{"as fast as the other, if never measured", fastKind, state{}, state{calls: n(1), slowness: 20}},
		{"the other way round", fastKind, state{slowness: 20}, state{calls: n(1)}},
		{"no server error", fastKind, state{calls: n(1), slowness: 1}, state{slowness: 1, errors: 2}},
		{"each server error doubles", fastKind, state{calls: n(6), slowness: 1}, state{slowness: 1, errors: 3}},
		{"not more than that", fastKind, state{slowness: 1, errors: 3}, state{calls: n(8), slowness: 1}},
		{"what is 10 s old does not count", fastKind, state{slowness: 20, errors: 5, idle: 10 * time.Second}, state{calls: n(1), slowness: 1}},
		{"what is younger counts", fastKind, state{calls: n(1), slowness: 1}, state{slowness: 20, idle: 9900 * time.Millisecond}},
		{"with a call in flight what is old counts", fastKind, state{calls: n(2), slowness: 1}, state{calls: n(1), slowness: 20, idle: 20 * time.Second}},
		{"errors, while a call is in flight", fastKind, state{calls: n(2), slowness: 1}, state{calls: n(1), slowness: 1, errors: 3, idle: 20 * time.Second}},
	} {
		b, w := make(c.better), make(c.worse)
		if !b.IsBetter(w, c.kind, now) || w.IsBetter(b, c.kind, now) {
			t.Errorf("%s: %v and %v, want true and false", c.what, b.IsBetter(w, c.kind, now), w.IsBetter(b, c.kind, now))
		}
	}
	if equal := make(state{calls: n(1), slowness: 1}); equal.IsBetter(equal, fastKind, now) {
		t.Error("an instance is better than itself")
	}
}

// Server errors that the other instance has, too, count less.
func TestCommonServerErrorsDoNotCount(t *testing.T) {
	history := func(pattern func(int) bool) *Stats {
		var s Stats
		for i := range 64 {
			s.errors.add(pattern(i))
		}
		s.slowness.observe(begin, 1)
		s.inFlight.start(fast)
		return &s
	}
	half := history(func(i int) bool { return i < 63 && (i%2 == 1 || i == 62) }) // 32 of the last 63
	run := history(func(i int) bool { return i > 60 })
	if run.IsBetter(half, AnyKind, begin) || half.IsBetter(run, AnyKind, begin) {
		t.Error("errors in a row count although half of the other's answers are errors")
	}
	good := history(func(int) bool { return false })
	if !good.IsBetter(run, AnyKind, begin) || run.IsBetter(good, AnyKind, begin) {
		t.Error("errors in a row do not count")
	}
}
