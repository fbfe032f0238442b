package balancer

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/client/selector"
	corev1 "k8s.io/api/core/v1"
)

// zonedSituation is a service in several zones, and its clients.
type zonedSituation struct {
	replicas []int         // in each zone
	callers  []int         // clients in each zone, which call equally often
	load     float64       // of all workers, if the calls were spread evenly
	work     time.Duration // the median of what a call takes in one of the four workers of an instance; 0 for 20 ms
	pause    time.Duration // of a caller after each call; 0 if the calls begin independently of each other
	from, to time.Duration // what is counted; to is the end
	retries  int           // of a call that has failed
	answer   zonedAnswer   // nil for an answer after the time in a worker
}

// zonedAnswer changes the answer of an instance: the time that a worker needs, and how it answers. at once
// is true if no worker is needed.
type zonedAnswer func(r *rand.Rand, instance int, now, work time.Duration) (d time.Duration, o outcome.Outcome, atOnce bool)

// zonedRun is the result of one candidate in a situation.
type zonedRun struct {
	*simulation
	zonedSituation
	calls, stayed []float64       // attempts by the zone of the client
	busy          []time.Duration // of the workers of each instance
}

// zoneAt returns the zone of an instance or a client by its number.
func zoneAt(sizes []int, number int) int {
	for zone, n := range sizes {
		if number -= n; number < 0 {
			return zone
		}
	}
	panic(fmt.Sprint("no zone has number ", number))
}

func sum(sizes []int) (n int) {
	for _, size := range sizes {
		n += size
	}
	return n
}

// zonedCandidates are what is compared in several zones, each for a client in a zone.
var zonedCandidates = []struct {
	name string
	make func(replicas []int, zone int, r *rand.Rand) candidate
}{
	{"random", func(replicas []int, _ int, r *rand.Rand) candidate { return candidates[0].make(sum(replicas), r) }},
	{"round robin", func(replicas []int, _ int, r *rand.Rand) candidate { return candidates[1].make(sum(replicas), r) }},
	// trafficDistribution: PreferSameZone of Kubernetes
	{"zone only", func(replicas []int, zone int, r *rand.Rand) candidate {
		first := sum(replicas[:zone])
		return &simple{n: sum(replicas), pick: func(*simple) int { return first + r.IntN(replicas[zone]) }}
	}},
	{"pod without zones", func(replicas []int, _ int, r *rand.Rand) candidate { return newPodCandidate(sum(replicas), r) }},
	{"pod", newZonedCandidate},
}

// newZonedCandidate returns the choice of this package, for a client that knows its zone.
func newZonedCandidate(replicas []int, zone int, r *rand.Rand) candidate {
	b := newPodCandidate(sum(replicas), r).(*podCandidate)
	names := []string{"a", "b", "c", "d", "e"}
	b.chooser.members.zones = zones{own: func() string { return names[zone] }, of: func(i *discovery.Instance) string { return names[zoneAt(replicas, b.index[i])] }}
	return b
}

// zonedClient counts the calls of a client that stay in its zone.
type zonedClient struct {
	candidate
	zone int
	run  *zonedRun
}

func (c *zonedClient) begin(now time.Duration, m *simulatedMethod, previous int) (int, func(time.Duration, outcome.Outcome)) {
	i, end := c.candidate.begin(now, m, previous)
	if now >= c.run.from {
		c.run.calls[c.zone]++
		if zoneAt(c.run.replicas, i) == c.zone {
			c.run.stayed[c.zone]++
		}
	}
	return i, end
}

func (s zonedSituation) run(make func(replicas []int, zone int, r *rand.Rand) candidate) *zonedRun {
	n := sum(s.replicas)
	result := &zonedRun{zonedSituation: s, calls: slices.Repeat([]float64{0}, len(s.replicas)), stayed: slices.Repeat([]float64{0}, len(s.replicas)),
		busy: slices.Repeat([]time.Duration{0}, n)}
	queues := newWorkers(n)
	work := cmp.Or(s.work, 20*time.Millisecond)
	mean := 1.03 * work.Seconds()
	sim := simulation{instances: n, clients: sum(s.callers), rate: s.load * float64(4*n) / mean, length: s.to, retries: s.retries}
	if s.pause != 0 {
		sim.pause, sim.callers = s.pause, int(sim.rate*(mean+s.pause.Seconds()))
	}
	sim.answer = func(r *rand.Rand, instance int, now time.Duration) (time.Duration, outcome.Outcome) {
		work, o := lognormal(r, work, 0.25), outcome.Answered
		if s.answer != nil {
			var atOnce bool
			if work, o, atOnce = s.answer(r, instance, now, work); atOnce {
				return work, o
			}
		}
		if now >= s.from {
			result.busy[instance] += work
		}
		d, _ := queues.answer(func(*rand.Rand, int) time.Duration { return work })(r, instance, now)
		return d, o
	}
	made := 0
	result.simulation = sim.run(func(_ int, r *rand.Rand) candidate {
		zone := zoneAt(s.callers, made)
		made++
		return &zonedClient{make(s.replicas, zone, r), zone, result}
	})
	return result
}

// stays returns the share of the attempts, in percent, that stay in the zone of their client.
func (r *zonedRun) stays() float64 {
	var calls, stayed float64
	for zone := range r.calls {
		calls, stayed = calls+r.calls[zone], stayed+r.stayed[zone]
	}
	return 100 * stayed / calls
}

// utilisation returns the share of the time, in percent, in which the workers of the busiest instance are busy.
func (r *zonedRun) utilisation(instances ...int) float64 {
	var most time.Duration
	for i, busy := range r.busy {
		if len(instances) == 0 || slices.Contains(instances, i) {
			most = max(most, busy)
		}
	}
	return 100 * float64(most) / float64(4*(r.to-r.from))
}

func (r *zonedRun) p99() float64 { return r.percentile(99, r.from, r.to) }

func (r *zonedRun) failed() float64 { return r.percent(func(c simulatedCall) bool { return c.failed }) }

// shareOf returns the share of the attempts, in percent, that a zone gets in a period.
func (r *zonedRun) shareOf(zone int, from, to time.Duration) (share float64) {
	for i := range r.instances {
		if zoneAt(r.replicas, i) == zone {
			share += r.share(i, from, to)
		}
	}
	return share
}

// zonedMeasure is one number of a situation, and what the choice of this package must reach.
type zonedMeasure struct {
	what   string
	of     func(*zonedRun) float64
	min    float64
	max    float64 // 0 for no limit
	factor float64 // of the same number without zones; 0 for no limit
}

// The rows of the situations with several zones, beside the choices of others. TestChoiceComparedWithOthers has
// the situations within a zone.
func TestZonesComparedWithOthers(t *testing.T) {
	t.Parallel()
	const second = time.Second
	even := []int{4, 4, 4}
	stays := func(min float64) zonedMeasure {
		return zonedMeasure{what: "attempts that stay in the zone (%)", of: (*zonedRun).stays, min: min}
	}
	p99 := zonedMeasure{what: "p99 (ms)", of: (*zonedRun).p99, factor: 1.2}
	busiest := zonedMeasure{what: "busiest instance (%)", of: func(r *zonedRun) float64 { return r.utilisation() }, max: 90}
	failed := func(max float64) zonedMeasure {
		return zonedMeasure{what: "calls that fail (%)", of: (*zonedRun).failed, max: max}
	}
	tests := []struct {
		name     string
		in       zonedSituation
		measures []zonedMeasure
	}{}
	add := func(name string, in zonedSituation, measures ...zonedMeasure) {
		tests = append(tests, struct {
			name     string
			in       zonedSituation
			measures []zonedMeasure
		}{name, in, measures})
	}
	add("12 clients in 3 zones of 4 instances, 50 % busy",
		zonedSituation{replicas: even, callers: even, load: 0.5, from: 10 * second, to: 25 * second}, stays(95), p99, busiest)
	add("60 clients in 3 zones of 4 instances, 50 % busy", // 19 calls a second each
		zonedSituation{replicas: even, callers: []int{20, 20, 20}, load: 0.5, from: 25 * second, to: 40 * second}, stays(97), p99, busiest)
	// These clients make 20 calls a second each, as those of TestZones in test/e2e.
	add("12 clients of 48 callers, which make one call of 100 ms after the other and pause for 100 ms",
		zonedSituation{replicas: even, callers: even, load: 0.5, work: 100 * time.Millisecond, pause: 100 * time.Millisecond, from: 26 * second, to: 60 * second}, stays(97), p99, busiest)
	most := zonedSituation{replicas: even, callers: []int{54, 3, 3}, load: 0.5, from: 10 * second, to: 30 * second}
	add("60 clients, 54 of them in one of 3 zones, 50 % busy", most, stays(0), p99, busiest)
	// These clients make 4 calls a second each, as those of TestZones in test/e2e, and adapt as slowly.
	most.work = 100 * time.Millisecond
	add("as before, a call takes 100 ms, first 10 s", zonedSituation{replicas: even, callers: most.callers, load: 0.5, work: most.work, to: 10 * second}, stays(0), p99, busiest)
	most.to = 60 * second
	add("as before, then", most, stays(0), p99, busiest)
	most.pause = 150 * time.Millisecond
	add("as before, each client makes one call after the other and pauses for 150 ms", most, stays(0), p99, busiest)
	add("20 clients of 48 callers, which make one call after the other and pause for 100 ms, 18 of them in one of 3 zones", zonedSituation{replicas: even, callers: []int{18, 1, 1},
		load: 0.5, work: most.work, pause: 100 * time.Millisecond, from: 8 * second, to: 20 * second}, stays(0), p99, busiest)
	add("6 clients, all in one of 3 zones, 70 % busy",
		zonedSituation{replicas: even, callers: []int{6, 0, 0}, load: 0.7, from: 10 * second, to: 30 * second}, stays(0), p99, busiest)
	add("60 clients, one of 9 instances is alone in its zone, 50 % busy",
		zonedSituation{replicas: []int{1, 4, 4}, callers: []int{20, 20, 20}, load: 0.5, from: 10 * second, to: 25 * second}, stays(0), p99,
		zonedMeasure{what: "instance alone in its zone (%)", of: func(r *zonedRun) float64 { return r.utilisation(0) }, max: 50})
	add("12 clients, every fifth call takes ten times as long, 50 % busy",
		zonedSituation{replicas: even, callers: even, load: 0.5 / 2.8, from: 10 * second, to: 30 * second, answer: func(r *rand.Rand, _ int, _, work time.Duration) (time.Duration, outcome.Outcome, bool) {
			if r.Float64() < 0.2 {
				work *= 10
			}
			return work, outcome.Answered, false
		}}, stays(90), p99, busiest)
	dead := func(_ *rand.Rand, instance int, now, work time.Duration) (time.Duration, outcome.Outcome, bool) {
		if instance < 4 && now >= 10*second {
			return 200 * time.Microsecond, outcome.LostConnection, true
		}
		return work, outcome.Answered, false
	}
	inZone := zonedMeasure{what: "attempts of its clients that stay in the zone after 1 s (%)", of: func(r *zonedRun) float64 { return 100 * r.stayed[0] / r.calls[0] }, max: 0.1}
	add("60 clients, one of 3 zones dies, 50 % busy, 1 retry",
		zonedSituation{replicas: even, callers: []int{20, 20, 20}, load: 0.5, from: 11 * second, to: 25 * second, retries: 1, answer: dead}, failed(1e-9), inZone, p99)
	// Each client finds out with a call or two to each instance, as without zones.
	add("12 clients, one of 3 zones freezes, 50 % busy",
		zonedSituation{replicas: even, callers: even, load: 0.5, from: 11 * second, to: 30 * second, answer: func(_ *rand.Rand, instance int, now, work time.Duration) (time.Duration, outcome.Outcome, bool) {
			if instance < 4 && now >= 10*second {
				return 5 * second, outcome.TimedOut, true
			}
			return work, outcome.Answered, false
		}}, inZone, zonedMeasure{what: "calls that fail", of: func(r *zonedRun) float64 { return r.failed() * float64(len(r.simulation.calls)) / 100 }, max: 150, factor: 1.5})
	add("12 clients, all instances of one of 3 zones answer with errors, 50 % busy, 1 retry",
		zonedSituation{replicas: even, callers: even, load: 0.5, from: 10 * second, to: 25 * second, retries: 1, answer: func(_ *rand.Rand, instance int, now, work time.Duration) (time.Duration, outcome.Outcome, bool) {
			if instance < 4 && now >= 10*second {
				return time.Millisecond, outcome.ServerError, true
			}
			return work, outcome.Answered, false
		}}, failed(0.1), zonedMeasure{what: "attempts to the zone after 3 s (%)", of: func(r *zonedRun) float64 { return r.shareOf(0, 13*second, 25*second) }, max: 1})
	add("12 clients, one of 12 instances ten times slower, 50 % busy",
		zonedSituation{replicas: even, callers: even, load: 0.5, from: 13 * second, to: 25 * second, answer: func(_ *rand.Rand, instance int, now, work time.Duration) (time.Duration, outcome.Outcome, bool) {
			if instance == 0 && now >= 10*second {
				work *= 10
			}
			return work, outcome.Answered, false
		}}, stays(85), zonedMeasure{what: "its share (%)", of: func(r *zonedRun) float64 { return r.share(0, 13*second, 25*second) }, max: 2}, zonedMeasure{what: "p99 (ms)", of: (*zonedRun).p99, factor: 1.2})
	add("12 clients, one of 12 instances answers with errors, 50 % busy",
		zonedSituation{replicas: even, callers: even, load: 0.5, from: 10 * second, to: 25 * second, answer: func(_ *rand.Rand, instance int, now, work time.Duration) (time.Duration, outcome.Outcome, bool) {
			if instance == 0 && now >= 10*second {
				return time.Millisecond, outcome.ServerError, true
			}
			return work, outcome.Answered, false
		}}, stays(90), zonedMeasure{what: "its share (%)", of: func(r *zonedRun) float64 { return r.share(0, 10*second, 25*second) }, max: 1}, failed(0.5))

	begin := time.Now()
	for _, test := range tests {
		t.Log(test.name)
		results := make([][]float64, len(test.measures))
		for _, c := range zonedCandidates {
			r := test.in.run(c.make)
			for i, m := range test.measures {
				results[i] = append(results[i], m.of(r))
			}
		}
		for i, m := range test.measures {
			logResults(t, m.what, results[i], func(j int) string { return zonedCandidates[j].name })
			last := len(zonedCandidates) - 1
			got, without := results[i][last], results[i][last-1]
			if got < m.min || m.max > 0 && got > m.max || m.factor > 0 && got > m.factor*without {
				t.Errorf("%s: %s: %.3f, want at least %v, at most %v, and at most %v of %.3f", test.name, m.what, got, m.min, m.max, m.factor, without)
			}
		}
	}
	t.Logf("%s", time.Since(begin).Round(time.Millisecond))
}

// While calls stay in the zone, the other zones get few of them, so that their histories of answers are old
// when all instances begin to fail. Nevertheless none is ejected.
func TestZonesIgnoreCommonFaults(t *testing.T) {
	t.Parallel()
	for _, share := range []float64{0.2, 0.5, 1} {
		ejections := 0
		r := zonedSituation{replicas: []int{4, 4, 4}, callers: []int{2, 2, 2}, load: 0.25, from: 30 * time.Second, to: 40 * time.Second, answer: func(r *rand.Rand, _ int, now, work time.Duration) (time.Duration, outcome.Outcome, bool) {
			if now >= 30*time.Second && r.Float64() < share {
				return work, outcome.ServerError, false
			}
			return work, outcome.Answered, false
		}}.run(func(replicas []int, zone int, r *rand.Rand) candidate {
			c := newZonedCandidate(replicas, zone, r)
			c.(*podCandidate).chooser.events = []Events{{Ejected: func(string, string, string, time.Duration, error) { ejections++ }}}
			return c
		})
		if failed := r.failed(); failed < 20*share {
			t.Fatalf("%.1f %% of the calls fail", failed)
		}
		if ejections > 0 || r.stays() < 80 {
			t.Errorf("%.0f %% of the calls to all instances fail: %d ejections, and %.1f %% of the calls stay in their zone", 100*share, ejections, r.stays())
		}
	}
}

// zonedRegistry returns a registry with n instances in three zones, of a process in a zone, which may change.
func zonedRegistry(t testing.TB, n int, zone *string) *staticRegistry {
	r, inf := newStaticRegistry(t, 0)
	r.zone = func() string { return *zone }
	var pods []*corev1.Pod
	for i := range n {
		p := readyPod(t, i)
		p.Labels[podmeta.ZoneLabel] = string(rune('a' + i%3))
		pods = append(pods, p)
	}
	inf.Replace(pods)
	return r
}

// staying returns the share of calls that stay in a zone, after the first ones.
func staying(t *testing.T, s *Selector, zone string, opts ...selector.SelectOption) float64 {
	t.Helper()
	stayed := 0
	for i := range 2000 {
		c := chooseOne(t, s, opts...)
		if c.Instance.Zone() == zone && i >= 1000 {
			stayed++
		}
		c.Done(outcome.Answered, nil)
		time.Sleep(5 * time.Millisecond)
	}
	return float64(stayed) / 1000
}

func TestZoneIsPreferred(t *testing.T) {
	for _, c := range []struct {
		what      string
		instances int
		subset    int
		ignored   bool
		opts      []selector.SelectOption
		min, max  float64
	}{
		{"12 instances", 12, 0, false, nil, 0.95, 0.995},
		{"5 instances", 5, 0, false, nil, 0.2, 0.6},
		{"a subset of 12 of 12", 12, 12, false, nil, 0.95, 0.995},
		{"a subset of 100 of 120", 120, 100, false, nil, 0.95, 0.995},
		{"a version, 18 of 36", 36, 0, false, []selector.SelectOption{selector.WithFilter(selector.FilterVersion("v1"))}, 0.95, 0.995},
		{"zones are ignored", 12, 0, true, nil, 0.25, 0.42},
	} {
		synctest.Test(t, func(t *testing.T) {
			zone := ""
			r := zonedRegistry(t, c.instances, &zone)
			r.subset, r.ignoreZones = c.subset, c.ignored
			s := newSelector(r)
			if share := staying(t, s, "a", c.opts...); share > 0.6 {
				t.Errorf("%s: while the own zone is not known, %.1f %% of the calls go to one zone", c.what, 100*share)
			}
			for _, zone = range []string{"a", "b"} { // the label comes later
				if share := staying(t, s, zone, c.opts...); share < c.min || share > c.max {
					t.Errorf("%s: %.1f %% of the calls stay in zone %s, want %v to %v", c.what, 100*share, zone, c.min, c.max)
				}
			}
			if n := len(s.Instances("greeter")); n != c.instances && n != c.subset {
				t.Errorf("%s: %d are shown", c.what, n)
			}
			r.services.Stop()
		})
	}
}

func TestAttemptsSayWhetherTheyStay(t *testing.T) {
	zone := "a"
	r := zonedRegistry(t, 3, &zone)
	zones := map[string]string{}
	r.observe(Events{AttemptEnded: func(a events.Attempt) { zones[a.Pod] = a.Zone }})
	s := newSelector(r)
	for range 100 {
		chooseOne(t, s).Done(outcome.Answered, nil)
	}
	if want := map[string]string{"p-0": "same", "p-1": "other", "p-2": "other"}; !maps.Equal(zones, want) {
		t.Errorf("the attempts are %v, want %v", zones, want)
	}
	zone = ""
	for range 100 {
		chooseOne(t, s).Done(outcome.Answered, nil)
	}
	if want := map[string]string{"p-0": "", "p-1": "", "p-2": ""}; !maps.Equal(zones, want) {
		t.Errorf("without a zone of the process: %v, want %v", zones, want)
	}
}

func TestZonedChoiceAllocatesNothing(t *testing.T) {
	zone := "a"
	s := newSelector(zonedRegistry(t, 12, &zone))
	call := func() { chooseOne(t, s).Done(outcome.Answered, nil) }
	call()
	if n := testing.AllocsPerRun(1000, call); n != 0 {
		t.Errorf("a choice allocates %v times", n)
	}
}

func BenchmarkZonedChoice(b *testing.B) {
	for _, n := range []int{12, 10002} {
		zone := "a"
		r := zonedRegistry(b, n, &zone)
		s := newSelector(r)
		c, _ := s.Choose("greeter", nil, nil) // makes the chooser
		c.Done(outcome.Answered, nil)
		for spill, now := &r.choosers.find("greeter").spill, int64(1)<<62; spill.Share() > 0.1; now += int64(time.Second) {
			spill.Ended(now, false, 1)
			spill.Ended(now, true, 1)
		}
		b.Run(fmt.Sprint("instances=", n), func(b *testing.B) { chooseAndDone(b, s) })
	}
}
