package registration

import (
	"cmp"
	"context"
	"strconv"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podwatch"
	corev1 "k8s.io/api/core/v1"
)

// API is the part of apiserver.Connection that a registrar uses.
type API interface {
	podwatch.API
	// PatchPod applies a strategic merge patch to the process's own pod.
	PatchPod(ctx context.Context, patch []byte) (*corev1.Pod, error)
	// RetryAfter returns how long the API server asks for no further request.
	RetryAfter() time.Duration
}

// Pod is the process's own pod.
type Pod struct {
	API             API    // of the API server that stores the pod
	Host            string // URL of the API server
	Namespace, Name string // Name is empty if it is unknown
	OutsideCluster  bool   // this process is not in a pod: it can register nothing
}

// observe records the state of the process's own pod. The watch may deliver a version
// that is older than the response to the last patch, which observe ignores; resource
// versions of one object are growing numbers (KEP-5504). A LIST contains the current version, even if
// it is older, as after etcd was restored from a backup.
func (r *registrar) observe(p *corev1.Pod, current bool) {
	version := versionOf(p)
	r.mu.Lock()
	if r.uid != "" && p.UID != r.uid || version < r.version && !current {
		r.mu.Unlock()
		return
	}
	r.uid, r.version = p.UID, version
	if zone, before := p.Labels[podmeta.ZoneLabel], r.zone.Load(); before == nil || *before != zone {
		r.zone.Store(&zone)
	}
	r.state.observe(p)
	if seconds := cmp.Or(p.DeletionGracePeriodSeconds, p.Spec.TerminationGracePeriodSeconds); seconds != nil {
		r.gracePeriod = time.Duration(*seconds) * time.Second
	}
	if p.DeletionTimestamp != nil && r.terminating.IsZero() {
		r.terminating = time.Now()
	}
	pending := len(r.state.pendingChanges()) > 0
	r.mu.Unlock()
	r.statusChanged()
	if pending {
		r.reconcileSoon()
	}
}

func versionOf(p *corev1.Pod) uint64 {
	version, _ := strconv.ParseUint(p.ResourceVersion, 10, 64)
	return version
}

// wholePod keeps all fields of the pod: there is only one.
func wholePod(p *corev1.Pod) *corev1.Pod { return p }

// ownPod passes the events of the process's own pod to the registrar.
type ownPod struct{ r *registrar }

func (o ownPod) Update(p *corev1.Pod) { o.r.observe(p, false) }

func (o ownPod) Replace(pods []*corev1.Pod) {
	for _, p := range pods {
		o.r.observe(p, true)
	}
}

func (ownPod) Delete(*corev1.Pod) {} // the process ends before its pod is deleted

func (ownPod) StateChanged(error) {} // podwatch logs the error
