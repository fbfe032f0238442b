package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What the plugin writes, and reads.
const (
	typeLabel        = "micro.mu/type"
	typeValue        = "service"
	selectorPrefix   = "micro.mu/selector-"
	annotationPrefix = "micro.mu/service-"
)

// labelName is a service's name as the plugin makes it fit for a label's key.
func labelName(service string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r == '.' || '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' {
			return r
		}
		return '_'
	}, service)
}

// node is one node of a service on one pod, with what the selector serves of it.
// It lives as long as its pod says the same of it.
type instance struct {
	registry.Node                   // what callers get; nobody writes to it
	service       *registry.Service // without nodes; shared by all nodes of one version
	pod           string
	mark          string // the annotation that it comes from

	callStats
}

// view is what a informer serves at one time. It is never changed.
type snapshot struct{ instances []*instance }

// services returns the view in go-micro's form, merged by version as the plugin
// does it, a fresh copy for callers who like to write to theirs.
func (v *snapshot) services() []*registry.Service {
	byVersion := map[string]*registry.Service{}
	var all []*registry.Service
	for _, n := range v.instances {
		s := byVersion[n.service.Name+"\x00"+n.service.Version]
		if s == nil {
			s = copyService(n.service)
			byVersion[s.Name+"\x00"+s.Version] = s
			all = append(all, s)
		}
		s.Nodes = append(s.Nodes, &registry.Node{Id: n.Id, Address: n.Address, Metadata: maps.Clone(n.Metadata)})
	}
	return all
}

func copyService(s *registry.Service) *registry.Service {
	c := *s
	c.Metadata, c.Nodes, c.Endpoints = maps.Clone(s.Metadata), nil, make([]*registry.Endpoint, len(s.Endpoints))
	for i, e := range s.Endpoints {
		if e != nil {
			c.Endpoints[i] = &registry.Endpoint{Name: e.Name, Request: copyValue(e.Request), Response: copyValue(e.Response), Metadata: maps.Clone(e.Metadata)}
		}
	}
	return &c
}

func copyValue(v *registry.Value) *registry.Value {
	if v == nil {
		return nil
	}
	c := &registry.Value{Name: v.Name, Type: v.Type}
	for _, w := range v.Values {
		c.Values = append(c.Values, copyValue(w))
	}
	return c
}

// informer keeps a view of some pods current. It owns one goroutine, which ends
// with stop.
type informer struct {
	api      *apiserver.Connection
	options  apiserver.Selector // which pods
	wanted   string             // name of the service, "" for all
	current  atomic.Pointer[snapshot]
	given    *sync.Map // *registry.Node as callers know it -> *instance; that of the registry, for all services
	stopped  atomic.Bool
	synced   chan struct{} // closed after the first LIST
	seen     func(*corev1.Pod)
	ended    sync.WaitGroup
	stopping context.CancelFunc
	changed  broadcast // for who observes

	remembers bool // what has deregistered, until its pod is gone

	mu       sync.Mutex
	pods     map[string]*entry // by name
	shapes   map[uint64]*shape // what many annotations have in common
	err      error             // of the last try, nil while it follows
	watchers map[*watcher]struct{}
}

// entry is what a informer serves of one pod.
type entry struct {
	uid     types.UID
	created time.Time
	nodes   []*instance
	left    []*instance       // deregistered, if the informer remembers
	raw     map[string]uint64 // hash of each annotation the nodes come from
	ready   bool
	unseen  bool              // not ready only because its node was not heard from
	going   bool              // asked to
	refused map[string]uint64 // annotations that do not decode: said once
}

// shape is the part of a service's annotation that all its replicas share.
type shape struct {
	service *registry.Service
	used    int
}

func newInformer(a *apiserver.Connection, o apiserver.Selector, wanted string) *informer {
	f := &informer{api: a, options: o, wanted: wanted, given: &sync.Map{}, synced: make(chan struct{}), pods: map[string]*entry{}, shapes: map[uint64]*shape{}, watchers: map[*watcher]struct{}{}}
	f.current.Store(&snapshot{})
	return f
}

// start begins to follow.
func (f *informer) start() {
	ctx, cancel := context.WithCancel(context.Background())
	f.stopping = cancel
	f.ended.Go(func() { f.follow(ctx) })
}

// stop ends following and waits for it. The view stays as it was.
func (f *informer) stop() {
	f.stopped.Store(true)
	f.stopping()
	f.ended.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watchers {
		w.end()
	}
	f.changed.notify()
}

// snapshot returns the present state.
func (f *informer) snapshot() *snapshot { return f.current.Load() }

func (f *informer) running() bool { return !f.stopped.Load() }

// follow lists and watches until ctx ends.
func (f *informer) follow(ctx context.Context) {
	f.api.ListWatchPods(ctx, f.options, reduced, podHandler{f})
}

type podHandler struct{ f *informer }

func (h podHandler) Update(p *corev1.Pod) { _ = h.f.Update(p) }
func (h podHandler) Delete(p *corev1.Pod) { _ = h.f.Delete(p) }

func (h podHandler) Replace(pods []*corev1.Pod) {
	all := make([]any, len(pods))
	for i, p := range pods {
		all[i] = p
	}
	_ = h.f.Replace(all, "")
}

func (h podHandler) StateChanged(err error) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	h.f.err = err
	if err != nil {
		logger.Warnf("Registry [kubernetes] Following %s: %v; trying on", h.f.what(), err)
	} else {
		logger.Infof("Registry [kubernetes] Following %s again", h.f.what())
	}
	h.f.changed.notify()
}

func (f *informer) what() string {
	if f.options.Fields != "" {
		return "the own pod"
	}
	if f.wanted == "" {
		return "all services"
	}
	return fmt.Sprintf("service %q", f.wanted)
}

// wait returns the view once there is one. Only the first caller after start ever waits.
func (f *informer) wait(limit time.Duration) (*snapshot, error) {
	select {
	case <-f.synced:
		return f.current.Load(), nil
	default:
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-f.synced:
		return f.current.Load(), nil
	case <-t.C:
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.err != nil {
			return nil, f.err
		}
		return nil, fmt.Errorf("list pods in namespace %q: the API server at %s has not answered for %s", f.api.Namespace, f.api.Host, limit)
	}
}

// reduced is a pod without what nobody here reads.
func reduced(p *corev1.Pod) *corev1.Pod {
	r := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion,
		CreationTimestamp: p.CreationTimestamp, DeletionTimestamp: p.DeletionTimestamp, DeletionGracePeriodSeconds: p.DeletionGracePeriodSeconds, Annotations: map[string]string{}, Labels: p.Labels}}
	for k, v := range p.Annotations {
		if strings.HasPrefix(k, annotationPrefix) {
			r.Annotations[k] = v
		}
	}
	r.Spec.ReadinessGates, r.Spec.TerminationGracePeriodSeconds = p.Spec.ReadinessGates, p.Spec.TerminationGracePeriodSeconds
	r.Status.Phase = p.Status.Phase
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady || c.Type == corev1.ContainersReady {
			r.Status.Conditions = append(r.Status.Conditions, corev1.PodCondition{Type: c.Type, Status: c.Status})
		}
	}
	return r
}

// answers says whether a pod can take a call: it runs, its probes agree, and
// nobody has asked it to go.
func answers(p *corev1.Pod) bool { return stands(p) && condition(p, corev1.PodReady) }

// unseen says whether all that speaks against a pod is that its node was not
// heard from. Then kube-controller-manager takes away Ready and leaves
// ContainersReady, the kubelet's last word; a kubelet changes both together but
// for readiness gates. It happens to every pod there is when the API server
// comes back after more than the grace period of 50 s.
func unseen(p *corev1.Pod) bool {
	return stands(p) && !condition(p, corev1.PodReady) && condition(p, corev1.ContainersReady) && len(p.Spec.ReadinessGates) == 0
}

func stands(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil
}

func condition(p *corev1.Pod, of corev1.PodConditionType) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == of {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// ---- the store a client-go reflector writes to ----

func (f *informer) Add(o any) error { return f.Update(o) }

// Update takes a pod as it is now, whatever it was before.
func (f *informer) Update(o any) error {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.put(p) {
		f.publish()
	}
	return nil
}

func (f *informer) Delete(o any) error {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if e := f.pods[p.Name]; e != nil && e.uid == p.UID {
		f.drop(p.Name)
		f.publish()
	}
	return nil
}

// Replace takes the result of a LIST.
func (f *informer) Replace(list []any, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	there := map[string]bool{}
	for _, o := range list {
		if p, ok := o.(*corev1.Pod); ok {
			there[p.Name] = true
			f.put(p)
		}
	}
	for name := range f.pods {
		if !there[name] {
			f.drop(name)
		}
	}
	f.publish()
	select {
	case <-f.synced:
	default:
		close(f.synced)
	}
	return nil
}

// put brings one pod's entry up to date and says whether that changes the view.
func (f *informer) put(p *corev1.Pod) (changed bool) {
	if f.seen != nil { // it is the own pod, and nobody asks for its nodes here
		f.seen(p)
		return false
	}
	e := f.pods[p.Name]
	if e != nil && e.uid != p.UID { // another pod under the same name
		f.drop(p.Name)
		e, changed = nil, true
	}
	if e == nil {
		e = &entry{uid: p.UID, created: p.CreationTimestamp.Time, raw: map[string]uint64{}, refused: map[string]uint64{}}
		f.pods[p.Name] = e
	}
	raw := map[string]uint64{}
	for k, v := range p.Annotations {
		of, ok := strings.CutPrefix(k, annotationPrefix)
		if !ok || f.wanted != "" && of != labelName(f.wanted) {
			continue
		}
		if !f.remembers || p.Labels[selectorPrefix+of] == typeValue { // without the label nobody finds it
			raw[k] = maphash.String(seed, v)
		}
	}
	if !maps.Equal(raw, e.raw) {
		was := e.nodes
		e.nodes, e.raw = nil, raw
		for _, k := range slices.Sorted(maps.Keys(raw)) {
			s, err := decode([]byte(p.Annotations[k]))
			if err != nil {
				if e.refused[k] != raw[k] {
					e.refused[k] = raw[k]
					logger.Warnf("Registry [kubernetes] Skipping pod %q: decoding annotation %q: %v", p.Name, k, err)
				}
				continue
			}
			if f.wanted == "" || s.Name == f.wanted {
				e.nodes = append(e.nodes, f.nodes(p, k, s)...)
			}
		}
		if f.remembers {
			was = e.remember(was)
		}
		f.release(was)
		changed = true
	}
	if ready, unseen, going := answers(p), unseen(p), p.DeletionTimestamp != nil; ready != e.ready || unseen != e.unseen || going != e.going {
		e.ready, e.unseen, e.going, changed = ready, unseen, going, true
	}
	return changed
}

func (f *informer) drop(name string) {
	f.release(f.pods[name].nodes)
	f.release(f.pods[name].left)
	delete(f.pods, name)
}

var seed = maphash.MakeSeed()

// decode reads a service as the plugin writes it. It never panics, whatever is there.
func decode(b []byte) (*registry.Service, error) {
	var s registry.Service
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	if s.Name == "" {
		return nil, errors.New("it names no service")
	}
	s.Nodes = slices.DeleteFunc(s.Nodes, func(n *registry.Node) bool { return n == nil || n.Address == "" })
	return &s, nil
}

// nodes makes a pod's nodes; what all replicas of a version say alike is kept once.
func (f *informer) nodes(p *corev1.Pod, mark string, s *registry.Service) (all []*instance) {
	of := s.Nodes
	s.Nodes = nil
	b, _ := json.Marshal(s)
	key := maphash.Bytes(seed, b)
	common := f.shapes[key]
	if common == nil {
		common = &shape{service: s}
		f.shapes[key] = common
	}
	for _, n := range of {
		common.used++
		k := &instance{Node: *n, service: common.service, pod: p.Name, mark: mark}
		f.given.Store(&k.Node, k)
		all = append(all, k)
	}
	return all
}

func (f *informer) release(nodes []*instance) {
	for _, n := range nodes {
		f.given.Delete(&n.Node)
		for key, s := range f.shapes {
			if s.service == n.service {
				if s.used--; s.used == 0 {
					delete(f.shapes, key)
				}
			}
		}
	}
}

// publish makes what is known the view and tells who watches. When no pod is
// ready, those whose nodes were not heard from stand in: a cluster that has lost
// sight of them all is more likely than that all are gone, and a call finds out.
func (f *informer) publish() {
	v := &snapshot{instances: make([]*instance, 0, len(f.pods))}
	for _, e := range f.pods {
		if e.ready {
			v.instances = append(v.instances, e.nodes...)
		}
	}
	if len(v.instances) == 0 {
		for _, e := range f.pods {
			if e.unseen {
				v.instances = append(v.instances, e.nodes...)
			}
		}
	}
	f.current.Store(v)
	for w := range f.watchers {
		w.wake()
	}
	f.changed.notify()
}
