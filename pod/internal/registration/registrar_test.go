package registration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestPatchesOfContestedRegistrationAreLimited(t *testing.T) {
	for name, start := range map[string]func(*testing.T, *fakeAPI, *registrar){
		"an admission webhook drops the label": func(_ *testing.T, api *fakeAPI, _ *registrar) { api.admit = dropLabel },
		"another process overwrites it at once": func(_ *testing.T, api *fakeAPI, r *registrar) {
			r.pod.API = overwritten{api, r}
		},
		"another process removes it a second later": func(t *testing.T, api *fakeAPI, r *registrar) {
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for {
					select {
					case <-ctx.Done():
						return
					case <-time.After(time.Second):
						r.observe(api.edit(dropLabel), false)
					}
				}
			}()
			t.Cleanup(func() { cancel(); <-ended })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newFakeAPI()
				r := newTestRegistrar(t, api)
				start(t, api, r)
				_ = r.want("greeter", desire("greeter"), 0)
				time.Sleep(time.Minute)
				first := api.count()
				if first < 3 || first > 10 {
					t.Errorf("%d PATCH in the first minute, want 3 to 10", first)
				}
				for minute := 2; minute <= 10; minute++ {
					before := api.count()
					time.Sleep(time.Minute)
					if n := api.count() - before; n > 2 || n < 1 {
						t.Errorf("%d PATCH in minute %d, want 1 or 2", n, minute)
					}
				}
				if strings.Contains(name, "later") { // the registration may be there at this moment
					return
				}
				if err := r.lastError("greeter"); err == nil || !strings.Contains(err.Error(), "something else") || r.registered() || !r.pending(anyService) {
					t.Errorf("registered %v, pending %v, the error %v", r.registered(), r.pending(anyService), err)
				}
			})
		})
	}
}

// overwritten is an API server on which another process changes the annotation after each patch. The
// watch delivers this change before the response to the patch.
type overwritten struct {
	*fakeAPI
	r *registrar
}

func (o overwritten) PatchPod(ctx context.Context, body []byte) (*corev1.Pod, error) {
	written, err := o.fakeAPI.PatchPod(ctx, body)
	o.r.observe(o.edit(func(p *corev1.Pod) { p.Annotations[podmeta.AnnotationPrefix+"greeter"] = "other" }), false)
	return written, err
}

// gaps returns the times between the attempts.
func gaps(api *fakeAPI) (all []time.Duration) {
	times := api.times()
	for i := range len(times) - 1 {
		all = append(all, times[i+1].Sub(times[i]))
	}
	return all
}

func TestDelayAfterFailedPatchesGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, begin, name := newFakeAPI(), time.Now(), uniqueName()
		r := newTestRegistrar(t, api)
		api.refuse = func(podmeta.Patch) error { return errForbidden }
		if err := r.want(name, desire(name), time.Second); !errors.Is(err, errForbidden) {
			t.Fatalf("the error is %v", err)
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("the refusal is returned after %s", took)
		}
		time.Sleep(time.Minute)
		longest := []time.Duration{200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond, 2 * time.Second}
		random := map[time.Duration]bool{}
		for i, gap := range gaps(api) {
			limit := longest[min(i, len(longest)-1)]
			if gap < limit/2 || gap > limit {
				t.Errorf("delay %d is %s, want between %s and %s", i, gap, limit/2, limit)
			}
			random[gap] = true
		}
		if n := api.count(); n < 30 || n > 70 || len(random) < 10 {
			t.Errorf("%d PATCH in a minute, %d different delays", n, len(random))
		}
		if r.registered() || !r.pending(anyService) || !errors.Is(r.lastError(name), errForbidden) {
			t.Errorf("registered %v, pending %v, the error %v", r.registered(), r.pending(anyService), r.lastError(name))
		}
		if lines := logLines(t, strconv.Quote(name)); len(lines) != 1 || !strings.Contains(lines[0], "forbidden") {
			t.Errorf("the log is %q, want one line", lines)
		}
		api.set(func() { api.refuse = nil })
		time.Sleep(2 * time.Second)
		if !r.registered() || r.pending(anyService) || r.lastError(name) != nil || !api.has(name) {
			t.Errorf("after the error: registered %v, pending %v, the error %v", r.registered(), r.pending(anyService), r.lastError(name))
		}
		if lines := logLines(t, fmt.Sprintf("Registered %q on pod %q", name, "a")); len(lines) != 1 {
			t.Errorf("the log is %q, want one line", lines)
		}
		// The delays begin anew.
		api.set(func() { api.refuse, api.attempts = func(podmeta.Patch) error { return errForbidden }, nil })
		api.edit(func(p *corev1.Pod) { clear(p.Labels) })
		time.Sleep(3 * time.Second)
		if gap := gaps(api)[0]; gap > 200*time.Millisecond {
			t.Errorf("the first delay after a success is %s", gap)
		}
	})
}

func TestPatchWaitsAsLongAsTheAPIServerAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		r := newTestRegistrar(t, api)
		api.refuse, api.retryAfter = func(podmeta.Patch) error { return errors.New("too many requests") }, 7*time.Second
		_ = r.want("greeter", desire("greeter"), 0)
		time.Sleep(time.Minute)
		if all := gaps(api); len(all) != 8 || slices.Max(all) != 7*time.Second || slices.Min(all) != 7*time.Second {
			t.Errorf("the delays are %s, want 7 s each", all)
		}
	})
}

func TestSilentAPIServerEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, begin := newFakeAPI(), time.Now()
		r := newTestRegistrar(t, api)
		api.frozen = true
		err := r.want("greeter", desire("greeter"), 4*time.Second)
		if want := `patch pod "a" in namespace "test": the API server at https://10.96.0.1 has not answered for 4s`; err == nil || err.Error() != want || time.Since(begin) != 4*time.Second {
			t.Errorf("after %s the error is %v, want %s", time.Since(begin), err, want)
		}
		begin = time.Now()
		if err := r.want("other", desire("other"), 0); err != nil || time.Since(begin) > 0 {
			t.Errorf("a call that does not wait returns %v after %s", err, time.Since(begin))
		}
	})
}

func TestStopInterruptsRegister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, begin := newFakeAPI(), time.Now()
		r := newRegistrar(nil, func() {}, nil)
		r.connected(pod(api))
		api.frozen = true
		result := make(chan error)
		go func() { result <- r.want("greeter", desire("greeter"), 4*time.Second) }()
		synctest.Wait()
		r.stop()
		if err := <-result; !errors.Is(err, errStopped) || time.Since(begin) > 0 {
			t.Errorf("after %s Register returns %v", time.Since(begin), err)
		}
		if err := r.want("other", desire("other"), 4*time.Second); !errors.Is(err, errStopped) {
			t.Errorf("after the stop Register returns %v", err)
		}
		time.Sleep(time.Minute)
		if n := api.count(); n != 1 {
			t.Errorf("%d PATCH, want 1", n)
		}
	})
}

func TestRemovedMetadataIsRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		r := newTestRegistrar(t, api)
		greeter := desire("greeter")
		if err := r.want("greeter", greeter, time.Second); err != nil || !r.registered() {
			t.Fatalf("registered %v, the error %v", r.registered(), err)
		}
		synctest.Wait()
		if want := []apiserver.Selector{{Fields: "metadata.name=a"}}; !slices.Equal(api.watched, want) {
			t.Fatalf("the watches select %v, want %v", api.watched, want)
		}
		for range 20 { // go-micro registers again every 30 s
			time.Sleep(30 * time.Second)
			if err := r.want("greeter", greeter, time.Second); err != nil {
				t.Fatal(err)
			}
		}
		if n := api.count(); n != 1 {
			t.Fatalf("%d PATCH for one registration", n)
		}
		lose := func() time.Duration {
			begin, before := time.Now(), api.count()
			api.edit(dropLabel)
			for !api.has("greeter") {
				time.Sleep(10 * time.Millisecond)
			}
			if n := api.count() - before; n != 1 {
				t.Errorf("%d PATCH for one loss, want 1", n)
			}
			return time.Since(begin)
		}
		for i, want := range []struct{ wait, atLeast, atMost time.Duration }{
			{0, 0, 10 * time.Millisecond},                 // at once
			{0, time.Second, 1200 * time.Millisecond},     // something else changes it
			{0, 2 * time.Second, 2300 * time.Millisecond}, // again
			{61 * time.Second, 0, 10 * time.Millisecond},  // after a minute without a change, at once
			{59 * time.Second, 0, 10 * time.Millisecond},  // the delay of 1 s is over
			{0, 2 * time.Second, 2300 * time.Millisecond}, // within the minute
			{time.Hour, 0, 10 * time.Millisecond},         // at once
			{2 * time.Minute, 0, 10 * time.Millisecond},   // at once
			{2 * time.Minute, 0, 10 * time.Millisecond},   // at once
			{0, time.Second, 1200 * time.Millisecond},     // something else changes it
		} {
			time.Sleep(want.wait)
			if took := lose(); took < want.atLeast || took > want.atMost {
				t.Errorf("loss %d is restored after %s, want between %s and %s", i, took, want.atLeast, want.atMost)
			}
			if r.lastError("greeter") != nil || !r.registered() {
				t.Errorf("loss %d: registered %v, the error %v", i, r.registered(), r.lastError("greeter"))
			}
		}
		if n := len(api.watched); n != 1 {
			t.Errorf("%d watches, want 1", n)
		}
	})
}

func TestDeregisteredServiceIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, one := newFakeAPI(), uniqueName()
		r := newTestRegistrar(t, api)
		for _, name := range []string{one, "two"} {
			if err := r.want(name, desire(name), time.Second); err != nil {
				t.Fatal(err)
			}
		}
		if names := len(r.services()); names != 2 {
			t.Errorf("%d services are desired, want 2", names)
		}
		removal := removalOf(one)
		if err := r.want(one, &registration{metadata: removal, removal: removal}, time.Second); err != nil || api.has(one) || !api.has("two") {
			t.Fatalf("the error is %v, the pod has one %v and two %v", err, api.has(one), api.has("two"))
		}
		if all := r.services(); len(all) != 1 || all[0].Name != "two" || r.pending(anyService) || !r.registered() {
			t.Errorf("%d services are desired, pending %v, registered %v", len(all), r.pending(anyService), r.registered())
		}
		if lines := logLines(t, fmt.Sprintf("Deregistered %q from pod %q", one, "a")); len(lines) != 1 {
			t.Errorf("the log is %q, want one line", lines)
		}
		before := api.count()
		api.edit(func(p *corev1.Pod) {
			p.Annotations[podmeta.AnnotationPrefix+one] = "of another process"
			p.Labels[podmeta.SelectorPrefix+one] = podmeta.TypeValue
		})
		time.Sleep(time.Minute)
		if n := api.count(); n != before || !api.has(one) {
			t.Errorf("%d PATCH, want %d; the pod has the other process's registration %v", n, before, api.has(one))
		}
	})
}

// What is desired changes back to what was observed last, while a patch of something else is on its way. The result is what is
// desired, and nobody is told that it is there before it is.
func TestChangeDuringPatch(t *testing.T) {
	lost := errors.New("connection reset")
	removal := func() *registration {
		return &registration{metadata: removalOf("greeter"), removal: removalOf("greeter")}
	}
	for name, answer := range map[string]error{"the answer is late": nil, "the answer is lost": lost} {
		for first, second := range map[*registration]func() *registration{desire("greeter"): removal, removal(): func() *registration { return desire("greeter") }} {
			t.Run(fmt.Sprintf("%s, deregistered first %v", name, first.service == nil), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					api := newFakeAPI()
					r := newTestRegistrar(t, api)
					if err := r.want("greeter", desire("greeter"), time.Second); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					r.watch.Stop() // the response tells first
					api.set(func() { api.answer = func(podmeta.Patch) error { time.Sleep(time.Second); return answer } })
					if first.service != nil { // another process has removed it, and the registrar restores it
						r.observe(api.edit(func(p *corev1.Pod) { clear(p.Labels); clear(p.Annotations) }), false)
					} else {
						_ = r.want("greeter", first, 0)
					}
					synctest.Wait()
					d := second()
					api.set(func() { api.answer = nil })
					err := r.want("greeter", d, 4*time.Second)
					if registered := d.service != nil; err != nil && !errors.Is(err, lost) || err == nil && api.has("greeter") != registered {
						t.Errorf("the error is %v, the pod has it %v", err, api.has("greeter"))
					}
					time.Sleep(time.Minute)
					if registered := d.service != nil; api.has("greeter") != registered || r.registered() != registered || r.pending(anyService) {
						t.Errorf("a minute later the pod has it %v, registered %v, pending %v", api.has("greeter"), r.registered(), r.pending(anyService))
					}
				})
			})
		}
	}
}

func TestDeregistrationAloneStartsNoWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		r := newTestRegistrar(t, api)
		removal := removalOf("greeter")
		if err := r.want("greeter", &registration{metadata: removal, removal: removal}, time.Second); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if api.count() != 1 || len(api.watched) != 0 || r.registered() || r.pending(anyService) {
			t.Errorf("%d PATCH, %d watches, registered %v, pending %v", api.count(), len(api.watched), r.registered(), r.pending(anyService))
		}
	})
}

func TestErrorOfAnotherPodUnderTheSameName(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for name, refusal := range map[string]error{
		"conflict": apierrors.NewConflict(pods, "a", errors.New("the uid differs")),
		"invalid":  &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonInvalid, Message: `Pod "a" is invalid: metadata.uid: field is immutable`}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newFakeAPI()
				api.refuse = func(p podmeta.Patch) error {
					if p.Metadata.UID != "" && p.Metadata.UID != api.pod.UID {
						return refusal
					}
					return nil
				}
				r := newTestRegistrar(t, api)
				if err := r.want("greeter", desire("greeter"), time.Second); err != nil {
					t.Fatal(err)
				}
				api.edit(func(p *corev1.Pod) {
					p.UID, p.Labels, p.Annotations = "2", map[string]string{}, map[string]string{}
				})
				synctest.Wait()
				if !r.registered() { // the other pod's state is not this pod's
					t.Error("the other pod was observed")
				}
				removal := removalOf("greeter")
				err := r.want("greeter", &registration{metadata: removal, removal: removal}, time.Second)
				if err == nil || !strings.Contains(err.Error(), "another pod has this name now") {
					t.Errorf("the error is %v", err)
				}
			})
		})
	}
}

func TestInvalidRegistrationIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		api.refuse = func(p podmeta.Patch) error {
			if p.Metadata.Labels[podmeta.SelectorPrefix+"long"] != nil {
				return &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonInvalid, Message: "must be no more than 63 bytes"}}
			}
			return nil
		}
		r := newTestRegistrar(t, api)
		if err := r.want("greeter", desire("greeter"), time.Second); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := r.want("long", desire("long"), time.Second); err == nil || !strings.Contains(err.Error(), "63 bytes") || strings.Contains(err.Error(), "another pod") {
				t.Errorf("the error is %v", err)
			}
		}
		time.Sleep(time.Minute)
		if n := api.count(); n != 4 || !r.registered() || r.lastError("greeter") != nil {
			t.Errorf("%d PATCH, want 4; registered %v, the error %v", n, r.registered(), r.lastError("greeter"))
		}
	})
}

func TestObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		var changes atomic.Int32
		r := newRegistrar(nil, func() { changes.Add(1) }, nil)
		r.connected(pod(api))
		defer r.stop()
		if r.podGracePeriod() != 30*time.Second || !r.podTerminatingSince().IsZero() {
			t.Errorf("before the pod is known: grace period %s, terminating since %s", r.podGracePeriod(), r.podTerminatingSince())
		}
		if err := r.want("greeter", desire("greeter"), time.Second); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		before := changes.Load()
		stale := api.pod.DeepCopy()
		stale.ResourceVersion, stale.Labels = "1", nil
		ownPod{r}.Update(stale)
		if !r.registered() || changes.Load() != before {
			t.Error("a version that is older than the last patch was observed")
		}
		seconds := int64(60)
		api.edit(func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = &seconds })
		synctest.Wait()
		if r.podGracePeriod() != time.Minute || changes.Load() == before {
			t.Errorf("the grace period is %s, after %d changes", r.podGracePeriod(), changes.Load()-before)
		}
		time.Sleep(time.Second)
		deletion, shorter := time.Now(), int64(7)
		api.edit(func(p *corev1.Pod) {
			p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &metav1.Time{Time: deletion.Add(time.Hour)}, &shorter
		})
		time.Sleep(time.Second)
		api.edit(func(*corev1.Pod) {})
		synctest.Wait()
		if r.podGracePeriod() != 7*time.Second || !r.podTerminatingSince().Equal(deletion) {
			t.Errorf("the grace period is %s, terminating since %s, want %s", r.podGracePeriod(), r.podTerminatingSince(), deletion)
		}
		ownPod{r}.Delete(&api.pod)
		ownPod{r}.StateChanged(errForbidden)
		if !r.registered() {
			t.Error("not registered any more")
		}
	})
}

func TestStatusChangesAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		var mu sync.Mutex
		var reported []string
		states := map[string]bool{}
		var r *registrar
		r = newRegistrar(nil, func() {
			mu.Lock()
			defer mu.Unlock()
			states[fmt.Sprintf("registered %v, pending %v", r.registered(), r.pending(anyService))] = true
		}, func(operation string, err error) {
			mu.Lock()
			defer mu.Unlock()
			reported = append(reported, fmt.Sprint(operation, ": ", err))
		})
		r.connected(pod(api))
		defer r.stop()
		api.refuse = func(podmeta.Patch) error { return errForbidden }
		_ = r.want("greeter", desire("greeter"), 0)
		time.Sleep(10 * time.Second)
		_ = r.want("greeter", desire("greeter"), 0) // the service has changed, the error has not
		time.Sleep(10 * time.Second)
		port := 40000
		api.set(func() {
			api.refuse = func(podmeta.Patch) error { port++; return fmt.Errorf("read from port %d: reset", port) }
		})
		time.Sleep(10 * time.Second)
		api.set(func() { api.refuse = nil })
		time.Sleep(10 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		want := []string{`writing service "greeter" to the pod: patch pod "a": pods is forbidden`, `writing service "greeter" to the pod: patch pod "a": read from port 40001: reset`, `writing service "greeter" to the pod: <nil>`}
		if !slices.Equal(reported, want) || port < 40005 {
			t.Errorf("after %d resets reported is %q, want %q", port-40000, reported, want)
		}
		if len(states) != 2 || !states["registered false, pending true"] || !states["registered true, pending false"] {
			t.Errorf("the states are %v", states)
		}
	})
}

// A new call that waits for the API server tries at once, whatever the delay, except when something
// else keeps changing the registration.
func TestNewCallOfRegister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		r := newTestRegistrar(t, api)
		api.refuse, api.retryAfter = func(podmeta.Patch) error { return errForbidden }, time.Hour
		d := desire("greeter")
		if err := r.want("greeter", d, time.Second); !errors.Is(err, errForbidden) {
			t.Fatal(err)
		}
		again := desire("greeter") // go-micro's periodic call after a change of the service
		if err := r.want("greeter", again, 0); err != nil || !errors.Is(r.lastError("greeter"), errForbidden) {
			t.Errorf("a call that does not wait returns %v, and the error is then %v", err, r.lastError("greeter"))
		}
		before, begin := api.count(), time.Now()
		if err := r.want("greeter", again, time.Second); !errors.Is(err, errForbidden) || time.Since(begin) > 0 || api.count() != before+1 {
			t.Errorf("a call that waits returns %v after %s and %d PATCH", err, time.Since(begin), api.count()-before)
		}
		before = api.count()
		api.set(func() { api.refuse = nil })
		if err := r.want("greeter", again, time.Second); err != nil || time.Since(begin) > 0 || api.count() != before+1 {
			t.Errorf("a call that waits returns %v after %s and %d PATCH", err, time.Since(begin), api.count()-before)
		}

		api.admit = dropLabel
		api.edit(dropLabel)
		time.Sleep(5 * time.Second)
		before, begin = api.count(), time.Now()
		if err := r.want("greeter", again, time.Second); err == nil || !strings.Contains(err.Error(), "something else") || api.count() != before || time.Since(begin) > 0 {
			t.Errorf("a call for a contested registration returns %v after %s and %d PATCH", err, time.Since(begin), api.count()-before)
		}
	})
}

func TestWriteThatIsUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, name := newFakeAPI(), uniqueName()
		api.admit = func(p *corev1.Pod) { delete(p.Labels, podmeta.SelectorPrefix+name) }
		r := newTestRegistrar(t, api)
		begin := time.Now()
		err := r.want(name, desire(name), 500*time.Millisecond)
		if err == nil || !strings.Contains(err.Error(), `on pod "a"`) || !strings.Contains(err.Error(), "at most every 30s") || time.Since(begin) != 500*time.Millisecond {
			t.Errorf("after %s the error is %v", time.Since(begin), err)
		}
		time.Sleep(time.Minute)
		if lines := logLines(t, fmt.Sprintf("Registering %q: something else", name)); len(lines) != 1 {
			t.Errorf("the log is %q, want one line", lines)
		}
		if lines := logLines(t, fmt.Sprintf("Registered %q", name)); len(lines) != 0 {
			t.Errorf("the log is %q although the pod has no label", lines)
		}
	})
}

func TestServicesWithTheSameLabel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		r := newTestRegistrar(t, api)
		if err := r.want("a/b", desire("a/b"), time.Second); err != nil {
			t.Fatal(err)
		}
		if err := r.want("a:b", desire("a:b"), time.Second); err == nil || !strings.Contains(err.Error(), `"a/b"`) || !strings.Contains(err.Error(), `"micro.mu/selector-a_b"`) {
			t.Errorf("the error is %v", err)
		}
		if all := r.services(); len(all) != 1 || all[0].Name != "a/b" || !r.registered() {
			t.Errorf("%d services, registered %v", len(all), r.registered())
		}
		// A deregistration that is not confirmed yet gives way to the other service.
		api.set(func() { api.refuse, api.retryAfter = func(podmeta.Patch) error { return errForbidden }, time.Minute })
		removal := removalOf("a/b")
		_ = r.want("a/b", &registration{metadata: removal, removal: removal}, time.Second)
		api.set(func() { api.refuse, api.retryAfter = nil, 0 })
		if err := r.want("a:b", desire("a:b"), time.Second); err != nil {
			t.Fatal(err)
		}
		before := api.count()
		time.Sleep(5 * time.Minute)
		if n := api.count() - before; n != 0 {
			t.Errorf("%d more PATCH, want none", n)
		}
		if all := r.services(); !r.registered() || len(all) != 1 || !api.has("a_b") {
			t.Errorf("%d services, registered %v, the pod has the registration %v", len(all), r.registered(), api.has("a_b"))
		}
	})
}

// Somebody must change a right or the service before these refusals end: the delay grows to 30 s, so that
// thousands of pods do not send thousands of requests a second for ever.
func TestPermanentRefusalsAreRetriedSlowly(t *testing.T) {
	for code, most := range map[int32]int{http.StatusForbidden: 50, http.StatusUnprocessableEntity: 50, http.StatusNotFound: 50,
		http.StatusConflict: 1000, http.StatusTooManyRequests: 1000, http.StatusServiceUnavailable: 1000} {
		synctest.Test(t, func(t *testing.T) {
			api := newFakeAPI()
			r := newTestRegistrar(t, api)
			api.refuse = func(podmeta.Patch) error { return &apierrors.StatusError{ErrStatus: metav1.Status{Code: code}} }
			_ = r.want("greeter", desire("greeter"), 0)
			time.Sleep(10 * time.Minute)
			if n := api.count(); n > most || most > 50 && n < 300 || n < 15 {
				t.Errorf("%d: %d PATCH in 10 minutes, want at most %d", code, n, most)
			}
			if all := gaps(api); slices.Max(all) > 30*time.Second {
				t.Errorf("%d: the longest delay is %s", code, slices.Max(all))
			}
			api.set(func() { api.refuse = nil })
			time.Sleep(30 * time.Second)
			if !r.registered() {
				t.Errorf("%d: not registered 30 s after the cause has gone", code)
			}
		})
	}
}

// After etcd was restored from a backup the pod has an older version, without the registration.
func TestRegistrationIsRestoredAfterEtcd(t *testing.T) {
	backup := func(p *corev1.Pod) {
		p.ResourceVersion = "0"
		clear(p.Labels)
		clear(p.Annotations)
	}
	synctest.Test(t, func(t *testing.T) {
		api := newFakeAPI()
		api.pod.ResourceVersion = "100"
		r := newTestRegistrar(t, api)
		if err := r.want("greeter", desire("greeter"), time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		api.set(func() { backup(&api.pod) })
		ownPod{r}.Replace([]*corev1.Pod{api.pod.DeepCopy()}) // a LIST
		time.Sleep(time.Second)
		if !api.has("greeter") || !r.registered() || api.count() != 2 {
			t.Errorf("after %d PATCH: on the pod %v, registered %v", api.count(), api.has("greeter"), r.registered())
		}
		time.Sleep(time.Hour)
		api.set(func() { backup(&api.pod) }) // nothing says so before the next patch
		if err := r.want("other", desire("other"), time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if !api.has("greeter") || !api.has("other") || !r.registered() || api.count() > 5 {
			t.Errorf("after %d PATCH: on the pod %v and %v, registered %v", api.count(), api.has("greeter"), api.has("other"), r.registered())
		}
	})
}
