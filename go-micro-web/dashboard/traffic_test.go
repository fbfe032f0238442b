package dashboard

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
)

// openCalling opens an event stream that asks for calls.
func openCalling(t *testing.T, srv *httptest.Server, rate string) (*stream, int) {
	t.Helper()
	rsp, err := http.PostForm(srv.URL+root+"events", url.Values{"rate": {rate}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rsp.Body.Close() })
	return newStream(t, rsp), rsp.StatusCode
}

// alternate returns tries at each of the addresses in turn.
func alternate(addresses ...string) func() []string {
	n := 0
	return func() []string {
		n++
		return []string{addresses[n%len(addresses)]}
	}
}

func address(i int) string { return fmt.Sprintf("10.244.0.%d:9100", i) }

func TestKeepCalling(t *testing.T) {
	c, d, srv := serve(t, greeterInstance(1, pod.Ready), greeterInstance(2, pod.NotReady), greeterInstance(3, pod.Ready))
	until := time.Now().Add(time.Minute).UTC().Round(time.Second)
	c.setCalls(map[callTarget]targetCalls{{"go-micro-srv-3", address(3)}: {InFlight: 2, EjectedUntil: until}})
	n := 0
	c.setTries(func() []string { // each second call is tried at 3, fails there, and is tried at 1
		if n++; n%2 == 0 {
			return []string{address(3), address(1)}
		}
		return []string{address(1)}
	})
	begin := time.Now()
	s, status := openCalling(t, srv, "50")
	if status != http.StatusOK {
		t.Fatal(status)
	}
	var got statistics
	counted := func() (sum int) { // by the time line, which lacks the calls of the current second
		for _, n := range got.Timeline.Calls {
			sum += n
		}
		return sum
	}
	for got.Calls < 60 || counted() < 60 {
		s.decode("calls", &got)
	}
	if got.Pod != "go-micro-web-1" || got.Rate != 50 || got.Viewers != 1 || got.Seconds != 10 || got.Failures != 0 || got.P50 == nil || got.P99 == nil {
		t.Errorf("the numbers are %+v", got)
	}
	var rows []string
	for _, i := range got.Instances {
		rows = append(rows, fmt.Sprintf("%s %s %.1f %v %v", i.Pod, i.State, i.Share, i.Failures == i.Calls, i.P50 != nil))
	}
	if want := "[go-micro-srv-1 ready 0.7 false true go-micro-srv-2 not ready 0.0 true false go-micro-srv-3 ready 0.3 true true]"; fmt.Sprint(rows) != want {
		t.Errorf("the instances are\n%s, want\n%s", rows, want)
	}
	if i := got.Instances[2]; i.InFlight != 2 || !i.EjectedUntil.Equal(until) {
		t.Errorf("the third instance has %+v", i)
	}
	if len(got.Timeline.Calls) != 60 || len(got.Timeline.Failures) != 60 {
		t.Errorf("the time line is %+v", got.Timeline)
	}

	made, took := float64(c.countCalls()), time.Since(begin) // since the begin, because calls that a stalled machine has missed are made up for
	if want := 50 * took.Seconds(); made < want/2 || made > want+51 {
		t.Errorf("%.0f calls in %s, want 50 a second", made, took)
	}
	s.rsp.Body.Close()
	eventually(t, 10*time.Second, "the end of the calls", func() bool { return d.traffic.rate() == 0 && d.hub.streams.count() == 0 })
	before := c.countCalls()
	time.Sleep(200 * time.Millisecond)
	if after := c.countCalls(); after != before {
		t.Errorf("%d calls after the viewer has left", after-before)
	}
	_, body := get(t, srv.URL+root+"calls.json")
	var last statistics
	if err := json.Unmarshal([]byte(body), &last); err != nil || last.Viewers > 1 || last.Calls < got.Calls {
		t.Errorf("afterwards calls.json is %s, %v", body, err)
	}
}

// lateSource observes nothing until it is ready, as while the API server does not answer.
type lateSource struct {
	*fakeCluster
	ready chan struct{}
}

func (l lateSource) Observe(ctx context.Context) iter.Seq2[[]pod.Instance, error] {
	return func(yield func([]pod.Instance, error) bool) {
		select {
		case <-l.ready:
			l.fakeCluster.Observe(ctx)(yield)
		case <-ctx.Done():
		}
	}
}

// The calls begin after the first view. Those that were due before are not made up for at
// once.
func TestCallsBeginAfterTheFirstView(t *testing.T) {
	c, d, srv := serve(t, greeterInstance(1, pod.Ready))
	late := lateSource{c, make(chan struct{})}
	d.hub.source = late
	c.setTries(alternate(address(1)))
	s, _ := openCalling(t, srv, "50")
	time.Sleep(4 * time.Second)
	if n := c.countCalls(); n != 0 {
		t.Errorf("%d calls before the first view", n)
	}
	begin := time.Now()
	close(late.ready)
	s.next()
	eventually(t, 10*time.Second, "the calls", func() bool { return c.countCalls() > 5 })
	if n, most := float64(c.countCalls()), 50*time.Since(begin).Seconds()+51; n > most {
		t.Errorf("%.0f calls in %s, want 50 a second", n, time.Since(begin))
	}
}

func TestViewersShareTheCalls(t *testing.T) {
	c, d, srv := serve(t, greeterInstance(1, pod.Ready))
	c.setTries(alternate(address(1)))
	slow, _ := openCalling(t, srv, "1")
	fast, _ := openCalling(t, srv, "50")
	var got statistics
	for got.Viewers != 2 {
		slow.decode("calls", &got)
	}
	if got.Rate != 50 {
		t.Errorf("viewers that want 1 and 50 calls a second get %d", got.Rate)
	}
	fast.rsp.Body.Close()
	eventually(t, 10*time.Second, "the lower rate", func() bool { return d.traffic.rate() == 1 })
}

func TestCallsAreBounded(t *testing.T) {
	c, d, srv := serve(t, greeterInstance(1, pod.Ready))
	for _, rate := range []string{"", "0", "-1", "51", "1e1", "x", strings.Repeat("1", 5000)} {
		if _, status := openCalling(t, srv, rate); status != http.StatusBadRequest {
			t.Errorf("the rate %.10q: %d", rate, status)
		}
	}
	var releases []func()
	for range maxClientStreams {
		release, _, _ := d.hub.streams.open("127.0.0.1:1")
		releases = append(releases, release)
	}
	if _, status := openCalling(t, srv, "10"); status != http.StatusTooManyRequests {
		t.Errorf("the viewer over the limit: %d", status)
	}
	if n := c.countCalls(); n != 0 {
		t.Errorf("refused viewers cause %d calls", n)
	}
	for _, release := range releases {
		release()
	}
	c.setTries(alternate(address(1)))
	d.maxCalling = 300 * time.Millisecond // the viewer below does not leave
	s, _ := openCalling(t, srv, "50")
	for s.lines.Scan() {
	}
	eventually(t, 10*time.Second, "the end of the calls", func() bool { return d.traffic.rate() == 0 })
}

// The calls in flight are bounded, and stop with their viewer although nothing answers.
func TestCallsWithoutAnAnswerStop(t *testing.T) {
	c, d, srv := serve(t, greeterInstance(1, pod.Ready))
	c.delay = time.Hour
	c.setTries(alternate(address(1)))
	s, _ := openCalling(t, srv, "50")
	eventually(t, 10*time.Second, "some calls", func() bool { return c.countCalls() >= 10 })
	s.rsp.Body.Close()
	eventually(t, 4*time.Second, "the end of the calls, before their timeout of 5 s", func() bool { return d.traffic.rate() == 0 && d.hub.streams.count() == 0 })
}

func TestStatistics(t *testing.T) {
	tr := newTraffic(nil, nil)
	at := time.Now()
	for i := 100; i >= 1; i-- { // 1 to 100 ms
		tr.tries = append(tr.tries, sample{at, callTarget{"a", "10.0.0.1:1"}, time.Duration(i) * time.Millisecond, i > 98, i > 99})
	}
	tr.tries = append(tr.tries, sample{at, callTarget{"gone", "10.0.0.2:1"}, time.Second, true, false})
	tr.calls = []sample{{end: at.Add(-time.Hour), failed: true}, {end: at.Add(-30 * time.Second), failed: true}, {end: at}}
	decided := tr.events().RetryDecided
	for _, r := range []pod.Retry{{Service: greeterName}, {Service: greeterName, Refusal: "over_budget"}, {Service: greeterName, Refusal: "over_budget"}, {Service: greeterName, IsHedge: true}, {Service: "another"}} {
		decided(t.Context(), r)
	}
	s := tr.statistics(&view{registryState: registryState{Services: []service{{Name: greeterName, Instances: []instance{{Pod: "a", Address: "10.0.0.1:1", State: pod.Ready}}}}}}, nil)
	if len(s.Instances) != 2 {
		t.Fatalf("%+v", s)
	}
	a, gone := s.Instances[0], s.Instances[1]
	if a.Calls != 100 || a.Failures != 2 || *a.P50 != 50 || *a.P99 != 99 || a.Share != .99 {
		t.Errorf("a has %d calls, %d failures, p50 %v, p99 %v, share %v", a.Calls, a.Failures, *a.P50, *a.P99, a.Share)
	}
	if a.Busy != 1 || gone.Busy != 0 {
		t.Errorf("a has refused %d, want 1, and gone %d", a.Busy, gone.Busy)
	}
	if s.Zone != "" || s.Stayed != nil {
		t.Errorf("no zone is known, and %v stayed in zone %q", s.Stayed, s.Zone)
	}
	if b, err := json.Marshal(s.Retries); err != nil || string(b) != `{"made":1,"refused":{"over_budget":2},"hedges":1}` {
		t.Errorf("the retries are %s, %v", b, err)
	}
	if gone.State != "left" || gone.Calls != 1 || gone.Failures != 1 || *gone.P99 != 1000 {
		t.Errorf("the instance that left has %+v", gone)
	}
	if s.Calls != 1 || s.Failures != 0 {
		t.Errorf("in the last 10 s there are %d calls and %d failures, want 1 and 0", s.Calls, s.Failures)
	}
	failures := 0
	for _, n := range s.Timeline.Failures {
		failures += n
	}
	if failures != 1 {
		t.Errorf("the time line has %d failures, want that of the last minute", failures)
	}
	for i := range 1000 {
		tr.tries = append(tr.tries, sample{end: time.Now(), target: callTarget{fmt.Sprint(i), "x"}})
	}
	if s := tr.statistics(nil, nil); len(s.Instances) != 200 || s.Omitted != 802 {
		t.Errorf("of 1002 instances %d are shown and %d omitted", len(s.Instances), s.Omitted)
	}
}

// The view clips long texts, which the selector does not.
func TestStatisticsOfPodWithLongName(t *testing.T) {
	long := greeterInstance(1, pod.Ready)
	long.Pod = strings.Repeat("x", 253) // the longest name of a pod
	target := callTarget{long.Pod, long.Address}
	tr := newTraffic(nil, nil)
	tr.tries = []sample{{end: time.Now(), target: target}}
	byTarget := map[callTarget]targetCalls{target: {InFlight: 3}}
	s := tr.statistics(newView("web", "go-micro", []pod.Instance{long}, nil, byTarget), byTarget)
	if len(s.Instances) != 1 || s.Instances[0].Calls != 1 || s.Instances[0].InFlight != 3 {
		t.Errorf("%+v", s.Instances)
	}
}

// The share of the tries that stay in the zone of the pod counts those whose zone is known.
func TestTriesThatStayInTheZone(t *testing.T) {
	tr := newTraffic(nil, nil)
	own := webInstance(1)
	own.Zone = "b"
	instances := []pod.Instance{own}
	for i, zone := range []string{"a", "b", "b", ""} {
		in := greeterInstance(i, pod.Ready)
		in.Zone = zone
		instances = append(instances, in)
		for range 10 * (i + 1) {
			tr.tries = append(tr.tries, sample{end: time.Now(), target: callTarget{in.Pod, in.Address}})
		}
	}
	stayed := func(podName string) string {
		s := tr.statistics(newView(podName, "go-micro", instances, nil, nil), nil)
		b, err := json.Marshal(struct {
			Zone   string
			Stayed *float64
		}{s.Zone, s.Stayed})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got, want := stayed(own.Pod), `{"Zone":"b","Stayed":0.833}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := stayed("another"), `{"Zone":"","Stayed":null}`; got != want {
		t.Errorf("the zone of the pod is not known: got %s, want %s", got, want)
	}
}
