package faults

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	h := Histogram{}
	if got := h.Quantile(0.5); got != 0 {
		t.Errorf("the median of nothing is %s", got)
	}
	for i := range 1000 {
		h.Add(time.Duration(i+1) * time.Millisecond)
	}
	for q, want := range map[float64]time.Duration{0.001: time.Millisecond, 0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond, 1: time.Second} {
		if got := h.Quantile(q); got < want || got > want*103/100 {
			t.Errorf("quantile %g: got %s, want %s and at most 3 %% more", q, got, want)
		}
	}
	if got := h.Longer(900 * time.Millisecond); got < 93*time.Second || got > 97*time.Second { // 901 + 902 + … + 1000 ms, to within a key
		t.Errorf("the durations that exceed 900 ms are %s together, want 95 s", got)
	}
	h = Histogram{}
	h.Add(0)
	if got := h.Quantile(0.99); got <= 0 || got > 2*time.Microsecond {
		t.Errorf("got %s for a duration of 0", got)
	}
}

// The log of a container arrives in arbitrary pieces, with lines that are not seconds.
func TestLoadReadsLog(t *testing.T) {
	begin := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	var log strings.Builder
	for i := range 5 {
		s := Second{Begin: begin.Add(time.Duration(i) * time.Second), End: begin.Add(time.Duration(i+1) * time.Second), Started: 10, Succeeded: 9, Failed: 1,
			Answered: map[string]int{"10.0.0.1:9100": 9}, FailedTries: map[string]int{"10.0.0.2:9100": 2}, Latencies: Histogram{8: 10}, Served: Histogram{9: 10},
			Failures: []Failure{{begin.Add(time.Duration(i)*time.Second - time.Minute), i}}}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&log, "2026-11-24T12:00:00.1Z stdout F %s\n2026-11-24T12:00:00.2Z stderr F a message %d\n", b, i)
	}
	for _, size := range []int{1, 7, 1000, log.Len()} {
		printed := 0
		l := &Load{onSecond: func(Second) { printed++ }}
		for part := range slices.Chunk([]byte(log.String()), size) {
			if _, err := l.Write(part); err != nil {
				t.Fatal(err)
			}
		}
		seconds, messages, err := l.Seconds()
		if len(seconds) != 5 || printed != 5 || err != nil || messages != "a message 0\na message 1\na message 2\na message 3\na message 4\n" {
			t.Fatalf("pieces of %d bytes: %d seconds, %d printed, %v, messages %q", size, len(seconds), printed, err, messages)
		}
		sum := Sum(seconds, begin.Add(time.Second), begin.Add(4*time.Second))
		if sum.Succeeded != 27 || sum.Failed != 3 || sum.Started != 30 || sum.PerSecond() != 9 || sum.FailedTries["10.0.0.2:9100"] != 6 || sum.Latencies[8] != 30 || sum.Served[9] != 30 {
			t.Errorf("the sum of three seconds is %+v", sum)
		}
		if late := Failures(seconds, begin.Add(2*time.Second-time.Minute)); len(late) != 2 || late[0].Caller != 3 || late[1].Caller != 4 {
			t.Errorf("after the third second began %+v, want those of the callers 3 and 4", late)
		}
		if err := l.AnsweredBy([]string{"10.0.0.1:9100"}, begin.Add(4*time.Second)); err != nil {
			t.Error(err)
		}
		for _, addresses := range [][]string{nil, {"10.0.0.2:9100"}, {"10.0.0.1:9100", "10.0.0.2:9100"}} {
			if l.AnsweredBy(addresses, begin) == nil {
				t.Errorf("AnsweredBy(%q) returns no error", addresses)
			}
		}
		if l.AnsweredBy([]string{"10.0.0.1:9100"}, begin.Add(5*time.Second)) == nil {
			t.Error("AnsweredBy accepts a line from before")
		}
	}
}

func TestFind(t *testing.T) {
	for _, f := range All {
		if got, err := Find(f.Name); err != nil || got.Title != f.Title || f.Description == "" || f.inject == nil {
			t.Errorf("fault %q: %v, %v", f.Name, got, err)
		}
	}
	if _, err := Find("nothing"); err == nil || !strings.Contains(err.Error(), "api-frozen") {
		t.Errorf("got %v, want an error that lists the faults", err)
	}
}
