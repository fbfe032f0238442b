package podmeta

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/micro/go-micro/v2/registry"
)

func TestCutEndpoints(t *testing.T) {
	for _, c := range []struct{ annotation, rest, endpoints string }{
		{`{"name":"a","endpoints":[{"name":"x]"},[]],"nodes":[]}`, `{"name":"a","endpoints":7,"nodes":[]}`, `[{"name":"x]"},[]]`},
		{`{ "endpoints" : [ ] }`, `{ "endpoints" : 7 }`, `[ ]`},
		{`{"metadata":{"endpoints":[1]},"name":"endpoints","endpoints":[2]}`, `{"metadata":{"endpoints":[1]},"name":"endpoints","endpoints":7}`, `[2]`},
		{`{"a\"":"\\","\"endpoints":[1],"endpoints":["\\"]}`, `{"a\"":"\\","\"endpoints":[1],"endpoints":7}`, `["\\"]`},
		{`{"endpoints":7}`, `{"endpoints":7}`, ""},
		{`{"endpoints":null}`, `{"endpoints":null}`, ""},
		{`{"name":"a"}`, `{"name":"a"}`, ""},
		{`{"endpoints":[`, `{"endpoints":[`, ""},
		{`{"endpoints":["`, `{"endpoints":["`, ""},
		{`{"endpoints"`, `{"endpoints"`, ""},
		{`{"endpoints":`, `{"endpoints":`, ""},
		{`["endpoints",[1]]`, `["endpoints",[1]]`, ""},
		{`"\`, `"\`, ""},
		{"", "", ""},
	} {
		got := ""
		rest := CutEndpoints(c.annotation, func(endpoints string) uint64 { got = endpoints; return 7 })
		if rest != c.rest || got != c.endpoints {
			t.Errorf("%s: %s without %q, want %s without %q", c.annotation, rest, got, c.rest, c.endpoints)
		}
		if again := CutEndpoints(rest, func(string) uint64 { return 8 }); again != rest {
			t.Errorf("%s cut again: %s", rest, again)
		}
	}
}

func TestDecodeEndpointsLimit(t *testing.T) {
	for n, accepted := range map[int]bool{maxEndpointObjects: true, maxEndpointObjects + 1: false} {
		_, err := DecodeEndpoints("[{}" + strings.Repeat(",{}", n-2) + "]")
		if (err == nil) != accepted || err != nil && !strings.Contains(err.Error(), "8193 JSON objects and arrays, more than 8192") {
			t.Errorf("%d objects and arrays: %v", n, err)
		}
	}
	for _, text := range []string{"", "7", `[7]`, `[{"name":7}]`, "["} {
		if all, err := DecodeEndpoints(text); err == nil {
			t.Errorf("%q is decoded as %v", text, all)
		}
	}
}

// checkNoNull reports each null that go-micro would follow.
func checkNoNull(t *testing.T, endpoints []*registry.Endpoint) {
	t.Helper()
	var check func(v *registry.Value)
	check = func(v *registry.Value) {
		if v == nil {
			t.Error("a value is null")
			return
		}
		for _, w := range v.Values {
			check(w)
		}
	}
	for _, e := range endpoints {
		if e == nil {
			t.Error("an endpoint is null")
			continue
		}
		for _, v := range []*registry.Value{e.Request, e.Response} {
			if v != nil {
				check(v)
			}
		}
	}
}

func TestDecodeEndpointsRemovesNulls(t *testing.T) {
	value := `{"name":"v","values":[null,{"name":"w","values":[null,{"name":"x"}]}]}`
	all, err := DecodeEndpoints(`[null,{"name":"e","request":` + value + `,"response":` + value + `}]`)
	if err != nil {
		t.Fatal(err)
	}
	checkNoNull(t, all)
	if len(all) != 1 || all[0].Request.Values[0].Values[0].Name != "x" || all[0].Response.Values[0].Values[0].Name != "x" {
		t.Errorf("what is not null was changed: %+v", all)
	}
}

// FuzzDecode reads an annotation in both steps and compares the result with what encoding/json reads
// in one.
func FuzzDecode(f *testing.F) {
	f.Add(`{"name":"a","version":"v1","endpoints":[{"name":"x","request":{"values":[null]}},null],"nodes":[{"id":"a","address":"b"},null]}`)
	f.Add(`{"name":"a","endpoints":[null],"nodes":[{"id":"a","address":"b"}]}`)
	f.Add(`{"name":"a","endpoints":[{"name":"x","request":{"values":[{"values":[null]}]},"metadata":null}],"nodes":[{"address":"b","metadata":{"a":""}}]}`)
	f.Add(`null`)
	f.Add(``)
	f.Fuzz(func(t *testing.T, annotation string) {
		endpoints := ""
		rest := CutEndpoints(annotation, func(text string) uint64 { endpoints = text; return 7 })
		all, endpointsErr := DecodeEndpoints(endpoints)
		checkNoNull(t, all)
		s, number, err := Limits{AnyAddress: true}.Decode("a", rest, nil, &Usage{})
		if err != nil {
			return
		}
		if endpoints != "" && number != 7 && strings.Count(annotation, "ndpoints") == 1 {
			t.Errorf("the endpoints of %q have the number %d", annotation, number)
		}
		for _, n := range s.Nodes {
			if n == nil || n.Address == "" {
				t.Error("a node is null or has no address")
			}
		}
		var whole registry.Service
		if json.Unmarshal([]byte(annotation), &whole) == nil && (s.Name != whole.Name || s.Version != whole.Version || fmt.Sprint(s.Metadata) != fmt.Sprint(whole.Metadata)) {
			t.Errorf("%q is decoded as %+v", annotation, s)
		}
		if strings.Count(annotation, "ndpoints") == 1 && json.Unmarshal([]byte(annotation), &whole) == nil && endpoints != "" && (endpointsErr != nil || len(all) > len(whole.Endpoints)) {
			t.Errorf("the endpoints of %q are decoded as %v, %v", annotation, all, endpointsErr)
		}
	})
}
