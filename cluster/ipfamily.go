package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// addresses are the addresses of a node, its pods and the Services in one IP family.
// Those of IPv6 are unique local addresses (RFC 4193).
type addresses struct {
	NodeIP      string
	PodCIDR     string
	ServiceCIDR string
	ServiceIP   string // of the Service "kubernetes": the first address of ServiceCIDR
	Unspecified string // on which a program listens to be reached at every address of the family
}

var (
	ipv4 = addresses{"10.10.0.1", "10.244.0.0/16", "10.96.0.0/16", "10.96.0.1", "0.0.0.0"}
	ipv6 = addresses{"fd00:10:10::1", "fd00:10:244::/64", "fd00:10:96::/112", "fd00:10:96::1", "::"}
)

// network lists the addresses of the cluster's IP families. The components connect to
// each other with the first family, and POD_IP is an address of the first family.
type network []addresses

// networks contains the values of -ip-family.
var networks = map[string]network{"ipv4": {ipv4}, "ipv6": {ipv6}, "dual": {ipv4, ipv6}}

// of returns the addresses of one node and of its pods. Only IPv4 clusters have several nodes.
func (a addresses) of(n node) addresses {
	if n != firstNode {
		a.NodeIP, a.PodCIDR = fmt.Sprintf("10.10.0.%d", n), fmt.Sprintf("10.%d.0.0/16", 243+n)
	}
	return a
}

// of returns the network with the addresses of one node and of its pods.
func (n network) of(number node) (own network) {
	for _, a := range n {
		own = append(own, a.of(number))
	}
	return own
}

func (n network) nodeIPs() string {
	return n.join(func(a addresses) string { return a.NodeIP })
}

func (n network) PodCIDRs() string {
	return n.join(func(a addresses) string { return a.PodCIDR })
}

func (n network) serviceCIDRs() string {
	return n.join(func(a addresses) string { return a.ServiceCIDR })
}

func (n network) join(field func(addresses) string) string {
	var fields []string
	for _, a := range n {
		fields = append(fields, field(a))
	}
	return strings.Join(fields, ",")
}

// hostPort joins an address of any family and a port, as in [::1]:443.
func hostPort(ip string, port int) string { return net.JoinHostPort(ip, strconv.Itoa(port)) }
