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
	return `{"name":"a","nodes":[{"address":"10.0.0.1:1"}],"other":[{}` + strings.Repeat(",{}", n-5) + `]}`
}

func TestDecodeAcceptsWhatTheLimitsAllow(t *testing.T) {
	nodes := func(n int) string { return registrationOf("a", slices.Repeat([]string{own}, n)...) }
	for _, c := range []struct{ what, annotation, refused string }{
		{"one node", nodes(1), ""},
		{"no node", nodes(0), ""},
		{"16 nodes", nodes(16), ""},
		{"17 nodes", nodes(17), "17 nodes, more than 16"},
		{"32 KiB", sized(32 << 10), ""},
		{"32 KiB and a byte", sized(32<<10 + 1), "32769 bytes beside its endpoints, more than 32768"},
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
		s, _, err := Limits{}.Decode("a", c.annotation, ips, &Usage{})
		if c.refused == "" && (err != nil || s.Name != "a") || c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)) {
			t.Errorf("%s: %v, want %q", c.what, err, c.refused)
		}
	}
	for what, l := range map[string]Limits{"any address is accepted": {AnyAddress: true}, "the pod has no IP yet": {}} {
		pod := ips
		if !l.AnyAddress {
			pod = nil
		}
		if _, _, err := l.Decode("a", registrationOf("a", "gateway:1"), pod, &Usage{}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, _, err := (Limits{}).Decode("a_b", registrationOf("a/b", own), ips, &Usage{}); err != nil {
		t.Errorf("a name that LabelName changes: %v", err)
	}
}

func TestRegistrationsOfOnePodAreLimitedTogether(t *testing.T) {
	decode := func(used *Usage, annotation string) error {
		_, _, err := Limits{}.Decode("a", annotation, ips, used)
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

func TestDecodeRemovesNulls(t *testing.T) {
	s, _, err := Limits{AnyAddress: true}.Decode("a", `{"name":"a","nodes":[null,{"id":"1"},{"id":"2","address":"b"}]}`, nil, &Usage{})
	if err != nil || len(s.Nodes) != 1 || s.Nodes[0].Id != "2" {
		t.Errorf("decoded as %+v, %v", s, err)
	}
}
