//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
	"github.com/jiangjiancc/go_micro_k8s/test/flood"
	corev1 "k8s.io/api/core/v1"
)

var attackDuration = flag.Duration("duration", time.Minute, "how long TestAttack attacks the services; by hand at least 30m with -timeout 40m")

// attackResult is one line of `probe attack`. test/e2e/probe/attack.go explains the fields.
type attackResult struct {
	Registrations, Refused, Misdirected, BadNames, Connections, Errors int
	Succeeded                                                          []string
	LastError                                                          string
}

// maxRSS is the memory that a service may use while a compromised pod attacks the
// registry. The manifests limit it to 128 MiB.
const maxRSS = 64 << 10 // KiB

// TestAttack attacks the services from a compromised pod of the namespace, and with
// a crowd of connections from the host: first the registry, and then everything at
// once. A client that is not attacked must notice nothing.
func TestAttack(t *testing.T) {
	kubectl(t, "apply", "-k", "k8s")
	rolledOut(t)
	registeredOnPods(t)
	scripts := map[string][]string{"registry": {"attack"}, "everything": {"attack", "http://go-micro-web.go-micro:9200/registry/"}}
	page := pageURL(t) // through the port that the launcher forwards, as a viewer uses it
	forwarded := must(url.Parse(page)).Host

	calls := startLoad(t, "attack-calls", "call", "-retries=0", "2", "50ms")
	t.Cleanup(func() { calls.stop(t) })
	viewer := make(chan struct{}) // makes go-micro-web observe the registry
	var ended sync.WaitGroup
	t.Cleanup(func() { close(viewer); ended.Wait() })
	ended.Go(func() { view(forwarded, viewer) })

	for _, name := range []string{"registry", "everything"} {
		t.Run(name, func(t *testing.T) {
			before := map[string]corev1.Pod{}
			for _, s := range services {
				for _, p := range pods(t, s.name) {
					before[p.Name] = p
				}
			}
			begin := time.Now()
			attack := startLoad(t, "attack-"+name, scripts[name]...)
			t.Cleanup(func() { attack.stop(t) })
			var crowd sync.WaitGroup
			stop := make(chan struct{})
			if name == "everything" {
				crowd.Go(func() { holdConnections(forwarded, 5000, stop) })
			}
			ids := map[string]string{} // process ID to service
			for _, p := range before {
				ids[podProcess(t, p)] = p.Labels["app"]
			}
			peak := map[string]int{}
			for first := true; first || time.Since(begin) < *attackDuration/2; first = false { // on a busy machine the attack is as long before the first sample
				for id, rss := range residentSizes(t, ids) {
					peak[ids[id]] = max(peak[ids[id]], rss)
				}
				time.Sleep(2 * time.Second)
			}
			end := time.Now()
			close(stop)
			crowd.Wait()

			var result attackResult
			lines := strings.Split(strings.TrimSpace(kubectl(t, "logs", attack.pod, "-n", namespace, "--tail=1")), "\n")
			if err := json.Unmarshal([]byte(lines[len(lines)-1]), &result); err != nil {
				t.Fatalf("the attacker printed %q: %v", lines, err)
			}
			succeeded, failed := 0, 0
			for _, s := range calls.secondsUntil(t, end) {
				if s.End.After(begin) {
					succeeded, failed = succeeded+s.Succeeded, failed+s.Failed
				}
			}
			t.Logf("%s, %.0f s: calls of the client: %d succeeded, %d failed; peak RSS in KiB: %v; attacker: %+v",
				name, end.Sub(begin).Seconds(), succeeded, failed, peak, result)
			if failed > 0 || succeeded == 0 {
				t.Errorf("the client that is not attacked: %d calls succeeded, %d failed, want none to fail\n%s", succeeded, failed, calls.messages)
			}
			if len(result.Succeeded) > 0 || result.Registrations == 0 || result.Refused == 0 {
				t.Errorf("the attacker registered %d times, was refused %d times and succeeded with %q", result.Registrations, result.Refused, result.Succeeded)
			}
			if name == "everything" && (result.Misdirected == 0 || result.BadNames == 0 || result.Connections < 1000) {
				t.Errorf("the attacker's requests did not reach the page: %+v", result)
			}
			for _, s := range services {
				limit := maxRSS
				if name == "everything" && s.name == "go-micro-web" {
					limit = 128 << 10 // the limit in its manifest
				}
				if peak[s.name] == 0 || peak[s.name] > limit {
					t.Errorf("%s used up to %d KiB, want at most %d", s.name, peak[s.name], limit)
				}
				for _, p := range pods(t, s.name) {
					if old, ok := before[p.Name]; !ok || faults.Restarts(p) != faults.Restarts(old) {
						t.Errorf("pod %q was restarted or replaced: %d restarts", p.Name, faults.Restarts(p))
					}
				}
			}
		})
	}
	eventually(t, time.Minute, "an answer of the page after the attacks", func() error {
		rsp, err := http.Get(page)
		if err != nil {
			return err
		}
		if rsp.Body.Close(); rsp.StatusCode != http.StatusOK {
			return errors.New(rsp.Status)
		}
		return nil
	})
	registeredOnPods(t)
}

// view reads the event stream of the page until stop is closed.
func view(address string, stop <-chan struct{}) {
	dial := func() (net.Conn, error) { return net.Dial("tcp", address) }
	flood.Hold(dial, "GET /registry/events HTTP/1.1\r\nHost: "+address+"\r\n\r\n", time.Second, stop, nil)
}

// holdConnections keeps n connections open until stop is closed.
func holdConnections(address string, n int, stop <-chan struct{}) {
	dial := func() (net.Conn, error) { return net.DialTimeout("tcp", address, time.Second) }
	var all sync.WaitGroup
	for range n {
		all.Go(func() { flood.Hold(dial, "", 5*time.Second, stop, nil) })
	}
	all.Wait()
}

var rssLine = regexp.MustCompile(`/proc/(\d+)/status:VmRSS:\s+(\d+) kB`)

// residentSizes returns the memory of processes of the node in KiB.
func residentSizes(t *testing.T, ids map[string]string) map[string]int {
	t.Helper()
	args := []string{"grep", "-H", "VmRSS", "/dev/null"}
	for id := range ids {
		args = append(args, fmt.Sprintf("/proc/%s/status", id))
	}
	all := map[string]int{}
	for _, m := range rssLine.FindAllStringSubmatch(onNode(t, "sh", "-c", strings.Join(args, " ")+" || true"), -1) { // a process may have ended
		all[m[1]], _ = strconv.Atoi(m[2])
	}
	return all
}
