package dashboard

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	microerrors "github.com/micro/go-micro/v2/errors"
)

// texts returns the changes, latest first, without their times.
func texts(changes []change) (all []string) {
	for _, c := range changes {
		all = append(all, strings.TrimSpace(c.Change+" "+c.Pod+" "+c.Why))
	}
	return all
}

func TestChanges(t *testing.T) { synctest.Test(t, testChanges) }

func testChanges(t *testing.T) {
	in := func(i int, state pod.State, reason string) pod.Instance {
		instance := greeterInstance(i, state)
		instance.Reason = reason
		return instance
	}
	var l changeLog
	l.observe([]pod.Instance{in(1, pod.Ready, ""), in(2, pod.Ready, "")})
	if got := l.recent().after(0); len(got) != 0 {
		t.Errorf("the instances of the first observation are changes: %v", texts(got))
	}
	for _, step := range []struct { // 5 s apart
		instances []pod.Instance
		want      string
	}{
		{[]pod.Instance{in(1, pod.Ready, ""), in(2, pod.Ready, "")}, ""},
		{[]pod.Instance{in(1, pod.NotReady, "its probe fails"), in(2, pod.Ready, "")}, "not ready go-micro-srv-1 its probe fails"},
		{[]pod.Instance{in(1, pod.NotReady, "another reason"), in(2, pod.Ready, "")}, ""},
		{[]pod.Instance{in(1, pod.Ready, ""), in(2, pod.Ready, "")}, "back go-micro-srv-1 ready again, 10s after it was not ready, because another reason"},
		{[]pod.Instance{in(1, pod.Ready, ""), in(2, pod.Ready, ""), in(3, pod.NotReady, "the pod is new")}, "joined go-micro-srv-3 not ready, because the pod is new"},
		{[]pod.Instance{in(1, pod.Ready, ""), in(2, pod.Ready, ""), in(3, pod.Ready, "")}, "ready go-micro-srv-3"},
		{[]pod.Instance{in(1, pod.Ready, ""), in(2, pod.Ready, ""), in(3, pod.Ready, ""), in(4, pod.Ready, "")}, "joined go-micro-srv-4"},
		{[]pod.Instance{in(1, pod.NodeUnreachable, "its node is silent"), in(2, pod.Ready, ""), in(3, pod.Ready, ""), in(4, pod.Ready, "")}, "node unreachable go-micro-srv-1 its node is silent"},
		{[]pod.Instance{in(1, pod.NodeUnreachable, ""), in(2, pod.Terminating, "deleted"), in(3, pod.Ready, ""), in(4, pod.Ready, "")}, "terminating go-micro-srv-2 deleted"},
		{[]pod.Instance{in(1, pod.NodeUnreachable, ""), in(3, pod.Ready, ""), in(4, pod.Ready, "")}, "left go-micro-srv-2 last state: terminating"},
	} {
		time.Sleep(5 * time.Second)
		before := l.recent().last()
		l.observe(step.instances)
		if got := strings.Join(texts(l.recent().after(before)), "; "); got != step.want {
			t.Errorf("the change is %q, want %q", got, step.want)
		}
	}
	before := l.recent().last()
	l.restart()
	l.observe(nil)
	if got := l.recent(); got.last() != before || len(got.Changes) == 0 {
		t.Errorf("after a pause the log has %q", texts(got.after(0)))
	}
}

func TestChangesAreBounded(t *testing.T) {
	var l changeLog
	l.observe(nil)
	for i := range 60 {
		l.observe([]pod.Instance{greeterInstance(i, pod.Ready)})
	}
	all := l.recent().after(0)
	if len(all) != 50 || all[0].Pod != "go-micro-srv-59" && all[1].Pod != "go-micro-srv-59" {
		t.Errorf("the log has %d changes, want the last 50: %q", len(all), texts(all))
	}
	for i := range 1000 { // a pod that registers and deregisters all the time
		l.observe([]pod.Instance{{Service: strings.Repeat("x", 1<<10), Pod: "evil", Address: fmt.Sprint(i), Reason: strings.Repeat("y", 1<<10)}})
	}
	all = l.recent().after(0)
	evil := 0
	for _, c := range all {
		if c.Pod == "evil" {
			evil++
		}
	}
	if evil != 10 || len(all) < 49 {
		t.Errorf("%d of %d changes are of the pod that changes all the time, want 10 of 50", evil, len(all))
	}
	if b := l.recent().encode(0); len(b) > 30<<10 {
		t.Errorf("the changes are %d bytes", len(b))
	}
}

func TestEjectionsAreChanges(t *testing.T) {
	c, d, srv := serve(t, greeterInstance(1, pod.Ready))
	s := openStream(t, srv)
	var got struct{ Changes []change }
	if s.decode("changes", &got); len(got.Changes) != 0 {
		t.Fatalf("at first the changes are %q", texts(got.Changes))
	}
	events := d.hub.changes.events()
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() {
			events.Ejected("go-micro-srv", "go-micro-srv-1", "10.244.0.1:9100", 5*time.Second, microerrors.New("go.micro.client", "secret", 408))
		}, "ejected go-micro-srv-1 for 5s: a call got no answer in time"},
		{func() { events.Readmitted("go-micro-srv", "go-micro-srv-1", "10.244.0.1:9100", 7*time.Second) }, "back go-micro-srv-1 7s after its ejection"},
		{func() { c.set([]pod.Instance{greeterInstance(1, pod.NotReady)}, nil) }, "not ready go-micro-srv-1"},
	} {
		begin := time.Now()
		step.do()
		got.Changes = nil // decoding keeps absent fields of the elements
		if s.decode("changes", &got); strings.Join(texts(got.Changes), "; ") != step.want {
			t.Errorf("the changes are %q, want %q", texts(got.Changes), step.want)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("the change came after %s", took)
		}
	}
	_, body := get(t, srv.URL+root+"changes.json")
	got.Changes = nil
	if err := json.Unmarshal([]byte(body), &got); err != nil || len(got.Changes) != 3 || got.Changes[2].Service != "go-micro-srv" || got.Changes[2].Address != "10.244.0.1:9100" {
		t.Errorf("changes.json is %s, %v", body, err)
	}
	if _, body = get(t, srv.URL+root); !strings.Contains(body, "for 5s: a call got no answer in time") || strings.Contains(body, "secret") {
		t.Errorf("the page does not show the ejection, or shows the error:\n%s", body)
	}
}

func TestCauseText(t *testing.T) {
	for text, want := range map[string]string{
		`connection error: desc = "transport: Error while dialing dial tcp 10.244.0.5:9100: connect: connection refused"`: "the connection was refused",
		"transport is closing":      "the connection failed",
		"context deadline exceeded": "a call got no answer in time",
		"password wrong for admin":  "its calls failed",
	} {
		if got := causeText(errors.New(text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	for text, code := range map[string]int32{"lost connection to the database": 500, "asking the database: context deadline exceeded": 500, "too late": 408} { // an answer of the instance
		if got := causeText(microerrors.New("go-micro-srv", text, code)); got != "its calls failed" {
			t.Errorf("an instance answers %q: %q", text, got)
		}
	}
}

// Instances that leave together are listed by name.
func TestChangesAreInOrder(t *testing.T) {
	var l changeLog
	var instances []pod.Instance
	for i := range 40 {
		instances = append(instances, greeterInstance(10+i, pod.Ready))
	}
	l.observe(instances)
	l.observe(nil)
	for i, c := range l.recent().Changes {
		if c.Pod != fmt.Sprint("go-micro-srv-", 10+i) {
			t.Fatalf("change %d is %s %s", i, c.Change, c.Pod)
		}
	}
}

// While the registry cannot be read nothing joins or leaves.
func TestNoChangesWithoutRegistry(t *testing.T) {
	c, d, srv := serve(t, greeterInstance(1, pod.Ready))
	s := openStream(t, srv)
	s.next()
	c.set(nil, errors.New("list pods: no answer"))
	s.next()
	c.set([]pod.Instance{greeterInstance(1, pod.Ready), greeterInstance(2, pod.Ready)}, nil)
	s.next()
	if got := texts(d.hub.changes.recent().after(0)); len(got) != 1 || got[0] != "joined go-micro-srv-2" {
		t.Errorf("the changes are %q", got)
	}
}
