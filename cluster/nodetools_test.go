package main

import (
	"testing"
)

func TestOlder(t *testing.T) {
	for _, c := range []struct {
		v, min string
		want   bool
	}{{"1.6.20", "1.6", false}, {"1.5.9", "1.6", true}, {"2.0", "1.6", false}, {"", "1.1", true}, {"1.0.1", "1.0.1", false}, {"5.4.0", "5.13", true}, {"1", "1.1", false}} {
		if got := older(c.v, c.min); got != c.want {
			t.Errorf("older(%q, %q) = %v", c.v, c.min, got)
		}
	}
}
