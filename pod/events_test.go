package pod

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
)

func TestEventsOfSeveralOptions(t *testing.T) {
	var got []string
	events := func(name string) Events {
		return Events{
			Picked:     func(string, string, string) { got = append(got, name+" picked") },
			Ejected:    func(string, string, string, time.Duration, error) { got = append(got, name+" ejected") },
			Readmitted: func(string, string, string, time.Duration) { got = append(got, name+" readmitted") },
			APIError:   func(string, error) { got = append(got, name+" error") }}
	}
	r, _ := newStaticRegistry(t, 2)
	for _, e := range []Events{events("a"), {}, events("b")} {
		if err := r.Init(WithEvents(e)); err != nil {
			t.Fatal(err)
		}
	}
	s := balancer.NewSelector(r, choosersOf)
	call := func(o outcome.Outcome) {
		choose, err := s.Chooser(t.Context(), "greeter", nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := choose(balancer.Attempt{})
		if err != nil {
			t.Fatal(err)
		}
		if p := c.Probe(); p != nil {
			p.Done(nil, true)
		}
		c.Done(o, nil)
	}
	call(outcome.LostConnection)
	call(outcome.Answered)
	observersOf(r.Options()).apiError("", nil)
	if want := "a picked, b picked, a ejected, b ejected, a picked, b picked, a readmitted, b readmitted, a error, b error"; strings.Join(got, ", ") != want {
		t.Errorf("the callbacks are called as %q, want %q", got, want)
	}
}

func TestEventsReportAPIErrors(t *testing.T) {
	n := newNamespace(t, "list", "watch") // without the verb patch
	n.CreateReadyPod("a")
	var mu sync.Mutex
	reports := map[string][]string{}
	relay := n.StartRelay(t)
	var r *Registry
	r = n.openRegistryIn(relay.Through(n.Environment("a")), WithEvents(Events{APIError: func(operation string, err error) {
		r.Registered() // a callback may use the registry
		mu.Lock()
		defer mu.Unlock()
		reports[operation] = append(reports[operation], fmt.Sprint(err))
	}}))
	expect := func(operation, want string) func() error {
		return func() error {
			mu.Lock()
			defer mu.Unlock()
			for _, got := range reports[operation] {
				if strings.Contains(got, want) {
					return nil
				}
			}
			return errors.New(fmt.Sprint(reports))
		}
	}
	if err := r.Register(service("greeter", "v1", "greeter-a", "10.0.0.1:1")); err == nil {
		t.Fatal("registered without the right to patch")
	}
	kubetest.Eventually(t, 10*time.Second, "the missing right is reported", expect(`writing service "greeter" to the pod`, `verb "patch" on pods`))
	n.GrantVerb("patch")
	kubetest.Eventually(t, 10*time.Second, "the success of the retry is reported", expect(`writing service "greeter" to the pod`, "<nil>"))
	if _, err := r.GetService("greeter"); err != nil {
		t.Fatal(err)
	}
	relay.Cut()
	kubetest.Eventually(t, 20*time.Second, "the lost watch is reported", expect(`watching service "greeter"`, "pods in namespace"))
	relay.Restore()
	kubetest.Eventually(t, 20*time.Second, "the new watch is reported", expect(`watching service "greeter"`, "<nil>"))
}

// The callbacks also run in goroutines of probes, of streams and of watches, which nobody else can protect.
func TestPanicsOfCallbacksAreLogged(t *testing.T) {
	begin := time.Now()
	called := 0
	bad, good := Events{
		Picked:     func(string, string, string) { panic("expected") },
		Ejected:    func(string, string, string, time.Duration, error) { panic("expected") },
		Readmitted: func(string, string, string, time.Duration) { panic("expected") },
		APIError:   func(string, error) { panic("expected") },
	}, Events{APIError: func(string, error) { called++ }}
	all := eventObservers{bad, good}
	events := all.ofBalancer()
	events[0].Ejected("orders", "p-0", "10.0.0.1:1", time.Second, errors.New("refused"))
	events[0].Readmitted("orders", "p-0", "10.0.0.1:1", time.Second)
	if events[1].Ejected != nil || events[1].Readmitted != nil {
		t.Error("a callback that is not set is called")
	}
	all.apiError(`watching service "orders"`, errors.New("down"))
	if called != 1 {
		t.Errorf("the callback beside the one that panics was called %d times", called)
	}
	for _, name := range []string{"Ejected", "Readmitted", "APIError"} {
		if n := len(kubetest.LogLines(t, begin, "callback "+name+" of pod.WithEvents: panic: expected", "events_test.go")); n != 1 {
			t.Errorf("%d lines of the log name the callback %s", n, name)
		}
	}
	defer func() {
		if r := recover(); r != "expected" {
			t.Errorf("recovered %v", r)
		}
	}()
	events[0].Picked("orders", "p-0", "10.0.0.1:1") // the caller's goroutine
}

// TestCallbacksOfSeveralOptions calls each callback of the Hub: those of all options are called in order, also if the first panics.
func TestCallbacksOfSeveralOptions(t *testing.T) {
	begin := time.Now()
	var got []string
	note := func(name string, values ...any) { got = append(got, fmt.Sprint(append([]any{name}, values...)...)) }
	good := Events{
		CallEnded: func(_ context.Context, c Call) { note("CallEnded ", c.Method, c.Attempts) },
		ConnectionChanged: func(service, pod, address string, c ConnectionChange) {
			note("ConnectionChanged ", service, pod, address, c)
		},
		ServedCall:    func(_ context.Context, c ServedCall) { note("ServedCall ", c.Method) },
		ServedRequest: func(r *http.Request, s ServedRequest) { note("ServedRequest ", r.Method, s.Route, s.Status) },
		Patched:       func(service string, err error) { note("Patched ", service, err) },
		SkippedRegistration: func(pod, annotation string, err error) {
			note("SkippedRegistration ", pod, annotation, err)
		},
		Drained: func(service string, took time.Duration, cutOff int) { note("Drained ", service, took, "-", cutOff) },
	}
	bad := Events{
		CallEnded:           func(context.Context, Call) { panic("expected") },
		ConnectionChanged:   func(string, string, string, ConnectionChange) { panic("expected") },
		ServedCall:          func(context.Context, ServedCall) { panic("expected") },
		ServedRequest:       func(*http.Request, ServedRequest) { panic("expected") },
		Patched:             func(string, error) { panic("expected") },
		SkippedRegistration: func(string, string, error) { panic("expected") },
		Drained:             func(string, time.Duration, int) { panic("expected") },
	}
	r, _ := newStaticRegistry(t, 1)
	if hub := r.events.Get(); hub.CallEnded != nil || hub.ServedCall != nil {
		t.Error("without the option there are callbacks")
	}
	if err := r.Init(WithEvents(bad), WithEvents(Events{}), WithEvents(good)); err != nil {
		t.Fatal(err)
	}
	hub, down := r.events.Get(), errors.New("down")
	hub.CallEnded(t.Context(), events.Call{Method: "Orders.Get", Attempts: 2})
	hub.ConnectionChanged(events.Instance{Service: "orders", Pod: "p", Address: "a"}, events.Lost)
	hub.ServedCall(t.Context(), events.ServedCall{Method: "Orders/Get"})
	hub.ServedRequest(&http.Request{Method: "GET"}, events.ServedRequest{Route: "/cart", Status: 200})
	hub.Patched("orders", down)
	hub.SkippedRegistration(events.Annotation{Pod: "p", Name: "n"}, down)
	hub.Drained("orders", events.Drain{Duration: time.Second, CutOff: 3})
	want := "CallEnded Orders.Get2, ConnectionChanged orderspalost, ServedCall Orders/Get, ServedRequest GET/cart200, Patched ordersdown, SkippedRegistration pndown, Drained orders1s-3"
	if text := strings.Join(got, ", "); text != want {
		t.Errorf("the callbacks are called as\n%s\nwant\n%s", text, want)
	}
	for _, name := range []string{"CallEnded", "ConnectionChanged", "ServedCall", "ServedRequest", "Patched", "SkippedRegistration", "Drained"} {
		if n := len(kubetest.LogLines(t, begin, "callback "+name+" of pod.WithEvents: panic: expected")); n != 1 {
			t.Errorf("%d lines of the log name the callback %s", n, name)
		}
	}
}
