package discovery

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestReasonOf(t *testing.T) {
	condition := func(c corev1.PodConditionType, status corev1.ConditionStatus, reason, message string) corev1.PodCondition {
		return corev1.PodCondition{Type: c, Status: status, Reason: reason, Message: message}
	}
	container := func(state corev1.ContainerState) *corev1.Pod {
		return &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{Name: "sidecar", Ready: true}, {Name: "main", State: state}},
			Conditions: []corev1.PodCondition{condition(corev1.PodReady, corev1.ConditionFalse, "ContainersNotReady", "containers with unready status: [main]")}}}
	}
	exited := &corev1.ContainerStateTerminated{Reason: "OOMKilled", ExitCode: 137}
	starting := container(corev1.ContainerState{Running: &corev1.ContainerStateRunning{}})
	starting.Status.ContainerStatuses[1].Started = new(bool)
	crashing := container(corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 20s"}})
	crashing.Status.ContainerStatuses[1].LastTerminationState.Terminated = exited
	initializing := container(corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"}})
	initializing.Status.InitContainerStatuses = []corev1.ContainerStatus{
		{Name: "done", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed"}}},
		{Name: "migrate", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}}}
	single := container(corev1.ContainerState{Running: &corev1.ContainerStateRunning{}})
	single.Status.ContainerStatuses = single.Status.ContainerStatuses[1:]
	end := metav1.NewTime(time.Date(2026, 11, 24, 13, 5, 9, 0, time.FixedZone("CET", 3600)))
	for _, test := range []struct {
		name string
		pod  *corev1.Pod
		want string
	}{
		{"ready", &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{condition(corev1.PodReady, corev1.ConditionTrue, "", "")}}}, ""},
		{"terminating", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &end}}, "being deleted, until 12:05:09 UTC at the latest"},
		{"node unreachable", &corev1.Pod{Spec: corev1.PodSpec{NodeName: "node-7"}, Status: corev1.PodStatus{Phase: corev1.PodRunning,
			Conditions: []corev1.PodCondition{condition(corev1.PodReady, corev1.ConditionFalse, "NodeNotReady", ""), condition(corev1.ContainersReady, corev1.ConditionTrue, "", "")}}},
			`the Kubernetes node "node-7" stopped reporting`},
		{"unschedulable", &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{condition(corev1.PodScheduled, corev1.ConditionFalse, "Unschedulable", "0/3 nodes are available")}}},
			"Unschedulable: 0/3 nodes are available"},
		{"evicted", &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "The node was low on resource: memory."}}, "the pod has ended: Evicted: The node was low on resource: memory."},
		{"readiness probe", container(corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}), `container "main": the readiness probe does not succeed`},
		{"single container", single, "the readiness probe does not succeed"},
		{"startup probe", starting, `container "main": the startup probe has not succeeded yet`},
		{"crash loop", crashing, `container "main": CrashLoopBackOff after OOMKilled, exit code 137`},
		{"ended", container(corev1.ContainerState{Terminated: exited}), `container "main": OOMKilled, exit code 137`},
		{"image", container(corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull"}}), `container "main": ErrImagePull`},
		{"init container", initializing, `init container "migrate": ImagePullBackOff`},
		{"readiness gate", &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{Name: "main", Ready: true}},
			Conditions: []corev1.PodCondition{condition(corev1.PodReady, corev1.ConditionFalse, "ReadinessGatesNotReady", "no gate"), condition(corev1.ContainersReady, corev1.ConditionTrue, "", "")}},
			Spec: corev1.PodSpec{ReadinessGates: []corev1.PodReadinessGate{{ConditionType: "gate"}}}}, "ReadinessGatesNotReady: no gate"},
		{"nothing known", &corev1.Pod{}, "the pod is new"},
		{"pending", &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodPending}}, "the pod is Pending"},
	} {
		if got := reasonOf(test.pod); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
		if got := reasonOf(trimmed(test.pod)); got != test.want {
			t.Errorf("%s, trimmed: %q, want %q", test.name, got, test.want)
		}
	}
	long := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed, Message: strings.Repeat("€", 1<<16)}}
	if got := reasonOf(long); len(got) > maxReason+len("…") || !strings.HasSuffix(got, "€…") {
		t.Errorf("the reason of a long message has %d bytes: %q", len(got), got)
	}
}
