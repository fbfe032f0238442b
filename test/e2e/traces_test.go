//go:build e2e

package e2e

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestTraces turns on the page of traces as make demo does, and counts the calls of the page and of go-micro-client that it shows with
// the spans of both sides, from every pod.
func TestTraces(t *testing.T) {
	kubectl(t, "apply", "-f", "k8s/namespace.yaml", "-f", "k8s/configmap-rbac.yaml", "-f", "k8s/pod-rbac.yaml",
		"-f", "go-micro-srv/k8s/deployment.yaml", "-f", "go-micro-web/k8s/deployment.yaml", "-f", "go-micro-web/k8s/service.yaml", "-f", "go-micro-client/k8s/deployment.yaml")
	turn := func(setting string) {
		kubectl(t, "set", "env", "-n", namespace, "deployment/go-micro-srv", "deployment/go-micro-web", "deployment/go-micro-client", setting)
		for _, d := range []string{"go-micro-srv", "go-micro-web", "go-micro-client"} {
			kubectl(t, "rollout", "status", "-n", namespace, "deployment/"+d, "--timeout=2m")
		}
	}
	turn("POD_DEBUG_TRACE=on")
	t.Cleanup(func() { turn("POD_DEBUG_TRACE-") })
	page := pageURL(t)
	for range 100 { // greetings by a pod of go-micro-web, or by both
		rsp, err := http.PostForm(page, url.Values{"name": {"you"}})
		if err != nil {
			t.Fatal(err)
		}
		rsp.Body.Close()
		if rsp.StatusCode != http.StatusOK {
			t.Fatalf("a greeting answers %s", rsp.Status)
		}
	}
	var list struct {
		Pods []struct {
			Pod, Problem string
		}
		Traces []struct {
			Services []string
			Complete bool
			Spans    []struct{ Name string }
		}
	}
	joined, byClient, probes, problems := 0, 0, 0, 0
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) { // go-micro-client calls every 10 s
		rsp, err := http.Get(page + "traces.json")
		if err != nil {
			t.Fatal(err)
		}
		err = json.NewDecoder(rsp.Body).Decode(&list)
		rsp.Body.Close()
		if err != nil || rsp.StatusCode != http.StatusOK {
			t.Fatalf("the traces: %s, %v", rsp.Status, err)
		}
		joined, byClient, probes, problems = 0, 0, 0, 0
		for _, p := range list.Pods {
			if p.Problem != "" {
				problems++
			}
		}
		for _, trace := range list.Traces {
			if trace.Complete && len(trace.Spans) == 2 && strings.HasPrefix(strings.Join(trace.Services, " "), "go-micro-") && trace.Services[len(trace.Services)-1] == "go-micro-srv" {
				joined++
			}
			if trace.Services[0] == "go-micro-client" {
				byClient++
			}
			for _, s := range trace.Spans {
				if !strings.HasSuffix(s.Name, "Greeter.Hello") {
					probes++
				}
			}
		}
		if joined >= 95 && byClient > 0 && len(list.Pods) == 6 && problems == 0 || time.Now().After(end) { // the pods of the rollout have left
			break
		}
	}
	t.Logf("%d of the last %d calls are joined, %d of them by go-micro-client", joined, len(list.Traces), byClient)
	if joined < 95 || byClient == 0 || probes > 0 {
		t.Errorf("%d of the last %d calls are joined, %d by go-micro-client, with %d spans of probes; want 95, 1 and 0", joined, len(list.Traces), byClient, probes)
	}
	if len(list.Pods) != 6 || problems > 0 {
		t.Errorf("the pods are %+v, want 6 without a problem", list.Pods)
	}
}
