package pod

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
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
	r, inf := newStaticRegistry(t, 2)
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
		c, err := choose(nil)
		if err != nil {
			t.Fatal(err)
		}
		c.Done(o, nil)
	}
	call(outcome.LostConnection)
	call(outcome.Answered)
	for _, i := range inf.Snapshot().Instances {
		if i.Calls.Ejected(callstats.Clock()) {
			i.Calls.Eject(callstats.Clock()-int64(time.Minute), outcome.LostConnection) // so that the next call is the trial
		}
	}
	call(outcome.Answered)
	observersOf(r.Options()).apiError("", nil)
	if want := "a picked, b picked, a ejected, b ejected, a picked, b picked, a picked, b picked, a readmitted, b readmitted, a error, b error"; strings.Join(got, ", ") != want {
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
