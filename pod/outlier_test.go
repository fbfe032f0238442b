package pod

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
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
		frozen := pickOne(t, s) // without Mark: its call hangs
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
	for _, err := range []error{context.Canceled, // and the two forms that go-micro's client gives it
		errors.Timeout("go.micro.client", "%v", context.Canceled), errors.InternalServerError("go.micro.client", "context canceled")} {
		if s.Mark("greeter", pickOne(t, s), err); inf.snapshot().instances[0].failures.Load() != 0 {
			t.Errorf("%v counted as a failure of the instance", err)
		}
	}
}

func TestSelectorTriesAllWhenAllAreEjected(t *testing.T) {
	r, _ := newStaticRegistry(t, 3)
	s := NewSelector(r)
	seen := map[string]bool{}
	for range 200 {
		n := pickOne(t, s)
		seen[n.Address] = true
		s.Mark("greeter", n, timeout)
	}
	if len(seen) != 3 {
		t.Errorf("tried %v, want all three", seen)
	}
}

func TestSelectorClassifiesErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{timeout, true},
		{errors.InternalServerError("go.micro.client", "connection refused"), true},
		{context.DeadlineExceeded, true},
		{context.Canceled, false},
		{errors.InternalServerError("go.micro.srv.greeter", "no such row"), false},
		{errors.NotFound("go.micro.client", "no such method"), false},
		{fmt.Errorf("wrapped: %w", context.DeadlineExceeded), true},
	} {
		if got := isInstanceFault(c.err); got != c.want {
			t.Errorf("isInstanceFault(%v) = %v", c.err, got)
		}
	}
}

func TestSelectorReadmitsAfterSuccessAndForNewProcess(t *testing.T) {
	r, inf := newStaticRegistry(t, 1)
	s := NewSelector(r)
	n := pickOne(t, s)
	s.Mark("greeter", n, timeout)
	if inf.snapshot().instances[0].failures.Load() != 1 {
		t.Fatal("the failure was not noted")
	}
	s.Mark("greeter", pickOne(t, s), nil)
	if k := inf.snapshot().instances[0]; k.failures.Load() != 0 || k.ejectedUntil.Load() != 0 || k.inFlight.Load() != 0 {
		t.Errorf("after a success: %d failures, %d inFlight", k.failures.Load(), k.inFlight.Load())
	}
	s.Mark("greeter", pickOne(t, s), timeout)
	p := readyPod(t, 0)
	p.Annotations[annotationPrefix+"greeter"] = string(annotation(t, "p-0-restarted", "greeter", "v0", "10.0.0.1:1"))
	inf.Update(p)
	if k := inf.snapshot().instances[0]; k.failures.Load() != 0 {
		t.Error("the new process has the old one's failures")
	}
	// A status update that changes nothing keeps the failures.
	s.Mark("greeter", pickOne(t, s), timeout)
	inf.Update(p)
	if k := inf.snapshot().instances[0]; k.failures.Load() != 1 {
		t.Error("a status update ended the ejection")
	}
	s.Mark("greeter", n, nil)                                     // a process that has ended
	s.Mark("greeter", &registry.Node{Id: "x", Address: "y"}, nil) // an address of the caller's own
	s.Mark("nobody", n, nil)
}
