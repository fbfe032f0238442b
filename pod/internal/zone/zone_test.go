package zone

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		instances, own, want string // a letter stands for an instance in the zone with this name, - for one whose zone is not known
	}{
		{"abcabcabc", "b", "bbb acacac"},
		{"abcabc", "a", "aa bcbc"},
		{"abcabc", "", ""},     // the own zone is not known
		{"abcabc", "d", ""},    // no instance is in it
		{"aabbc", "a", ""},     // five instances
		{"abbbbcccc", "a", ""}, // one of nine
		{"abbbbcccc", "b", "bbbb acccc"},
		{"aaaaaa", "a", ""},     // all are in it
		{"aabcccbbcc", "a", ""}, // 60 % of the share
		{"aaabcccbbcc", "a", "aaa bcccbbcc"},
		{"abcdef", "a", ""}, // no choice
		{"aaaaab", "a", "aaaaa b"},
		{"aa----", "a", ""}, // 33 % of the share in the only zone
		{"aaaaa-", "a", "aaaaa -"},
		{"aabb--cc", "a", "aa bb--cc"},
		{"------", "a", ""},
	} {
		all := strings.Split(c.instances, "")
		before := slices.Clone(all)
		ordered, local := Split(all, c.own, func(z string) string { return strings.Trim(z, "-") })
		got := ""
		if local > 0 {
			got = strings.Join(ordered[:local], "") + " " + strings.Join(ordered[local:], "")
		} else if &ordered[0] != &all[0] {
			t.Errorf("%s for zone %q: a copy without need", c.instances, c.own)
		}
		if got != c.want || !slices.Equal(all, before) {
			t.Errorf("%s for zone %q: %q, want %q; then %v", c.instances, c.own, got, c.want, all)
		}
	}
}

func ExampleSplit() {
	ordered, local := Split([]string{"b1", "a1", "c1", "a2", "c2", "b2"}, "a", func(i string) string { return i[:1] })
	fmt.Println(ordered[:local], ordered[local:])
	// Output: [a1 a2] [b1 c1 c2 b2]
}
