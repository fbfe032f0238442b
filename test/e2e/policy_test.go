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

// TestPolicy uses the token of one service to change the pods of others, with
// k8s/pod-policy.yaml applied and without it.
func TestPolicy(t *testing.T) {
	kubectl(t, "apply", "-k", "k8s")
	t.Cleanup(func() { kubectl(t, "apply", "-f", "k8s/pod-policy.yaml") })
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
	unbound := strings.TrimSpace(kubectl(t, "create", "token", "micro-services", "-n", namespace))
	const (
		ownPodOnly   = "a service may write on its own pod only, with the token that is mounted there"
		ownKeysOnly  = "a service may change only labels and annotations that begin with micro.mu/"
		metadataOnly = "a service may change nothing of a pod but labels and annotations"
	)
	for _, c := range []struct{ name, token, pod, body, want string }{
		{"annotation of another service's pod", podToken(t, attacker), victim.Name, metadataPatch("annotations", "micro.mu/service-go-micro-srv", redirected), ownPodOnly},
		{"label of another service's pod", podToken(t, attacker), victim.Name, `{"metadata": {"labels": {"micro.mu/selector-go-micro-srv": null}}}`, ownPodOnly},
		{"annotation of another replica", podToken(t, pods(t, "go-micro-srv")[1]), victim.Name, metadataPatch("annotations", "micro.mu/service-go-micro-srv", redirected), ownPodOnly},
		{"token that is not bound to a pod", unbound, attacker.Name, metadataPatch("labels", "micro.mu/type", "service"), ownPodOnly},
		{"foreign label of the own pod", podToken(t, attacker), attacker.Name, metadataPatch("labels", "app", "go-micro-srv"), ownKeysOnly},
		{"new foreign label", podToken(t, attacker), attacker.Name, metadataPatch("labels", "new", "one"), ownKeysOnly},
		{"removal of a foreign label", podToken(t, attacker), attacker.Name, `{"metadata": {"labels": {"pod-template-hash": null}}}`, ownKeysOnly},
		{"foreign annotation", podToken(t, attacker), attacker.Name, metadataPatch("annotations", "micro.mux/x", "y"), ownKeysOnly},
		{"own image", podToken(t, attacker), attacker.Name, `{"spec": {"containers": [{"name": "go-micro-web", "image": "attacker"}]}}`, metadataOnly},
		{"own deadline", podToken(t, attacker), attacker.Name, `{"spec": {"activeDeadlineSeconds": 1}}`, metadataOnly},
		{"finalizer", podToken(t, attacker), attacker.Name, `{"metadata": {"finalizers": ["attacker/stays"]}}`, metadataOnly},
		{"owner", podToken(t, attacker), attacker.Name, `{"metadata": {"ownerReferences": [{"$patch": "replace"}]}}`, metadataOnly},
	} {
		if _, err := patchPod(t, c.token, c.pod, c.body); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the API server answers %v, want %q", c.name, err, c.want)
		}
	}
	for kind, key := range map[string]string{"labels": "micro.mu/type", "annotations": "micro.mu/service-another"} {
		if _, err := patchPod(t, podToken(t, attacker), attacker.Name, metadataPatch(kind, key, "service")); err != nil {
			t.Errorf("%s %q on the own pod: %v", kind, key, err)
		}
	}
	kubectl(t, "annotate", "pod", "-n", namespace, attacker.Name, "micro.mu/service-another-", "by=an-administrator")

	kubectl(t, "delete", "validatingadmissionpolicybinding", "micro-own-pod")
	eventually(t, time.Minute, "success of the attack without the policy", func() error {
		p, err := redirect()
		if err == nil && p.Annotations["micro.mu/service-go-micro-srv"] != redirected {
			return fmt.Errorf("the annotation is %s", p.Annotations["micro.mu/service-go-micro-srv"])
		}
		return err
	})
	kubectl(t, "apply", "-f", "k8s/pod-policy.yaml")
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
