package dashboard

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
)

func TestEventsCarryStateAndChanges(t *testing.T) {
	c, _, srv := serve(t, greeterInstance(1, pod.Ready))
	s := openStream(t, srv)
	if v := s.next(); v.Summary() != "1 service, 1 instance: 1 ready" {
		t.Errorf("the first event shows %s", v.Summary())
	}
	begin := time.Now()
	c.set([]pod.Instance{greeterInstance(1, pod.NotReady)}, nil)
	if v := s.next(); v.Summary() != "1 service, 1 instance: 1 not ready" || time.Since(begin) > 10*time.Second {
		t.Errorf("%s after the change, the event shows %s", time.Since(begin), v.Summary())
	}
	begin = time.Now()
	for i := range 1000 { // within one interval, unless the machine is busy
		c.set([]pod.Instance{greeterInstance(1, pod.NotReady), greeterInstance(i, pod.Ready)}, nil)
	}
	events := 1
	for v := s.next(); v.Services[0].Instances[1].Pod != "go-micro-srv-999"; v = s.next() {
		events++
	}
	if took := time.Since(begin); events > 3+int(took/minInterval) {
		t.Errorf("1000 changes in %s cause %d events", took, events)
	}
	c.set(nil, errors.New("list pods: the API server at https://10.96.0.1 does not answer"))
	if v := s.next(); v.Summary() != "0 services, 0 instances: none" || !strings.Contains(v.Problem, "cannot be read") || strings.Contains(v.Problem, "10.96") {
		t.Errorf("without the API server the view shows %s and the problem %q", v.Summary(), v.Problem)
	}
}

func TestEventsCarryEjectionsAndCallsInFlight(t *testing.T) {
	c, _, srv := serve(t, greeterInstance(1, pod.Ready), greeterInstance(2, pod.Ready))
	s := openStream(t, srv)
	if v := s.next(); v.Services[0].Instances[0].Calls != nil {
		t.Errorf("before the first call the view shows %+v", v.Services[0].Instances[0].Calls)
	}
	until := time.Now().Add(time.Minute).UTC().Round(time.Second)
	for _, step := range []struct {
		calls            targetCalls
		want, encryption string
	}{
		{targetCalls{InFlight: 1}, "1 call in flight", ""},
		{targetCalls{InFlight: 2, EjectedUntil: until}, "ejected until " + clock(until, now()) + " UTC", ""},
		{targetCalls{Certificate: certificate{"a signer", until}}, "", "encrypted, certificate of a signer until " + clock(until, now()) + " UTC"},
		{targetCalls{}, "", ""},
	} {
		c.setCalls(map[callTarget]targetCalls{{"go-micro-srv-2", "10.244.0.2:9100"}: step.calls})
		begin := time.Now()
		v := s.next()
		first, second := v.Services[0].Instances[0].Calls, v.Services[0].Instances[1].Calls
		if first != nil || second == nil || *second != step.calls || second.Text() != step.want || second.Encryption() != step.encryption {
			t.Errorf("after %+v the view shows %+v and %+v", step.calls, first, second)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("the view came after %s", took)
		}
	}
}

func TestObservationRunsOnlyWhileViewed(t *testing.T) {
	c, d, srv := serve(t, greeterInstance(1, pod.Ready))
	if _, observations := c.count(); observations != 0 {
		t.Error("the registry is observed before the first viewer")
	}
	var streams []*stream
	for range 20 {
		s := openStream(t, srv)
		s.next()
		streams = append(streams, s)
	}
	get(t, srv.URL+root)
	if observers, observations := c.count(); observers != 1 || observations != 1 {
		t.Errorf("20 streams and a page cause %d observations, want 1", observations)
	}
	for _, s := range streams {
		s.rsp.Body.Close()
	}
	eventually(t, 10*time.Second, "the end of the observation", func() bool { n, _ := c.count(); return n == 0 && d.hub.streams.count() == 0 })
	if v, _ := d.hub.current(); v != nil {
		t.Error("the hub keeps the view after the observation")
	}
	if v := openStream(t, srv).next(); v.Summary() != "1 service, 1 instance: 1 ready" {
		t.Errorf("the next viewer is shown %s", v.Summary())
	}
}

// An observation that has ended, but still has a state to handle, does not affect the next.
func TestEndedObservationChangesNothing(t *testing.T) {
	c, d, _ := serve(t, greeterInstance(1, pod.Ready))
	h := d.hub
	h.linger = time.Hour
	leave := h.join()
	eventually(t, 10*time.Second, "the first view", func() bool { v, _ := h.current(); return v != nil })
	h.building.Lock()
	before := c.yielded()
	c.set([]pod.Instance{greeterInstance(2, pod.Ready)}, nil)
	eventually(t, 10*time.Second, "the observation has another state", func() bool { return c.yielded() > before })
	leave()
	h.stopIfUnused()
	c.set([]pod.Instance{greeterInstance(3, pod.Ready)}, nil)
	leave = h.join()
	time.Sleep(100 * time.Millisecond) // the next observation begins
	h.building.Unlock()
	eventually(t, 10*time.Second, "its view", func() bool {
		v, _ := h.current()
		return v != nil && v.Services[0].Instances[0].Pod == "go-micro-srv-3"
	})
	if got := texts(h.changes.recent().after(0)); len(got) > 0 {
		t.Errorf("the changes of the next observation are %q", got)
	}
	leave()
	h.stopIfUnused()
}
