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

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
	corev1 "k8s.io/api/core/v1"
)

// TestFollow changes the ConfigMap while go-micro-config -follow runs, and checks
// the lines that it prints.
func TestFollow(t *testing.T) {
	const app, configMap = "go-micro-config-follow", "go-micro-config/k8s/configmap.yaml"
	kubectl(t, "apply", "-f", "k8s/namespace.yaml", "-f", "k8s/configmap-rbac.yaml", "-f", configMap, "-f", "go-micro-config/k8s/follow.yaml")
	t.Cleanup(func() {
		kubectl(t, "delete", "-f", "go-micro-config/k8s/follow.yaml", "--ignore-not-found")
		kubectl(t, "delete", "-f", configMap, "--ignore-not-found")
		kubectl(t, "apply", "-f", configMap)
	})
	kubectl(t, "rollout", "status", "-n", namespace, "deployment/"+app, "--timeout=2m")
	running := pods(t, app)
	if len(running) != 1 {
		t.Fatalf("%d pods of %q are running, want 1", len(running), app)
	}
	pod := running[0].Name

	lines := 0
	// expectLine waits for exactly one more line, which must contain one text and lack another.
	expectLine := func(changed time.Time, what string, want, without string) {
		t.Helper()
		lines++
		var at time.Time
		eventually(t, time.Minute, "a line after "+what, func() error {
			all, err := printedMaps(pod)
			if err == nil && len(all) < lines {
				err = errors.New("no new line")
			}
			if err != nil {
				return err
			}
			last := all[len(all)-1]
			if len(all) > lines || !strings.Contains(last.text, want) || without != "" && strings.Contains(last.text, without) || !strings.Contains(last.text, "hostname:"+pod) {
				t.Fatalf("%s: line %d of %d is %q, want it with %q and without %q", what, lines, len(all), last.text, want, without)
			}
			at = last.at
			return nil
		})
		if took := at.Sub(changed); !changed.IsZero() {
			t.Logf("%s: printed %s after kubectl started", what, took.Round(time.Millisecond))
			if took > 15*time.Second { // 2 s on an idle machine; without a watch it would be minutes
				t.Errorf("%s: printed after %s, want at most 15 s", what, took)
			}
		}
	}
	patch := func(data map[string]any) time.Time {
		t.Helper()
		begin := time.Now()
		kubectl(t, "patch", "configmap", "go-micro-config", "-n", namespace, "--type=merge", "-p", string(must(json.Marshal(map[string]any{"data": data}))))
		return begin
	}

	expectLine(time.Time{}, "the start", "map[DB_HOST:192.168.0.1 DB_NAME:MICRO ", "")
	expectLine(patch(map[string]any{"DB_HOST": "192.168.0.2"}), "an edit", "map[DB_HOST:192.168.0.2 DB_NAME:MICRO ", "192.168.0.1 ")
	expectLine(patch(map[string]any{"app.yaml": "db:\n  host: db-1\n  ports: [5432, 5433]\n"}), "a value that holds a YAML file",
		"map[DB_HOST:192.168.0.2 DB_NAME:MICRO app.yaml:map[db:map[host:db-1 ports:[5432 5433]]] ", "")
	kubectl(t, "label", "configmap", "go-micro-config", "-n", namespace, "k8s-micro/e2e=label") // changes no data, so no line follows

	begin := time.Now()
	kubectl(t, "delete", "-f", configMap)
	expectLine(begin, "the deletion", "map[", "DB_")
	begin = time.Now()
	kubectl(t, "apply", "-f", configMap)
	expectLine(begin, "creating it again", "map[DB_HOST:192.168.0.1 DB_NAME:MICRO ", "app.yaml")

	killed := time.Now()
	killAPIServer(t)
	t.Logf("the API server is ready %s after SIGKILL", time.Since(killed).Round(time.Millisecond))
	expectLine(patch(map[string]any{"DB_HOST": "192.168.0.3"}), "an edit after the restart of the API server", "map[DB_HOST:192.168.0.3 DB_NAME:MICRO ", "")

	if running = pods(t, app); len(running) != 1 || running[0].Name != pod || faults.Restarts(running[0]) != 0 {
		t.Errorf("pods %v, want only %q, without restarts", running, pod)
	}
	exitsZero(t, app, pod)
}

// printedMap is a line of a log and its time.
type printedMap struct {
	at   time.Time
	text string
}

// printedMaps returns the maps in the log of a pod.
func printedMaps(pod string) (all []printedMap, err error) {
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
			all = append(all, printedMap{at, text})
		}
	}
	return all, nil
}

// exitsZero scales a deployment to 0 and checks that the container of its pod
// exits with status 0. A finalizer keeps the pod long enough to read its status.
func exitsZero(t *testing.T, deployment, pod string) {
	t.Helper()
	setFinalizers := func(finalizers string) error {
		return command(time.Minute, io.Discard, "kubectl", "patch", "pod", pod, "-n", namespace, "--type=merge", "-p", `{"metadata":{"finalizers":`+finalizers+`}}`)
	}
	if err := setFinalizers(`["k8s-micro/e2e"]`); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := setFinalizers("null"); err != nil {
			t.Error(err)
		}
	}()
	begin := time.Now()
	kubectl(t, "scale", "-n", namespace, "deployment/"+deployment, "--replicas=0")
	var p corev1.Pod
	eventually(t, time.Minute, "the end of the container", func() error {
		if err := getPod(pod, &p); err != nil {
			return err
		}
		if p.Status.ContainerStatuses[0].State.Terminated == nil {
			return fmt.Errorf("its state is %v", p.Status.ContainerStatuses[0].State)
		}
		return nil
	})
	end := p.Status.ContainerStatuses[0].State.Terminated
	t.Logf("ended within %s of being scaled to 0: exit code %d", time.Since(begin).Round(time.Millisecond), end.ExitCode)
	if end.ExitCode != 0 {
		t.Errorf("the container ended with %d %s, want 0", end.ExitCode, end.Reason)
	}
}
