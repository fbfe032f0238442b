//go:build e2e && soak

package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
)

// renewal is how long kubelet may take: the signer of the demo lets it begin 28 minutes after the issue, kubelet adds up to 5 minutes, looks
// once in 2 minutes at most, and writes the files within a minute and a half.
const renewal = 40 * time.Minute

// TestSoak makes calls with identities, without retries, until kubelet has renewed the certificate of each pod, and for a minute
// longer. The API permits no shorter lifetime than an hour: `make test` cannot wait for it, `make soak` does.
func TestSoak(t *testing.T) {
	fatal(t, command(3*time.Minute, nil, "make", "deploy", "COMPONENTS=identity"))
	rolledOut(t)
	var loads []*load
	for _, account := range []string{"go-micro-client", "go-micro-web"} {
		loads = append(loads, startIdentityLoad(t, "soak-"+account, account, "strict"))
	}
	page := pageURL(t)
	begin, first, seen := time.Now(), certificateFiles(t), shownCertificates(t, page)

	renewed := map[string]time.Time{}
	for len(first) == 0 || len(renewed) < len(first) {
		time.Sleep(30 * time.Second)
		now := certificateFiles(t)
		for pod, hash := range first {
			if now[pod] == "" {
				t.Fatalf("pod %s has left", pod)
			}
			if _, ok := renewed[pod]; !ok && now[pod] != hash {
				renewed[pod] = time.Now()
				t.Logf("after %s kubelet has renewed the certificate of pod %s", time.Since(begin).Round(time.Second), pod)
			}
		}
		for _, l := range loads {
			if sum := faults.Sum(l.seconds(t), begin, time.Now()); sum.Failed > 0 {
				t.Fatalf("%s: %d calls failed after %s", l.pod, sum.Failed, time.Since(begin))
			}
		}
		if time.Since(begin) > renewal {
			t.Fatalf("kubelet has renewed the certificates of %d of %d pods within %s", len(renewed), len(first), renewal)
		}
	}
	// Connections of before may stay for a quarter of an hour; other pods of go-micro-web open new ones.
	kubectl(t, "rollout", "restart", "-n", namespace, "deployment/go-micro-web")
	kubectl(t, "rollout", "status", "-n", namespace, "deployment/go-micro-web", "--timeout=2m")
	for instance, c := range shownCertificates(t, page) {
		if !c.NotAfter.After(seen[instance].NotAfter) {
			t.Errorf("instance %s shows the certificate that expires at %s, as before", instance, c.NotAfter)
		}
	}
	time.Sleep(time.Minute) // with the new certificates
	for _, l := range loads {
		succeeded, failed, longest := 0, 0, time.Duration(0)
		for _, s := range l.secondsUntil(t, time.Now()) {
			succeeded, failed, longest = succeeded+s.Succeeded, failed+s.Failed, max(longest, s.Latencies.Quantile(1))
		}
		t.Logf("%s: %d calls succeeded in %s, %d failed, the longest took %s", l.pod, succeeded, time.Since(begin).Round(time.Second), failed, longest)
		if succeeded == 0 || failed > 0 {
			t.Errorf("%s: %d calls succeeded and %d failed, want none to fail\n%s", l.pod, succeeded, failed, l.messages)
		}
	}
}

// certificateFiles returns the hashes of the files with the certificates, which are on the node, by the uid of their pod.
func certificateFiles(t *testing.T) map[string]string {
	t.Helper()
	const pods, file = "/var/lib/kubelet/pods/", "/volumes/kubernetes.io~projected/identity/credentialbundle.pem"
	files := map[string]string{}
	for line := range strings.Lines(onNode(t, "sh", "-c", "sha256sum "+pods+"*"+file)) {
		hash, path, _ := strings.Cut(strings.TrimSpace(line), "  ")
		files[strings.TrimSuffix(strings.TrimPrefix(path, pods), file)] = hash
	}
	return files
}
