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

// timeOut lets a call to an instance time out.
func timeOut(t *testing.T, s *Selector, i *discovery.Instance) {
	t.Helper()
	c := chooseInstance(t, s, i)
	time.Sleep(50 * time.Millisecond)
	c.Done(outcome.TimedOut, timeout)
}

// takeProbe makes a call to the instances that are available, and returns the probe that is due.
func takeProbe(t *testing.T, s *Selector) *Probe {
	t.Helper()
	c := chooseOne(t, s)
	p := c.Probe()
	c.Done(outcome.Answered, nil)
	return p
}

// ejectForErrors ejects an instance because of server errors, and waits until its trial is due.
func ejectForErrors(t *testing.T, s *Selector, i *discovery.Instance) {
	t.Helper()
	chooseOne(t, s).Done(outcome.Answered, nil) // makes the chooser
	for _, other := range s.state.Load().choosers.find("greeter").instances() {
		for range 63 { // otherwise it is not known to be better
			if other != i {
				chooseInstance(t, s, other).Done(outcome.Answered, nil)
			}
		}
	}
	for range 20 {
		chooseInstance(t, s, i).Done(outcome.ServerError, timeout)
	}
	if !i.Calls.Ejected() {
		t.Fatal("20 server errors in a row do not eject")
	}
	time.Sleep(5*time.Second + time.Millisecond)
}

func TestSelectorEjectsUnresponsiveInstanceForLongerEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 3)
		var ejections []time.Duration
		begin := time.Now()
		var at []time.Duration
		r.observe(Events{Ejected: func(_, _, _ string, d time.Duration, _ error) {
			ejections, at = append(ejections, d), append(at, time.Since(begin))
		}})
		s := newSelector(r)
		bad := inf.Snapshot().Instances[0]
		timeOut(t, s, bad)
		if len(ejections) != 0 {
			t.Error("a timeout ejects before a probe has failed")
		}
		probes := 0
		for ; time.Since(begin) < 180*time.Second; time.Sleep(100 * time.Millisecond) {
			c := chooseOne(t, s)
			if c.Instance == bad {
				t.Fatal("a call goes to the unresponsive instance")
			}
			if p := c.Probe(); p != nil {
				if p.Instance != bad {
					t.Fatal("another instance is probed")
				}
				probes++
				p.Done(timeout, true)
			}
			c.Done(outcome.Answered, nil)
		}
		if want := []time.Duration{5 * time.Second, 20 * time.Second, 80 * time.Second, 80 * time.Second}; !slices.Equal(ejections, want) {
			t.Errorf("ejected for %v, want %v", ejections, want)
		}
		for i := 1; i < len(at); i++ {
			if late := at[i] - at[i-1] - ejections[i-1]; late < 0 || late > 1200*time.Millisecond {
				t.Errorf("ejected again %s after the end of the ejection", late)
			}
		}
		if probes < 160 || probes > 180 {
			t.Errorf("%d probes in 180 s, want one a second", probes)
		}
	})
}

func TestAnsweredProbeReadmits(t *testing.T) {
	for name, fail := range map[string]func(*testing.T, *Selector, *discovery.Instance){
		"after a lost connection": func(t *testing.T, s *Selector, i *discovery.Instance) {
			chooseInstance(t, s, i).Done(outcome.LostConnection, refused)
		},
		"after a timeout": timeOut,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, inf := newStaticRegistry(t, 2)
				var events []string
				r.observe(Events{
					Ejected:    func(string, string, string, time.Duration, error) { events = append(events, "ejected") },
					Readmitted: func(string, string, string, time.Duration) { events = append(events, "readmitted") },
				})
				s := newSelector(r)
				bad := inf.Snapshot().Instances[0]
				fail(t, s, bad)
				p := takeProbe(t, s)
				if p == nil {
					t.Fatal("no probe with the next call")
				}
				if takeProbe(t, s) != nil {
					t.Error("a second probe while the first is in flight")
				}
				p.Done(refused, true)
				time.Sleep(time.Second - 1)
				if takeProbe(t, s) != nil {
					t.Error("a second probe within a second")
				}
				time.Sleep(time.Nanosecond)
				if p = takeProbe(t, s); p == nil {
					t.Fatal("no second probe after a second")
				}
				p.Done(nil, true)
				if want := []string{"ejected", "readmitted"}; !slices.Equal(events, want) {
					t.Errorf("events: %q, want %q", events, want)
				}
				counts := map[*discovery.Instance]int{}
				for range 100 {
					c := chooseOne(t, s)
					counts[c.Instance]++
					time.Sleep(time.Millisecond)
					c.Done(outcome.Answered, nil)
				}
				if counts[bad] < 30 {
					t.Errorf("after its return the instance gets %d of 100 calls", counts[bad])
				}
			})
		})
	}
}

// The client is closed, its settings are wrong, or it has paused.
func TestInconclusiveProbeIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		bad := inf.Snapshot().Instances[0]
		timeOut(t, s, bad)
		takeProbe(t, s).Done(context.Canceled, false)
		if bad.Calls.Ejected() || !bad.Calls.Unresponsive() {
			t.Error("an inconclusive probe ejects, or readmits")
		}
		time.Sleep(time.Second)
		takeProbe(t, s).Done(nil, true)
		if bad.Calls.Unresponsive() {
			t.Error("an answered probe does not readmit")
		}
	})
}

// Beyond half of the instances, unresponsive instances are not ejected, but get no call as long as
// others are left. All are probed.
func TestUnresponsiveInstancesBeyondHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 3)
		s := newSelector(r)
		all := inf.Snapshot().Instances
		for _, i := range all[:2] {
			chooseInstance(t, s, i).Done(outcome.LostConnection, refused)
		}
		probed := map[*discovery.Instance]int{}
		for range 1000 {
			c := chooseOne(t, s)
			if c.Instance != all[2] {
				t.Fatal("a call goes to an unresponsive instance")
			}
			if p := c.Probe(); p != nil {
				probed[p.Instance]++
				p.Done(refused, true)
			}
			c.Done(outcome.ServerError, timeout)
			time.Sleep(10 * time.Millisecond)
		}
		if probed[all[0]] < 9 || probed[all[1]] < 9 {
			t.Errorf("probes in 10 s: %v", probed)
		}
	})
}

// A frozen process becomes not ready before it answers, and ready when it does. Only then is it
// probed, and called again.
func TestInstanceThatIsReadyAgainIsProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		all := inf.Snapshot().Instances
		frozen := all[0]
		timeOut(t, s, frozen)
		c := chooseOne(t, s)
		chooser := c.chooser
		c.Done(outcome.Answered, nil)
		chooser.instances = func() []*discovery.Instance { return all[1:] }
		for range 200 {
			if takeProbe(t, s) != nil {
				t.Fatal("a probe of an instance that is not ready")
			}
			time.Sleep(50 * time.Millisecond)
		}
		chooser.instances = func() []*discovery.Instance { return all }
		time.Sleep(callstats.ProbeInterval)
		p := takeProbe(t, s)
		if p == nil || p.Instance != frozen {
			t.Fatalf("the probe that is due: %v", p)
		}
		p.Done(nil, true)
		counts := map[*discovery.Instance]int{}
		for range 100 {
			c := chooseOne(t, s)
			counts[c.Instance]++
			c.Done(outcome.Answered, nil)
		}
		if counts[frozen] < 20 {
			t.Errorf("after it is ready again it got %d of 100 calls", counts[frozen])
		}
	})
}

// A retry of a handler's error goes to the instance that has answered if the others do not.
func TestRetryAvoidsUnresponsiveAndEjectedInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		bad, good := inf.Snapshot().Instances[0], inf.Snapshot().Instances[1]
		timeOut(t, s, bad)
		for name, prepare := range map[string]func(){
			"unresponsive": func() {},
			"ejected":      func() { takeProbe(t, s).Done(timeout, true) },
		} {
			prepare()
			for range 20 {
				c, err := s.Choose("greeter", nil, good)
				if err != nil {
					t.Fatal(err)
				}
				if c.Instance != good {
					t.Fatalf("the retry goes to the instance that is %s", name)
				}
				c.Done(outcome.Answered, nil)
			}
		}
	})
}

// The method always takes longer than its deadline. The instance answers the probe at once.
func TestTimeoutsOfInstanceThatAnswersProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newStaticRegistry(t, 4)
		s := newSelector(r)
		ejections := 0
		r.observe(Events{Ejected: func(string, string, string, time.Duration, error) { ejections++ }})
		for range 200 {
			c := chooseOne(t, s)
			if p := c.Probe(); p != nil {
				p.Done(nil, true)
			}
			time.Sleep(500 * time.Millisecond)
			c.Done(outcome.TimedOut, timeout)
		}
		if ejections != 0 {
			t.Errorf("%d ejections", ejections)
		}
	})
}

// The process answers probes, but its handlers hang. It is compared with the others.
func TestInstanceWhoseHandlersHangIsEjected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 4)
		s := newSelector(r)
		bad := inf.Snapshot().Instances[0]
		end := func(c Choice) {
			if p := c.Probe(); p != nil {
				p.Done(nil, true)
			}
			if c.Instance == bad {
				time.Sleep(500 * time.Millisecond)
				c.Done(outcome.TimedOut, timeout)
				return
			}
			time.Sleep(time.Millisecond)
			c.Done(outcome.Answered, nil)
		}
		for calls := 0; !bad.Calls.Ejected(); calls++ {
			if calls == 20 {
				t.Fatal("not ejected after 20 timeouts")
			}
			for range 20 {
				end(chooseOne(t, s))
			}
			end(chooseInstanceFor(t, s, bad, "Greeter.Hello"))
			time.Sleep(time.Second)
		}
	})
}

func TestSelectorPassesOverStalledInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newStaticRegistry(t, 4)
		s := newSelector(r)
		chooseOne(t, s).Done(outcome.Answered, nil) // tells how long the method usually takes
		frozen := chooseOne(t, s)                   // its call hangs
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
		time.Sleep(10*time.Second + 2*time.Millisecond) // more than a tick of slowness
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
		ejectForErrors(t, s, bad)
		if n := bad.Calls.Report(callstats.Clock()).Failures; n != 1 {
			t.Errorf("one ejection is %d failures, want 1", n)
		}
		tries := 0
		for range 1000 {
			if c := chooseToRetry(t, s, time.Minute); c.Instance == bad {
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

// chooseToRetry chooses an instance for a call that can be retried, if there is time.
func chooseToRetry(t *testing.T, s *Selector, spare time.Duration) Choice {
	t.Helper()
	choose, err := s.Chooser(t.Context(), "greeter", nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := choose(Attempt{Method: Method{Name: "Greeter.Hello"}, Spare: spare})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Only a call that has time for a retry by the usual latency is the trial. If there is none for
// 5 s, any call is.
func TestTrialNeedsTimeForARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		bad := inf.Snapshot().Instances[0]
		for range 20 {
			c := chooseOne(t, s)
			time.Sleep(600 * time.Millisecond)
			c.Done(outcome.Answered, nil)
		}
		ejectForErrors(t, s, bad)
		tries := func(spare time.Duration) (n int) {
			for range 100 {
				c := chooseToRetry(t, s, spare)
				if c.Instance == bad {
					n++
				}
				c.Done(outcome.Inconclusive, context.Canceled)
			}
			return n
		}
		if n := tries(time.Second) + tries(0); n != 0 {
			t.Errorf("%d calls without time for a retry tried the instance", n)
		}
		if n := tries(2 * time.Second); n == 0 {
			t.Error("no call with time for a retry tried the instance")
		}
		time.Sleep(5 * time.Second)
		if n := tries(0); n == 0 {
			t.Error("no call without a retry tried the instance after 5 s")
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
		ejected := 0
		for _, i := range inf.Snapshot().Instances {
			if i.Calls.Report(callstats.Clock()).Failures == 0 {
				t.Errorf("all %d instances fail, and one of them got no call", n)
			}
			if i.Calls.Ejected() {
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
				if i.Calls.Unresponsive() {
					sum++
				}
			}
			return sum
		}
		call(50*time.Millisecond-time.Millisecond, outcome.TimedOut)
		if n := failures(); n != 0 {
			t.Errorf("%d failures of an instance that has never answered, after less than firstAnswerTime", n)
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

// If the caller cancels the trial after an ejection, the trial is inconclusive, and the
// next call is the trial.
func TestSelectorRepeatsInconclusiveTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		bad := inf.Snapshot().Instances[0]
		ejectForErrors(t, s, bad)
		for trial := range 3 {
			tried := false
			for range 100 {
				c := chooseToRetry(t, s, time.Minute)
				if c.Instance == bad {
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

// The connection breaks after some calls were answered, whose goroutines call Done later than those
// of the calls that failed.
func TestSelectorReadmitsBrokenConnectionOnlyAfterLaterAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		bad := inf.Snapshot().Instances[0]
		broken, earlier := chooseInstance(t, s, bad), chooseInstance(t, s, bad)
		broken.Done(outcome.LostConnection, refused)
		earlier.Done(outcome.Answered, nil)
		if !bad.Calls.Ejected() {
			t.Error("the answer to an earlier call ended the ejection")
		}
		time.Sleep(time.Millisecond)
		chooseInstance(t, s, bad).Done(outcome.Answered, nil) // as with a filter that leaves only this instance
		if bad.Calls.Report(callstats.Clock()) != (callstats.Report{}) {
			t.Error("the answer to a call that began later did not end the ejection")
		}
	})
}

// After an instance has come back, calls that began before fail one by one, such as those whose
// machine is gone.
func TestLateFailuresOfOldConnectionDoNotEjectAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		bad := inf.Snapshot().Instances[0]
		earlier, stream := chooseInstance(t, s, bad), chooseInstance(t, s, bad).AsStream()
		chooseInstance(t, s, bad).Done(outcome.LostConnection, refused)
		time.Sleep(time.Second)
		takeProbe(t, s).Done(nil, true)
		time.Sleep(time.Second)
		earlier.Done(outcome.TimedOut, timeout)
		stream.Done(outcome.LostConnection, refused)
		if bad.Calls.Ejected() || bad.Calls.Unresponsive() {
			t.Error("calls that began before the probe eject again")
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
			want := InstanceCalls{Instance: bad, Pod: pod, Address: bad.Address, Report: callstats.Report{Failures: 1, EjectedFor: 4 * time.Second}}
			if c.Address == good.Node.Address {
				want = InstanceCalls{Instance: good.Instance, Pod: good.Instance.Pod, Address: good.Node.Address, Report: callstats.Report{InFlight: 1}}
			}
			if c != want {
				t.Errorf("instances has %+v, want %+v", c, want)
			}
		}
		good.Done(outcome.Answered, nil)
		time.Sleep(3 * time.Second)
		takeProbe(t, s).Done(nil, true)
		calls := 5
		name := "greeter " + pod + " " + bad.Address
		want := []string{name + " ejected for 5s: " + refusedText, name + " back after 4s"}
		if !slices.Equal(events, want) {
			t.Errorf("events:\n%q\nwant\n%q", events, want)
		}
		if sum := picked[name] + picked["greeter "+good.Instance.Pod+" "+good.Node.Address]; sum != calls {
			t.Errorf("picks: %v, want %d", picked, calls)
		}
		for _, text := range []string{"Ejecting instance " + bad.Address + ` of service "greeter" on pod "` + pod + `" for 5s: `,
			"Instance " + bad.Address + ` of service "greeter" on pod "` + pod + `" is back, 4s after its ejection`} {
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
	return chooseInstanceFor(t, s, i, "")
}

// chooseInstanceFor returns a choice of an instance for a method.
func chooseInstanceFor(t *testing.T, s *Selector, i *discovery.Instance, method string) Choice {
	t.Helper()
	chooser, err := s.state.Load().choosers.get(t.Context(), "greeter")
	if err != nil {
		t.Fatal(err)
	}
	return chooser.choiceOf(chooser.pickBetter([]*discovery.Instance{i}, nil, Attempt{Method: Method{Name: method}}, callstats.Clock()))
}

// A call or a stream that began before an ejection for server errors says nothing about the trial.
func TestOnlyLaterAnswersEndEjectionForErrors(t *testing.T) {
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
				ejectForErrors(t, s, bad)
				time.Sleep(5 * time.Second)
				trial := chooseInstance(t, s, bad)
				earlier.Done(outcome.Answered, nil)
				if !bad.Calls.Ejected() {
					t.Fatal("the end of the earlier one ended the ejection")
				}
				for range 63 {
					chooseInstance(t, s, inf.Snapshot().Instances[1]).Done(outcome.Answered, nil)
				}
				trial.Done(outcome.ServerError, timeout)
				if left := s.Instances("greeter"); !slices.ContainsFunc(left, func(c InstanceCalls) bool {
					return c.Address == bad.Address && c.EjectedFor == 20*time.Second
				}) {
					t.Errorf("after a failed trial: %+v", left)
				}
			})
		})
	}
}

// The first header or message of a stream is the answer to the trial.
func TestFirstMessageOfStreamEndsTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		bad := inf.Snapshot().Instances[0]
		ejectForErrors(t, s, bad)
		time.Sleep(5 * time.Second)
		stream := chooseInstance(t, s, bad).AsStream()
		time.Sleep(time.Millisecond)
		if !bad.Calls.Ejected() {
			t.Error("the opening of a stream ends the ejection")
		}
		stream.Answered()
		if bad.Calls.Ejected() {
			t.Error("the first message of the stream does not end the ejection")
		}
		stream.Done(outcome.Answered, nil)
		if got := bad.Calls.Report(callstats.Clock()); got != (callstats.Report{}) {
			t.Errorf("after the stream: %+v", got)
		}
	})
}

func TestTrialWithFilterEndsEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		bad := inf.Snapshot().Instances[0]
		ejectForErrors(t, s, bad)
		time.Sleep(5 * time.Second) // after which calls without retries try it, too
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

// A probe is answered between the end of a call without an answer and the ejection, which another
// goroutine carries out late.
func TestInstanceThatHasAnsweredAProbeIsNotEjected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, inf := newStaticRegistry(t, 2)
		s := newSelector(r)
		i := inf.Snapshot().Instances[0]
		c := chooseInstance(t, s, i)
		verdict := i.Calls.End(callstats.Clock(), c.call, outcome.LostConnection)
		chooseInstance(t, s, i).Done(outcome.LostConnection, refused)
		time.Sleep(time.Millisecond)
		p := takeProbe(t, s)
		if p == nil {
			t.Fatal("no probe")
		}
		p.Done(nil, true)
		c.chooser.apply(i, verdict, callstats.Clock(), refused)
		if i.Calls.Ejected() {
			t.Error("the instance is ejected after its answer")
		}
	})
}

// A callback that panics must not leave a call in flight.
func TestCallbackThatPanics(t *testing.T) {
	r, inf := newStaticRegistry(t, 1)
	r.observe(Events{Picked: func(string, string, string) { panic("expected") }})
	s := newSelector(r)
	i := inf.Snapshot().Instances[0]
	func() {
		defer func() {
			if r := recover(); r != "expected" {
				t.Errorf("recovered %v", r)
			}
		}()
		chooseInstance(t, s, i)
	}()
	if n := i.Calls.Report(callstats.Clock()).InFlight; n != 0 {
		t.Errorf("%d calls in flight", n)
	}
}
