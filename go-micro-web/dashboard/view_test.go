package dashboard

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/test/process"
	"github.com/micro/go-micro/v2/registry"
)

func TestViewIsBounded(t *testing.T) {
	deep := &registry.Value{Type: "T"}
	for range 1000 {
		deep = &registry.Value{Type: "T", Values: []*registry.Value{deep, nil}}
	}
	big := greeterInstance(1, pod.Ready)
	big.Version, big.Endpoints = strings.Repeat("v", 1<<20), nil
	for i := range 10000 {
		big.Endpoints = append(big.Endpoints, &registry.Endpoint{Name: fmt.Sprint(i), Request: deep})
	}
	_, _, srv := serve(t, big)
	if _, body := get(t, srv.URL+root+"services.json"); len(body) > 64<<10 {
		t.Errorf("services.json is %d bytes, want at most 64 KiB", len(body))
	}
}

// hostilePod registers n instances under a name, as a pod that was taken over can.
func hostilePod(podName, serviceName string, n int) (instances []pod.Instance) {
	for i := range n {
		instances = append(instances, pod.Instance{Service: serviceName, Pod: podName, Address: fmt.Sprintf("10.9.9.9:%d", i), Version: strings.Repeat("<", 1000), State: pod.Terminating})
	}
	return instances
}

func TestOnePodCannotFillTheView(t *testing.T) {
	var instances []pod.Instance
	for i := range 1000 { // services that sort before the others
		instances = append(instances, hostilePod("evil", fmt.Sprintf("a-%03d", i), 11)...)
	}
	instances = append(instances, greeterInstance(1, pod.Ready))
	instances = append(instances, hostilePod("evil", "go-micro-srv", 11000)...)
	v := newView("web", "go-micro", instances, nil, nil)
	if len(v.json) > 256<<10 {
		t.Errorf("the view is %d KiB, want at most 256", len(v.json)>>10)
	}
	rows := map[string]int{}
	for _, s := range v.Services {
		for _, i := range s.Instances {
			rows[i.Pod]++
		}
	}
	if rows["evil"] != 32 || rows["go-micro-srv-1"] != 1 {
		t.Errorf("the view has %v", rows)
	}
	if want := "4 services, 33 instances: 1 ready, 32 terminating; 21968 more not shown"; v.Summary() != want {
		t.Errorf("the summary is %q, want %q", v.Summary(), want)
	}
	if srv := v.Services[len(v.Services)-1]; srv.StateText() != "1 ready; 11000 more not shown" {
		t.Errorf("go-micro-srv has %q", srv.StateText())
	}
}

func TestViewOmitsInstancesOverTheBounds(t *testing.T) {
	var instances []pod.Instance
	for s := range 10 {
		for i := range 1200 {
			in := greeterInstance(i, pod.Ready)
			in.Service, in.Pod = fmt.Sprint("service-", s), fmt.Sprintf("service-%d-%d", s, i)
			instances = append(instances, in)
		}
	}
	v := newView("web", "go-micro", instances, nil, nil)
	if want := "5 services, 5000 instances: 5000 ready; 7000 more not shown"; v.Summary() != want {
		t.Errorf("the summary is %q, want %q", v.Summary(), want)
	}
	if got := v.Services[0].StateText(); got != "1000 ready; 200 more not shown" {
		t.Errorf("the first service has %q", got)
	}
}

// The cost of a view is linear: ten times the instances take about ten times as
// long, whether they belong to many services or to many versions of one.
func TestViewCostIsLinear(t *testing.T) {
	for name, service := range map[string]func(i int) string{
		"services": func(i int) string { return fmt.Sprintf("service-%05d", i/10) },
		"versions": func(int) string { return "greeter" },
	} {
		cost := func(n int) time.Duration {
			var instances []pod.Instance
			for i := range n {
				in := greeterInstance(i, pod.Ready)
				in.Service = service(i)
				in.Endpoints = greeterInstance(i, pod.Ready).Endpoints // separate endpoints, as for separate versions
				in.Endpoints[0].Name = fmt.Sprint(i)
				instances = append(instances, in)
			}
			best := time.Hour
			for range 3 {
				begin := process.Time(t)
				for range 20000 / n {
					newView("web", "go-micro", instances, nil, nil)
				}
				best = min(best, process.Time(t)-begin)
			}
			return best
		}
		few, many := cost(500), cost(5000)
		t.Logf("%s: 40 views of 500 instances take %s, 4 of 5,000 %s", name, few, many)
		if many > 4*few { // if the cost were quadratic, 10 times
			t.Errorf("%s: 4 views of 5,000 instances take %s, 40 views of 500 %s", name, many, few)
		}
	}
}

// The page and the JSON show the certificates of the instances that have one, and nothing of the others, as without identities.
func TestCertificates(t *testing.T) {
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	issuedBy := func(signer pkix.Name) *x509.Certificate { return &x509.Certificate{Issuer: signer, NotAfter: until} }
	calls := callsOf([]pod.InstanceCalls{
		{Pod: "go-micro-srv-1", Address: address(1), InFlight: 2},
		{Pod: "go-micro-srv-2", Address: address(2), Certificate: issuedBy(pkix.Name{CommonName: "a signer", Organization: []string{"a shop"}})},
		{Pod: "go-micro-srv-3", Address: address(3), Certificate: issuedBy(pkix.Name{Organization: []string{"another shop"}})},
	})
	if want := map[callTarget]targetCalls{
		{"go-micro-srv-1", address(1)}: {InFlight: 2},
		{"go-micro-srv-2", address(2)}: {Certificate: certificate{"a signer", until.UTC()}},
		{"go-micro-srv-3", address(3)}: {Certificate: certificate{"O=another shop", until.UTC()}},
	}; !maps.Equal(calls, want) {
		t.Errorf("the calls are %+v, want %+v", calls, want)
	}
	c, _, srv := serve(t, greeterInstance(1, pod.Ready), greeterInstance(2, pod.Ready), greeterInstance(3, pod.Ready))
	c.setCalls(calls)
	_, html := get(t, srv.URL+root)
	_, services := get(t, srv.URL+root+"services.json")
	at := clock(until, now())
	for _, want := range []string{"encrypted, certificate of a signer until " + at + " UTC<", "encrypted, certificate of O=another shop until " + at + " UTC<"} {
		if strings.Count(html, want) != 1 {
			t.Errorf("the page does not contain %q once", want)
		}
	}
	if n := strings.Count(html, "encrypted"); n != 2 {
		t.Errorf("the page says %d times that an instance has a certificate, want 2", n)
	}
	if want := `"calls":{"inFlight":0,"certificate":{"signer":"a signer","notAfter":"` + until.UTC().Format(time.RFC3339) + `"}}`; strings.Count(services, want) != 1 || strings.Count(services, "certificate") != 2 {
		t.Errorf("services.json does not contain %s once: %s", want, services)
	}
}

// The page groups the instances by zone, after those that are unhealthy, and the JSON has the zones that are known.
func TestZones(t *testing.T) {
	var instances []pod.Instance
	for i, zone := range []string{"b", "a", "b", "<a", ""} {
		in := greeterInstance(i, pod.Ready)
		in.Zone = zone
		instances = append(instances, in)
	}
	instances[2].State = pod.NotReady
	_, _, srv := serve(t, instances...)
	_, html := get(t, srv.URL+root)
	_, services := get(t, srv.URL+root+"services.json")
	at := 0
	for _, want := range []string{"go-micro-srv-2", ">zone b<", "go-micro-srv-4", "go-micro-srv-3", ">zone &lt;a<", "go-micro-srv-1", ">zone a<", "go-micro-srv-0", ">zone b<"} {
		n := strings.Index(html[at:], want)
		if n < 0 {
			t.Fatalf("the page does not contain %q after %d bytes", want, at)
		}
		at += n
	}
	if n := strings.Count(html, ">zone "); n != 4 {
		t.Errorf("the page names %d zones, want 4", n)
	}
	if n := strings.Count(services, `"zone":"`); n != 4 || !strings.Contains(services, `"zone":"a"`) {
		t.Errorf("services.json has %d zones: %s", n, services)
	}
}
