//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// second is one line of the probe's output: the calls of about one second.
// test/e2e/probe/call.go explains the fields.
type second struct {
	Begin, End                 time.Time
	Started, Succeeded, Failed int
	Error                      string `json:",omitempty"`
	Oldest                     time.Duration
	Answered                   map[string]int    `json:",omitempty"`
	FailedTries                map[string]int    `json:",omitempty"`
	TryErrors                  map[string]string `json:",omitempty"`
}

// load is a pod that calls a service until it is stopped.
type load struct {
	pod      string
	messages string // the lines of its log that are not seconds
}

// startLoad starts the probe in a pod of its own with the given arguments.
func startLoad(t *testing.T, name string, args ...string) *load {
	t.Helper()
	kubectl(t, "delete", "pod", name, "-n", namespace, "--ignore-not-found")
	apply(t, fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %[1]q, namespace: %[2]q, labels: {app: %[1]q}}, spec: {restartPolicy: Never, serviceAccountName: micro-services,
  terminationGracePeriodSeconds: 1, containers: [{name: main, image: %[3]q, imagePullPolicy: Always, args: %[4]s,
  env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}], %[5]s}]}}`, name, namespace, probeImage, must(json.Marshal(args)), restricted))
	kubectl(t, "wait", "-n", namespace, "pod/"+name, "--for=condition=Ready", "--timeout=1m")
	return &load{pod: name}
}

func (l *load) stop(t *testing.T) {
	t.Helper()
	if l != nil {
		kubectl(t, "delete", "pod", l.pod, "-n", namespace, "--wait=false")
	}
}

// seconds returns every second since the start.
func (l *load) seconds(t *testing.T) (all []second) {
	t.Helper()
	l.messages = ""
	for line := range strings.Lines(kubectl(t, "logs", l.pod, "-n", namespace)) {
		var s second
		if json.Unmarshal([]byte(line), &s) == nil && !s.End.IsZero() {
			all = append(all, s)
		} else {
			l.messages += line
		}
	}
	return all
}

// waitForReplicas waits until exactly n pods of go-micro-srv exist, all are ready
// and registered, and the callers are answered by all of them and by no other.
func (l *load) waitForReplicas(t *testing.T, n int) {
	t.Helper()
	start := time.Now()
	eventually(t, 2*time.Minute, fmt.Sprintf("%d replicas ready, registered and called", n), func() error {
		var list corev1.PodList
		if err := getJSON(t, &list, "pods", "-l", "app=go-micro-srv"); err != nil {
			return err
		}
		var want []string
		for _, p := range list.Items {
			if !isReady(p) || p.DeletionTimestamp != nil {
				return fmt.Errorf("pod %q is not ready", p.Name)
			}
			s, err := registration(p, "go-micro-srv")
			if err != nil {
				return err
			}
			address := p.Status.PodIP + ":9100"
			if len(s.Nodes) != 1 || s.Nodes[0].Address != address {
				return fmt.Errorf("pod %q: nodes %v, want one at %s", p.Name, s.Nodes, address)
			}
			want = append(want, address)
		}
		if len(want) != n {
			return fmt.Errorf("%d pods", len(want))
		}
		slices.Sort(want)
		log := l.seconds(t)
		if len(log) == 0 || log[len(log)-1].Begin.Before(start) {
			return fmt.Errorf("no line of the callers since the start; their messages: %q", l.messages)
		}
		if got := slices.Sorted(maps.Keys(log[len(log)-1].Answered)); !slices.Equal(got, want) {
			return fmt.Errorf("the callers are answered by %q, want %q", got, want)
		}
		return nil
	})
}

// secondsUntil waits until every call that started before the given time has
// ended, and returns every second since the start.
func (l *load) secondsUntil(t *testing.T, end time.Time) (log []second) {
	t.Helper()
	eventually(t, time.Minute, "the end of the calls in flight", func() error {
		log = l.seconds(t)
		if last := log[len(log)-1]; last.End.Add(-last.Oldest).Before(end) {
			return fmt.Errorf("at %s a call has been in flight for %s", last.End, last.Oldest)
		}
		return nil
	})
	return log
}

// succeededPerSecond returns the successful calls per second between two times,
// 0 if no whole second lies between them.
func succeededPerSecond(log []second, from, to time.Time) float64 {
	calls, length := 0, time.Duration(0)
	for _, s := range log {
		if !s.Begin.Before(from) && !s.End.After(to) {
			calls += s.Succeeded
			length += s.End.Sub(s.Begin)
		}
	}
	if length == 0 {
		return 0
	}
	return float64(calls) / length.Seconds()
}
