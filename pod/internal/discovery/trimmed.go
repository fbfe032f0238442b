package discovery

import (
	"strings"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// trimmed returns a pod with only the fields that informers read.
func trimmed(p *corev1.Pod) *corev1.Pod {
	t := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion,
		CreationTimestamp: p.CreationTimestamp, DeletionTimestamp: p.DeletionTimestamp, Annotations: map[string]string{}, Labels: p.Labels}}
	for k, v := range p.Annotations {
		if strings.HasPrefix(k, podmeta.AnnotationPrefix) {
			t.Annotations[k] = v
		}
	}
	t.Spec.NodeName, t.Spec.ReadinessGates = p.Spec.NodeName, p.Spec.ReadinessGates
	t.Status.Phase, t.Status.PodIP, t.Status.PodIPs = p.Status.Phase, p.Status.PodIP, p.Status.PodIPs
	if isReady(p) {
		t.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	} else { // the reason is read too
		t.Status.Reason, t.Status.Message, t.Status.Conditions = p.Status.Reason, p.Status.Message, p.Status.Conditions
		t.Status.InitContainerStatuses, t.Status.ContainerStatuses = p.Status.InitContainerStatuses, p.Status.ContainerStatuses
	}
	return t
}
