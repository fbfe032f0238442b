package callstats

import (
	"slices"
	"strings"
	"testing"
)

func TestErrorHistory(t *testing.T) {
	var h errorHistory
	check := func(what string, calls, errors, inARow int) {
		t.Helper()
		if c, f := h.last(63); c != calls || f != errors || h.inARow() != inARow {
			t.Errorf("%s: %d errors in %d calls, %d in a row, want %d in %d, %d in a row", what, f, c, h.inARow(), errors, calls, inARow)
		}
	}
	check("empty", 0, 0, 0)
	h.add(true)
	check("one error", 1, 1, 1)
	h.add(true)
	h.add(false)
	check("a good answer", 3, 2, 0)
	for range 40 {
		h.add(true)
	}
	check("40 errors", 43, 42, 40)
	if calls, errors := h.last(41); calls != 41 || errors != 40 {
		t.Errorf("%d errors in the last %d calls", errors, calls)
	}
	for range 100 {
		h.add(true)
	}
	check("140 errors", 63, 63, 63)
	for range 20 {
		h.add(false)
	}
	check("20 good answers", 63, 43, 0)
	for range 100 {
		h.add(false)
	}
	check("120 good answers", 63, 0, 0)
	h.clear()
	check("cleared", 0, 0, 0)
}

func TestFailsMoreThan(t *testing.T) {
	good := func(n int) string { return strings.Repeat(".", n) }
	bad := func(n int) string { return strings.Repeat("x", n) }
	half := func(n int) string { return strings.Repeat(".x", n/2) }
	for _, c := range []struct {
		what    string
		suspect string
		others  []string // x is an error
		want    bool
	}{
		{"5 errors in a row, the others are good", good(63) + bad(5), []string{good(63), good(63), good(63)}, true},
		{"4 errors in a row", good(63) + bad(4), []string{good(63), good(63), good(63)}, false},
		{"the only instance", bad(63), nil, false},
		{"nothing is known of the others", bad(63), []string{"", ""}, false},
		{"little is known of the others", bad(5), []string{good(2)}, false},
		{"two instances", good(63) + bad(7), []string{good(63)}, true},
		{"all have begun to fail", good(63) + bad(8), []string{good(63) + bad(3), good(63) + bad(2), good(63) + bad(4)}, false},
		{"all fail", bad(63), []string{bad(63), bad(63), bad(63)}, false},
		{"half of all calls fail", half(58) + bad(5), []string{half(62), half(62), half(62)}, false},
		{"half of its calls fail, the others are good", half(62), []string{good(63), good(63), good(63)}, true},
		{"a seventh of its calls fail", bad(9) + good(54), []string{good(63), good(63), good(63)}, false},
		{"half of its calls fail, and of one other's", half(62), []string{half(62), good(63), good(63), good(63)}, false},
	} {
		instances := make([]Stats, 1+len(c.others))
		for i, text := range append([]string{c.suspect}, c.others...) {
			for _, r := range text {
				instances[i].errors.add(r == 'x')
			}
		}
		others := func(yield func(*Stats) bool) {
			for i := range c.others {
				if !yield(&instances[1+i]) {
					return
				}
			}
		}
		if got := instances[0].errors.suspicious() && instances[0].failsMoreThan(others); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

// From how many server errors on an instance is blamed, against others with a history each of
// so many answers and server errors: spread over its last 63 answers, and in a row after 63 good
// answers. The fewer answers are known of the others, and the more they differ, the more it takes.
func TestFailsMoreThanFromThisNumberOn(t *testing.T) {
	spread := func(answers, errors int) *Stats { // evenly; the last answer is good
		var s Stats
		for i := range answers {
			s.errors.add((i+1)*errors/answers > i*errors/answers && i < answers-1)
		}
		return &s
	}
	for _, c := range []struct {
		others      [][2]int // answers, errors
		share, aRow int
	}{
		{[][2]int{{63, 0}}, 21, 7},
		{[][2]int{{63, 0}, {63, 0}}, 13, 5},
		{[][2]int{{20, 0}}, 41, 10},
		{[][2]int{{10, 0}}, 50, 15},
		{[][2]int{{63, 6}}, 31, 10},
		{[][2]int{{63, 6}, {63, 6}, {63, 6}}, 22, 8},
		{[][2]int{{63, 20}}, 48, 20},
		{[][2]int{{63, 20}, {63, 0}}, 31, 12},
		{[][2]int{{63, 30}, {63, 0}, {63, 0}, {63, 0}}, 32, 9},
		{[][2]int{{63, 15}, {63, 15}, {63, 0}, {63, 0}}, 24, 9},
		{[][2]int{{5, 2}, {63, 3}}, 26, 9},
	} {
		var others []*Stats
		for _, o := range c.others {
			others = append(others, spread(o[0], o[1]))
		}
		first := func(suspect func(errors int) *Stats) int {
			for n := range 64 {
				if suspect(n).failsMoreThan(slices.Values(others)) {
					return n
				}
			}
			return -1
		}
		share := first(func(errors int) *Stats {
			var s Stats
			for i := range 63 {
				s.errors.add((i+1)*errors/62 > i*errors/62 && i < 62)
			}
			return &s
		})
		aRow := first(func(errors int) *Stats {
			s := spread(63, 0)
			for range errors {
				s.errors.add(true)
			}
			return s
		})
		if share != c.share || aRow != c.aRow {
			t.Errorf("others %v: %d errors, %d in a row, want %d and %d", c.others, share, aRow, c.share, c.aRow)
		}
	}
}
