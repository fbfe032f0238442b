package retry

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/micro/go-micro/v2/metadata"
)

func begin(b *Budgets, kind Kind) (Retry, bool) {
	r, refusal := b.Of("greeter").Begin(context.Background(), Failure{Kind: kind})
	return r, refusal == Permitted
}

// failing makes n failing retries, one after the other, and returns how many of them were permitted.
func failing(b *Budgets, kind Kind, n int) (permitted int) {
	for range n {
		if r, ok := begin(b, kind); ok {
			permitted++
			r.End(false)
		}
	}
	return permitted
}

func TestFailingRetriesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Budgets
		for range 10000 { // the traffic before the outage does not count
			b.Succeeded("greeter")
		}
		if n := failing(&b, NoAnswer, 100); n != 10 {
			t.Errorf("%d of 100 retries at once, want 10", n)
		}
		if n := failing(&b, ErrorReply, 100); n != 10 {
			t.Errorf("%d of 100 retries of the other kind, want 10: it has a budget of its own", n)
		}
		n := 0
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			n += failing(&b, NoAnswer, 1)
		}
		if n < 5 || n > 7 {
			t.Errorf("%d failing retries in a minute, want 6", n)
		}
		for range 10 {
			b.Succeeded("greeter")
		}
		if n := failing(&b, NoAnswer, 10); n != 2 && n != 3 { // the minute may have left a part of one
			t.Errorf("%d failing retries after 10 calls that succeeded, want 2", n)
		}
		time.Sleep(2 * time.Minute)
		if n := failing(&b, NoAnswer, 100); n != 10 {
			t.Errorf("%d retries after 2 minutes without a call, want 10", n)
		}
		if c := b.Counts("greeter"); c.Made < 10+10+5+2+10 || c.Made > 10+10+7+3+10 || c.OverBudget != 910-c.Made {
			t.Errorf("%+v", c)
		}
	})
}

func TestRetriesThatSucceedCostNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Budgets
		for range 1000 {
			var all []Retry
			for range maxInFlight {
				r, ok := begin(&b, ErrorReply)
				if !ok {
					t.Fatal("a retry is refused although all succeed")
				}
				all = append(all, r)
			}
			if _, ok := begin(&b, ErrorReply); ok {
				t.Fatalf("more than %d retries are in flight", maxInFlight)
			}
			for _, r := range all {
				r.End(true)
				r.End(false) // has no effect
			}
		}
		if n := b.notFull.Load(); n != 0 {
			t.Errorf("%d budgets are not full", n)
		}
	})
}

// After a retry has failed, those whose end is not known count as failed.
func TestRetriesInFlightCountAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Budgets
		failing(&b, NoAnswer, 4)
		var all []Retry
		for range 20 {
			if r, ok := begin(&b, NoAnswer); ok {
				all = append(all, r)
			}
		}
		if len(all) != 6 {
			t.Errorf("%d retries in flight after 4 have failed, want 6", len(all))
		}
		for _, r := range all {
			r.End(true)
		}
		if n := failing(&b, NoAnswer, 20); n != 6 {
			t.Errorf("%d failing retries after 6 have succeeded, want 6", n)
		}
	})
}

func TestLostConnectionTakesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Budgets
		failing(&b, NoAnswer, 9)
		r, ok := begin(&b, NoAnswer)
		if !ok {
			t.Fatal("the last retry of the budget is refused")
		}
		sameLoss := Failure{Kind: NoAnswer, LossCharged: true}
		for range 24 {
			other, refusal := b.Of("greeter").Begin(t.Context(), sameLoss)
			if refusal != Permitted {
				t.Fatal("a call that was lost with the same connection is not retried")
			}
			other.End(false)
		}
		r.End(false)
		if _, refusal := b.Of("greeter").Begin(t.Context(), sameLoss); refusal != OverBudget {
			t.Error("a call that was lost with a connection is retried although the budget is used up")
		}
	})
}

func TestBudgetIsFullAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Budgets
		failing(&b, NoAnswer, 10)
		failing(&b, ErrorReply, 10)
		if n := b.notFull.Load(); n != 2 {
			t.Errorf("%d buckets are not full, want 2", n)
		}
		for range 51 { // 50 times 0.2 is a little less than 10
			b.Succeeded("greeter")
		}
		if n := b.notFull.Load(); n != 0 {
			t.Errorf("%d buckets are not full after 51 calls that have succeeded, want 0", n)
		}
	})
}

func TestServicesAreBounded(t *testing.T) {
	var b Budgets
	for i := range 2 * maxServices {
		b.Of(fmt.Sprint("service-", i)).Begin(t.Context(), Failure{Kind: NoAnswer})
	}
	if n := len(*b.services.Load()); n != maxServices+1 {
		t.Errorf("%d budgets, want %d", n, maxServices+1)
	}
	if c := b.Counts("service-1"); c.Made != 1 {
		t.Errorf("%+v", c)
	}
	if c := b.Counts("service-x"); c != (Counts{}) {
		t.Errorf("a service that was never called: %+v", c)
	}
}

func TestNoAllocations(t *testing.T) {
	var b Budgets
	ctx := metadata.NewContext(t.Context(), metadata.Metadata{"Trace": "1"})
	f := Failure{Kind: NoAnswer}
	if n := testing.AllocsPerRun(100, func() {
		b.Succeeded("greeter")
		r, _ := b.Of("greeter").Begin(ctx, f)
		r.End(false)
		b.Succeeded("greeter")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSucceeded(b *testing.B) {
	for name, failures := range map[string]int{"full": 0, "used up": 10} {
		b.Run(name, func(b *testing.B) {
			var budgets Budgets
			failing(&budgets, NoAnswer, failures)
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if failures > 0 {
						r, _ := begin(&budgets, NoAnswer)
						r.End(false)
					}
					budgets.Succeeded("greeter")
				}
			})
		})
	}
}
