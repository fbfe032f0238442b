package discovery

import (
	"cmp"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// maxReason bounds the bytes of a reason, whose parts other programs write.
const maxReason = 300

// reasonOf says in a sentence why an instance of a pod cannot receive calls, as far as the
// status of the pod tells. It returns "" for a pod that is ready.
func reasonOf(p *corev1.Pod) string {
	reason := ""
	switch {
	case p.DeletionTimestamp != nil:
		reason = "being deleted, until " + p.DeletionTimestamp.UTC().Format("15:04:05") + " UTC at the latest"
	case isReady(p):
	case isNodeUnreachable(p):
		reason = fmt.Sprintf("the Kubernetes node %q stopped reporting", p.Spec.NodeName)
	case p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded: // such as Evicted
		reason = "the pod has ended" + detail(p.Status.Reason, p.Status.Message)
	default:
		reason = cmp.Or(conditionReason(p, corev1.PodScheduled), containerReason(p), conditionReason(p, corev1.PodReady), "the pod is "+cmp.Or(string(p.Status.Phase), "new"))
	}
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
	}
	return reason
}

// containerReason returns the reason of the first container that is not ready, or "". It
// names the container if the pod has several.
func containerReason(p *corev1.Pod) string {
	for _, c := range p.Status.InitContainerStatuses {
		if t := c.State.Terminated; t == nil || t.ExitCode != 0 {
			if reason := stateReason(c); reason != "" {
				return fmt.Sprintf("init container %q: %s", c.Name, reason)
			}
		}
	}
	for _, c := range p.Status.ContainerStatuses {
		reason := ""
		switch {
		case c.Ready:
			continue
		case c.State.Running == nil:
			reason = stateReason(c)
		case c.Started != nil && !*c.Started:
			reason = "the startup probe has not succeeded yet"
		default:
			reason = "the readiness probe does not succeed"
		}
		if reason != "" {
			if len(p.Status.ContainerStatuses) > 1 {
				reason = fmt.Sprintf("container %q: %s", c.Name, reason)
			}
			return reason
		}
	}
	return ""
}

// stateReason describes a container that does not run. For a container that waits for its
// next start, the reason why it ended tells more than the wait.
func stateReason(c corev1.ContainerStatus) string {
	ended := func(t *corev1.ContainerStateTerminated) string {
		return fmt.Sprintf("%s, exit code %d", cmp.Or(t.Reason, "ended"), t.ExitCode)
	}
	switch {
	case c.State.Terminated != nil:
		return ended(c.State.Terminated)
	case c.State.Waiting != nil && c.LastTerminationState.Terminated != nil:
		return c.State.Waiting.Reason + " after " + ended(c.LastTerminationState.Terminated)
	case c.State.Waiting != nil:
		return c.State.Waiting.Reason
	}
	return ""
}

// conditionReason returns reason and message of a condition that is False, or "".
func conditionReason(p *corev1.Pod, condition corev1.PodConditionType) string {
	for _, c := range p.Status.Conditions {
		if c.Type == condition && c.Status == corev1.ConditionFalse {
			return strings.TrimPrefix(detail(c.Reason, c.Message), ": ")
		}
	}
	return ""
}

func detail(reason, message string) (text string) {
	for _, s := range []string{reason, message} {
		if s != "" {
			text += ": " + s
		}
	}
	return text
}
