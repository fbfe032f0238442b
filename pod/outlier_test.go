package pod

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/client/selector"
	dlog "github.com/micro/go-micro/v2/debug/log"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
)

func TestSelectorEjectsFailingInstanceForLongerEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newStaticRegistry(t, 3)
		s := newSelector(r)
		first := chooseOne(t, s)
		first.done(answered, nil)
		bad := first.instance
		fail := func() (tried bool) {
			for range 100 {
				c := chooseOne(t, s)
				if c.instance == bad {
					time.Sleep(firstAnswerTime)
					c.done(timedOut, timeout)
					return true
				}
				c.done(answered, nil)
			}
			return false
		}
		for _, ejection := range []time.Duration{5, 20, 80, 80} {
			if !fail() {
				t.Fatalf("not tried before the ejection of %d s", ejection)
			}
			if fail() {
				t.Fatalf("tried at once after a failure")
			}
			time.Sleep(ejection*time.Second - time.Millisecond)
			if fail() {
				t.Fatalf("tried before %d s were over", ejection)
			}
			time.Sleep(2 * time.Millisecond)
		}
		bad.readmit()
		if !fail() {
			t.Error("not tried after its readmission")
		}
		if fail() {
			t.Error("tried at once after a failure after its readmission")
		}
	})
}

func TestSelectorPassesOverStalledInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newStaticRegistry(t, 4)
		s := newSelector(r)
		frozen := chooseOne(t, s) // its call hangs
		time.Sleep(stallTime + time.Millisecond)
		for range 1000 { // as many calls at once as there are other instances
			var busy []choice
			for range 3 {
				c := chooseOne(t, s)
				if c.node == frozen.node {
					t.Fatal("the stalled instance got another call")
				}
				busy = append(busy, c)
			}
			time.Sleep(time.Millisecond)
			for _, c := range busy {
				c.done(answered, nil)
			}
		}
		frozen.done(answered, nil)
		time.Sleep(decayTime + 2*time.Millisecond) // more than a tick of peakEWMA
		seen := map[*registry.Node]bool{}
		for range 1000 {
			c := chooseOne(t, s)
			seen[c.node] = true
			c.done(answered, nil)
		}
		if !seen[frozen.node] {
			t.Error("the instance was not picked again after its answer")
		}
	})
}

func TestSelectorAdmitsOneCallAfterEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 3)
		s := newSelector(r)
		bad := inf.snapshot().instances[0]
		var calls []choice
		for range 8 { // calls that fail together
			calls = append(calls, chooseInstance(t, s, bad))
		}
		time.Sleep(firstAnswerTime)
		for _, c := range calls {
			c.done(timedOut, timeout)
		}
		if n := bad.failures.Load(); n != 1 {
			t.Errorf("8 calls that fail together are %d failures, want 1", n)
		}
		time.Sleep(baseEjectionTime + time.Millisecond)
		tries := 0
		for range 1000 {
			if c := chooseOne(t, s); c.instance == bad {
				tries++
			} else {
				c.done(answered, nil)
			}
		}
		if tries != 1 {
			t.Errorf("%d calls tried the instance, want 1", tries)
		}
	})
}

func TestSelectorIgnoresInconclusiveCalls(t *testing.T) {
	r, inf := newStaticRegistry(t, 1)
	s := newSelector(r)
	for range 10 {
		chooseOne(t, s).done(inconclusive, context.Canceled)
	}
	if i := inf.snapshot().instances[0]; i.failures.Load() != 0 || i.inFlight.Load() != 0 {
		t.Errorf("after cancelled calls: %d failures, %d calls in flight", i.failures.Load(), i.inFlight.Load())
	}
}

func TestSelectorEjectsAtMostHalf(t *testing.T) {
	for n := 1; n < 9; n++ {
		r, inf := newStaticRegistry(t, n)
		s := newSelector(r)
		for range 100 * n {
			chooseOne(t, s).done(lostConnection, refused)
		}
		now, ejected := clock(), 0
		for _, i := range inf.snapshot().instances {
			if i.failures.Load() == 0 {
				t.Errorf("all %d instances fail, and one of them got no call", n)
			}
			if i.ejected(now) {
				ejected++
			}
		}
		if ejected != n/2 {
			t.Errorf("all %d instances fail, and %d of them are ejected, want half of them", n, ejected)
		}
	}
}

func TestSelectorTriesAllWhenAllAreEjected(t *testing.T) {
	r, inf := newStaticRegistry(t, 4)
	s := newSelector(r)
	for range 200 {
		chooseOne(t, s).done(lostConnection, refused)
	}
	var left []*corev1.Pod // only the pods of ejected instances are left
	for i := range 4 {
		for _, c := range s.instances("greeter") {
			if p := readyPod(t, i); p.Name == c.Pod && c.EjectedFor > 0 {
				left = append(left, p)
			}
		}
	}
	inf.Replace(left)
	seen := map[string]bool{}
	for range 200 {
		c := chooseOne(t, s)
		seen[c.node.Address] = true
		c.done(lostConnection, refused)
	}
	if len(left) != 2 || len(seen) != 2 {
		t.Errorf("all %d instances are ejected, and %v of them got calls", len(left), seen)
	}
}

func TestSelectorBlamesTimeoutOnlyAfterTimeToAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		call := func(latency time.Duration, o outcome) {
			c := chooseOne(t, s)
			time.Sleep(latency)
			c.done(o, nil)
		}
		failures := func() (sum int64) {
			for _, i := range inf.snapshot().instances {
				sum += i.failures.Load()
			}
			return sum
		}
		call(firstAnswerTime-time.Millisecond, timedOut)
		if n := failures(); n != 0 {
			t.Errorf("%d failures of an instance that has never answered, after less than firstAnswerTime", n)
		}
		for range 20 {
			call(100*time.Millisecond, answered)
		}
		call(150*time.Millisecond, timedOut)
		if n := failures(); n != 0 {
			t.Errorf("%d failures after 1.5 times the usual latency", n)
		}
		call(250*time.Millisecond, timedOut)
		if n := failures(); n != 1 {
			t.Errorf("%d failures after 2.5 times the usual latency, want 1", n)
		}
	})
}

// An instance that answers other calls is not blamed for one slow call.
func TestSelectorDoesNotBlameInstanceThatAnswersOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 1)
		s := newSelector(r)
		slow := chooseOne(t, s)
		for range 100 {
			c := chooseOne(t, s)
			time.Sleep(10 * time.Millisecond)
			c.done(answered, nil)
		}
		slow.done(timedOut, timeout)
		if n := inf.snapshot().instances[0].failures.Load(); n != 0 {
			t.Errorf("%d failures", n)
		}
	})
}

// If the caller cancels the trial after an ejection, the trial is inconclusive, and the
// next call is the trial.
func TestSelectorRepeatsInconclusiveTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newStaticRegistry(t, 2)
		s := newSelector(r)
		bad := chooseOne(t, s)
		bad.done(lostConnection, refused)
		time.Sleep(baseEjectionTime + time.Millisecond)
		for trial := range 3 {
			tried := false
			for range 100 {
				c := chooseOne(t, s)
				if c.instance == bad.instance {
					tried = true
					c.done(inconclusive, context.Canceled)
					break
				}
				c.done(answered, nil)
			}
			if !tried {
				t.Fatalf("no trial after %d cancelled trials", trial)
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// The connection breaks after some calls were answered, whose goroutines call done later
// than those of the calls that failed.
func TestSelectorReadmitsBrokenConnectionOnlyAfterTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		bad := inf.snapshot().instances[0]
		broken, earlier := chooseInstance(t, s, bad), chooseInstance(t, s, bad)
		broken.done(lostConnection, refused)
		earlier.done(answered, nil)
		if !bad.ejected(clock()) {
			t.Error("the answer to an earlier call ended the ejection")
		}
		time.Sleep(baseEjectionTime)
		c := chooseOne(t, s)
		for ; c.instance != bad; c = chooseOne(t, s) {
			c.done(answered, nil)
		}
		c.done(answered, nil)
		if bad.ejectedUntil.Load() != 0 || bad.failures.Load() != 0 {
			t.Error("the answer to the trial did not end the ejection")
		}
	})
}

func TestSelectorReportsEjections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []string
		picked := map[string]int{}
		r, inf := newStaticRegistry(t, 0)
		prefix := fmt.Sprint("10.", rand.Uint64()) // the log keeps the lines of earlier runs
		inf.Replace(readyPodsAt(t, prefix+".1:1", prefix+".2:1"))
		if err := r.Init(WithEvents(Events{
			Picked: func(service, pod, address string) { picked[service+" "+pod+" "+address]++ },
			Ejected: func(service, pod, address string, d time.Duration, cause error) {
				events = append(events, fmt.Sprintf("%s %s %s ejected for %s: %v", service, pod, address, d, errors.FromError(cause).Detail))
			},
			Readmitted: func(service, pod, address string, after time.Duration) {
				events = append(events, fmt.Sprintf("%s %s %s back after %s", service, pod, address, after))
			},
		})); err != nil {
			t.Fatal(err)
		}
		s := newSelector(r)
		if got := s.instances("greeter"); got != nil {
			t.Errorf("before the first choice: %v", got)
		}
		begin := time.Now()
		first := chooseOne(t, s)
		bad, pod := first.instance, first.instance.pod
		first.done(lostConnection, refused)
		for range 2 {
			chooseInstance(t, s, bad).done(lostConnection, refused)
		}
		time.Sleep(time.Second)
		good := chooseOne(t, s)
		for _, c := range s.instances("greeter") {
			want := InstanceCalls{Pod: pod, Address: bad.Address, Failures: 1, EjectedFor: 4 * time.Second}
			if c.Address == good.node.Address {
				want = InstanceCalls{Pod: good.instance.pod, Address: good.node.Address, InFlight: 1}
			}
			if c != want {
				t.Errorf("instances has %+v, want %+v", c, want)
			}
		}
		good.done(answered, nil)
		time.Sleep(4*time.Second + time.Millisecond)
		calls := 4
		for tried := false; !tried; calls++ {
			c := chooseOne(t, s)
			tried = c.instance == bad
			c.done(answered, nil)
		}
		name := "greeter " + pod + " " + bad.Address
		want := []string{name + " ejected for 5s: " + refusedText, name + " back after 5.001s"}
		if !slices.Equal(events, want) {
			t.Errorf("events:\n%q\nwant\n%q", events, want)
		}
		if sum := picked[name] + picked["greeter "+good.instance.pod+" "+good.node.Address]; sum != calls {
			t.Errorf("picks: %v, want %d", picked, calls)
		}
		for _, text := range []string{"Ejecting instance " + bad.Address + ` of service "greeter" on pod "` + pod + `" for 5s: `,
			"Instance " + bad.Address + ` of service "greeter" on pod "` + pod + `" is back, 5.001s after its ejection`} {
			if n := countLogLines(t, begin, text); n != 1 {
				t.Errorf("%d lines in the log with %q, want 1", n, text)
			}
		}
	})
}

func TestOutcomeOfStatus(t *testing.T) {
	for _, c := range []struct {
		status *status.Status
		micro  *errors.Error
		want   outcome
	}{
		{nil, nil, answered},
		{status.New(codes.OK, ""), nil, answered},
		{status.New(codes.Unavailable, refusedText), nil, lostConnection},
		{status.New(codes.Unavailable, "shutting down"), nil, faulted},
		{status.New(codes.ResourceExhausted, "quota used up"), nil, faulted},
		{status.New(codes.ResourceExhausted, "grpc: received message larger than max (5 vs. 4)"), nil, inconclusive},
		{status.New(codes.Internal, "nil pointer"), nil, faulted},
		{status.New(codes.Unknown, "no such row"), nil, faulted},
		{status.New(codes.DeadlineExceeded, "context deadline exceeded"), nil, timedOut},
		{status.New(codes.Canceled, "context canceled"), nil, inconclusive},
		{status.New(codes.NotFound, "no such row"), nil, answered},
		{status.New(codes.Unimplemented, "unknown method"), nil, answered},
		{status.New(codes.Unknown, "too many"), errors.New("greeter", "too many", 429).(*errors.Error), answered},
		{status.New(codes.DeadlineExceeded, "too late"), errors.Timeout("greeter", "too late").(*errors.Error), answered},
		{status.New(codes.Internal, "no such row"), errors.InternalServerError("greeter", "no such row").(*errors.Error), faulted},
		{status.New(codes.Unavailable, refusedText), errors.New("greeter", refusedText, 503).(*errors.Error), faulted},
	} {
		if got := outcomeOfStatus(c.status, c.micro); got != c.want {
			t.Errorf("outcomeOfStatus(%v, %v) = %v, want %v", c.status, c.micro, got, c.want)
		}
	}
}

func TestSelectorReadmitsAfterSuccessAndForNewProcess(t *testing.T) {
	r, inf := newStaticRegistry(t, 1)
	s := newSelector(r)
	first := chooseOne(t, s)
	first.done(lostConnection, refused)
	if inf.snapshot().instances[0].failures.Load() != 1 {
		t.Fatal("the failure was not recorded")
	}
	chooseOne(t, s).done(answered, nil)
	if k := inf.snapshot().instances[0]; k.failures.Load() != 0 || k.ejectedUntil.Load() != 0 || k.inFlight.Load() != 0 {
		t.Errorf("after a success: %d failures, %d calls in flight", k.failures.Load(), k.inFlight.Load())
	}
	chooseOne(t, s).done(lostConnection, refused)
	old := chooseOne(t, s)
	p := readyPod(t, 0)
	p.Annotations[podmeta.AnnotationPrefix+"greeter"] = string(annotation(t, "p-0-restarted", "greeter", "v0", "10.0.0.1:1"))
	inf.Update(p)
	if k := inf.snapshot().instances[0]; k.failures.Load() != 0 {
		t.Error("the new process has the failures of the old process")
	}
	// A status update that changes nothing keeps the failures.
	chooseOne(t, s).done(lostConnection, refused)
	inf.Update(p)
	if k := inf.snapshot().instances[0]; k.failures.Load() != 1 {
		t.Error("a status update ended the ejection")
	}
	old.done(answered, nil) // a call to a process that has ended
	if k := inf.snapshot().instances[0]; k.failures.Load() != 1 {
		t.Error("the answer of the old process counts for the new one")
	}
}

// countLogLines returns the number of log lines since a time that contain all texts.
func countLogLines(t *testing.T, since time.Time, texts ...string) int {
	t.Helper()
	return len(logLines(t, since, texts...))
}

// logLines returns those of the last 100 log lines that were written since a time and contain
// all texts.
func logLines(t *testing.T, since time.Time, texts ...string) (lines []string) {
	t.Helper()
	records, err := dlog.DefaultLog.Read() // which ignores dlog.Since
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		line := fmt.Sprint(r.Message)
		if !r.Timestamp.Before(since) && !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			lines = append(lines, line)
		}
	}
	return lines
}

// chooseInstance returns a choice of an instance.
func chooseInstance(t *testing.T, s *clientSelector, i *instance) choice {
	t.Helper()
	chooser, err := s.state.Load().choosers.get(t.Context(), "greeter")
	if err != nil {
		t.Fatal(err)
	}
	c, err := chooser.chooseFrom([]*instance{i}, nil, clock())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A call or a stream that began before an ejection says nothing about the trial.
func TestOnlyTheTrialEndsItsEjection(t *testing.T) {
	for name, isStream := range map[string]bool{"call": false, "stream": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, inf := newStaticRegistry(t, 2)
				s := newSelector(r)
				bad := inf.snapshot().instances[0]
				earlier := chooseInstance(t, s, bad)
				if isStream {
					earlier = earlier.asStream()
				}
				chooseInstance(t, s, bad).done(lostConnection, refused)
				time.Sleep(baseEjectionTime + time.Millisecond)
				trial := chooseInstance(t, s, bad)
				earlier.done(answered, nil)
				if bad.failures.Load() == 0 {
					t.Fatal("the end of the earlier one ended the ejection")
				}
				trial.done(lostConnection, refused)
				if left := s.instances("greeter"); !slices.ContainsFunc(left, func(c InstanceCalls) bool { return c.Address == bad.Address && c.EjectedFor == maxRefusedEjectionTime }) {
					t.Errorf("after a failed trial: %+v", left)
				}
			})
		})
	}
}

func TestTrialWithFilterEndsEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		bad := inf.snapshot().instances[0]
		chooseInstance(t, s, bad).done(lostConnection, refused)
		time.Sleep(baseEjectionTime + time.Millisecond)
		all := selector.WithFilter(func(all []*registry.Service) []*registry.Service { return all })
		for range 100 {
			c, err := s.choose("greeter", []selector.SelectOption{all}, nil)
			if err != nil {
				t.Fatal(err)
			}
			c.done(answered, nil)
		}
		if bad.failures.Load() != 0 || bad.ejectedUntil.Load() != 0 {
			t.Error("the ejection has not ended")
		}
	})
}

// The registry no longer knows a pod that was deleted. Its calls in flight fail, which is
// no ejection: nothing would report the end of it.
func TestInstanceThatHasLeftIsNotEjected(t *testing.T) {
	r, inf := newStaticRegistry(t, 4)
	var events []string
	if err := r.Init(WithEvents(Events{Ejected: func(_, pod, _ string, _ time.Duration, _ error) { events = append(events, pod) }})); err != nil {
		t.Fatal(err)
	}
	s := newSelector(r)
	c, err := s.choose("greeter", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc([]int{0, 1, 2, 3}, func(i int) bool { return readyPod(t, i).Name == c.instance.pod })
	inf.Delete(readyPod(t, i))
	c.done(lostConnection, refused)
	if len(events) > 0 {
		t.Errorf("ejected: %q", events)
	}
}

// The callback of an ejection may make a call of its own, which fails and ejects an
// instance too.
func TestEjectedMayCauseAnotherEjection(t *testing.T) {
	r, _ := newStaticRegistry(t, 4)
	s := newSelector(r)
	var ejected []string
	if err := r.Init(WithEvents(Events{Ejected: func(_, pod, _ string, _ time.Duration, _ error) {
		if ejected = append(ejected, pod); len(ejected) == 1 {
			chooseOne(t, s).done(lostConnection, refused)
		}
	}})); err != nil {
		t.Fatal(err)
	}
	done := make(chan bool)
	go func() { defer close(done); chooseOne(t, s).done(lostConnection, refused) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the callback waits for itself")
	}
	if len(ejected) != 2 {
		t.Errorf("ejected: %q, want two instances", ejected)
	}
}
