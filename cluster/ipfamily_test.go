package main

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"
)

func TestNetworks(t *testing.T) {
	for family, want := range map[string][]string{
		"ipv4": {"10.244.0.0/16"}, "ipv6": {"fd00:10:244::/64"}, "dual": {"10.244.0.0/16", "fd00:10:244::/64"},
	} {
		n := networks[family]
		for _, a := range n {
			services, pods, node := netip.MustParsePrefix(a.ServiceCIDR), netip.MustParsePrefix(a.PodCIDR), netip.MustParseAddr(a.NodeIP)
			if services.Overlaps(pods) || services.Contains(node) || pods.Contains(node) || services.Addr().Next().String() != a.ServiceIP {
				t.Errorf("%s: addresses overlap, or the Service's address is not the first: %+v", family, a)
			}
		}
		text, err := expand("templates/etc/cni/10-ptp.conflist", nodeConfig{Network: n})
		var config struct {
			Plugins []struct {
				IPAM struct {
					Ranges [][]struct{ Subnet string }
					Routes []struct{ Dst netip.Prefix }
				}
			}
		}
		if err != nil || json.Unmarshal(text, &config) != nil || len(config.Plugins) != 1 {
			t.Fatalf("%s: %v: %s", family, err, text)
		}
		var subnets []string
		for i, r := range config.Plugins[0].IPAM.Ranges { // CNI gives a pod one address of each range
			subnets = append(subnets, r[0].Subnet)
			if route := config.Plugins[0].IPAM.Routes[i].Dst; route.Bits() != 0 || route.Addr().Is4() != netip.MustParsePrefix(r[0].Subnet).Addr().Is4() {
				t.Errorf("%s: the pods of %s have the route %s, want the default route", family, r[0].Subnet, route)
			}
		}
		if !slices.Equal(subnets, want) {
			t.Errorf("%s: pods have addresses in %q, want %q", family, subnets, want)
		}
	}
}
