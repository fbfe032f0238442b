package pod

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/logger"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// podWatch lists and watches pods in its own goroutine, from start to stop. It logs
// when watching begins to fail and when it works again.
type podWatch struct {
	apiError func(operation string, err error) // Events.APIError; may be nil

	cancel  context.CancelFunc // nil before start
	stopped atomic.Bool
	ended   sync.WaitGroup
}

// start begins to pass the selected pods and the errors to h. The log calls the pods by
// the given name.
func (w *podWatch) start(conn *apiserver.Connection, selector apiserver.Selector, name string, h apiserver.Handler[*corev1.Pod]) {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.ended.Go(func() { conn.ListWatchPods(ctx, selector, trimmed, loggingHandler{h, name, w}) })
}

func (w *podWatch) started() bool { return w.cancel != nil }

func (w *podWatch) running() bool { return !w.stopped.Load() }

// stop ends the goroutine and waits for it.
func (w *podWatch) stop() {
	w.stopped.Store(true)
	if w.cancel != nil {
		w.cancel()
	}
	w.ended.Wait()
}

type loggingHandler struct {
	apiserver.Handler[*corev1.Pod]
	name  string
	watch *podWatch
}

func (h loggingHandler) StateChanged(err error) {
	if err != nil {
		logger.Warnf("Registry [kubernetes] Watching %s: %v; retrying", h.name, err)
	} else {
		logger.Infof("Registry [kubernetes] Watching %s again", h.name)
	}
	h.watch.reportAPIError("watching "+h.name, err)
	h.Handler.StateChanged(err)
}

func (w *podWatch) reportAPIError(operation string, err error) {
	if w.apiError != nil {
		w.apiError(operation, err)
	}
}

// trimmed returns a pod with only the fields that this package reads.
func trimmed(p *corev1.Pod) *corev1.Pod {
	t := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion,
		CreationTimestamp: p.CreationTimestamp, DeletionTimestamp: p.DeletionTimestamp, DeletionGracePeriodSeconds: p.DeletionGracePeriodSeconds, Annotations: map[string]string{}, Labels: p.Labels}}
	for k, v := range p.Annotations {
		if strings.HasPrefix(k, podmeta.AnnotationPrefix) {
			t.Annotations[k] = v
		}
	}
	t.Spec.NodeName, t.Spec.ReadinessGates, t.Spec.TerminationGracePeriodSeconds = p.Spec.NodeName, p.Spec.ReadinessGates, p.Spec.TerminationGracePeriodSeconds
	t.Status.Phase, t.Status.PodIP, t.Status.PodIPs = p.Status.Phase, p.Status.PodIP, p.Status.PodIPs
	if isReady(p) {
		t.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	} else { // the reason is read too
		t.Status.Reason, t.Status.Message, t.Status.Conditions = p.Status.Reason, p.Status.Message, p.Status.Conditions
		t.Status.InitContainerStatuses, t.Status.ContainerStatuses = p.Status.InitContainerStatuses, p.Status.ContainerStatuses
	}
	return t
}
