package registration

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestDueChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		s := registrations{desired: map[string]*registration{}}
		if len(s.due(now)) != 0 || !s.nextDue(now).IsZero() || s.complete() {
			t.Errorf("without a registration: due %v, next %s, complete %v", s.due(now), s.nextDue(now), s.complete())
		}
		early, late := desire("early"), desire("late")
		early.notBefore, late.notBefore = now.Add(time.Second), now.Add(2*time.Second)
		for name, d := range map[string]*registration{"late": late, "early": early} {
			if err := s.set(name, d); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			at   time.Duration
			due  int
			next time.Duration
		}{{0, 0, time.Second}, {time.Second - 1, 0, time.Second}, {time.Second, 1, time.Second}, {1500 * time.Millisecond, 1, 1500 * time.Millisecond}, {2 * time.Second, 2, 2 * time.Second}, {time.Hour, 2, time.Hour}} {
			if due, next := s.due(now.Add(c.at)), s.nextDue(now.Add(c.at)); len(due) != c.due || !next.Equal(now.Add(c.next)) {
				t.Errorf("after %s: %d due, next after %s, want %d and %s", c.at, len(due), next.Sub(now), c.due, c.next)
			}
		}
		s.observe(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Labels:      map[string]string{podmeta.SelectorPrefix + "early": podmeta.TypeValue},
			Annotations: map[string]string{podmeta.AnnotationPrefix + "early": "early"}}})
		if due := s.due(now.Add(time.Hour)); len(due) != 1 || due["late"].Empty() || !s.nextDue(now).Equal(late.notBefore) || s.complete() || !s.satisfied("early", early) || s.satisfied("late", late) {
			t.Errorf("after one is observed: %v due, next %s, complete %v", due, s.nextDue(now), s.complete())
		}
	})
}

func TestDeregistrationIsForgottenWhenItIsObserved(t *testing.T) {
	s := registrations{desired: map[string]*registration{}}
	removal := removalOf("greeter")
	if err := s.set("greeter", &registration{metadata: removal, removal: removal}); err != nil || len(s.desired) != 1 {
		t.Fatalf("%d desired, %v", len(s.desired), err)
	}
	if len(s.pendingChanges()) != 1 { // nothing is known of the pod
		t.Error("nothing is pending")
	}
	s.observe(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{podmeta.AnnotationPrefix + "greeter": "x"}}})
	if len(s.desired) != 1 || s.complete() {
		t.Errorf("%d desired, complete %v, while the annotation is there", len(s.desired), s.complete())
	}
	s.observe(&corev1.Pod{})
	if len(s.desired) != 0 || !s.complete() {
		t.Errorf("%d desired, complete %v, after the annotation has gone", len(s.desired), s.complete())
	}
	if err := s.set("greeter", &registration{metadata: removal, removal: removal}); err != nil || len(s.desired) != 0 { // there is nothing to remove
		t.Errorf("%d desired, %v", len(s.desired), err)
	}
}
