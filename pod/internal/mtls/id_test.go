package mtls

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestParseID(t *testing.T) {
	for uri, want := range map[string]ID{
		"spiffe://cluster.local/ns/shop/sa/page":  {"spiffe://cluster.local/ns/shop/sa/page", "cluster.local", "shop", "page"},
		"spiffe://cluster.local/ns/shop/sa/a.b-1": {"spiffe://cluster.local/ns/shop/sa/a.b-1", "cluster.local", "shop", "a.b-1"},
		"spiffe://x":                                  {"spiffe://x", "x", "", ""},
		"spiffe://x/some/Other_path":                  {"spiffe://x/some/Other_path", "x", "", ""},
		"spiffe://x/sa/shop/ns/page":                  {"spiffe://x/sa/shop/ns/page", "x", "", ""},
		"spiffe://x/ns/shop/sa/page/more":             {"spiffe://x/ns/shop/sa/page/more", "x", "", ""},
		"spiffe://" + strings.Repeat("a", 255) + "/b": {"spiffe://" + strings.Repeat("a", 255) + "/b", strings.Repeat("a", 255), "", ""},
	} {
		if got, err := ParseID(uri); err != nil || got != want {
			t.Errorf("ParseID(%q) = %+v, %v", uri, got, err)
		}
	}
	for _, uri := range []string{
		"", "spiffe:", "spiffe://", "spiffe:///ns/a/sa/b", "https://x/ns/a/sa/b", "SPIFFE://x/a", "spiffe://X/ns/a/sa/b", "spiffe://x/", "spiffe://x/ns/a/sa/b/", "spiffe://x//ns/a/sa/b",
		"spiffe://x/ns/../sa/b", "spiffe://x/ns/./sa/b", "spiffe://x/ns/a%2f/sa/b", "spiffe://x:80/ns/a/sa/b", "spiffe://u@x/ns/a/sa/b", "spiffe://x/ns/a/sa/b?q", "spiffe://x/ns/a/sa/b#f", "spiffe://x/ns/ä/sa/b",
		"spiffe://x/ns/a/sa/b\x00", "spiffe://" + strings.Repeat("a", 256), "spiffe://x/" + strings.Repeat("a", 2048), "spiffe://x/a b",
	} {
		if got, err := ParseID(uri); err == nil {
			t.Errorf("ParseID(%q) = %+v, want an error", uri, got)
		}
	}
}

func TestCallers(t *testing.T) {
	own, err := ParseID(ofServer)
	if err != nil {
		t.Fatal(err)
	}
	c := parseCallers(own, []byte("# who calls\n\npage\r\n\tother/worker # of the other team\nspiffe://cluster.local/ns/x/sa/y\nspiffe://elsewhere/ns/x/sa/y\na/b/c\n*\npage extra\n/\n../page\n"))
	want := []string{"spiffe://cluster.local/ns/other/sa/worker", "spiffe://cluster.local/ns/shop/sa/page", "spiffe://cluster.local/ns/x/sa/y"}
	if got := slices.Sorted(maps.Keys(c.listed)); !slices.Equal(got, want) {
		t.Errorf("the list has %q, want %q", got, want)
	}
	if len(c.unreadable) != 6 || !strings.HasPrefix(c.unreadable[0], "line 6: ") || !strings.Contains(c.unreadable[0], "another trust domain") {
		t.Errorf("skipped: %q", c.unreadable)
	}
	for _, test := range []struct {
		list *string
		id   string
		want bool
	}{
		{nil, ofClient, true},
		{nil, "spiffe://cluster.local/ns/other/sa/page", false},
		{nil, "spiffe://cluster.local/shop/page", false},
		{new(""), ofClient, false},
		{new("page"), ofClient, true},
		{new("page"), "spiffe://cluster.local/ns/other/sa/page", false},
	} {
		c := callers{own: own}
		if test.list != nil {
			c = parseCallers(own, []byte(*test.list))
		}
		id, err := ParseID(test.id)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.permits(id); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}
