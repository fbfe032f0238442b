package callstats

import (
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
