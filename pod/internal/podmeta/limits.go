package podmeta

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

// A compromised pod can write any value into its own registrations. These limits bound
// what every other process keeps in memory of one pod, so that such a pod cannot exhaust
// their memory. A registration that exceeds a limit is skipped as a whole. The limits do
// not concern the endpoints, which a reader cuts out first (CutEndpoints).
const (
	// The registration of the Greeter has 300 bytes without its endpoints.
	maxRegistrationBytes = 32 << 10
	// go-micro registers one node for each process.
	maxNodesPerRegistration = 16
	// JSON objects and arrays. Each needs up to 50 times its text's size in memory.
	maxObjects = 1024
	// The services of one pod, and the bytes of all their registrations.
	maxRegistrationsPerPod = 32
	maxBytesPerPod         = 64 << 10
)

// Limits decides which registrations of a pod a reader accepts.
type Limits struct {
	AnyAddress bool // accept addresses that are not IPs of the pod
}

// Usage counts what the registrations of one pod have used of the limits. Its zero value
// stands for a pod without registrations.
type Usage struct{ registrations, bytes int }

// Decode decodes what routing needs of the registration of the service with the given label
// name: everything but the endpoints, in whose place the annotation has the number that
// CutEndpoints has put there. The error says why the registration is skipped, such as a limit
// that it exceeds.
func (l Limits) Decode(name, annotation string, ips []netip.Addr, used *Usage) (s *registry.Service, endpoints uint64, err error) {
	switch {
	case len(annotation) > maxRegistrationBytes:
		return nil, 0, fmt.Errorf("it has %d bytes beside its endpoints, more than %d", len(annotation), maxRegistrationBytes)
	case used.registrations == maxRegistrationsPerPod:
		return nil, 0, fmt.Errorf("the pod has more than %d registrations", maxRegistrationsPerPod)
	case used.bytes+len(annotation) > maxBytesPerPod:
		return nil, 0, fmt.Errorf("the pod's registrations have more than %d bytes together beside their endpoints", maxBytesPerPod)
	case strings.Count(annotation, "{")+strings.Count(annotation, "[") > maxObjects:
		return nil, 0, fmt.Errorf("it has more than %d JSON objects and arrays", maxObjects)
	}
	used.registrations++
	used.bytes += len(annotation)
	if s, endpoints, err = decode([]byte(annotation)); err != nil {
		return nil, 0, err
	}
	if LabelName(s.Name) != name {
		return nil, 0, fmt.Errorf("it describes the service %.64q", s.Name)
	}
	if len(s.Nodes) > maxNodesPerRegistration {
		return nil, 0, fmt.Errorf("it has %d nodes, more than %d", len(s.Nodes), maxNodesPerRegistration)
	}
	for _, n := range s.Nodes {
		if !l.AnyAddress && len(ips) > 0 && !slices.Contains(ips, hostOf(n.Address)) {
			return nil, 0, fmt.Errorf("its address %.64q is not an IP of the pod, which has %v; the registry option pod.AnyAddress accepts it", n.Address, ips)
		}
	}
	return s, endpoints, nil
}

// decode reads a service in the form in which the plugin writes it. No input makes it
// panic. It removes each null among the nodes, so that go-micro does not panic when it
// reads the result.
func decode(b []byte) (s *registry.Service, endpoints uint64, err error) {
	var r struct {
		Name, Version string
		Metadata      map[string]string
		Nodes         []*registry.Node
		Endpoints     json.RawMessage
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, 0, err
	}
	if r.Name == "" {
		return nil, 0, errors.New("it names no service")
	}
	r.Nodes = slices.DeleteFunc(r.Nodes, func(n *registry.Node) bool { return n == nil || n.Address == "" })
	endpoints, _ = strconv.ParseUint(string(r.Endpoints), 10, 64) // not a number: there are none
	return &registry.Service{Name: r.Name, Version: r.Version, Metadata: r.Metadata, Nodes: r.Nodes}, endpoints, nil
}

// PodIPs returns the IPs of a pod. A pod has none before its sandbox starts.
func PodIPs(p *corev1.Pod) (ips []netip.Addr) {
	for _, ip := range append([]corev1.PodIP{{IP: p.Status.PodIP}}, p.Status.PodIPs...) {
		if a, err := netip.ParseAddr(ip.IP); err == nil && !slices.Contains(ips, a) {
			ips = append(ips, a)
		}
	}
	return ips
}

// hostOf returns the IP of an address with or without a port, and an invalid IP
// for a host name.
func hostOf(address string) netip.Addr {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	ip, _ := netip.ParseAddr(host)
	return ip
}
