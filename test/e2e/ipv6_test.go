//go:build e2e

package e2e

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/test/launch"
)

// TestIPv6Cluster runs the services on a cluster whose pods have IPv6 addresses, and on one
// whose pods have both and register the first.
func TestIPv6Cluster(t *testing.T) {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		t.Skipf("this machine's kernel has no IPv6: %v", err)
	}
	for family, subnets := range map[string][]string{
		"ipv6": {"fd00:10:244::/64"},
		"dual": {"10.244.0.0/16", "fd00:10:244::/64"},
	} {
		t.Run(family, func(t *testing.T) {
			name := clusterName + "-" + family
			kubeconfig, down, err := launch.Up(name, "-ip-family", family)
			fatal(t, err)
			t.Cleanup(func() {
				if err := down(); err != nil {
					t.Error(err)
				}
			})
			t.Setenv("KUBECONFIG", kubeconfig)
			fatal(t, loadImages(name))
			kubectl(t, "apply", "-k", "k8s")
			rolledOut(t)

			for _, s := range services {
				for _, p := range pods(t, s.name) {
					if len(p.Status.PodIPs) != len(subnets) {
						t.Fatalf("pod %q has the addresses %v, want one in each of %q", p.Name, p.Status.PodIPs, subnets)
					}
					for i, subnet := range subnets {
						if ip := p.Status.PodIPs[i].IP; !netip.MustParsePrefix(subnet).Contains(netip.MustParseAddr(ip)) {
							t.Errorf("pod %q has the address %s, want one in %s", p.Name, ip, subnet)
						}
					}
				}
			}
			registeredOnPods(t) // with the first address
			if family == "ipv6" {
				webAnswers(t)
				log, err := runPod(t, "probe", "micro-services", probeImage, "services", "go-micro-srv")
				if err == nil || !strings.Contains(log, "invalid port") {
					t.Errorf("the registry plugin without pod/: %v: %s; if it works now, correct docs/own-cluster.md", err, log)
				}
			}
			if out, err := verifyDeploy("1m"); err != nil || !strings.Contains(out, `ok     the client prints "Server Hello XXX!"`) {
				t.Errorf("make verify-deploy: %v\n%s", err, out)
			}
		})
	}
}
