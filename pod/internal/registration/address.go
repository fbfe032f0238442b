package registration

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/micro/go-micro/v2/registry"
)

// advertised returns the service with addresses that other pods can reach.
//
// go-micro advertises the first interface address in a private range. In a pod that has
// only public IPv4 or IPv6 addresses there is none, and go-micro advertises the address
// of the last interface, which may be the loopback interface. So advertised replaces an
// address of this pod's interfaces by podIP, the pod's IP as Kubernetes knows it, unless
// podIP is empty. Any other address was chosen by the user, with server.Advertise, and
// stays.
//
// go-micro's HTTP broker does listen on the loopback interface only, unless it has an address. So
// advertised refuses the node of a topic if this process does not listen on its new address.
func advertised(s *registry.Service, podIP string, local func(netip.Addr) bool, listening func(address string) bool) (*registry.Service, error) {
	if podIP != "" {
		if ip, err := netip.ParseAddr(podIP); err != nil || !reachable(ip) {
			return nil, fmt.Errorf("POD_IP is %q, not the address of a pod: set POD_IP from status.podIP in the pod's manifest", podIP)
		}
	}
	c := *s
	c.Nodes = make([]*registry.Node, len(s.Nodes))
	for i, n := range s.Nodes {
		node := *n
		host, port, err := net.SplitHostPort(n.Address)
		if err != nil {
			host, port = n.Address, ""
		}
		ip, err := netip.ParseAddr(host)
		own := err == nil && (!reachable(ip) || local(ip)) || host == "localhost" || host == ""
		if own && podIP != "" {
			node.Address = podIP
			if port != "" {
				node.Address = net.JoinHostPort(podIP, port)
			}
			if n.Metadata["topic"] != "" && err == nil && ip.IsLoopback() && !listening(node.Address) {
				return nil, fmt.Errorf("go-micro's HTTP broker listens on the loopback interface only, and not on %s: give it a port, as with MICRO_BROKER_ADDRESS=:9300 or broker.Addrs(\":9300\")", node.Address)
			}
		} else if err == nil && !reachable(ip) || host == "localhost" || host == "" {
			return nil, fmt.Errorf("no other pod can reach the service's address %q: set POD_IP from status.podIP in the pod's manifest, or advertise another address", n.Address)
		}
		c.Nodes[i] = &node
	}
	return &c, nil
}

// isListening reports whether a process of this pod listens on an address of the pod.
func isListening(address string) bool {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// reachable reports whether other pods may be able to reach an address.
func reachable(ip netip.Addr) bool {
	return !ip.IsLoopback() && !ip.IsUnspecified() && !ip.IsLinkLocalUnicast()
}

// isInterfaceAddress reports whether an interface of this pod has the address.
func isInterfaceAddress(ip netip.Addr) bool {
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr() == ip.Unmap() {
			return true
		}
	}
	return false
}
