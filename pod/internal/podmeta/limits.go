package podmeta

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

// A compromised pod can write any value into its own registrations. These limits bound
// what every other process keeps in memory of one pod, so that such a pod cannot exhaust
// their memory. A registration that exceeds a limit is skipped as a whole.
const (
	// k8s/pod-admission.yaml refuses larger annotations. The annotation of the Greeter has
	// 600 bytes.
	maxAnnotationBytes = 32 << 10
	// go-micro registers one node for each process.
	maxNodesPerAnnotation = 16
	// JSON objects and arrays. Each needs up to 50 times its text's size in memory.
	// A registration of maxAnnotationBytes with the values of real messages has about 700.
	maxObjects = 1024
	// The services of one pod, and the bytes of all their registrations.
	maxAnnotationsPerPod = 32
	maxBytesPerPod       = 64 << 10
)

// Limits decides which registrations of a pod a reader accepts.
type Limits struct {
	AnyAddress bool // accept addresses that are not IPs of the pod
}

// Usage counts what the registrations of one pod have used of the limits. Its zero value
// stands for a pod without registrations.
type Usage struct{ registrations, bytes int }

// Decode decodes the registration of the service with the given label name. The error
// says why the registration is skipped, such as a limit that it exceeds.
func (l Limits) Decode(name, annotation string, ips []netip.Addr, used *Usage) (*registry.Service, error) {
	switch {
	case len(annotation) > maxAnnotationBytes:
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(annotation), maxAnnotationBytes)
	case used.registrations == maxAnnotationsPerPod:
		return nil, fmt.Errorf("the pod has more than %d registrations", maxAnnotationsPerPod)
	case used.bytes+len(annotation) > maxBytesPerPod:
		return nil, fmt.Errorf("the pod's registrations have more than %d bytes together", maxBytesPerPod)
	case strings.Count(annotation, "{")+strings.Count(annotation, "[") > maxObjects:
		return nil, fmt.Errorf("it has more than %d JSON objects and arrays", maxObjects)
	}
	used.registrations++
	used.bytes += len(annotation)
	s, err := decode([]byte(annotation))
	if err != nil {
		return nil, err
	}
	if LabelName(s.Name) != name {
		return nil, fmt.Errorf("it describes the service %.64q", s.Name)
	}
	if len(s.Nodes) > maxNodesPerAnnotation {
		return nil, fmt.Errorf("it has %d nodes, more than %d", len(s.Nodes), maxNodesPerAnnotation)
	}
	for _, n := range s.Nodes {
		if !l.AnyAddress && len(ips) > 0 && !slices.Contains(ips, hostOf(n.Address)) {
			return nil, fmt.Errorf("its address %.64q is not an IP of the pod, which has %v; the registry option pod.AnyAddress accepts it", n.Address, ips)
		}
	}
	return s, nil
}

// decode reads a service in the form in which the plugin writes it. No input makes it
// panic. It removes each null among the nodes, the endpoints and the values, so that
// go-micro does not panic when it reads the result.
func decode(b []byte) (*registry.Service, error) {
	var s registry.Service
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	if s.Name == "" {
		return nil, errors.New("it names no service")
	}
	s.Nodes = slices.DeleteFunc(s.Nodes, func(n *registry.Node) bool { return n == nil || n.Address == "" })
	s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e *registry.Endpoint) bool { return e == nil })
	for _, e := range s.Endpoints {
		dropNulls(e.Request)
		dropNulls(e.Response)
	}
	return &s, nil
}

func dropNulls(v *registry.Value) {
	if v == nil {
		return
	}
	v.Values = slices.DeleteFunc(v.Values, func(w *registry.Value) bool { return w == nil })
	for _, w := range v.Values {
		dropNulls(w)
	}
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
