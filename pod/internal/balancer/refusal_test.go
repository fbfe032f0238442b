package balancer

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
)

// callAll makes calls of 8 callers for 10 s, and returns how many each instance got. An instance that refuses a call
// does it at once; others answer after 10 ms.
func callAll(t *testing.T, s *Selector, refuses func(*discovery.Instance) bool) map[*discovery.Instance]int {
	t.Helper()
	calls := map[*discovery.Instance]int{}
	var mu sync.Mutex
	var callers sync.WaitGroup
	end := time.Now().Add(10 * time.Second)
	for range 8 {
		callers.Go(func() {
			for time.Now().Before(end) {
				c := chooseOne(t, s)
				mu.Lock()
				calls[c.Instance]++
				mu.Unlock()
				if refuses(c.Instance) {
					c.Done(outcome.Refused, refused)
					time.Sleep(10 * time.Millisecond)
					continue
				}
				time.Sleep(10 * time.Millisecond)
				c.Done(outcome.Answered, nil)
			}
		})
	}
	callers.Wait()
	return calls
}

func TestRefusingInstanceDoesNotAttractCalls(t *testing.T) {
	r, inf := newStaticRegistry(t, 4)
	instances := inf.Snapshot().Instances
	for _, warmUp := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s := newSelector(r)
			if warmUp {
				callAll(t, s, func(*discovery.Instance) bool { return false })
			}
			calls := callAll(t, s, func(i *discovery.Instance) bool { return i == instances[0] })
			all := 0
			for _, n := range calls {
				all += n
			}
			if share := float64(calls[instances[0]]) / float64(all); share > 0.05 {
				t.Errorf("warmed up %v: an instance of 4 that refuses all calls gets %.1f %% of them, want at most 5 %%", warmUp, 100*share)
			}
			if instances[0].Calls.Report(callstats.Clock()).Failures != 0 {
				t.Error("the refusing instance is ejected")
			}
		})
	}
}

func TestInstancesThatAllRefuseAreNotEjected(t *testing.T) {
	r, inf := newStaticRegistry(t, 4)
	synctest.Test(t, func(t *testing.T) {
		s := newSelector(r)
		calls := callAll(t, s, func(*discovery.Instance) bool { return true })
		for i, n := range calls {
			if i.Calls.Report(callstats.Clock()).Failures != 0 {
				t.Error("an instance is ejected")
			}
			if n < 1000 || n > 3000 {
				t.Errorf("an instance of 4 got %d of 8000 calls", n)
			}
		}
		if len(calls) != len(inf.Snapshot().Instances) {
			t.Errorf("only %d instances got calls", len(calls))
		}
	})
}
