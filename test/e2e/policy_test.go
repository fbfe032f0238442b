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

// restricted is what a container needs to be let into the namespace: k8s/namespace.yaml.
const restricted = `securityContext: {runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}`

// TestPolicy attacks one service with the token of another, with
// k8s/pod-policy.yaml and without it.
func TestPolicy(t *testing.T) {
	kubectl(t, "apply", "-k", "k8s")
	t.Cleanup(func() { kubectl(t, "apply", "-f", "k8s/pod-policy.yaml") })
	rolledOut(t)
	thief, victim := pods(t, "go-micro-web")[0], pods(t, "go-micro-srv")[0]
	loot := fmt.Sprintf(`{"name":"go-micro-srv","version":"latest","nodes":[{"id":"thief","address":"%s:9100"}]}`, thief.Status.PodIP)
	theft := func() (*corev1.Pod, error) {
		return write(t, tokenOf(t, thief), victim.Name, change("annotations", "micro.mu/service-go-micro-srv", loot))
	}
	refused := func() error {
		if _, err := theft(); err == nil || !strings.Contains(err.Error(), "micro-own-pod") {
			return fmt.Errorf("the API server says %v", err)
		}
		return nil
	}

	eventually(t, time.Minute, "the policy refusing the theft", refused)
	registeredOnPods(t)
	if w := kubectl(t, "get", "validatingadmissionpolicy", "micro-own-pod", "-o", "jsonpath={.status.typeChecking.expressionWarnings}"); w != "" {
		t.Errorf("the API server warns of the policy: %s", w)
	}
	unbound := strings.TrimSpace(kubectl(t, "create", "token", "micro-services", "-n", namespace))
	const (
		alone = "a service may write on its own pod only, with the token that is mounted there"
		marks = "a service may change only labels and annotations that begin with micro.mu/"
		other = "a service may change nothing of a pod but labels and annotations"
	)
	for _, c := range []struct{ name, token, pod, body, want string }{
		{"another's annotation", tokenOf(t, thief), victim.Name, change("annotations", "micro.mu/service-go-micro-srv", loot), alone},
		{"another's label", tokenOf(t, thief), victim.Name, `{"metadata": {"labels": {"micro.mu/selector-go-micro-srv": null}}}`, alone},
		{"another replica's annotation", tokenOf(t, pods(t, "go-micro-srv")[1]), victim.Name, change("annotations", "micro.mu/service-go-micro-srv", loot), alone},
		{"the account without a pod", unbound, thief.Name, change("labels", "micro.mu/type", "service"), alone},
		{"an own label of others", tokenOf(t, thief), thief.Name, change("labels", "app", "go-micro-srv"), marks},
		{"a label of others, new", tokenOf(t, thief), thief.Name, change("labels", "new", "one"), marks},
		{"a label of others, removed", tokenOf(t, thief), thief.Name, `{"metadata": {"labels": {"pod-template-hash": null}}}`, marks},
		{"an annotation of others", tokenOf(t, thief), thief.Name, change("annotations", "micro.mux/x", "y"), marks},
		{"the own image", tokenOf(t, thief), thief.Name, `{"spec": {"containers": [{"name": "go-micro-web", "image": "thief"}]}}`, other},
		{"the own end", tokenOf(t, thief), thief.Name, `{"spec": {"activeDeadlineSeconds": 1}}`, other},
		{"a finalizer", tokenOf(t, thief), thief.Name, `{"metadata": {"finalizers": ["thief/stays"]}}`, other},
		{"the owner", tokenOf(t, thief), thief.Name, `{"metadata": {"ownerReferences": [{"$patch": "replace"}]}}`, other},
	} {
		if _, err := write(t, c.token, c.pod, c.body); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the API server says %v, want %q", c.name, err, c.want)
		}
	}
	for kind, key := range map[string]string{"labels": "micro.mu/type", "annotations": "micro.mu/service-another"} {
		if _, err := write(t, tokenOf(t, thief), thief.Name, change(kind, key, "service")); err != nil {
			t.Errorf("%s %q on the own pod: %v", kind, key, err)
		}
	}
	kubectl(t, "annotate", "pod", "-n", namespace, thief.Name, "micro.mu/service-another-", "by=an-administrator")

	kubectl(t, "delete", "validatingadmissionpolicybinding", "micro-own-pod")
	eventually(t, time.Minute, "the theft without the policy", func() error {
		p, err := theft()
		if err == nil && p.Annotations["micro.mu/service-go-micro-srv"] != loot {
			return fmt.Errorf("the annotation is %s", p.Annotations["micro.mu/service-go-micro-srv"])
		}
		return err
	})
	kubectl(t, "apply", "-f", "k8s/pod-policy.yaml")
	eventually(t, time.Minute, "the policy refusing the theft again", refused)
	registeredOnPods(t) // the victim has put its own back
}

// tokenOf is a token as Kubernetes mounts it into a pod.
func tokenOf(t *testing.T, p corev1.Pod) string {
	t.Helper()
	return strings.TrimSpace(kubectl(t, "create", "token", p.Spec.ServiceAccountName, "-n", namespace,
		"--bound-object-kind=Pod", "--bound-object-name="+p.Name, "--bound-object-uid="+string(p.UID)))
}

// change is a patch of one label or annotation.
func change(kind, key, value string) string {
	return string(must(json.Marshal(map[string]any{"metadata": map[string]any{kind: map[string]string{key: value}}})))
}

// write patches a pod with a service account's token, as whoever has taken a pod over can.
func write(t *testing.T, token, pod, body string) (*corev1.Pod, error) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	config = rest.AnonymousClientConfig(config)
	config.BearerToken = token
	return must(clientset.NewForConfig(config)).CoreV1().Pods(namespace).Patch(pod, types.StrategicMergePatchType, []byte(body))
}
