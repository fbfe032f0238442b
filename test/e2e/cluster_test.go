//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
)

// This file holds the helpers that the tests share: commands, waiting, pods and
// processes of the cluster.

// command runs a program in the project's root directory. Its output goes to out,
// or into the error if out is nil.
func command(limit time.Duration, out io.Writer, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var output bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = root, &output, &output
	if out != nil {
		cmd.Stdout = out
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running %s %s: %w: %s", name, strings.Join(args, " "), err, output.String())
	}
	return nil
}

// kubectl returns the output of kubectl. An error of kubectl ends the test.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := command(3*time.Minute, &out, "kubectl", args...); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// get reads a path of the API server with which kubectl speaks.
func get(path string, into any) error {
	return faults.Get(context.Background(), os.Getenv("KUBECONFIG"), path, into)
}

// getPod reads a pod.
func getPod(name string, into *corev1.Pod) error {
	return get("/api/v1/namespaces/"+namespace+"/pods/"+name, into)
}

// apply applies a manifest given as text.
func apply(t *testing.T, manifest string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "apply", "-f", file)
}

// fatal ends the test if err is not nil.
func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually calls check again and again until it returns nil. It ends the test if
// that takes longer than limit. All tests of this package wait with eventually.
func eventually(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	fatal(t, faults.Eventually(context.Background(), limit, what, check))
}

// pods returns the pods of an app that are running and not terminating.
func pods(t *testing.T, app string) (running []corev1.Pod) {
	t.Helper()
	for _, p := range allPods(t, app) {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			running = append(running, p)
		}
	}
	return running
}

// podNames returns the names of all pods of an app, whatever their state.
func podNames(t *testing.T, app string) (names []string) {
	t.Helper()
	for _, p := range allPods(t, app) {
		names = append(names, "pod/"+p.Name)
	}
	return names
}

// allPods returns all pods of an app.
func allPods(t *testing.T, app string) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	fatal(t, get(faults.PodsOf(namespace, app), &list))
	return list.Items
}

// probeFailed returns an error unless the events of a pod report that the given
// probe failed: "Readiness" or "Liveness".
func probeFailed(t *testing.T, pod, kind string) error {
	t.Helper()
	events := kubectl(t, "get", "events", "-n", namespace, "--field-selector=involvedObject.name="+pod)
	if !strings.Contains(events, kind+" probe failed") {
		return fmt.Errorf("the events of pod %q do not report a failed %s probe:\n%s", pod, kind, events)
	}
	return nil
}

// runPod runs an image once. It returns the log, and an error if the exit status is not 0.
func runPod(t *testing.T, name, serviceAccount, image string, args ...string) (log string, err error) {
	t.Helper()
	return runPodOn(t, "", name, serviceAccount, image, args...)
}

// runPodOn is runPod on a node, or on any if node is "".
func runPodOn(t *testing.T, node, name, serviceAccount, image string, args ...string) (log string, err error) {
	t.Helper()
	kubectl(t, "delete", "pod", name, "-n", namespace, "--ignore-not-found")
	quoted := must(json.Marshal(append([]string{}, args...)))
	apply(t, fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %q, namespace: %q}, spec: {nodeName: %q, restartPolicy: Never, serviceAccountName: %q,
  containers: [{name: main, image: %q, imagePullPolicy: Always, args: %s, %s}]}}`, name, namespace, node, serviceAccount, image, quoted, faults.Restricted))
	var pod corev1.Pod
	eventually(t, time.Minute, "end of pod "+name, func() error {
		if err := getPod(name, &pod); err != nil {
			return err
		}
		if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			return fmt.Errorf("phase %s", pod.Status.Phase)
		}
		return nil
	})
	log = kubectl(t, "logs", name, "-n", namespace)
	kubectl(t, "delete", "pod", name, "-n", namespace, "--wait=false")
	if end := pod.Status.ContainerStatuses[0].State.Terminated; end.ExitCode != 0 {
		return log, fmt.Errorf("exit status %d", end.ExitCode)
	}
	return log, nil
}

// probe runs the probe in a pod and decodes its output.
func probe(t *testing.T, into any, args ...string) {
	t.Helper()
	out, err := runPod(t, "probe", "micro-services", probeImage, args...)
	if err != nil {
		t.Fatalf("probe %q: %v: %s", args, err, out)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("probe %q: %v: %s", args, err, out)
	}
}

func scale(t *testing.T, n int) {
	t.Helper()
	kubectl(t, "scale", "-n", namespace, "deployment/go-micro-srv", fmt.Sprintf("--replicas=%d", n))
}

// rolledOut waits until the three deployments are available and the
// configuration reader has ended.
func rolledOut(t *testing.T) {
	t.Helper()
	for _, s := range []string{"go-micro-srv", "go-micro-web", "go-micro-client"} {
		if err := command(3*time.Minute, nil, "kubectl", "rollout", "status", "-n", namespace, "deployment/"+s, "--timeout=2m"); err != nil {
			t.Fatalf("%v\n%s\n%s", err, kubectl(t, "get", "pods", "-n", namespace, "-o", "wide"),
				kubectl(t, "get", "events", "-n", namespace, "--field-selector=type=Warning", "--sort-by=.lastTimestamp"))
		}
	}
	kubectl(t, "wait", "-n", namespace, "pod/go-micro-config", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=2m")
}

// killAPIServer kills the API server and waits until the new one is ready.
func killAPIServer(t *testing.T) {
	t.Helper()
	fault, err := faults.Find("api-killed")
	fatal(t, err)
	_, err = fault.Run(context.Background(), &faults.Target{Cluster: faults.Cluster{Root: root, Name: clusterName}})
	fatal(t, err)
}

// onNode runs a program in the namespaces of the first node and returns its output.
func onNode(t *testing.T, args ...string) string {
	t.Helper()
	return onNodeNumber(t, "1", args...)
}

// onNodeNumber is onNode on any node.
func onNodeNumber(t *testing.T, number string, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := command(time.Minute, &out, "go", append([]string{"run", "-C", "cluster", ".", "node", "-name", clusterName, "-n", number, "--"}, args...)...); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// nodeProcess returns the ID of the only process whose command line matches the pattern.
func nodeProcess(t *testing.T, pattern string) string {
	t.Helper()
	return processID(t, pattern, `pgrep -f -- "$0"; true`)
}

// podProcess returns the process ID of a pod's only container. It finds the
// process by the environment variable POD_NAME, which the manifest sets.
func podProcess(t *testing.T, p corev1.Pod) string {
	t.Helper()
	return processID(t, "POD_NAME="+p.Name, `grep -lxzs "$0" /proc/[0-9]*/environ | cut -d/ -f3`)
}

func processID(t *testing.T, pattern, script string) string {
	t.Helper()
	var ids []string
	eventually(t, 30*time.Second, "process "+pattern, func() error {
		if ids = strings.Fields(onNode(t, "sh", "-c", script, pattern)); len(ids) != 1 {
			return fmt.Errorf("processes %q, want one", ids)
		}
		return nil
	})
	return ids[0]
}
