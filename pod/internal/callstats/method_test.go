package callstats

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

func TestMethodsKeepsEachMethodApart(t *testing.T) {
	var m Methods
	for i := range 100 {
		m.Find(fmt.Sprint("Orders.Method", i)).observe(int64(i+1) * ms)
	}
	for i := range 100 {
		if got, want := m.Find(fmt.Sprint("Orders.Method", i)).usual(), int64(i+1)*ms; got > want || got < want-1024 {
			t.Errorf("method %d usually takes %d, want %d", i, got, want)
		}
	}
}

// A proxy passes on whatever name its callers send.
func TestMethodsHasAFixedSize(t *testing.T) {
	var m Methods
	known := m.Find("Orders.Get")
	if a := testing.AllocsPerRun(100, func() { m.Find("Orders.Get") }); a != 0 {
		t.Errorf("%v allocations", a)
	}
	known.observe(5 * ms)
	for i := range 10_000 {
		m.Find(fmt.Sprint("Unknown", i))
	}
	if m.Find("Orders.Get") != known {
		t.Error("a method that was known first is lost")
	}
	if m.Find("Unknown9999") != &m.rest || m.Find("Unknown9998") != &m.rest {
		t.Error("methods beyond the size do not share an estimate")
	}
}

func TestMethodsAreFoundByConcurrentCalls(t *testing.T) {
	var m Methods
	var group sync.WaitGroup
	var found [4][100]*Method
	for g := range found {
		group.Go(func() {
			for i := range found[g] {
				found[g][i] = m.Find(fmt.Sprint(i))
				found[g][i].observe(ms)
			}
		})
	}
	group.Wait()
	for i := range found[0] {
		for g := range found {
			if found[g][i] != found[0][i] {
				t.Fatalf("two goroutines found method %d at different places", i)
			}
		}
	}
}

// The estimate is the median: rare long calls do not move it, but a lasting change does.
func TestMethodUsuallyTakesTheMedian(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var m Method
	near := func(what string, want int64) {
		t.Helper()
		if got := m.usual(); got < want*2/3 || got > want*4/3 {
			t.Errorf("%s: %s, want about %s", what, time.Duration(got), time.Duration(want))
		}
	}
	m.observe(100 * ms)
	near("after the first call", 100*ms)
	for range 300 {
		m.observe(5 * ms)
	}
	near("after a first call that was slow", 5*ms)
	for i := range 10_000 {
		if i%100 == 0 {
			m.observe(2 * sec)
		} else {
			m.observe(4*ms + r.Int64N(2*ms))
		}
	}
	near("one of 100 calls takes 2 s", 5*ms)
	for range 300 {
		m.observe(2 * sec)
	}
	near("all take 2 s", 2*sec)
	for range 2000 {
		m.observe(0)
	}
	if got := m.usual(); got == 0 || got > 10_000 {
		t.Errorf("calls without duration: %d", got)
	}
	m.observe(1 << 62)
	if m = (Method{}); m.usual() != 0 {
		t.Error("a method of which nothing is known has a duration")
	}
	m.observe(1 << 62)
	if classOf(m.usual()) != long {
		t.Error("a call without end is not long")
	}
}

func TestClasses(t *testing.T) {
	for usual, want := range map[int64]class{0: long, 1: fast, 10*ms - 1: fast, 10 * ms: medium, 100*ms - 1: medium, 100 * ms: slow, sec - 1: slow, sec: long} {
		if got := classOf(usual); got != want {
			t.Errorf("%s: class %d, want %d", time.Duration(usual), got, want)
		}
	}
}
