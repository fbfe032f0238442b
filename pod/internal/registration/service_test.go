package registration

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPatchesAreLimitedWhileRegistrationIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		api.admit = dropLabel
		o, _ := testOptions(api)
		s := newTestService(t, o)
		err := s.Register(service("greeter", "a", "10.0.0.1:1"))
		if err == nil || !strings.Contains(err.Error(), `registering service "greeter": something else`) {
			t.Errorf("Register: %v, want the error of a contested registration", err)
		}
		time.Sleep(5 * time.Second)
		if n := api.count(); n > 6 {
			t.Errorf("%d PATCH, want at most 6", n)
		}
		if s.Registered() || s.LastError("greeter") == nil {
			t.Errorf("Registered is %v, the error %v", s.Registered(), s.LastError("greeter"))
		}
	})
}

func TestPatchesAreLimitedWhileTwoProcessesShareAServiceName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		var both []*Service
		for _, id := range []string{"first", "second"} {
			o, _ := testOptions(api)
			s := newTestService(t, o)
			if err := s.Register(service("greeter", id, "10.0.0.1:1")); err != nil {
				t.Fatal(err)
			}
			both = append(both, s)
		}
		time.Sleep(5 * time.Second)
		if n := api.count(); n > 12 {
			t.Errorf("%d PATCH in 5 s by two processes, want at most 12", n)
		}
		if err := both[0].LastError("greeter"); err == nil || !strings.Contains(err.Error(), "something else") {
			t.Errorf("the error is %v", err)
		}
	})
}

func TestServiceWithLabelKeyOfAnotherIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		o, _ := testOptions(api)
		s := newTestService(t, o)
		if err := s.Register(service("a/b", "a", "10.0.0.1:1")); err != nil {
			t.Fatal(err)
		}
		if err := s.Register(service("a:b", "a", "10.0.0.1:1")); err == nil || !strings.Contains(err.Error(), `"a/b"`) {
			t.Errorf("Register of a name with the same label key: %v", err)
		}
		if err := s.Deregister(service("a:b", "a", "10.0.0.1:1")); err == nil { // as go-micro's server does when it stops
			t.Error("deregistered a name that was refused")
		}
		time.Sleep(2 * time.Second)
		if n := api.count(); n != 1 || !s.Registered() {
			t.Errorf("%d PATCH, want 1; Registered is %v", n, s.Registered())
		}
		if err := errors.Join(s.Deregister(service("a/b", "a", "10.0.0.1:1")), s.Register(service("a:b", "a", "10.0.0.1:1"))); err != nil || !s.Registered() {
			t.Errorf("after the first service has deregistered: %v", err)
		}
	})
}

func TestInvalidRegistrationIsRefusedEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		api.refuse = func(p podmeta.Patch) error {
			if p.Metadata.Annotations[podmeta.AnnotationPrefix+"invalid"] != nil {
				return &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonInvalid, Message: "name part must be no more than 63 bytes"}}
			}
			return nil
		}
		o, _ := testOptions(api)
		s := newTestService(t, o)
		if err := s.Register(service("greeter", "a", "10.0.0.1:1")); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := s.Register(service("invalid", "a", "10.0.0.1:1")); err == nil || !strings.Contains(err.Error(), "63 bytes") {
				t.Errorf("Register: %v", err)
			}
		}
	})
}

// Kubernetes allows 256 KiB for all annotations of a pod.
func TestTooLargeRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		api.refuse = func(p podmeta.Patch) error {
			if p.Metadata.Annotations[podmeta.AnnotationPrefix+"second"] != nil {
				return &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonInvalid, Message: `Pod "a" is invalid: metadata.annotations: Too long: may not be more than 262144 bytes`}}
			}
			return nil
		}
		o, _ := testOptions(api)
		s := newTestService(t, o)
		large := func(name string, bytes int) *registry.Service {
			all := service(name, "a", "10.0.0.1:1")
			text, _ := json.Marshal(all)
			all.Endpoints[0].Name += strings.Repeat("x", bytes-len(text)-len(podmeta.AnnotationPrefix+name))
			return all
		}
		if err := s.Register(large("first", podmeta.MaxPodBytes)); err != nil {
			t.Errorf("as much as Kubernetes allows: %v", err)
		}
		if err := s.Register(large("orders", podmeta.MaxPodBytes+1)); err == nil || !strings.Contains(err.Error(), `registering service "orders": the registration has 262145 bytes, and Kubernetes allows 262144 for all annotations of a pod`) || !strings.Contains(err.Error(), "server.InternalHandler(true)") {
			t.Errorf("one byte more: %v", err)
		}
		if err := s.Register(large("second", 1000)); err == nil || !strings.Contains(err.Error(), "Too long") || !strings.Contains(err.Error(), "server.InternalHandler(true)") {
			t.Errorf("too much together: %v", err)
		}
		if n := api.count(); n != 2 {
			t.Errorf("%d PATCH, want 2", n)
		}
	})
}

// go-micro calls Register periodically, also while a service begins to stop. A call that began before
// must not write the registration again that the stop removes. The test runs in real time, because
// for synctest a goroutine that waits for a mutex is not blocked.
func TestRegisterDuringStopLeavesNoRegistration(t *testing.T) {
	api := newFakeAPI()
	o, _ := testOptions(api)
	var inRegister atomic.Pointer[func()]
	getenv := o.Getenv
	o.Getenv = func(name string) string {
		if f := inRegister.Load(); f != nil && name == "POD_IP" {
			(*f)()
		}
		return getenv(name)
	}
	s := newTestService(t, o)
	if err := s.InBackground("greeter"); err != nil {
		t.Fatal(err)
	}
	greeter := service("greeter", "a", "10.0.0.1:1")
	register := func() {
		if err := s.Register(greeter); err != nil {
			t.Fatal(err)
		}
	}
	register()
	waitFor(t, s, s.Registered)
	stopped := make(chan struct{})
	stop := func() {
		go func() { s.Leave("greeter"); close(stopped) }()
		select {
		case <-stopped:
			t.Error("the stop does not wait for Register")
		case <-time.After(300 * time.Millisecond):
		}
	}
	inRegister.Store(&stop)
	register()
	inRegister.Store(nil)
	<-stopped
	waitFor(t, s, func() bool { return !s.DeregistrationPending("greeter") })
	register() // go-micro registers once more
	if s.DeregistrationPending("greeter") || s.Registered() || api.has("greeter") {
		t.Errorf("pending %v, registered %v; the pod has the registration %v", s.DeregistrationPending("greeter"), s.Registered(), api.has("greeter"))
	}
}

// waitFor waits until a condition holds, which depends on what Changed reports.
func waitFor(t *testing.T, s *Service, condition func() bool) {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		changed := s.Changed()
		if condition() {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatal("the condition does not hold after 10 s")
		}
	}
}

func TestDeregistrationIsPendingUntilItIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		o, _ := testOptions(api)
		s := newTestService(t, o)
		if err := errors.Join(s.InBackground("greeter"), s.Register(service("greeter", "a", "10.0.0.1:1")), s.Register(service("other", "a", "10.0.0.1:2"))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		api.set(func() { api.refuse = func(podmeta.Patch) error { return errForbidden } })
		changed := s.Changed()
		s.Leave("greeter")
		select {
		case <-changed:
		default:
			t.Error("the stop was not reported")
		}
		time.Sleep(time.Second)
		if !s.DeregistrationPending("greeter") {
			t.Error("nothing is pending although the API server refuses it")
		}
		api.set(func() { api.refuse = nil })
		time.Sleep(3 * time.Second)
		if s.DeregistrationPending("greeter") || api.has("greeter") || api.has("other") {
			t.Errorf("pending %v; the pod still has %v", s.DeregistrationPending("greeter"), api.pod.Annotations)
		}
	})
}

func TestDeregisterNeedsNoPlugin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		o, _ := testOptions(api)
		broken := false
		o.Plugin = func(opts ...registry.Option) registry.Registry {
			if broken { // as when no file descriptor is left for a listener
				opts = []registry.Option{registry.Addrs("http://127.0.0.1:1")}
			}
			return kubernetes.NewRegistry(opts...)
		}
		s := newTestService(t, o)
		greeter := service("greeter", "a", "10.0.0.1:1")
		if err := s.Register(greeter); err != nil {
			t.Fatal(err)
		}
		broken = true
		if err := s.Register(greeter); err != nil { // nothing has changed
			t.Error(err)
		}
		if err := s.Deregister(greeter); err != nil {
			t.Error(err)
		}
		if len(api.pod.Annotations) != 0 || api.pod.Labels[podmeta.SelectorPrefix+"greeter"] != "" {
			t.Errorf("the pod still has %v %v", api.pod.Labels, api.pod.Annotations)
		}
		if err := s.Register(service("greeter", "b", "10.0.0.1:1")); err == nil {
			t.Error("registered without a plugin")
		}
		if err := s.Deregister(service("unknown", "b", "10.0.0.1:1")); err == nil {
			t.Error("deregistered a service of another process without a plugin")
		}
	})
}

func TestRegisterAdvertisesThePodsIP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		o, environment := testOptions(api)
		environment["POD_IP"] = "2001:db8::7"
		s := newTestService(t, o)
		for range 2 {
			if err := s.Register(service("greeter", "a", "[::1]:9100")); err != nil || !s.Registered() {
				t.Fatal(err)
			}
		}
		if a := api.pod.Annotations[podmeta.AnnotationPrefix+"greeter"]; api.count() != 1 || !strings.Contains(a, `"address":"[2001:db8::7]:9100"`) {
			t.Errorf("after %d PATCH the annotation is %s", api.count(), a)
		}
		environment["POD_IP"] = ""
		if err := s.Register(service("greeter", "a", "127.0.0.1:9100")); err == nil || !strings.Contains(err.Error(), "status.podIP") {
			t.Errorf("a loopback address: %v", err)
		}
		if err := s.Deregister(service("greeter", "a", "127.0.0.1:9100")); err != nil {
			t.Errorf("deregistering: %v", err)
		}
	})
}

func TestChangedServiceIsWrittenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		o, _ := testOptions(api)
		s := newTestService(t, o)
		for _, id := range []string{"a", "a", "b", "b"} {
			if err := s.Register(service("greeter", id, "10.0.0.1:1")); err != nil {
				t.Fatal(err)
			}
		}
		if n := api.count(); n != 2 || !strings.Contains(api.pod.Annotations[podmeta.AnnotationPrefix+"greeter"], `"id":"b"`) {
			t.Errorf("%d PATCH, want 2; the pod has %v", n, api.pod.Annotations)
		}
	})
}

func TestProcessThatCannotRegister(t *testing.T) {
	api := newFakeAPI()
	for _, c := range []struct {
		what, want string
		change     func(o *Options, environment map[string]string)
	}{
		{"outside a pod, no kubeconfig", "not in a pod (KUBERNETES_SERVICE_HOST is not set)", func(o *Options, environment map[string]string) {
			delete(environment, "KUBERNETES_SERVICE_HOST")
			o.Connect = func() (Pod, error) {
				t.Setenv("KUBECONFIG", "/nonexistent")
				t.Setenv("HOME", t.TempDir())
				_, err := apiserver.Connect(apiserver.Environment{Getenv: func(string) string { return "" }}, apiserver.Options{})
				return Pod{}, fmt.Errorf("%w; or choose another registry", err)
			}
		}},
		{"no connection", "no service account", func(o *Options, _ map[string]string) {
			o.Connect = func() (Pod, error) { return Pod{}, errors.New("no service account") }
		}},
		{"a pod without a name", "set POD_NAME from metadata.name", func(o *Options, _ map[string]string) {
			o.Connect = func() (Pod, error) { return Pod{API: api}, nil }
		}},
	} {
		o, environment := testOptions(api)
		c.change(&o, environment)
		s, greeter := New(o), service("greeter", "a", "10.0.0.1:1")
		for verb, err := range map[string]error{"registering": s.Register(greeter), "deregistering": s.Deregister(greeter)} {
			if err == nil || !strings.HasPrefix(err.Error(), verb+` service "greeter": `) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", c.what, err, c.want)
			}
		}
		if err := s.InBackground("greeter"); err == nil || !strings.HasPrefix(err.Error(), `registering service "greeter": `) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: InBackground: %v, want %q", c.what, err, c.want)
		}
		if s.Registered() || s.LastError("greeter") == nil || s.DeregistrationPending("greeter") || s.GracePeriod() != 30*time.Second || !s.TerminatingSince().IsZero() {
			t.Errorf("%s: registered %v, error %v, pending %v, grace period %s, terminating since %s", c.what, s.Registered(), s.LastError("greeter"), s.DeregistrationPending("greeter"), s.GracePeriod(), s.TerminatingSince())
		}
		s.Leave("greeter") // there is nothing to do
		if s.DeregistrationPending("greeter") {
			t.Errorf("%s: a deregistration is pending", c.what)
		}
		s.Detach()()
	}
	if n := api.count(); n != 0 {
		t.Errorf("%d PATCH, want none", n)
	}
}

// The zone is that of the label of the own pod, as soon as it has one, and else that of the variable.
func TestZoneOfOwnPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		o, environment := testOptions(api)
		environment["POD_ZONE"] = "of the variable"
		s := newTestService(t, o)
		check := func(when, want string) {
			t.Helper()
			synctest.Wait()
			if got := s.Zone(); got != want {
				t.Errorf("%s: zone %q, want %q", when, got, want)
			}
		}
		check("before the first registration", "of the variable")
		if err := s.Register(service("greeter", "greeter-1", "10.244.0.9:9100")); err != nil {
			t.Fatal(err)
		}
		check("the pod has no label", "of the variable")
		api.edit(func(p *corev1.Pod) { p.Labels[podmeta.ZoneLabel] = "a" })
		check("the label has come", "a")
		api.edit(func(p *corev1.Pod) { delete(p.Labels, podmeta.ZoneLabel) })
		check("the label has gone", "of the variable")
		delete(environment, "POD_ZONE")
		if got := New(o).Zone(); got != "" {
			t.Errorf("without variable and registration: zone %q", got)
		}
		s.Detach()()
	})
}

func TestServiceWithoutNodes(t *testing.T) {
	o, _ := testOptions(newFakeAPI())
	s := newTestService(t, o)
	for _, service := range []*registry.Service{nil, {Name: "greeter"}} {
		if err := s.Register(service); err == nil || !strings.Contains(err.Error(), "no node") {
			t.Errorf("Register: %v", err)
		}
		if err := s.Deregister(service); err == nil || !strings.Contains(err.Error(), "no node") {
			t.Errorf("Deregister: %v", err)
		}
	}
}

func TestOtherRegistry(t *testing.T) {
	api := newFakeAPI()
	o, _ := testOptions(api)
	s, other, greeter := newTestService(t, o), memory.NewRegistry(), service("greeter", "a", "10.0.0.1:1")
	s.UseOther(other)
	if err := s.Register(greeter); err != nil {
		t.Fatal(err)
	}
	if all, err := other.GetService("greeter"); err != nil || len(all) != 1 || api.count() != 0 {
		t.Errorf("the other registry has %v, %v, after %d PATCH", all, err, api.count())
	}
	if err := s.Deregister(greeter); err != nil {
		t.Fatal(err)
	}
	if all, err := other.GetService("greeter"); err == nil && len(all) > 0 || api.count() != 0 {
		t.Errorf("the other registry has %v, after %d PATCH", all, api.count())
	}
}

func TestRegisterWaitsOrDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		api.frozen = true
		o, _ := testOptions(api)
		s := newTestService(t, o)
		begin := time.Now()
		if err := s.Register(service("greeter", "a", "10.0.0.1:1")); err == nil || time.Since(begin) != 4*time.Second {
			t.Errorf("Register returns %v after %s", err, time.Since(begin))
		}
		if err := s.InBackground("greeter"); err != nil {
			t.Fatal(err)
		}
		begin = time.Now()
		if err := errors.Join(s.Register(service("greeter", "a", "10.0.0.1:1")), s.Deregister(service("greeter", "a", "10.0.0.1:1"))); err != nil || time.Since(begin) > 0 {
			t.Errorf("Register and Deregister return %v after %s", err, time.Since(begin))
		}
	})
}

func TestDetach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newFakeAPI(), newFakeAPI()
		o, _ := testOptions(first)
		connected := 0
		var reported []string
		o.APIError = func(operation string, err error) { reported = append(reported, fmt.Sprint(operation, " ", err)) }
		o.Connect = func() (Pod, error) { connected++; return pod([]API{first, second}[min(connected-1, 1)]), nil }
		s, greeter := newTestService(t, o), service("greeter", "a", "10.0.0.1:1")
		if err := s.Register(greeter); err != nil || !s.Registered() {
			t.Fatal(err)
		}
		changed := s.Changed()
		stop := s.Detach()
		stop()
		select {
		case <-changed:
		default:
			t.Error("the end of the registration was not reported")
		}
		if s.Registered() || s.LastError("greeter") != nil || !first.has("greeter") {
			t.Errorf("registered %v, error %v, the first pod has the registration %v", s.Registered(), s.LastError("greeter"), first.has("greeter"))
		}
		second.refuse = func(podmeta.Patch) error { return errForbidden }
		if err := s.Register(greeter); !errors.Is(err, errForbidden) {
			t.Errorf("through the second connection: %v", err)
		}
		synctest.Wait()
		second.set(func() { second.refuse = nil })
		if err := s.Register(greeter); err != nil || !second.has("greeter") || first.count() != 1 {
			t.Errorf("through the second connection: %v, the pod has the registration %v, and %d PATCH went through the first", err, second.has("greeter"), first.count())
		}
		synctest.Wait()
		if len(first.watched) != 1 || len(second.watched) != 1 {
			t.Errorf("%d and %d watches, want one each", len(first.watched), len(second.watched))
		}
		if want := []string{`writing service "greeter" to the pod patch pod "a": pods is forbidden`, `writing service "greeter" to the pod <nil>`}; !slices.Equal(reported, want) {
			t.Errorf("reported is %q, want %q", reported, want)
		}
	})
}

// Two services of one process share a registry and a broker. Each has its own life.
func TestLifecyclesOfOneRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		o, _ := testOptions(api)
		s := newTestService(t, o)
		orders, stock, topics := service("orders", "a", "10.0.0.1:1"), service("stock", "a", "10.0.0.1:2"), service("topics", "a", "10.0.0.1:3")
		register := func() {
			t.Helper()
			if err := errors.Join(s.Register(orders), s.Register(stock), s.Register(topics)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		check := func(when string, want ...string) {
			t.Helper()
			for _, name := range []string{"orders", "stock", "topics"} {
				wanted := slices.Contains(want, name)
				if api.has(name) != wanted || s.RegisteredAs(name) != wanted {
					t.Errorf("%s: %q is on the pod: %v, registered: %v, want %v", when, name, api.has(name), s.RegisteredAs(name), wanted)
				}
			}
		}
		if err := errors.Join(s.InBackground("orders"), s.InBackground("stock")); err != nil {
			t.Fatal(err)
		}
		register()
		check("both run", "orders", "stock", "topics")
		api.set(func() { api.refuse = func(podmeta.Patch) error { return errForbidden } })
		s.Leave("orders")
		time.Sleep(time.Second)
		if !s.DeregistrationPending("orders") || s.DeregistrationPending("stock") || !s.RegisteredAs("stock") {
			t.Errorf("while the API server refuses: pending %v and %v, stock is registered: %v", s.DeregistrationPending("orders"), s.DeregistrationPending("stock"), s.RegisteredAs("stock"))
		}
		api.set(func() { api.refuse = nil })
		time.Sleep(10 * time.Second)
		check("one has left", "stock", "topics")
		register() // go-micro calls Register every 30 s, and once more for a service that stops
		check("after go-micro's calls", "stock", "topics")
		if s.DeregistrationPending("orders") {
			t.Error("the first deregistration is still pending")
		}
		if err := s.InBackground("orders"); err != nil {
			t.Fatal(err)
		}
		register()
		check("one has started again", "orders", "stock", "topics")
		s.Leave("orders")
		s.Leave("stock")
		time.Sleep(time.Second)
		register()
		check("both have left")
		if s.DeregistrationPending("stock") {
			t.Error("the last deregistration is still pending")
		}
		if err := s.InBackground("stock"); err != nil {
			t.Fatal(err)
		}
		register()
		check("one has started again after all have left", "stock", "topics")
	})
}
