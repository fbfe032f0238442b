package dashboard

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/micro/go-micro/v2/logger"
)

const (
	maxCallRate    = 50               // calls per second by this pod, for all viewers together
	callName       = "dashboard"      // the name that the calls greet
	callWindow     = 10 * time.Second // of the numbers of each instance
	timelineLength = 60               // seconds
	trafficRows    = 200              // instances with numbers

	statsInterval = time.Second // between two events with numbers

	// maxCalling is the longest stream that calls. A viewer that is still there connects
	// again. A viewer that vanished without closing its connection causes calls no longer.
	maxCalling = 5 * time.Minute
)

// traffic calls go-micro-srv again and again while viewers want it, and counts the calls of
// the last minute. All viewers of a pod share the calls: the rate is the highest that one
// of them has chosen. It is safe for concurrent use.
type traffic struct {
	ready  func(context.Context)                               // returns when the calls may begin
	call   func(ctx context.Context, tried func(sample)) error // one call; tried is called after each try, possibly later than the return
	window time.Duration                                       // callWindow

	mu      sync.Mutex
	rates   map[*int]int // of the viewers
	stop    func()       // ends the calls and waits for them; nil while there are none
	calls   []sample     // that ended during the time line, oldest first
	tries   []sample     // that ended in the window, oldest first
	retries []retry      // in the window, oldest first
	failing bool         // the last call failed
}

// sample is a call, or one try of a call at one instance.
type sample struct {
	end    time.Time
	target callTarget // of a try
	took   time.Duration
	failed bool
	busy   bool // the instance refused the try, because it has too many calls
}

// retry is a retry or second attempt that pod.Client has made or refused.
type retry struct {
	at time.Time
	pod.Retry
}

func newTraffic(ready func(context.Context), call func(context.Context, func(sample)) error) *traffic {
	return &traffic{ready: ready, call: call, window: callWindow, rates: map[*int]int{}}
}

// parseRate reads a number of calls per second.
func parseRate(s string) (int, error) {
	rate, err := strconv.Atoi(s)
	if err != nil || rate < 1 || rate > maxCallRate {
		return 0, fmt.Errorf("the rate must be a number of calls a second from 1 to %d", maxCallRate)
	}
	return rate, nil
}

// join adds a viewer that wants calls until leave is called. The first viewer starts the
// calls. The last one stops them, and its leave waits until they have ended.
func (t *traffic) join(rate int) (leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	viewer := &rate
	t.rates[viewer] = rate
	if t.stop == nil {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { defer close(ended); t.run(ctx) }()
		t.stop = func() { cancel(); <-ended }
	}
	return func() {
		t.mu.Lock()
		delete(t.rates, viewer)
		stop := func() {}
		if len(t.rates) == 0 {
			stop, t.stop = t.stop, nil
		}
		t.mu.Unlock()
		stop()
	}
}

// run starts the calls, at even intervals. Each call takes at most callTimeout, so there
// are at most maxCallRate times callTimeout at once.
func (t *traffic) run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	t.ready(ctx)
	for next := time.Now(); ctx.Err() == nil; sleep(ctx, time.Until(next)) {
		running.Go(func() { t.callOnce(ctx) })
		next = later(next.Add(time.Second/time.Duration(max(1, t.rate()))), time.Now().Add(-time.Second)) // after a pause, make at most one second of the missed calls
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (t *traffic) rate() (highest int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, rate := range t.rates {
		highest = max(highest, rate)
	}
	return highest
}

func (t *traffic) callOnce(ctx context.Context) {
	begin := time.Now()
	err := t.call(ctx, func(s sample) {
		if ctx.Err() == nil { // stopping the calls cancels those in flight
			t.mu.Lock()
			defer t.mu.Unlock()
			s.end = time.Now() // with the lock, so that the samples are in order
			t.tries = append(recent(t.tries, t.window), s)
		}
	})
	if ctx.Err() != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calls = append(recent(t.calls, (timelineLength+1)*time.Second), sample{end: time.Now(), took: time.Since(begin), failed: err != nil})
	if failing := err != nil; failing != t.failing { // one line for each change
		t.failing = failing
		if failing {
			logger.Warnf("Calling %q of %q repeatedly: %v", "Greeter.Hello", greeterName, err)
		} else {
			logger.Infof("Calling %q of %q repeatedly: a call is answered again", "Greeter.Hello", greeterName)
		}
	}
}

// events returns the callback that counts the retries of the calls.
func (t *traffic) events() pod.Events {
	return pod.Events{RetryDecided: func(_ context.Context, r pod.Retry) {
		if r.Service != greeterName {
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.retries = append(recent(t.retries, t.window), retry{time.Now(), r})
	}}
}

func (s sample) time() time.Time { return s.end }
func (r retry) time() time.Time  { return r.at }

// recent returns what happened within a duration.
func recent[T interface{ time() time.Time }](all []T, within time.Duration) []T {
	oldest := time.Now().Add(-within)
	first, _ := slices.BinarySearchFunc(all, oldest, func(one T, t time.Time) int { return one.time().Compare(t) })
	return all[first:]
}

// statistics are the numbers of the calls. Times are in milliseconds, absent if no call ended.
type statistics struct {
	Time      time.Time       `json:"time"`
	Pod       string          `json:"pod"`     // the pod that calls
	Rate      int             `json:"rate"`    // calls per second; 0 if nobody wants calls
	Viewers   int             `json:"viewers"` // that share the calls
	Seconds   int             `json:"seconds"` // all numbers but the time line are of the calls that ended within so many seconds
	outcomes                  // of whole calls: a call fails if all its tries fail
	Zone      string          `json:"zone,omitempty"`   // of the pod that calls; absent if it is not known
	Stayed    *float64        `json:"stayed,omitempty"` // share of the tries that stayed in this zone, from 0 to 1; absent if no zone of an instance is known
	Retries   retryStats      `json:"retries"`
	Instances []instanceStats `json:"instances"`
	Omitted   int             `json:"omitted,omitempty"` // instances
	Timeline  timeline        `json:"timeline"`
}

// outcomes describe calls that have ended.
type outcomes struct {
	Calls    int      `json:"calls"`
	Failures int      `json:"failures"`
	P50      *float64 `json:"p50ms,omitempty"`
	P99      *float64 `json:"p99ms,omitempty"`
}

// retryStats are the numbers of the retries by this pod, those of the form included.
type retryStats struct {
	Made    int            `json:"made"`
	Refused map[string]int `json:"refused,omitempty"` // by reason, such as over_budget
	Hedges  int            `json:"hedges"`            // second attempts beside the first, which are made
}

func retriesOf(all []retry) (s retryStats) {
	for _, r := range all {
		switch {
		case r.Refusal != "" && s.Refused == nil:
			s.Refused = map[string]int{r.Refusal: 1}
		case r.Refusal != "":
			s.Refused[r.Refusal]++
		case r.IsHedge:
			s.Hedges++
		default:
			s.Made++
		}
	}
	return s
}

// instanceStats are the numbers of the tries at one instance.
type instanceStats struct {
	Pod      string  `json:"pod"`
	Address  string  `json:"address"`
	State    string  `json:"state"` // as in the registry, or "left"
	Share    float64 `json:"share"` // of all tries, from 0 to 1
	outcomes         // of the tries at this instance: a failed try is repeated at another instance
	Busy     int     `json:"busy,omitempty"` // of the failures: the instance refused the try, because it has too many calls
	targetCalls
}

// timeline counts the calls that ended in each of the last 60 whole seconds, oldest first.
type timeline struct {
	From     time.Time `json:"from"` // begin of the first second
	Calls    []int     `json:"calls"`
	Failures []int     `json:"failures"`
}

// statistics returns the numbers for the instances of a view, which may be nil.
func (t *traffic) statistics(v *view, byTarget map[callTarget]targetCalls) statistics {
	rate := t.rate()
	t.mu.Lock()
	all, tries := recent(t.calls, (timelineLength+1)*time.Second), recent(t.tries, t.window)
	s := statistics{Time: now(), Rate: rate, Viewers: len(t.rates), Seconds: int(t.window / time.Second), Instances: []instanceStats{}}
	s.Retries = retriesOf(recent(t.retries, t.window))
	t.mu.Unlock() // the samples are never changed
	s.outcomes = outcomesOf(recent(all, t.window))

	s.Timeline = timeline{s.Time.Truncate(time.Second).Add(-timelineLength * time.Second), make([]int, timelineLength), make([]int, timelineLength)}
	for _, c := range all {
		if second := int(math.Floor(c.end.Sub(s.Timeline.From).Seconds())); second >= 0 && second < timelineLength {
			s.Timeline.Calls[second]++
			if c.failed {
				s.Timeline.Failures[second]++
			}
		}
	}

	tried, shown := map[callTarget][]sample{}, map[callTarget]targetCalls{}
	for _, try := range tries {
		target := try.target.clipped()
		tried[target] = append(tried[target], try)
	}
	for target, c := range byTarget {
		shown[target.clipped()] = c
	}
	add := func(target callTarget, state string) {
		samples := tried[target]
		delete(tried, target)
		if len(s.Instances) == trafficRows {
			s.Omitted++
			return
		}
		row := instanceStats{Pod: target.pod, Address: target.address, State: state, outcomes: outcomesOf(samples), targetCalls: shown[target]}
		for _, try := range samples {
			if try.busy {
				row.Busy++
			}
		}
		if len(tries) > 0 {
			row.Share = math.Round(float64(len(samples))/float64(len(tries))*1000) / 1000
		}
		s.Instances = append(s.Instances, row)
	}
	if v != nil {
		s.Zone, s.Stayed = v.zone, v.stayed(tried)
		for _, i := range v.greeters() {
			add(callTarget{i.Pod, i.Address}, string(i.State))
		}
	}
	gone := make([]callTarget, 0, len(tried))
	for target := range tried {
		gone = append(gone, target)
	}
	slices.SortFunc(gone, func(a, b callTarget) int { return cmp.Or(cmp.Compare(a.pod, b.pod), cmp.Compare(a.address, b.address)) })
	for _, target := range gone {
		add(target, left)
	}
	return s
}

// stayed returns which share of the tries went to instances in the zone of the pod, nil if there are none of which this is known.
func (v *view) stayed(tried map[callTarget][]sample) *float64 {
	all, stayed := 0, 0
	for _, i := range v.greeters() {
		if v.zone == "" || i.Zone == "" {
			continue
		}
		n := len(tried[callTarget{i.Pod, i.Address}])
		all += n
		if i.Zone == v.zone {
			stayed += n
		}
	}
	if all == 0 {
		return nil
	}
	share := math.Round(float64(stayed)/float64(all)*1000) / 1000
	return &share
}

func outcomesOf(samples []sample) (o outcomes) {
	took := make([]time.Duration, 0, len(samples))
	for _, s := range samples {
		took = append(took, s.took)
		if s.failed {
			o.Failures++
		}
	}
	if o.Calls = len(samples); o.Calls > 0 {
		slices.Sort(took)
		o.P50, o.P99 = percentile(took, 50), percentile(took, 99)
	}
	return o
}

// percentile returns the smallest of the sorted durations that is not exceeded by p percent
// of them (the nearest-rank method), in milliseconds.
func percentile(sorted []time.Duration, p int) *float64 {
	ms := math.Round(float64(sorted[(len(sorted)*p+99)/100-1].Microseconds())/10) / 100
	return &ms
}

// ---- HTTP ----

// sharedStatistics are the encoded numbers, which all viewers share for half a second.
type sharedStatistics struct {
	mu   sync.Mutex
	at   time.Time
	json []byte
}

func (d *dashboard) statistics() []byte {
	shared := &d.shared
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if time.Since(shared.at) > statsInterval/2 {
		v, _ := d.hub.current()
		s := d.traffic.statistics(v, d.hub.currentCalls())
		s.Pod = d.podName
		shared.json, _ = json.Marshal(s) // cannot fail: no number is infinite
		shared.at = time.Now()
	}
	return shared.json
}

// serveCalling is serveEvents for a viewer that wants calls. It is a POST, because other
// web sites can make a browser send a GET.
func (d *dashboard) serveCalling(w http.ResponseWriter, r *http.Request) {
	if err := d.parseForm(w, r); err != nil {
		http.Error(w, "the form cannot be read", http.StatusBadRequest)
		return
	}
	rate, err := parseRate(r.PostForm.Get("rate"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	d.stream(w, r, rate)
}

// callRepeatedly is the call of traffic.
func (d *dashboard) callRepeatedly(ctx context.Context, tried func(sample)) error {
	_, _, err := d.hello(ctx, callName, tried)
	return err
}
