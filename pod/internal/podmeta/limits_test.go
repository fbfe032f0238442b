package podmeta

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

var ips = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}

const own = "10.0.0.1:1"

// registrationOf returns an annotation with one node for each address.
func registrationOf(service string, addresses ...string) string {
	s := registry.Service{Name: service, Version: "v1"}
	for _, a := range addresses {
		s.Nodes = append(s.Nodes, &registry.Node{Id: a, Address: a})
	}
	b, _ := json.Marshal(s)
	return string(b)
}

// sized returns an annotation with so many bytes.
func sized(bytes int) string {
	r := registrationOf("a", own)
	return strings.Replace(r, `"v1"`, `"v1`+strings.Repeat("x", bytes-len(r))+`"`, 1)
}

// nested returns an annotation with so many JSON objects and arrays.
func nested(n int) string {
	return `{"name":"a","nodes":[{"address":"10.0.0.1:1"}],"endpoints":[{}` + strings.Repeat(",{}", n-5) + `]}`
}

func TestDecodeAcceptsWhatTheLimitsAllow(t *testing.T) {
	nodes := func(n int) string { return registrationOf("a", slices.Repeat([]string{own}, n)...) }
	for _, c := range []struct{ what, annotation, refused string }{
		{"one node", nodes(1), ""},
		{"no node", nodes(0), ""},
		{"16 nodes", nodes(16), ""},
		{"17 nodes", nodes(17), "17 nodes, more than 16"},
		{"32 KiB", sized(32 << 10), ""},
		{"32 KiB and a byte", sized(32<<10 + 1), "32769 bytes, more than 32768"},
		{"1024 objects and arrays", nested(1024), ""},
		{"1025 objects and arrays", nested(1025), "more than 1024 JSON objects"},
		{"1025 arrays", strings.Repeat("[", 1025), "more than 1024 JSON objects"},
		{"another service", registrationOf("b", own), `describes the service "b"`},
		{"a long name of another service", registrationOf(strings.Repeat("b", 1000), own), `"` + strings.Repeat("b", 64) + `"`},
		{"no name", `{"nodes":[]}`, "names no service"},
		{"no JSON", `{`, "JSON"},
		{"another type", `{"name":7}`, "number"},
		{"the pod's second IP, in another spelling", registrationOf("a", "[fd00:0::1]:1"), ""},
		{"no port", registrationOf("a", "10.0.0.1"), ""},
		{"the address of another pod", registrationOf("a", own, "10.0.0.2:1"), `"10.0.0.2:1" is not an IP of the pod, which has [10.0.0.1 fd00::1]; the registry option pod.AnyAddress accepts it`},
		{"a long host name", registrationOf("a", strings.Repeat("x", 1000)), `its address "` + strings.Repeat("x", 64) + `" is`},
		{"a host name", registrationOf("a", "gateway:1"), `"gateway:1" is not an IP`},
	} {
		s, err := Limits{}.Decode("a", c.annotation, ips, &Usage{})
		if c.refused == "" && (err != nil || s.Name != "a") || c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)) {
			t.Errorf("%s: %v, want %q", c.what, err, c.refused)
		}
	}
	for what, l := range map[string]Limits{"any address is accepted": {AnyAddress: true}, "the pod has no IP yet": {}} {
		pod := ips
		if !l.AnyAddress {
			pod = nil
		}
		if _, err := l.Decode("a", registrationOf("a", "gateway:1"), pod, &Usage{}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := (Limits{}).Decode("a_b", registrationOf("a/b", own), ips, &Usage{}); err != nil {
		t.Errorf("a name that LabelName changes: %v", err)
	}
}

func TestRegistrationsOfOnePodAreLimitedTogether(t *testing.T) {
	decode := func(used *Usage, annotation string) error {
		_, err := Limits{}.Decode("a", annotation, ips, used)
		return err
	}
	var used Usage
	for n := range 32 {
		annotation := registrationOf("a", own)
		if n%2 == 0 { // what cannot be decoded counts too
			annotation = "{"
		}
		if err := decode(&used, annotation); (err != nil) != (annotation == "{") {
			t.Fatalf("registration %d: %v", n+1, err)
		}
	}
	if err := decode(&used, registrationOf("a", own)); err == nil || !strings.Contains(err.Error(), "more than 32 registrations") {
		t.Errorf("the 33rd registration: %v", err)
	}
	used = Usage{}
	if err := decode(&used, sized(32<<10)); err != nil {
		t.Fatal(err)
	}
	if err := decode(&used, sized(32<<10+1)); err == nil { // counts nothing, as it is not read
		t.Fatal("a registration of more than 32 KiB is accepted")
	}
	if err := decode(&used, sized(32<<10)); err != nil {
		t.Errorf("64 KiB together: %v", err)
	}
	if err := decode(&used, "{"); err == nil || !strings.Contains(err.Error(), "more than 65536 bytes together") {
		t.Errorf("a byte more than 64 KiB together: %v", err)
	}
}

func TestPodIPs(t *testing.T) {
	for _, c := range []struct {
		ip   string
		all  []string
		want string
	}{
		{"", nil, "[]"},
		{"10.0.0.1", nil, "[10.0.0.1]"},
		{"10.0.0.1", []string{"10.0.0.1", "fd00::1", "none"}, "[10.0.0.1 fd00::1]"},
	} {
		p := &corev1.Pod{Status: corev1.PodStatus{PodIP: c.ip}}
		for _, ip := range c.all {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
		}
		if got := fmt.Sprint(PodIPs(p)); got != c.want {
			t.Errorf("PodIPs of %q and %q is %s, want %s", c.ip, c.all, got, c.want)
		}
	}
}

// checkNoNull reports each null that go-micro would follow, and each node without an address.
func checkNoNull(t *testing.T, s *registry.Service) {
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
	for _, n := range s.Nodes {
		if n == nil || n.Address == "" {
			t.Error("a node is null or has no address")
		}
	}
	for _, e := range s.Endpoints {
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

func TestDecodeRemovesNulls(t *testing.T) {
	value := `{"name":"v","values":[null,{"name":"w","values":[null,{"name":"x"}]}]}`
	s, err := Limits{AnyAddress: true}.Decode("a", `{"name":"a","nodes":[null,{"id":"1"},{"id":"2","address":"b"}],
		"endpoints":[null,{"name":"e","request":`+value+`,"response":`+value+`}]}`, nil, &Usage{})
	if err != nil {
		t.Fatal(err)
	}
	checkNoNull(t, s)
	if len(s.Nodes) != 1 || s.Nodes[0].Id != "2" || len(s.Endpoints) != 1 || s.Endpoints[0].Request.Values[0].Values[0].Name != "x" || s.Endpoints[0].Response.Values[0].Values[0].Name != "x" {
		t.Errorf("what is not null was changed: %+v", s)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(`{"name":"a","version":"v1","endpoints":[{"name":"x","request":{"values":[null]}},null],"nodes":[{"id":"a","address":"b"},null]}`)
	f.Add(`{"name":"a","endpoints":[null],"nodes":[{"id":"a","address":"b"}]}`)
	f.Add(`{"name":"a","endpoints":[{"name":"x","request":{"values":[{"values":[null]}]},"metadata":null}],"nodes":[{"address":"b","metadata":{"a":""}}]}`)
	f.Add(`null`)
	f.Add(``)
	f.Fuzz(func(t *testing.T, annotation string) {
		if s, err := (Limits{AnyAddress: true}).Decode("a", annotation, nil, &Usage{}); err == nil {
			checkNoNull(t, s)
		}
	})
}
