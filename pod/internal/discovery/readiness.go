package discovery

import corev1 "k8s.io/api/core/v1"

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
