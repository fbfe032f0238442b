package shutdown

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	dlog "github.com/micro/go-micro/v2/debug/log"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
)

// leaves runs leave in the background and returns how long it takes.
func leaves(l *lifecycle) <-chan time.Duration {
	took, begin := make(chan time.Duration, 1), time.Now()
	go func() {
		l.leave()
		took <- time.Since(begin)
	}()
	return took
}

func TestLeaveBecomesNotReadyBeforeItDeregisters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f, _, _ := newConfig()
		l := newLifecycle(c)
		f.onDeregister = func() {
			if !l.draining() {
				t.Error("the service is still ready when it deregisters")
			}
		}
		<-leaves(l)
		if !f.deregistered {
			t.Error("leave has not deregistered the service")
		}
		if err := l.end(); !errors.Is(err, errRelease) {
			t.Errorf("end returned %v", err)
		}
	})
}

func TestLeaveWaitsWhileClientsNotice(t *testing.T) {
	const grace = 30 * time.Second
	for _, test := range []struct {
		name      string
		drainWait time.Duration
		grace     time.Duration
		deletion  time.Duration // before leave; 0 if the pod is not being deleted
		confirmed time.Duration // after leave; -1 if never
		want      time.Duration // that leave takes
		deadline  time.Duration // of the drain, after the beginning of leave
	}{
		{"confirmed at once", 3 * time.Second, grace, 0, 0, 3 * time.Second, grace - stopMargin},
		{"confirmed during the wait", 3 * time.Second, grace, 0, time.Second, 3 * time.Second, grace - stopMargin},
		{"confirmed never", 3 * time.Second, grace, 0, -1, 3 * time.Second, grace - stopMargin},
		{"no wait, confirmed never", 0, grace, 0, -1, confirmationTimeout, grace - stopMargin},
		{"no wait, confirmed after 300 ms", 0, grace, 0, 300 * time.Millisecond, 300 * time.Millisecond, grace - stopMargin},
		{"the grace period leaves no room", 20 * time.Second, 10 * time.Second, 0, 0, 7 * time.Second, 7 * time.Second},
		{"the grace period is shorter than the margin", 3 * time.Second, time.Second, 0, 0, 0, 0},
		{"a preStop hook has used 25 s", 3 * time.Second, grace, 25 * time.Second, 0, 2 * time.Second, 2 * time.Second},
		{"the deletion comes after the signal", 3 * time.Second, grace, -time.Second, 0, 3 * time.Second, grace - stopMargin},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, f, _, _ := newConfig()
				c.DrainWait = test.drainWait
				f.gracePeriod, f.confirmed = test.grace, test.confirmed == 0
				begin := time.Now()
				if test.deletion != 0 {
					f.terminatingSince = begin.Add(-test.deletion)
				}
				l := newLifecycle(c)
				took := leaves(l)
				if test.confirmed > 0 {
					time.Sleep(test.confirmed)
					f.set(func() { f.confirmed = true })
				}
				if got := <-took; got != test.want {
					t.Errorf("leave took %s, want %s", got, test.want)
				}
				if got := l.deadline.Sub(begin); got != test.deadline {
					t.Errorf("the drain ends %s after the signal, want %s", got, test.deadline)
				}
				_ = l.end()
			})
		})
	}
}

func TestChangesDoNotEndTheWaitForTheConfirmation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f, _, _ := newConfig()
		c.DrainWait, f.confirmed = 0, false
		l := newLifecycle(c)
		took := leaves(l)
		time.Sleep(500 * time.Millisecond)
		f.set(func() {})
		if got := <-took; got != confirmationTimeout {
			t.Errorf("leave took %s, want %s", got, confirmationTimeout)
		}
		_ = l.end()
	})
}

func TestDeletionThatIsSeenDuringTheWaitSetsTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f, _, _ := newConfig()
		begin := time.Now()
		l := newLifecycle(c)
		took := leaves(l)
		time.Sleep(time.Second)
		f.set(func() { f.gracePeriod = 12 * time.Second })
		<-took
		if got := l.deadline.Sub(begin); got != 9*time.Second {
			t.Errorf("the drain ends %s after the signal, want 9s", got)
		}
		_ = l.end()
	})
}

func TestSecondSignalEndsTheWaits(t *testing.T) {
	for _, when := range []time.Duration{time.Second, 4 * time.Second} { // while clients notice; while the confirmation is missing
		synctest.Test(t, func(t *testing.T) {
			c, f, _, _ := newConfig()
			c.DrainWait, f.confirmed = 3*time.Second, false
			if when > c.DrainWait {
				c.DrainWait = 0
				when = confirmationTimeout / 2
			}
			l := newLifecycle(c)
			took := leaves(l)
			time.Sleep(when)
			l.signals <- syscall.SIGTERM
			if got := <-took; got != when {
				t.Errorf("leave took %s, the second signal came after %s", got, when)
			}
			ctx, cancel := l.drainContext()
			defer cancel()
			if cause := context.Cause(ctx); cause == nil || !strings.Contains(cause.Error(), "a second signal: terminated") {
				t.Errorf("the drain ends with the cause %v, want the second signal", cause)
			}
			_ = l.end()
		})
	}
}

func TestDrainWaitsForWhatIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLifecycle(Config{})
		l.deadline = time.Now().Add(10 * time.Second)
		var messages, calls inFlight
		if err := l.drain("calls", nil, &messages, &calls); err != nil {
			t.Errorf("with nothing in flight drain returned %v", err)
		}
		calls.begin()
		calls.begin()
		messages.begin()
		begin := time.Now()
		time.AfterFunc(time.Second, messages.end)
		time.AfterFunc(2*time.Second, calls.end)
		time.AfterFunc(3*time.Second, calls.end)
		if err := l.drain("calls", nil, &messages, &calls); err != nil || time.Since(begin) != 3*time.Second {
			t.Errorf("drain returned %v after %s, the last call ended after 3s", err, time.Since(begin))
		}
	})
}

func TestDrainCutsOffAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLifecycle(Config{})
		l.deadline = time.Now().Add(10 * time.Second)
		var messages, calls inFlight
		calls.begin()
		calls.begin()
		messages.begin()
		begin := time.Now()
		err := l.drain("calls", nil, &messages, &calls)
		if want := "waiting for calls in flight: 3 cut off: the pod's grace period ends"; err == nil || err.Error() != want {
			t.Errorf("drain returned %q, want %q", err, want)
		}
		if d := time.Since(begin); d != 10*time.Second {
			t.Errorf("drain took %s, want 10s", d)
		}
	})
}

func TestSecondSignalEndsTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, _, _ := newConfig()
		l := newLifecycle(c)
		<-leaves(l)
		var calls inFlight
		calls.begin()
		time.AfterFunc(time.Second, func() { l.signals <- syscall.SIGINT })
		begin := time.Now()
		err := l.drain("calls", nil, &calls)
		if want := "waiting for calls in flight: 1 cut off: a second signal: interrupt"; err == nil || err.Error() != want {
			t.Errorf("drain returned %q, want %q", err, want)
		}
		if d := time.Since(begin); d != time.Second {
			t.Errorf("drain took %s, want 1s", d)
		}
		_ = l.end()
	})
}

// TestSignalDuringTheStopDoesNotEndTheProcess sends signals while the service stops without
// go-micro's handler of signals, as after the end of micro.Context.
func TestSignalDuringTheStopDoesNotEndTheProcess(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT} {
		c, _, _, _ := newConfig()
		c.DrainWait = time.Hour
		l := newLifecycle(c)
		own := make(chan os.Signal, 1)
		signal.Notify(own, sig) // so that the test does not end if the lifecycle does not receive the signal
		defer signal.Stop(own)
		send := func() {
			if err := syscall.Kill(os.Getpid(), sig); err != nil {
				t.Fatal(err)
			}
			<-own
		}
		l.Registration.(*fakeRegistration).onDeregister = send
		l.Release = func() error {
			send()
			select {
			case <-l.signals: // soon after own
			case <-time.After(10 * time.Second):
				t.Errorf("during Release nobody receives %s", sig)
			}
			return nil
		}
		l.leave()
		if cause := context.Cause(l.interrupted); cause == nil || cause.Error() != "a second signal: "+sig.String() {
			t.Errorf("the waits end with the cause %v, want the signal %s", cause, sig)
		}
		_ = l.end()
		send()
		select {
		case <-l.signals:
			t.Errorf("after the stop the lifecycle receives %s", sig)
		default:
		}
	}
}

func TestReasonOfNotReady(t *testing.T) {
	c, f, _, _ := newConfig()
	l := newLifecycle(c)
	if err := l.useRegistry("greeter", c.Registry); err != nil || f.background != "greeter" {
		t.Errorf("useRegistry returned %v, service %q registers in the background", err, f.background)
	}
	check := func(want string) {
		t.Helper()
		if got := l.notReadyReason(); got != want {
			t.Errorf("the reason is %q, want %q", got, want)
		}
	}
	check("")
	f.registered = false
	check("not registered yet")
	f.lastErr = errors.New("forbidden")
	check("not registered: forbidden")
	l.usesOtherRegistry = true
	check("")
	close(l.stopping)
	check("shutting down")
}

func TestServiceThatCanNeverRegisterDoesNotStart(t *testing.T) {
	c, f, _, _ := newConfig()
	f.backgroundErr = errors.New("not in a pod")
	if err := newLifecycle(c).useRegistry("greeter", c.Registry); !errors.Is(err, f.backgroundErr) {
		t.Errorf("useRegistry returned %v", err)
	}
	l := newLifecycle(c)
	if err := l.useRegistry("greeter", otherRegistry); err != nil || !l.usesOtherRegistry {
		t.Errorf("with another registry useRegistry returned %v", err)
	}
	f.registered = true // another service of the process may have the name
	l.Started = func(status func() ServiceStatus) {
		if s := status(); s.Registered || !s.OtherRegistry || s.State != StateReady {
			t.Errorf("with another registry the status is %+v", s)
		}
	}
	l.reportTo(func() int { return 0 })
}

// The service's context may end before a signal arrives, for example because another part of the
// process has failed.
func TestFirstSignalAfterTheEndOfTheContext(t *testing.T) {
	for name, test := range map[string]struct {
		context func() context.Context
		signals int // that end the waits
	}{
		"go-micro has received the first signal": {t.Context, 1},
		"no context":                             {func() context.Context { return nil }, 1},
		"the context ended before any signal": {func() context.Context {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(errors.New("another part of the process has failed"))
			return ctx
		}, 2},
		"signal.NotifyContext has received the first signal": {func() context.Context {
			ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGUSR1)
			defer stop()
			if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
				t.Fatal(err)
			}
			<-ctx.Done()
			return ctx
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := test.context()
			synctest.Test(t, func(t *testing.T) {
				c, _, _, _ := newConfig()
				c.DrainWait = 10 * time.Second
				l := newLifecycle(c)
				l.context = ctx
				took := leaves(l)
				for range test.signals {
					time.Sleep(time.Second)
					l.signals <- syscall.SIGTERM
				}
				if got, want := <-took, time.Duration(test.signals)*time.Second; got != want {
					t.Errorf("leave took %s, want %s", got, want)
				}
				_ = l.end()
			})
		})
	}
}

func TestOtherRegistryIsLoggedWithItsCause(t *testing.T) {
	used := memory.NewRegistry()
	for name, test := range map[string]struct {
		used     registry.Registry
		variable string
		args     []string
		want     string
	}{
		"variable":       {used, "memory", nil, "The environment variable MICRO_REGISTRY=memory chooses it"},
		"other variable": {used, "etcd", nil, "An option chooses it, such as micro.Registry or server.Registry"},
		"flag":           {used, "memory", []string{"--server_name=x", "--registry=memory"}, "The flag --registry chooses it"},
		"flag and value": {used, "", []string{"-registry", "memory"}, "The flag --registry chooses it"},
		"another flag":   {used, "", []string{"--registry_address=memory"}, "An option chooses it, such as micro.Registry or server.Registry"},
		"no option":      {registry.DefaultRegistry, "", nil, "It is go-micro's default: the option micro.Registry, or web.Registry, is missing"},
	} {
		if got := causeOfOtherRegistry(test.used, func(string) string { return test.variable }, test.args); got != test.want {
			t.Errorf("%s: the cause is %q, want %q", name, got, test.want)
		}
	}
	for host, level := range map[string]string{"": "info", "10.0.0.1": "warn"} {
		c, _, _, _ := newConfig()
		c.Getenv = func(name string) string {
			return map[string]string{"KUBERNETES_SERVICE_HOST": host, "MICRO_REGISTRY": used.String()}[name]
		}
		begin := time.Now()
		if err := newLifecycle(c).useRegistry("orders", used); err != nil {
			t.Fatal(err)
		}
		records, err := dlog.DefaultLog.Read()
		if err != nil {
			t.Fatal(err)
		}
		logged := slices.ContainsFunc(records, func(r dlog.Record) bool {
			return !r.Timestamp.Before(begin) && r.Metadata["level"] == level && strings.Contains(fmt.Sprint(r.Message),
				`Service "orders" registers in registry "memory", not on its pod: callers on Kubernetes do not find it, and it is ready whether or not it is registered. The environment variable MICRO_REGISTRY=memory chooses it`)
		})
		if !logged {
			t.Errorf("in a pod: %v: the level of the log line is not %s: %v", host != "", level, records[len(records)-1])
		}
	}
}
