package discovery

import (
	"encoding/json"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unique"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// maxWarningsPerPod bounds the log lines about skipped registrations of one pod.
const maxWarningsPerPod = 10

// table holds the instances that pods have in their annotations, and whether the pods can receive calls. An informer of one service has a
// table, the overview has allServices, which knows more. Its owner locks it.
type table struct {
	service   string // whose instances the table holds; "" for all services
	limits    podmeta.Limits
	events    *events.Hub
	index     *index
	pods      map[string]*podEntry // by name
	versions  map[uint64]*sharedVersion
	endpoints endpointTexts
	others    otherInstances
}

// podEntry is what a table holds of one pod.
type podEntry struct {
	uid             types.UID
	zone            string // "" if it is not known
	created         int64  // Unix time in seconds
	instances       []*Instance
	ready           bool
	nodeUnreachable bool
	terminating     bool

	annotations []annotation    // that the instances come from, by key
	reported    map[string]bool // skipped annotations that the log has reported, at most maxWarningsPerPod; nil if there are none
}

// annotation is the key of an annotation, and a hash of its value and of the IPs of the pod. A pod usually has one, for which a map would take 300 bytes.
type annotation struct {
	key  string
	hash uint64
}

// has reports whether the pod has an annotation.
func (e *podEntry) has(key string) bool {
	return slices.ContainsFunc(e.annotations, func(a annotation) bool { return a.key == key })
}

// sharedVersion is the part of the annotations that all instances of one version have in common. All of them share one copy.
type sharedVersion struct {
	service   *registry.Service // without nodes and endpoints
	metadata  map[string]string // of the last node; those of most nodes are equal
	endpoints *endpointText     // nil if they are not kept
	number    uint64            // of the endpoints
	key       uint64
	uses      int
}

func newTable(service string, x *index, l podmeta.Limits) table {
	return table{service: service, limits: l, index: x, pods: map[string]*podEntry{}, versions: map[uint64]*sharedVersion{},
		endpoints: endpointTexts{byNumber: map[uint64]*endpointText{}}}
}

// trim returns a pod with only what the table reads. A registration has a number in the place of its endpoints, so that thousands of pods
// of a LIST take little memory together. The result of trim may be trimmed again.
func (t *table) trim(p *corev1.Pod) *corev1.Pod {
	p = trimmed(p)
	for k, v := range p.Annotations {
		if name := strings.TrimPrefix(k, podmeta.AnnotationPrefix); t.wants(p, name) {
			p.Annotations[k] = t.endpoints.reduce(v)
		} else {
			delete(p.Annotations, k)
		}
	}
	return p
}

// dropUnused drops the endpoints that no version uses: those of removed pods, and those that trim has kept of a registration that is
// skipped.
func (t *table) dropUnused() { t.endpoints.dropUnused() }

// wants reports whether the table holds instances of the registration of a pod under a label name. Without the label GetService of the
// plugin does not find the pod either.
func (t *table) wants(p *corev1.Pod, labelName string) bool {
	return (t.service == "" || labelName == podmeta.LabelName(t.service)) && p.Labels[podmeta.SelectorPrefix+labelName] == podmeta.TypeValue
}

// entries returns the pods by name.
func (t *table) entries() map[string]*podEntry { return t.pods }

// holds reports whether the table holds this pod, and not another pod with the same name.
func (t *table) holds(p *corev1.Pod) bool {
	e := t.pods[p.Name]
	return e != nil && e.uid == p.UID
}

// remove removes a pod that the table holds.
func (t *table) remove(name string) {
	t.release(t.pods[name].instances)
	delete(t.pods, name)
}

// update stores the current state of a pod, and reports whether the table has changed.
func (t *table) update(p *corev1.Pod) (changed bool) {
	p = t.trim(p)
	e, zone := t.pods[p.Name], unique.Make(p.Labels[podmeta.ZoneLabel]).Value() // one string for all pods of the zone
	if e != nil && (e.uid != p.UID || e.zone != zone) {                         // another pod has this name now, or the label came later
		t.remove(p.Name)
		e, changed = nil, true
	}
	if e == nil {
		e = &podEntry{uid: p.UID, zone: zone, created: p.CreationTimestamp.Unix()}
		t.pods[p.Name] = e
	}
	var annotations []annotation
	ips := podmeta.PodIPs(p)
	for _, k := range slices.Sorted(maps.Keys(p.Annotations)) {
		annotations = append(annotations, annotation{unique.Make(k).Value(), hashOf(p.Annotations[k], ips)})
	}
	if !slices.Equal(annotations, e.annotations) {
		before := e.instances
		e.instances, e.annotations = nil, annotations
		t.decode(e, p, ips)
		t.release(before)
		changed = true
	}
	ready, unreachable, terminating := isReady(p), isNodeUnreachable(p), p.DeletionTimestamp != nil
	if ready != e.ready || unreachable != e.nodeUnreachable || terminating != e.terminating {
		e.ready, e.nodeUnreachable, e.terminating, changed = ready, unreachable, terminating, true
	}
	return changed
}

// decode makes the instances of an entry from the annotations of its pod.
func (t *table) decode(e *podEntry, p *corev1.Pod, ips []netip.Addr) {
	var used podmeta.Usage
	for _, a := range e.annotations {
		k := a.key
		s, endpoints, err := t.limits.Decode(strings.TrimPrefix(k, podmeta.AnnotationPrefix), p.Annotations[k], ips, &used)
		if err != nil {
			e.reportSkipped(t.events, p.Name, k, err)
			continue
		}
		delete(e.reported, k)
		if t.service == "" || s.Name == t.service {
			e.instances = append(e.instances, t.add(e, p.Name, k, s, endpoints)...)
		}
	}
}

// reportSkipped logs and reports once that a registration is skipped.
func (e *podEntry) reportSkipped(hub *events.Hub, pod, annotation string, err error) {
	if e.reported[annotation] || len(e.reported) == maxWarningsPerPod {
		return
	}
	if e.reported == nil {
		e.reported = map[string]bool{}
	}
	e.reported[annotation] = true
	if skipped := hub.Get().SkippedRegistration; skipped != nil {
		skipped(events.Annotation{Pod: pod, Name: annotation}, err)
	}
	logger.Warnf("Registry [kubernetes] Skipping the registration in annotation %q of pod %q: %v", annotation, pod, err)
}

// add makes the instances of one annotation.
func (t *table) add(e *podEntry, pod, annotation string, s *registry.Service, endpoints uint64) (all []*Instance) {
	nodes := s.Nodes
	s.Nodes = nil
	b, _ := json.Marshal(s)
	key := maphash.Bytes(seed, strconv.AppendUint(b, endpoints, 10))
	version := t.versions[key]
	if version == nil && len(nodes) > 0 {
		version = &sharedVersion{service: s, endpoints: t.endpoints.use(endpoints), number: endpoints, key: key}
		t.versions[key] = version
	}
	for _, n := range nodes {
		version.uses++
		if maps.Equal(n.Metadata, version.metadata) {
			n.Metadata = version.metadata
		} else {
			version.metadata = n.Metadata
		}
		i, _ := NewInstance(*n, version.service, pod)
		i.version, i.annotation, i.entry = version, annotation, e
		t.index.add(i)
		all = append(all, i)
	}
	return all
}

func (t *table) release(instances []*Instance) {
	for _, i := range instances {
		t.index.remove(i)
		i.leave()
		if i.version.uses--; i.version.uses == 0 {
			delete(t.versions, i.version.key)
			if i.version.endpoints != nil {
				t.endpoints.release(i.version.number)
			}
		}
	}
}

var seed = maphash.MakeSeed()

func hashOf(annotation string, ips []netip.Addr) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	_, _ = h.WriteString(annotation) // never returns an error
	for _, ip := range ips {
		maphash.WriteComparable(&h, ip)
	}
	return h.Sum64()
}

// routable returns the instances that can receive calls.
//
// Instances on unreachable Kubernetes nodes count as routable while they outnumber the ready instances of their service. It is then more
// likely that no node could report, as after a long outage of the API server, than that most nodes are lost; a call to a lost instance
// fails and is retried. Otherwise all calls would go to the few pods whose node reports first.
func (t *table) routable() []*Instance {
	type count struct{ ready, unreachable int }
	counts := map[string]count{} // by service
	for _, e := range t.pods {
		for _, i := range e.instances {
			c := counts[i.Service.Name]
			if e.ready {
				c.ready++
			} else if e.nodeUnreachable {
				c.unreachable++
			}
			counts[i.Service.Name] = c
		}
	}
	all := make([]*Instance, 0, len(t.pods))
	for _, e := range t.pods {
		for _, i := range e.instances {
			c := counts[i.Service.Name]
			if e.ready || e.nodeUnreachable && c.unreachable > c.ready {
				all = append(all, i)
			}
		}
	}
	return append(all, t.onlyOthers()...)
}
