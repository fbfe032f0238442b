package discovery

import (
	"fmt"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// newServiceInformer returns an informer of one service that is not started. It takes what its
// methods Replace, Update and Delete are given.
func newServiceInformer(service string) *Informer {
	return newInformer(tableOfService(service, &index{}))
}

// greeterPod returns a ready pod with the number i and one greeter.
func greeterPod(t testing.TB, i int) *corev1.Pod {
	return kubetest.ReadyPod(t, fmt.Sprint("p-", i), kubetest.OneInstance("greeter", fmt.Sprint("v", i%2), fmt.Sprint("10.0.0.1:", i+1)))
}

func TestUnreachableInstancesAreUsedWhileTheyOutnumberReadyOnes(t *testing.T) {
	const ready, unreachable, notReady = "ready", "unreachable", "not ready"
	states := func(counts map[string]int) (pods []*corev1.Pod) {
		conditions := map[string][2]corev1.ConditionStatus{ready: {"True", "True"}, unreachable: {"False", "True"}, notReady: {"False", "False"}}
		for state, n := range counts {
			for range n {
				p := greeterPod(t, len(pods))
				p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: conditions[state][0]}, {Type: corev1.ContainersReady, Status: conditions[state][1]}}
				pods = append(pods, p)
			}
		}
		return pods
	}
	for _, c := range []struct {
		what   string
		counts map[string]int
		want   int
	}{
		{"all nodes report", map[string]int{ready: 12}, 12},
		{"after a long API outage", map[string]int{unreachable: 12}, 12},
		{"the first node reports again", map[string]int{ready: 3, unreachable: 9}, 12},
		{"the second node reports again", map[string]int{ready: 6, unreachable: 6}, 6},
		{"the third node reports again", map[string]int{ready: 9, unreachable: 3}, 9},
		{"one node of four is lost", map[string]int{ready: 9, unreachable: 3}, 9},
		{"pods with failing probes do not count", map[string]int{ready: 2, unreachable: 1, notReady: 9}, 2},
	} {
		i := newServiceInformer("greeter")
		i.Replace(states(c.counts))
		if got := len(i.Snapshot().Instances); got != c.want {
			t.Errorf("%s: %d instances, want %d", c.what, got, c.want)
		}
	}
}

func TestUnreachableInstancesAreCountedForEachService(t *testing.T) {
	i := newInformer(newAllServices(&index{}, podmeta.Limits{}))
	lost := greeterPod(t, 0) // its instance belongs to the greeter
	lost.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: "False"}, {Type: corev1.ContainersReady, Status: "True"}}
	other := greeterPod(t, 1)
	other.Labels = map[string]string{podmeta.SelectorPrefix + "adder": podmeta.TypeValue}
	other.Annotations = map[string]string{podmeta.AnnotationPrefix + "adder": registrationOf("adder", "10.0.0.1:1")}
	i.Replace([]*corev1.Pod{lost, other})
	if got := len(i.Snapshot().Instances); got != 2 {
		t.Errorf("%d instances, want 2: the unreachable instance, which is the only one of its service, and the ready instance", got)
	}
}

// After an outage of the API server, kube-controller-manager sets Ready to false on the
// pods of each Kubernetes node that has not reported.
func TestUnreachableInstancesAreUsedWhenNoneIsReady(t *testing.T) {
	inf := newServiceInformer("greeter")
	for i := range 3 {
		inf.Update(greeterPod(t, i))
	}
	update := func(i int, ready, containersReady corev1.ConditionStatus, also ...func(*corev1.Pod)) int {
		p := greeterPod(t, i)
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}, {Type: corev1.ContainersReady, Status: containersReady}}
		for _, do := range also {
			do(p)
		}
		inf.Update(trimmed(p))
		return len(inf.Snapshot().Instances)
	}
	const yes, no = corev1.ConditionTrue, corev1.ConditionFalse
	gated := func(p *corev1.Pod) {
		p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/in-rotation"}}
	}
	terminating := func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Now()} }
	for _, step := range []struct {
		what string
		got  func() int
		want int
	}{
		{"one unreachable", func() int { return update(0, no, yes) }, 2},
		{"two unreachable, more than ready", func() int { return update(1, no, yes) }, 3},
		{"all unreachable", func() int { return update(2, no, yes) }, 3},
		{"one with a failing probe", func() int { return update(2, no, no) }, 2},
		{"one with a readiness gate", func() int { return update(1, no, yes, gated) }, 1},
		{"one terminating", func() int { return update(0, no, yes, terminating) }, 0},
		{"one ready again", func() int { return update(1, yes, yes) }, 1},
		{"another unreachable", func() int { return update(0, no, yes) }, 1},
	} {
		if got := step.got(); got != step.want {
			t.Errorf("%s: %d instances, want %d", step.what, got, step.want)
		}
	}
}
