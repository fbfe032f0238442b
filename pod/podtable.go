package pod

import (
	"encoding/json"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// maxWarningsPerPod bounds the log lines about skipped registrations of one pod.
const maxWarningsPerPod = 10

// podTable holds the instances that pods carry in their annotations, and whether
// the pods can receive calls. Its owner locks it.
type podTable struct {
	service  string // the table holds only instances of this service; empty: of all services
	limits   podmeta.Limits
	index    *instanceIndex
	pods     map[string]*podEntry // by name
	versions map[uint64]*sharedVersion
}

// podEntry is what a podTable holds of one pod.
type podEntry struct {
	uid             types.UID
	created         time.Time
	instances       []*instance
	ready           bool
	nodeUnreachable bool
	terminating     bool
	reason          string // why the pod cannot receive calls; known only in a table of all services

	annotations map[string]uint64 // hashes of the annotations that the instances come from, by key
	ips         []netip.Addr
	reported    map[string]bool // skipped annotations that the log has reported, at most maxWarningsPerPod
}

// sharedVersion is the part of the annotations that all instances of one version have in
// common. All of them share one copy.
type sharedVersion struct {
	service *registry.Service
	key     uint64
	uses    int
}

func newPodTable(service string, index *instanceIndex) podTable {
	return podTable{service: service, index: index, pods: map[string]*podEntry{}, versions: map[uint64]*sharedVersion{}}
}

// update stores the current state of a pod and reports whether the table has changed.
func (t *podTable) update(p *corev1.Pod) (changed bool) {
	e := t.pods[p.Name]
	if e != nil && e.uid != p.UID { // another pod has this name now
		t.remove(p.Name)
		e, changed = nil, true
	}
	if e == nil {
		e = &podEntry{uid: p.UID, created: p.CreationTimestamp.Time, annotations: map[string]uint64{}, reported: map[string]bool{}}
		t.pods[p.Name] = e
	}
	annotations := map[string]uint64{}
	for k, v := range p.Annotations {
		name, ok := strings.CutPrefix(k, podmeta.AnnotationPrefix)
		if !ok || t.service != "" && name != podmeta.LabelName(t.service) || p.Labels[podmeta.SelectorPrefix+name] != podmeta.TypeValue {
			continue // without the label GetService does not find the pod either
		}
		annotations[k] = maphash.String(seed, v)
	}
	if ips := podmeta.PodIPs(p); !maps.Equal(annotations, e.annotations) || !slices.Equal(ips, e.ips) {
		before := e.instances
		e.instances, e.annotations, e.ips = nil, annotations, ips
		var used podmeta.Usage
		for _, k := range slices.Sorted(maps.Keys(annotations)) {
			s, err := t.limits.Decode(strings.TrimPrefix(k, podmeta.AnnotationPrefix), p.Annotations[k], ips, &used)
			if err != nil {
				e.reportSkipped(p.Name, k, err)
				continue
			}
			delete(e.reported, k)
			if t.service == "" || s.Name == t.service {
				e.instances = append(e.instances, t.add(p.Name, k, s)...)
			}
		}
		t.release(before)
		changed = true
	}
	ready, unreachable, terminating := isReady(p), isNodeUnreachable(p), p.DeletionTimestamp != nil
	if ready != e.ready || unreachable != e.nodeUnreachable || terminating != e.terminating {
		e.ready, e.nodeUnreachable, e.terminating, changed = ready, unreachable, terminating, true
	}
	if t.service == "" {
		if reason := reasonOf(p); reason != e.reason {
			e.reason, changed = reason, true
		}
	}
	return changed
}

// reportSkipped logs once that a registration is skipped.
func (e *podEntry) reportSkipped(pod, annotation string, err error) {
	if e.reported[annotation] || len(e.reported) == maxWarningsPerPod {
		return
	}
	e.reported[annotation] = true
	logger.Warnf("Registry [kubernetes] Skipping the registration in annotation %q of pod %q: %v", annotation, pod, err)
}

// removeExcept removes all pods but the given ones.
func (t *podTable) removeExcept(pods []*corev1.Pod) {
	exists := map[string]bool{}
	for _, p := range pods {
		exists[p.Name] = true
	}
	for name := range t.pods {
		if !exists[name] {
			t.remove(name)
		}
	}
}

// holds reports whether the table holds this pod, and not another pod with the same name.
func (t *podTable) holds(p *corev1.Pod) bool {
	e := t.pods[p.Name]
	return e != nil && e.uid == p.UID
}

func (t *podTable) remove(name string) {
	t.release(t.pods[name].instances)
	delete(t.pods, name)
}

// add makes the instances of one annotation.
func (t *podTable) add(pod, annotation string, s *registry.Service) (all []*instance) {
	nodes := s.Nodes
	s.Nodes = nil
	b, _ := json.Marshal(s)
	key := maphash.Bytes(seed, b)
	version := t.versions[key]
	if version == nil && len(nodes) > 0 {
		version = &sharedVersion{service: s, key: key}
		t.versions[key] = version
	}
	for _, n := range nodes {
		version.uses++
		i := &instance{Node: *n, service: version.service, version: version, pod: pod, annotation: annotation}
		t.index.add(i)
		all = append(all, i)
	}
	return all
}

func (t *podTable) release(instances []*instance) {
	for _, i := range instances {
		t.index.remove(i)
		i.departure.happen()
		if i.version.uses--; i.version.uses == 0 {
			delete(t.versions, i.version.key)
		}
	}
}

var seed = maphash.MakeSeed()

// isReady reports whether a pod can receive calls: it is running, its probes
// succeed, and it is not terminating.
func isReady(p *corev1.Pod) bool { return isRunning(p) && hasCondition(p, corev1.PodReady) }

// isNodeUnreachable reports whether a pod is not ready only because its Kubernetes
// node stopped reporting. kube-controller-manager then sets Ready to false and
// leaves ContainersReady as the kubelet reported it last; a kubelet changes both
// together, except for readiness gates. When the API server comes back after an outage
// that was longer than the node monitor's grace period of 50 s, all pods are in this state.
func isNodeUnreachable(p *corev1.Pod) bool {
	return isRunning(p) && !hasCondition(p, corev1.PodReady) && hasCondition(p, corev1.ContainersReady) && len(p.Spec.ReadinessGates) == 0
}

func isRunning(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil
}

func hasCondition(p *corev1.Pod, condition corev1.PodConditionType) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == condition {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
