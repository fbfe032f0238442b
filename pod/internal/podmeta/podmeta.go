// Package podmeta is the format in which a registration stands on a pod: the labels and the
// annotation that the plugin github.com/micro/go-plugins/registry/kubernetes writes and reads.
//
// A pod that serves the service "greeter" has
//
//	labels:
//	  micro.mu/type: service
//	  micro.mu/selector-greeter: service
//	annotations:
//	  micro.mu/service-greeter: '{"name":"greeter","nodes":[...],...}'
//
// LabelName makes the last part of the keys. The annotation is a registry.Service as JSON.
//
// The writer of the own pod compares the Metadata that it desires with the Metadata that it
// observes (Of, Diff) and sends the difference as a Patch. The readers of other pods cut the
// endpoints out of an annotation (CutEndpoints), because these are nearly all of its bytes and calls
// do not need them, and decode the rest with Limits.Decode, which never panics and bounds what one
// pod can make them hold. DecodeEndpoints decodes the endpoints when somebody asks for them. The package reads and writes values only; it knows no API server and no log.
package podmeta

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The labels and annotations that the plugin writes and reads.
const (
	TypeLabel        = "micro.mu/type"
	TypeValue        = "service"
	SelectorPrefix   = "micro.mu/selector-"
	AnnotationPrefix = "micro.mu/service-"
)

// NamespaceKey is in the metadata of an instance in the registry of pod.Also, and only there: the namespace of the pod that has
// registered it too.
const NamespaceKey = "micro.mu/pod-namespace"

// ZoneLabel is the label of a pod with the zone of its Kubernetes node. The API server copies it from the node since
// Kubernetes 1.35 (KEP-4742).
const ZoneLabel = "topology.kubernetes.io/zone"

// LabelName replaces the bytes of a service's name that a label key must not contain,
// as the plugin does.
func LabelName(service string) string {
	name := []byte(service)
	for i, c := range name {
		if c != '-' && c != '_' && c != '.' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			name[i] = '_'
		}
	}
	return string(name)
}

// Metadata are labels and annotations of a pod. A nil value means that the key
// is absent.
type Metadata struct {
	Labels      map[string]*string `json:"labels,omitempty"`
	Annotations map[string]*string `json:"annotations,omitempty"`
}

// Of returns all labels and annotations of a pod.
func Of(p *corev1.Pod) Metadata {
	return Metadata{Labels: pointers(p.Labels), Annotations: pointers(p.Annotations)}
}

func pointers(m map[string]string) map[string]*string {
	all := make(map[string]*string, len(m))
	for k, v := range m {
		all[k] = &v
	}
	return all
}

// Patch is the strategic merge patch that the plugin and the registrar send. The
// uid, which no patch may change, makes the API server refuse the registrar's patch
// when another pod has taken over the name.
type Patch struct {
	Metadata struct {
		UID types.UID `json:"uid,omitempty"`
		Metadata
	} `json:"metadata"`
}

// Diff returns the part of desired that differs from m.
func (m Metadata) Diff(desired Metadata) Metadata {
	return Metadata{Labels: diffValues(m.Labels, desired.Labels), Annotations: diffValues(m.Annotations, desired.Annotations)}
}

func diffValues(observed, desired map[string]*string) (diff map[string]*string) {
	for k, want := range desired {
		if !equal(observed[k], want) {
			if diff == nil {
				diff = map[string]*string{}
			}
			diff[k] = want
		}
	}
	return diff
}

// Contradicts reports whether m and desired give a key different values.
func (m Metadata) Contradicts(desired Metadata) bool {
	return contradicts(m.Labels, desired.Labels) || contradicts(m.Annotations, desired.Annotations)
}

func contradicts(values, desired map[string]*string) bool {
	for k, v := range values {
		if want, ok := desired[k]; ok && !equal(v, want) {
			return true
		}
	}
	return false
}

// equal reports whether two values are the same, or both absent.
func equal(a, b *string) bool { return a == b || a != nil && b != nil && *a == *b }

// With returns the keys of both, with the values of other where both have one.
func (m Metadata) With(other Metadata) Metadata {
	return Metadata{Labels: merged(m.Labels, other.Labels), Annotations: merged(m.Annotations, other.Annotations)}
}

func merged(values, others map[string]*string) map[string]*string {
	all := make(map[string]*string, len(values)+len(others))
	maps.Copy(all, values)
	maps.Copy(all, others)
	return all
}

// AnnotationBytes returns how many bytes the annotations have, as Kubernetes counts them against
// MaxPodBytes.
func (m Metadata) AnnotationBytes() (n int) {
	for k, v := range m.Annotations {
		if v != nil {
			n += len(k) + len(*v)
		}
	}
	return n
}

// Empty reports whether m has no key.
func (m Metadata) Empty() bool { return len(m.Labels) == 0 && len(m.Annotations) == 0 }

// OnlyRemoves reports whether m sets no value.
func (m Metadata) OnlyRemoves() bool {
	for _, values := range []map[string]*string{m.Labels, m.Annotations} {
		for _, v := range values {
			if v != nil {
				return false
			}
		}
	}
	return true
}
