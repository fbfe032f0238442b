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
		s := NewSelector(r)
		first := pickOne(t, s)
		s.Mark("greeter", first, nil)
		bad := first.Address
		fail := func() (tried bool) {
			for range 100 {
				n := pickOne(t, s)
				if n.Address == bad {
					time.Sleep(firstAnswerTime)
					s.Mark("greeter", n, timeout)
					return true
				}
				s.Mark("greeter", n, nil)
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
		s.Reset("greeter")
		if !fail() {
			t.Error("not tried after Reset")
		}
		if fail() {
			t.Error("tried at once after a failure after Reset")
		}
	})
}

func TestSelectorPassesOverStalledInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newStaticRegistry(t, 4)
		s := NewSelector(r)
		frozen := pickOne(t, s) // no Mark follows, as when its call hangs
		time.Sleep(stallTime + time.Millisecond)
		for range 1000 { // as many calls at once as there are other instances
			var busy []*registry.Node
			for range 3 {
				n := pickOne(t, s)
				if n == frozen {
					t.Fatal("the stalled instance got another call")
				}
				busy = append(busy, n)
			}
			time.Sleep(time.Millisecond)
			for _, n := range busy {
				s.Mark("greeter", n, nil)
			}
		}
		s.Mark("greeter", frozen, nil)
		time.Sleep(decayTime + 2*time.Millisecond) // more than a tick of peakEWMA
		seen := map[*registry.Node]bool{}
		for range 1000 {
			n := pickOne(t, s)
			seen[n] = true
			s.Mark("greeter", n, nil)
		}
		if !seen[frozen] {
			t.Error("the instance was not picked again after its answer")
		}
	})
}

func TestSelectorAdmitsOneCallAfterEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 3)
		s := NewSelector(r)
		bad := pickOne(t, s)
		time.Sleep(firstAnswerTime)
		for range 8 { // calls that fail together
			s.Mark("greeter", bad, timeout)
		}
		if n := inf.snapshot().instances; n[0].failures.Load()+n[1].failures.Load()+n[2].failures.Load() != 1 {
			t.Error("8 calls that fail together are not one failure")
		}
		time.Sleep(baseEjectionTime + time.Millisecond)
		tries := 0
		for range 1000 {
			if n := pickOne(t, s); n == bad {
				tries++
			} else {
				s.Mark("greeter", n, nil)
			}
		}
		if tries != 1 {
			t.Errorf("%d calls tried the instance, want 1", tries)
		}
	})
}

func TestSelectorIgnoresCanceledCalls(t *testing.T) {
	r, inf := newStaticRegistry(t, 1)
	s := NewSelector(r)
	for _, err := range []error{context.Canceled, // and its two forms from go-micro's client
		errors.Timeout("go.micro.client", "%v", context.Canceled), errors.InternalServerError("go.micro.client", "context canceled")} {
		if s.Mark("greeter", pickOne(t, s), err); inf.snapshot().instances[0].failures.Load() != 0 {
			t.Errorf("%v counted as a failure of the instance", err)
		}
	}
}

func TestSelectorEjectsAtMostHalf(t *testing.T) {
	for n := 1; n < 9; n++ {
		r, inf := newStaticRegistry(t, n)
		s := NewSelector(r)
		for range 100 * n {
			s.Mark("greeter", pickOne(t, s), refused)
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
	s := NewSelector(r)
	for range 200 {
		s.Mark("greeter", pickOne(t, s), refused)
	}
	var left []*corev1.Pod // only the pods of ejected instances are left
	for i := range 4 {
		for _, c := range s.Instances("greeter") {
			if p := readyPod(t, i); p.Name == c.Pod && c.EjectedFor > 0 {
				left = append(left, p)
			}
		}
	}
	inf.Replace(left)
	seen := map[string]bool{}
	for range 200 {
		n := pickOne(t, s)
		seen[n.Address] = true
		s.Mark("greeter", n, refused)
	}
	if len(left) != 2 || len(seen) != 2 {
		t.Errorf("all %d instances are ejected, and %v of them got calls", len(left), seen)
	}
}

func TestSelectorBlamesTimeoutOnlyAfterTimeToAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := NewSelector(r)
		call := func(latency time.Duration, err error) {
			n := pickOne(t, s)
			time.Sleep(latency)
			s.Mark("greeter", n, err)
		}
		failures := func() (sum int64) {
			for _, i := range inf.snapshot().instances {
				sum += i.failures.Load()
			}
			return sum
		}
		call(firstAnswerTime-time.Millisecond, timeout)
		if n := failures(); n != 0 {
			t.Errorf("%d failures of an instance that has never answered, after less than firstAnswerTime", n)
		}
		for range 20 {
			call(100*time.Millisecond, nil)
		}
		call(150*time.Millisecond, timeout)
		if n := failures(); n != 0 {
			t.Errorf("%d failures after 1.5 times the usual latency", n)
		}
		call(250*time.Millisecond, timeout)
		if n := failures(); n != 1 {
			t.Errorf("%d failures after 2.5 times the usual latency, want 1", n)
		}
	})
}

// An instance that answers other calls is not blamed for one slow call.
func TestSelectorDoesNotBlameInstanceThatAnswersOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 1)
		s := NewSelector(r)
		slow := pickOne(t, s)
		for range 100 {
			n := pickOne(t, s)
			time.Sleep(10 * time.Millisecond)
			s.Mark("greeter", n, nil)
		}
		s.Mark("greeter", slow, timeout)
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
		s := NewSelector(r)
		bad := pickOne(t, s)
		s.Mark("greeter", bad, refused)
		time.Sleep(baseEjectionTime + time.Millisecond)
		for trial := range 3 {
			tried := false
			for range 100 {
				n := pickOne(t, s)
				if n == bad {
					tried = true
					s.Mark("greeter", n, context.Canceled)
					break
				}
				s.Mark("greeter", n, nil)
			}
			if !tried {
				t.Fatalf("no trial after %d cancelled trials", trial)
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// The connection breaks after some calls were answered, whose goroutines call Mark later
// than those of the calls that failed.
func TestSelectorReadmitsBrokenConnectionOnlyAfterTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newStaticRegistry(t, 2)
		s := NewSelector(r)
		bad := pickOne(t, s)
		s.Mark("greeter", bad, refused)
		s.Mark("greeter", bad, nil)
		if !r.instanceOf(bad).ejected(clock()) {
			t.Error("the answer to an earlier call ended the ejection")
		}
		time.Sleep(baseEjectionTime)
		for n := pickOne(t, s); n != bad; n = pickOne(t, s) {
			s.Mark("greeter", n, nil)
		}
		s.Mark("greeter", bad, nil)
		if c := r.instanceOf(bad); c.ejectedUntil.Load() != 0 || c.failures.Load() != 0 {
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
		s := NewSelector(r)
		if got := s.Instances("greeter"); got != nil {
			t.Errorf("before the first Select: %v", got)
		}
		begin := time.Now()
		bad := pickOne(t, s)
		pod := r.instanceOf(bad).pod
		for range 3 {
			s.Mark("greeter", bad, refused)
		}
		time.Sleep(time.Second)
		good := pickOne(t, s)
		for _, c := range s.Instances("greeter") {
			want := InstanceCalls{Pod: pod, Address: bad.Address, Failures: 1, EjectedFor: 4 * time.Second}
			if c.Address == good.Address {
				want = InstanceCalls{Pod: r.instanceOf(good).pod, Address: good.Address, InFlight: 1}
			}
			if c != want {
				t.Errorf("Instances has %+v, want %+v", c, want)
			}
		}
		s.Mark("greeter", good, nil)
		time.Sleep(4*time.Second + time.Millisecond)
		calls := 2
		for tried := false; !tried; calls++ {
			n := pickOne(t, s)
			tried = n == bad
			s.Mark("greeter", n, nil)
		}
		name := "greeter " + pod + " " + bad.Address
		want := []string{name + " ejected for 5s: " + refusedText, name + " back after 5.001s"}
		if !slices.Equal(events, want) {
			t.Errorf("events:\n%q\nwant\n%q", events, want)
		}
		if sum := picked[name] + picked["greeter "+r.instanceOf(good).pod+" "+good.Address]; sum != calls {
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

func TestOutcomeOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want outcome
	}{
		{nil, answered},
		{timeout, timedOut},
		{refused, lostConnection},
		{context.DeadlineExceeded, timedOut},
		{fmt.Errorf("wrapped: %w", context.DeadlineExceeded), timedOut},
		{status.Error(codes.DeadlineExceeded, "context deadline exceeded"), timedOut},
		{errors.InternalServerError("go.micro.client", "context deadline exceeded while waiting for connections to become ready"), timedOut},
		{context.Canceled, inconclusive},
		{errors.Timeout("go.micro.client", "%v", context.Canceled), inconclusive},
		{errors.InternalServerError("go.micro.client", "context canceled"), inconclusive},
		{errors.InternalServerError("go.micro.client", "grpc: the client connection is closing"), inconclusive},
		{errors.InternalServerError("go.micro.client", "Error creating stream: rpc error: code = Unavailable desc = "+refusedText), lostConnection},
		{errors.InternalServerError("go.micro.client", "Error creating stream: rpc error: code = DeadlineExceeded desc = context deadline exceeded"), timedOut},
		{status.Error(codes.Unavailable, refusedText), lostConnection},
		{status.Error(codes.Unavailable, "quota used up"), answered},
		{errors.InternalServerError("go.micro.srv.greeter", "no such row"), answered},
		{errors.InternalServerError("go.micro.srv.greeter", refusedText), answered},
		{errors.InternalServerError("go.micro.client", "rpc error: code = Unavailable desc = "+refusedText), answered}, // a handler returns the error of its own grpc-go client
		{errors.NotFound("go.micro.client", "no such method"), answered},
	} {
		if got := outcomeOf(c.err); got != c.want {
			t.Errorf("outcomeOf(%v) = %v, want %v", c.err, got, c.want)
		}
	}
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
	s := NewSelector(r)
	n := pickOne(t, s)
	s.Mark("greeter", n, refused)
	if inf.snapshot().instances[0].failures.Load() != 1 {
		t.Fatal("the failure was not recorded")
	}
	s.Mark("greeter", pickOne(t, s), nil)
	if k := inf.snapshot().instances[0]; k.failures.Load() != 0 || k.ejectedUntil.Load() != 0 || k.inFlight.Load() != 0 {
		t.Errorf("after a success: %d failures, %d calls in flight", k.failures.Load(), k.inFlight.Load())
	}
	s.Mark("greeter", pickOne(t, s), refused)
	p := readyPod(t, 0)
	p.Annotations[podmeta.AnnotationPrefix+"greeter"] = string(annotation(t, "p-0-restarted", "greeter", "v0", "10.0.0.1:1"))
	inf.Update(p)
	if k := inf.snapshot().instances[0]; k.failures.Load() != 0 {
		t.Error("the new process has the failures of the old process")
	}
	// A status update that changes nothing keeps the failures.
	s.Mark("greeter", pickOne(t, s), refused)
	inf.Update(p)
	if k := inf.snapshot().instances[0]; k.failures.Load() != 1 {
		t.Error("a status update ended the ejection")
	}
	s.Mark("greeter", n, nil)                                     // the node of a process that has ended
	s.Mark("greeter", &registry.Node{Id: "x", Address: "y"}, nil) // an address that the caller has chosen
	s.Mark("nobody", n, nil)
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
func chooseInstance(t *testing.T, s *Selector, i *instance) choice {
	t.Helper()
	p, err := s.pool("greeter", s.Options().Registry.(*Registry))
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.choose([]*instance{i}, nil, clock())
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
				s := NewSelector(r)
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
				if left := s.Instances("greeter"); !slices.ContainsFunc(left, func(c InstanceCalls) bool { return c.Address == bad.Address && c.EjectedFor == maxRefusedEjectionTime }) {
					t.Errorf("after a failed trial: %+v", left)
				}
			})
		})
	}
}

// With a filter a choice does not know whether its call is the trial.
func TestTrialWithFilterEndsEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := NewSelector(r)
		bad := inf.snapshot().instances[0]
		chooseInstance(t, s, bad).done(lostConnection, refused)
		time.Sleep(baseEjectionTime + time.Millisecond)
		all := selector.WithFilter(func(all []*registry.Service) []*registry.Service { return all })
		for range 100 {
			c, err := s.choose("greeter", []selector.SelectOption{all})
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
	s := NewSelector(r)
	c, err := s.choose("greeter", nil)
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
	s := NewSelector(r)
	var ejected []string
	if err := r.Init(WithEvents(Events{Ejected: func(_, pod, _ string, _ time.Duration, _ error) {
		if ejected = append(ejected, pod); len(ejected) == 1 {
			s.Mark("greeter", pickOne(t, s), refused)
		}
	}})); err != nil {
		t.Fatal(err)
	}
	done := make(chan bool)
	go func() { defer close(done); s.Mark("greeter", pickOne(t, s), refused) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the callback waits for itself")
	}
	if len(ejected) != 2 {
		t.Errorf("ejected: %q, want two instances", ejected)
	}
}
