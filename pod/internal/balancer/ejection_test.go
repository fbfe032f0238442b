package balancer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

func TestSelectorEjectsFailingInstanceForLongerEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newStaticRegistry(t, 3)
		s := newSelector(r)
		first := chooseOne(t, s)
		first.Done(outcome.Answered, nil)
		bad := first.Instance
		fail := func() (tried bool) {
			for range 100 {
				c := chooseOne(t, s)
				if c.Instance == bad {
					time.Sleep(50 * time.Millisecond)
					c.Done(outcome.TimedOut, timeout)
					return true
				}
				c.Done(outcome.Answered, nil)
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
		bad.Calls.Readmit()
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
		time.Sleep(10*time.Millisecond + time.Millisecond)
		for range 1000 { // as many calls at once as there are other instances
			var busy []Choice
			for range 3 {
				c := chooseOne(t, s)
				if c.Node == frozen.Node {
					t.Fatal("the stalled instance got another call")
				}
				busy = append(busy, c)
			}
			time.Sleep(time.Millisecond)
			for _, c := range busy {
				c.Done(outcome.Answered, nil)
			}
		}
		frozen.Done(outcome.Answered, nil)
		time.Sleep(10*time.Second + 2*time.Millisecond) // more than a tick of peakEWMA
		seen := map[*registry.Node]bool{}
		for range 1000 {
			c := chooseOne(t, s)
			seen[c.Node] = true
			c.Done(outcome.Answered, nil)
		}
		if !seen[frozen.Node] {
			t.Error("the instance was not picked again after its answer")
		}
	})
}

func TestSelectorAdmitsOneCallAfterEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 3)
		s := newSelector(r)
		bad := inf.Snapshot().Instances[0]
		var calls []Choice
		for range 8 { // calls that fail together
			calls = append(calls, chooseInstance(t, s, bad))
		}
		time.Sleep(50 * time.Millisecond)
		for _, c := range calls {
			c.Done(outcome.TimedOut, timeout)
		}
		if n := bad.Calls.Report(callstats.Clock()).Failures; n != 1 {
			t.Errorf("8 calls that fail together are %d failures, want 1", n)
		}
		time.Sleep(5*time.Second + time.Millisecond)
		tries := 0
		for range 1000 {
			if c := chooseOne(t, s); c.Instance == bad {
				tries++
			} else {
				c.Done(outcome.Answered, nil)
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
		chooseOne(t, s).Done(outcome.Inconclusive, context.Canceled)
	}
	if i := inf.Snapshot().Instances[0]; i.Calls.Report(callstats.Clock()).Failures != 0 || i.Calls.Report(callstats.Clock()).InFlight != 0 {
		t.Errorf("after cancelled calls: %d failures, %d calls in flight", i.Calls.Report(callstats.Clock()).Failures, i.Calls.Report(callstats.Clock()).InFlight)
	}
}

func TestSelectorEjectsAtMostHalf(t *testing.T) {
	for n := 1; n < 9; n++ {
		r, inf := newStaticRegistry(t, n)
		s := newSelector(r)
		for range 100 * n {
			chooseOne(t, s).Done(outcome.LostConnection, refused)
		}
		now, ejected := callstats.Clock(), 0
		for _, i := range inf.Snapshot().Instances {
			if i.Calls.Report(callstats.Clock()).Failures == 0 {
				t.Errorf("all %d instances fail, and one of them got no call", n)
			}
			if i.Calls.Ejected(now) {
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
		chooseOne(t, s).Done(outcome.LostConnection, refused)
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
		c := chooseOne(t, s)
		seen[c.Node.Address] = true
		c.Done(outcome.LostConnection, refused)
	}
	if len(left) != 2 || len(seen) != 2 {
		t.Errorf("all %d instances are ejected, and %v of them got calls", len(left), seen)
	}
}

func TestSelectorBlamesTimeoutOnlyAfterTimeToAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		call := func(latency time.Duration, o outcome.Outcome) {
			c := chooseOne(t, s)
			time.Sleep(latency)
			c.Done(o, nil)
		}
		failures := func() (sum int) {
			for _, i := range inf.Snapshot().Instances {
				sum += i.Calls.Report(callstats.Clock()).Failures
			}
			return sum
		}
		call(50*time.Millisecond-time.Millisecond, outcome.TimedOut)
		if n := failures(); n != 0 {
			t.Errorf("%d failures of an instance that has never outcome.Answered, after less than firstAnswerTime", n)
		}
		for range 20 {
			call(100*time.Millisecond, outcome.Answered)
		}
		call(150*time.Millisecond, outcome.TimedOut)
		if n := failures(); n != 0 {
			t.Errorf("%d failures after 1.5 times the usual latency", n)
		}
		call(250*time.Millisecond, outcome.TimedOut)
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
			c.Done(outcome.Answered, nil)
		}
		slow.Done(outcome.TimedOut, timeout)
		if n := inf.Snapshot().Instances[0].Calls.Report(callstats.Clock()).Failures; n != 0 {
			t.Errorf("%d failures", n)
		}
	})
}

// If the caller cancels the trial after an ejection, the trial is outcome.Inconclusive, and the
// next call is the trial.
func TestSelectorRepeatsInconclusiveTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newStaticRegistry(t, 2)
		s := newSelector(r)
		bad := chooseOne(t, s)
		bad.Done(outcome.LostConnection, refused)
		time.Sleep(5*time.Second + time.Millisecond)
		for trial := range 3 {
			tried := false
			for range 100 {
				c := chooseOne(t, s)
				if c.Instance == bad.Instance {
					tried = true
					c.Done(outcome.Inconclusive, context.Canceled)
					break
				}
				c.Done(outcome.Answered, nil)
			}
			if !tried {
				t.Fatalf("no trial after %d cancelled trials", trial)
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// The connection breaks after some calls were outcome.Answered, whose goroutines call done later
// than those of the calls that failed.
func TestSelectorReadmitsBrokenConnectionOnlyAfterTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		bad := inf.Snapshot().Instances[0]
		broken, earlier := chooseInstance(t, s, bad), chooseInstance(t, s, bad)
		broken.Done(outcome.LostConnection, refused)
		earlier.Done(outcome.Answered, nil)
		if !bad.Calls.Ejected(callstats.Clock()) {
			t.Error("the answer to an earlier call ended the ejection")
		}
		time.Sleep(5 * time.Second)
		c := chooseOne(t, s)
		for ; c.Instance != bad; c = chooseOne(t, s) {
			c.Done(outcome.Answered, nil)
		}
		c.Done(outcome.Answered, nil)
		if bad.Calls.Report(callstats.Clock()) != (callstats.Report{}) {
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
		r.observe(Events{
			Picked: func(service, pod, address string) { picked[service+" "+pod+" "+address]++ },
			Ejected: func(service, pod, address string, d time.Duration, cause error) {
				events = append(events, fmt.Sprintf("%s %s %s ejected for %s: %v", service, pod, address, d, errors.FromError(cause).Detail))
			},
			Readmitted: func(service, pod, address string, after time.Duration) {
				events = append(events, fmt.Sprintf("%s %s %s back after %s", service, pod, address, after))
			},
		})
		s := newSelector(r)
		if got := s.Instances("greeter"); got != nil {
			t.Errorf("before the first choice: %v", got)
		}
		begin := time.Now()
		first := chooseOne(t, s)
		bad, pod := first.Instance, first.Instance.Pod
		first.Done(outcome.LostConnection, refused)
		for range 2 {
			chooseInstance(t, s, bad).Done(outcome.LostConnection, refused)
		}
		time.Sleep(time.Second)
		good := chooseOne(t, s)
		for _, c := range s.Instances("greeter") {
			want := InstanceCalls{Pod: pod, Address: bad.Address, Report: callstats.Report{Failures: 1, EjectedFor: 4 * time.Second}}
			if c.Address == good.Node.Address {
				want = InstanceCalls{Pod: good.Instance.Pod, Address: good.Node.Address, Report: callstats.Report{InFlight: 1}}
			}
			if c != want {
				t.Errorf("instances has %+v, want %+v", c, want)
			}
		}
		good.Done(outcome.Answered, nil)
		time.Sleep(4*time.Second + time.Millisecond)
		calls := 4
		for tried := false; !tried; calls++ {
			c := chooseOne(t, s)
			tried = c.Instance == bad
			c.Done(outcome.Answered, nil)
		}
		name := "greeter " + pod + " " + bad.Address
		want := []string{name + " ejected for 5s: " + refusedText, name + " back after 5.001s"}
		if !slices.Equal(events, want) {
			t.Errorf("events:\n%q\nwant\n%q", events, want)
		}
		if sum := picked[name] + picked["greeter "+good.Instance.Pod+" "+good.Node.Address]; sum != calls {
			t.Errorf("picks: %v, want %d", picked, calls)
		}
		for _, text := range []string{"Ejecting instance " + bad.Address + ` of service "greeter" on pod "` + pod + `" for 5s: `,
			"Instance " + bad.Address + ` of service "greeter" on pod "` + pod + `" is back, 5.001s after its ejection`} {
			if n := len(kubetest.LogLines(t, begin, text)); n != 1 {
				t.Errorf("%d lines in the log with %q, want 1", n, text)
			}
		}
	})
}

func TestSelectorReadmitsAfterSuccessAndForNewProcess(t *testing.T) {
	r, inf := newStaticRegistry(t, 1)
	s := newSelector(r)
	first := chooseOne(t, s)
	first.Done(outcome.LostConnection, refused)
	if inf.Snapshot().Instances[0].Calls.Report(callstats.Clock()).Failures != 1 {
		t.Fatal("the failure was not recorded")
	}
	chooseOne(t, s).Done(outcome.Answered, nil)
	if k := inf.Snapshot().Instances[0]; k.Calls.Report(callstats.Clock()) != (callstats.Report{}) {
		t.Errorf("after a success: %d failures, %d calls in flight", k.Calls.Report(callstats.Clock()).Failures, k.Calls.Report(callstats.Clock()).InFlight)
	}
	chooseOne(t, s).Done(outcome.LostConnection, refused)
	old := chooseOne(t, s)
	p := readyPod(t, 0)
	p.Annotations[podmeta.AnnotationPrefix+"greeter"] = `{"name":"greeter","version":"v0","nodes":[{"id":"restarted","address":"10.0.0.1:1"}]}`
	inf.Update(p)
	if k := inf.Snapshot().Instances[0]; k.Calls.Report(callstats.Clock()).Failures != 0 {
		t.Error("the new process has the failures of the old process")
	}
	// A status update that changes nothing keeps the failures.
	chooseOne(t, s).Done(outcome.LostConnection, refused)
	inf.Update(p)
	if k := inf.Snapshot().Instances[0]; k.Calls.Report(callstats.Clock()).Failures != 1 {
		t.Error("a status update ended the ejection")
	}
	old.Done(outcome.Answered, nil) // a call to a process that has ended
	if k := inf.Snapshot().Instances[0]; k.Calls.Report(callstats.Clock()).Failures != 1 {
		t.Error("the answer of the old process counts for the new one")
	}
}

// chooseInstance returns a choice of an instance.
func chooseInstance(t *testing.T, s *Selector, i *discovery.Instance) Choice {
	t.Helper()
	chooser, err := s.state.Load().choosers.get(t.Context(), "greeter")
	if err != nil {
		t.Fatal(err)
	}
	c, err := chooser.pickBetter([]*discovery.Instance{i}, nil, callstats.Clock())
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
				bad := inf.Snapshot().Instances[0]
				earlier := chooseInstance(t, s, bad)
				if isStream {
					earlier = earlier.AsStream()
				}
				chooseInstance(t, s, bad).Done(outcome.LostConnection, refused)
				time.Sleep(5*time.Second + time.Millisecond)
				trial := chooseInstance(t, s, bad)
				earlier.Done(outcome.Answered, nil)
				if bad.Calls.Report(callstats.Clock()).Failures == 0 {
					t.Fatal("the end of the earlier one ended the ejection")
				}
				trial.Done(outcome.LostConnection, refused)
				if left := s.Instances("greeter"); !slices.ContainsFunc(left, func(c InstanceCalls) bool {
					return c.Address == bad.Address && c.EjectedFor == callstats.MaxLostConnectionEjection
				}) {
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
		bad := inf.Snapshot().Instances[0]
		chooseInstance(t, s, bad).Done(outcome.LostConnection, refused)
		time.Sleep(5*time.Second + time.Millisecond)
		all := selector.WithFilter(func(all []*registry.Service) []*registry.Service { return all })
		for range 100 {
			c, err := s.Choose("greeter", []selector.SelectOption{all}, nil)
			if err != nil {
				t.Fatal(err)
			}
			c.Done(outcome.Answered, nil)
		}
		if bad.Calls.Report(callstats.Clock()) != (callstats.Report{}) {
			t.Error("the ejection has not ended")
		}
	})
}

// The registry no longer knows a pod that was deleted. Its calls in flight fail, which is
// no ejection: nothing would report the end of it.
func TestInstanceThatHasLeftIsNotEjected(t *testing.T) {
	r, inf := newStaticRegistry(t, 4)
	var events []string
	r.observe(Events{Ejected: func(_, pod, _ string, _ time.Duration, _ error) { events = append(events, pod) }})
	s := newSelector(r)
	c, err := s.Choose("greeter", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc([]int{0, 1, 2, 3}, func(i int) bool { return readyPod(t, i).Name == c.Instance.Pod })
	inf.Delete(readyPod(t, i))
	c.Done(outcome.LostConnection, refused)
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
	r.observe(Events{Ejected: func(_, pod, _ string, _ time.Duration, _ error) {
		if ejected = append(ejected, pod); len(ejected) == 1 {
			chooseOne(t, s).Done(outcome.LostConnection, refused)
		}
	}})
	done := make(chan bool)
	go func() { defer close(done); chooseOne(t, s).Done(outcome.LostConnection, refused) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the callback waits for itself")
	}
	if len(ejected) != 2 {
		t.Errorf("ejected: %q, want two instances", ejected)
	}
}
