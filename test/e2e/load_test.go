//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
)

const replicas = 4 // of the deployments that are called

// load is a pod that calls a service until it is stopped.
type load struct {
	*faults.Load
	pod      string
	messages string // the lines of its log that are not seconds
}

// startLoad starts the probe in a pod of its own with the given arguments.
func startLoad(t *testing.T, name string, args ...string) *load {
	t.Helper()
	l, err := faults.StartLoad(context.Background(), faults.Cluster{Root: root, Name: clusterName}, namespace, name, "", probeImage, args, nil)
	fatal(t, err)
	return &load{Load: l, pod: name}
}

func (l *load) stop(t *testing.T) {
	t.Helper()
	if err := l.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

// seconds returns every second since the start.
func (l *load) seconds(t *testing.T) (all []faults.Second) {
	t.Helper()
	all, messages, err := l.Seconds()
	fatal(t, err)
	l.messages = messages
	return all
}

// secondsUntil waits until every call that started before the given time has ended, and
// returns every second since the start.
func (l *load) secondsUntil(t *testing.T, end time.Time) []faults.Second {
	t.Helper()
	_, err := l.SecondsUntil(context.Background(), end)
	fatal(t, err)
	return l.seconds(t)
}

// waitForReplicas waits until exactly n pods of a service exist, all are ready
// and registered, and the callers are answered by all of them and by no other.
func (l *load) waitForReplicas(t *testing.T, service string, n int) {
	t.Helper()
	start := time.Now()
	eventually(t, 2*time.Minute, fmt.Sprintf("%d replicas ready, registered and called", n), func() error {
		var list corev1.PodList
		if err := get(faults.PodsOf(namespace, service), &list); err != nil {
			return err
		}
		var want []string
		for _, p := range list.Items {
			if !faults.IsReady(p) || p.DeletionTimestamp != nil {
				return fmt.Errorf("pod %q is not ready", p.Name)
			}
			s, err := registration(p, service)
			if err != nil {
				return err
			}
			address := faults.Address(p)
			if len(s.Nodes) != 1 || s.Nodes[0].Address != address {
				return fmt.Errorf("pod %q: nodes %v, want one at %s", p.Name, s.Nodes, address)
			}
			want = append(want, address)
		}
		if len(want) != n {
			return fmt.Errorf("%d pods", len(want))
		}
		return l.AnsweredBy(want, start)
	})
}
