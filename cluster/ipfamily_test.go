package main

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"
)

// No two nodes have the same name, and their addresses do not overlap with each other or with the Services.
func TestAddressesOfNodes(t *testing.T) {
	names, taken := map[string]bool{}, []netip.Prefix{netip.MustParsePrefix(ipv4.ServiceCIDR)}
	for _, n := range (state{Nodes: maxNodes}).nodes() {
		a := ipv4.of(n)
		for _, own := range []netip.Prefix{netip.MustParsePrefix(a.PodCIDR), netip.PrefixFrom(netip.MustParseAddr(a.NodeIP), 32)} {
			for _, other := range taken {
				if own.Overlaps(other) || own != own.Masked() {
					t.Errorf("%s: %s overlaps with %s, or is no subnet", n.name(), own, other)
				}
			}
			taken = append(taken, own)
		}
		if names[n.name()] || n.zone() != string("abcabcabc"[n-1]) {
			t.Errorf("node %d has the name %s and the zone %s", n, n.name(), n.zone())
		}
		names[n.name()] = true
	}
	if len(names) != maxNodes || ipv4.of(firstNode) != ipv4 {
		t.Errorf("%d nodes, and the first has the addresses %+v", len(names), ipv4.of(firstNode))
	}
}

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
