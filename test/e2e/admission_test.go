//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// TestAdmission uses the token of one service to redirect the calls of another, with
// k8s/pod-admission.yaml applied and without it. TestPodAdmission in test/manifests
// checks the details of the policy.
func TestAdmission(t *testing.T) {
	kubectl(t, "apply", "-k", "k8s")
	t.Cleanup(func() { kubectl(t, "apply", "-f", "k8s/pod-admission.yaml") })
	rolledOut(t)
	attacker, victim := pods(t, "go-micro-web")[0], pods(t, "go-micro-srv")[0]
	redirected := fmt.Sprintf(`{"name":"go-micro-srv","version":"latest","nodes":[{"id":"attacker","address":"%s:9100"}]}`, attacker.Status.PodIP)
	redirect := func() (*corev1.Pod, error) {
		return patchPod(t, podToken(t, attacker), victim.Name, metadataPatch("annotations", "micro.mu/service-go-micro-srv", redirected))
	}
	refused := func() error {
		if _, err := redirect(); err == nil || !strings.Contains(err.Error(), "micro-own-pod") {
			return fmt.Errorf("the API server answers %v", err)
		}
		return nil
	}

	eventually(t, time.Minute, "refusal of the attack", refused)
	registeredOnPods(t)
	if w := kubectl(t, "get", "validatingadmissionpolicy", "micro-own-pod", "-o", "jsonpath={.status.typeChecking.expressionWarnings}"); w != "" {
		t.Errorf("the API server warns about the policy: %s", w)
	}

	kubectl(t, "delete", "validatingadmissionpolicybinding", "micro-own-pod")
	eventually(t, time.Minute, "success of the attack without the policy", func() error {
		p, err := redirect()
		if err == nil && p.Annotations["micro.mu/service-go-micro-srv"] != redirected {
			return fmt.Errorf("the annotation is %s", p.Annotations["micro.mu/service-go-micro-srv"])
		}
		return err
	})
	kubectl(t, "apply", "-f", "k8s/pod-admission.yaml")
	eventually(t, time.Minute, "refusal of the attack after the policy is back", refused)
	registeredOnPods(t) // the victim has repaired its registration
}

// podToken returns a token like the one that Kubernetes mounts into the pod.
func podToken(t *testing.T, p corev1.Pod) string {
	t.Helper()
	return strings.TrimSpace(kubectl(t, "create", "token", p.Spec.ServiceAccountName, "-n", namespace,
		"--bound-object-kind=Pod", "--bound-object-name="+p.Name, "--bound-object-uid="+string(p.UID)))
}

// metadataPatch sets one label or annotation.
func metadataPatch(kind, key, value string) string {
	return string(must(json.Marshal(map[string]any{"metadata": map[string]any{kind: map[string]string{key: value}}})))
}

// patchPod patches a pod with a service account's token, as an attacker in that pod can.
func patchPod(t *testing.T, token, pod, body string) (*corev1.Pod, error) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	config = rest.AnonymousClientConfig(config)
	config.BearerToken = token
	return must(clientset.NewForConfig(config)).CoreV1().Pods(namespace).Patch(pod, types.StrategicMergePatchType, []byte(body))
}
