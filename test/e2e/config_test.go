//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestConfigFollows changes the ConfigMap under a process that follows it, and
// reads what that prints.
func TestConfigFollows(t *testing.T) {
	const app, asManifest = "go-micro-config-follow", "go-micro-config/k8s/configmap.yaml"
	kubectl(t, "apply", "-f", "k8s/namespace.yaml", "-f", "k8s/configmap-rbac.yaml", "-f", asManifest, "-f", "go-micro-config/k8s/follow.yaml")
	t.Cleanup(func() {
		kubectl(t, "delete", "-f", "go-micro-config/k8s/follow.yaml", "--ignore-not-found")
		kubectl(t, "delete", "-f", asManifest, "--ignore-not-found")
		kubectl(t, "apply", "-f", asManifest)
	})
	kubectl(t, "rollout", "status", "-n", namespace, "deployment/"+app, "--timeout=2m")
	live := pods(t, app)
	if len(live) != 1 {
		t.Fatalf("%d pods of %q run, want 1", len(live), app)
	}
	pod := live[0].Name

	lines := 0
	prints := func(changed time.Time, what string, want, without string) {
		t.Helper()
		lines++
		var at time.Time
		eventually(t, 30*time.Second, what, func() error {
			all, err := printedMaps(pod)
			if err == nil && len(all) < lines {
				err = errors.New("no line of it")
			}
			if err != nil {
				return err
			}
			last := all[len(all)-1]
			if len(all) > lines || !strings.Contains(last.text, want) || without != "" && strings.Contains(last.text, without) || !strings.Contains(last.text, "hostname:"+pod) {
				t.Fatalf("%s: line %d of %d is %q, want it with %q, without %q", what, lines, len(all), last.text, want, without)
			}
			at = last.at
			return nil
		})
		if took := at.Sub(changed); !changed.IsZero() {
			t.Logf("%s: printed %s after kubectl began to say so", what, took.Round(time.Millisecond))
			if took > 5*time.Second {
				t.Errorf("%s: printed after %s", what, took)
			}
		}
	}
	patch := func(value map[string]any) time.Time {
		t.Helper()
		begin := time.Now()
		kubectl(t, "patch", "configmap", "go-micro-config", "-n", namespace, "--type=merge", "-p", string(must(json.Marshal(map[string]any{"data": value}))))
		return begin
	}

	prints(time.Time{}, "the present map", "map[DB_HOST:192.168.0.1 DB_NAME:MICRO ", "")
	prints(patch(map[string]any{"DB_HOST": "192.168.0.2"}), "an edit", "map[DB_HOST:192.168.0.2 DB_NAME:MICRO ", "192.168.0.1 ")
	prints(patch(map[string]any{"app.yaml": "db:\n  host: db-1\n  ports: [5432, 5433]\n"}), "a value that holds a YAML file",
		"map[DB_HOST:192.168.0.2 DB_NAME:MICRO app.yaml:map[db:map[host:db-1 ports:[5432 5433]]] ", "")
	kubectl(t, "label", "configmap", "go-micro-config", "-n", namespace, "k8s-micro/e2e=label") // which is no change of what it holds

	begin := time.Now()
	kubectl(t, "delete", "-f", asManifest)
	prints(begin, "the deletion", "map[", "DB_")
	begin = time.Now()
	kubectl(t, "apply", "-f", asManifest)
	prints(begin, "it being created again", "map[DB_HOST:192.168.0.1 DB_NAME:MICRO ", "app.yaml")

	killed := time.Now()
	apiKilled(t, nil)
	t.Logf("the API server answers %s after its SIGKILL", time.Since(killed).Round(time.Millisecond))
	prints(patch(map[string]any{"DB_HOST": "192.168.0.3"}), "an edit after the API server's return", "map[DB_HOST:192.168.0.3 DB_NAME:MICRO ", "")

	if live = pods(t, app); len(live) != 1 || live[0].Name != pod || live[0].Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("pods %v, want %q alone, never restarted", live, pod)
	}
	endsWell(t, app, pod)
}

// printed is a line of a log and when it came.
type printed struct {
	at   time.Time
	text string
}

// printedMaps are the maps in the log of a pod.
func printedMaps(pod string) (all []printed, err error) {
	var log bytes.Buffer
	if err := command(time.Minute, &log, "kubectl", "logs", pod, "-n", namespace, "--timestamps"); err != nil {
		return nil, err
	}
	for line := range strings.Lines(log.String()) {
		stamp, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if strings.HasPrefix(text, "map[") {
			at, err := time.Parse(time.RFC3339Nano, stamp)
			if err != nil {
				return nil, err
			}
			all = append(all, printed{at, text})
		}
	}
	return all, nil
}

// endsWell scales a deployment to nothing and checks that the container of its
// pod exits 0. A finalizer keeps the pod to be looked at.
func endsWell(t *testing.T, deployment, pod string) {
	t.Helper()
	hold := func(finalizers string) error {
		return command(time.Minute, io.Discard, "kubectl", "patch", "pod", pod, "-n", namespace, "--type=merge", "-p", `{"metadata":{"finalizers":`+finalizers+`}}`)
	}
	if err := hold(`["k8s-micro/e2e"]`); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := hold("null"); err != nil {
			t.Error(err)
		}
	}()
	begin := time.Now()
	kubectl(t, "scale", "-n", namespace, "deployment/"+deployment, "--replicas=0")
	var p corev1.Pod
	eventually(t, time.Minute, "the container ending", func() error {
		if err := json.Unmarshal([]byte(kubectl(t, "get", "pod", pod, "-n", namespace, "-o", "json")), &p); err != nil {
			return err
		}
		if p.Status.ContainerStatuses[0].State.Terminated == nil {
			return fmt.Errorf("it is %v", p.Status.ContainerStatuses[0].State)
		}
		return nil
	})
	end := p.Status.ContainerStatuses[0].State.Terminated
	t.Logf("asked to end, seen to have ended %s later: exit code %d", time.Since(begin).Round(time.Millisecond), end.ExitCode)
	if end.ExitCode != 0 {
		t.Errorf("the container ended with %d %s, want 0", end.ExitCode, end.Reason)
	}
}
