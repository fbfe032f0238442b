package pod

import (
	"context"
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
	// k8s/pod-policy.yaml refuses larger annotations. The annotation of the Greeter has
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
	// Deregistered instances that Observe shows until their pod is gone: of one pod, and
	// of all pods.
	maxDeregisteredPerPod = 16
	maxDeregistered       = 1024
	// Log lines about skipped registrations of one pod.
	maxWarningsPerPod = 10
)

type anyAddressKey struct{}

// AnyAddress returns an option that makes a registry accept addresses that are not
// IPs of the pod that registers them. By default it skips such registrations,
// because a compromised pod could use them to redirect calls. Services need the
// option if the services that they call run with --server_advertise, or in a pod with
// hostNetwork on a Kubernetes node with several addresses.
func AnyAddress() registry.Option {
	return func(o *registry.Options) {
		if o.Context == nil {
			o.Context = context.Background()
		}
		o.Context = context.WithValue(o.Context, anyAddressKey{}, true)
	}
}

func anyAddress(o registry.Options) bool {
	return o.Context != nil && o.Context.Value(anyAddressKey{}) != nil
}

// limits decides which registrations a podTable accepts.
type limits struct{ anyAddress bool }

// podUsage counts what the registrations of one pod have used of the limits.
type podUsage struct{ registrations, bytes int }

// decode decodes the registration of the service with the given label name. The error
// says why the registration is skipped, such as a limit that it exceeds.
func (l limits) decode(name, annotation string, ips []netip.Addr, used *podUsage) (*registry.Service, error) {
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
	if labelName(s.Name) != name {
		return nil, fmt.Errorf("it describes the service %.64q", s.Name)
	}
	if len(s.Nodes) > maxNodesPerAnnotation {
		return nil, fmt.Errorf("it has %d nodes, more than %d", len(s.Nodes), maxNodesPerAnnotation)
	}
	for _, n := range s.Nodes {
		if !l.anyAddress && len(ips) > 0 && !slices.Contains(ips, hostOf(n.Address)) {
			return nil, fmt.Errorf("its address %.64q is not an IP of the pod, which has %v; the registry option pod.AnyAddress accepts it", n.Address, ips)
		}
	}
	return s, nil
}

// podIPs returns the IPs of a pod. A pod has none before its sandbox starts.
func podIPs(p *corev1.Pod) (ips []netip.Addr) {
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

// boundDeregistered returns the latest deregistered instances of a pod, as many as the
// limits allow, without the parts that a hostile pod could make large. others is the
// number of deregistered instances of all other pods.
func boundDeregistered(instances []*instance, others int) []*instance {
	room := max(0, min(len(instances), maxDeregisteredPerPod, maxDeregistered-others))
	var kept []*instance
	for _, i := range instances[len(instances)-room:] {
		kept = append(kept, &instance{Node: registry.Node{Id: i.Id, Address: i.Address}, pod: i.pod, annotation: i.annotation,
			service: &registry.Service{Name: i.service.Name, Version: i.service.Version}})
	}
	return kept
}
