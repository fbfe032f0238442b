package manifests

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

const namespace = "go-micro"

// TestPodAdmission makes requests with the tokens of the services' pods: the
// registrations that k8s/pod-admission.yaml must accept, and the attacks that it
// must refuse.
func TestPodAdmission(t *testing.T) {
	needsAPIServer(t)
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	admin, err := clientset.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run("", "kubectl", "apply", "-f", "k8s/pod-admission.yaml"); err != nil {
		t.Fatal(err)
	}
	pods := admin.CoreV1().Pods(namespace)
	create := func(name, service string, annotations map[string]string) *corev1.Pod {
		t.Helper()
		if _, err := run(podManifest(t, name, service, annotations), "kubectl", "create", "-n", namespace, "-f", "-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := pods.Delete(name, metav1.NewDeleteOptions(0)); err != nil {
				t.Error(err)
			}
		})
		p, err := pods.Patch(name, types.MergePatchType, []byte(`{"status": {"phase": "Running", "podIP": "10.0.0.1"}}`), "status") // as the kubelet would
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	srv, web, client := create("srv-0", "go-micro-srv", nil), create("web-0", "go-micro-web", nil), create("client-0", "go-micro-client", nil)
	several := create("several-0", "go-micro-web", map[string]string{"micro.mu/services": "accounts.v1, orders_admin"})

	// patchAs returns a patch function that uses the token that Kubernetes would mount into the pod.
	patchAs := func(p *corev1.Pod, bound bool) func(pod string, kind types.PatchType, body string) (*corev1.Pod, error) {
		t.Helper()
		request := &authenticationv1.TokenRequest{}
		if bound {
			request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID}
		}
		token, err := admin.CoreV1().ServiceAccounts(namespace).CreateToken(p.Spec.ServiceAccountName, request)
		if err != nil {
			t.Fatal(err)
		}
		config := rest.AnonymousClientConfig(config)
		config.BearerToken = token.Status.Token
		service, err := clientset.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		return func(pod string, kind types.PatchType, body string) (*corev1.Pod, error) {
			return service.CoreV1().Pods(namespace).Patch(pod, kind, []byte(body))
		}
	}
	const (
		ownPodOnly      = "a service may change only its own pod, with the token that is mounted into it"
		ownServicesOnly = "a service may register only the services in its pod's label app and annotation micro.mu/services"
		valueTooLarge   = "a registration may have at most 32 KiB"
		managedFields   = "a service may not change the managed fields of others"
		metadataOnly    = "a service may change nothing of a pod but labels and annotations"
	)
	attack := patchAs(web, true)
	deadline := time.Now().Add(30 * time.Second)
	for { // until the API server has loaded the policy
		_, err := attack(srv.Name, types.StrategicMergePatchType, metadataPatch("labels", "micro.mu/type", "service"))
		if err != nil && strings.Contains(err.Error(), "micro-own-pod") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("waiting for the policy: the API server answers %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}

	value := strings.Repeat("x", 32<<10)
	for _, c := range []struct {
		pod     *corev1.Pod
		service string
	}{{srv, "go-micro-srv"}, {web, "go-micro-web"}, {client, "go-micro-client"}, {several, "go-micro-web"}, {several, "accounts.v1"}, {several, "orders_admin"}} {
		t.Run(c.pod.Name+" registers "+c.service, func(t *testing.T) {
			patch := patchAs(c.pod, true)
			for _, registration := range []map[string]any{
				{"labels": map[string]any{"micro.mu/type": "service", "micro.mu/selector-" + c.service: "service"}, "annotations": map[string]any{"micro.mu/service-" + c.service: value}},
				{"labels": map[string]any{"micro.mu/selector-" + c.service: nil}, "annotations": map[string]any{"micro.mu/service-" + c.service: nil}},
			} {
				body, _ := json.Marshal(map[string]any{"metadata": registration})
				if _, err := patch(c.pod.Name, types.StrategicMergePatchType, string(body)); err != nil {
					t.Error(err)
				}
			}
		})
	}

	t.Run("a service repairs what an administrator changed", func(t *testing.T) {
		const key = "micro.mu/service-go-micro-web"
		if _, err := attack(web.Name, types.StrategicMergePatchType, metadataPatch("annotations", key, "own")); err != nil {
			t.Fatal(err)
		}
		if _, err := run("", "kubectl", "annotate", "pod", "-n", namespace, web.Name, "--overwrite", key+"=administrator"); err != nil {
			t.Fatal(err)
		}
		if _, err := attack(web.Name, types.StrategicMergePatchType, metadataPatch("annotations", key, "own")); err != nil {
			t.Error(err)
		}
	})

	redirected := `{"name":"go-micro-srv","version":"latest","nodes":[{"id":"attacker","address":"10.0.0.1:9100"}]}`
	for _, c := range []struct {
		name  string
		patch func(string, types.PatchType, string) (*corev1.Pod, error)
		pod   *corev1.Pod
		body  string
		want  string
	}{
		{"annotation of another service's pod", attack, srv, metadataPatch("annotations", "micro.mu/service-go-micro-srv", redirected), ownPodOnly},
		{"label of another service's pod", attack, srv, `{"metadata": {"labels": {"micro.mu/type": null}}}`, ownPodOnly},
		{"token that is not bound to a pod", patchAs(web, false), web, metadataPatch("labels", "micro.mu/type", "service"), ownPodOnly},
		{"registration of another service", attack, web, metadataPatch("annotations", "micro.mu/service-go-micro-srv", redirected), ownServicesOnly},
		{"selector label of another service", attack, web, metadataPatch("labels", "micro.mu/selector-go-micro-srv", "service"), ownServicesOnly},
		{"registration of a service that does not exist", attack, web, metadataPatch("annotations", "micro.mu/service-new", redirected), ownServicesOnly},
		{"service that another pod lists", attack, web, metadataPatch("annotations", "micro.mu/service-accounts.v1", redirected), ownServicesOnly},
		{"list of services", attack, web, metadataPatch("annotations", "micro.mu/services", "go-micro-srv"), ownServicesOnly},
		{"label app", attack, web, metadataPatch("labels", "app", "go-micro-srv"), ownServicesOnly},
		{"new foreign label", attack, web, metadataPatch("labels", "new", "one"), ownServicesOnly},
		{"removal of a foreign label", attack, web, `{"metadata": {"labels": {"app": null}}}`, ownServicesOnly},
		{"foreign annotation", attack, web, metadataPatch("annotations", "micro.mux/x", "y"), ownServicesOnly},
		{"value of 32 KiB and one byte", attack, web, metadataPatch("annotations", "micro.mu/service-go-micro-web", value+"x"), valueTooLarge},
		{"value of more bytes than characters", attack, web, metadataPatch("annotations", "micro.mu/service-go-micro-web", value[1:]+"é"), valueTooLarge},
		{"own image", attack, web, `{"spec": {"containers": [{"name": "go-micro-web", "image": "attacker"}]}}`, metadataOnly},
		{"own deadline", attack, web, `{"spec": {"activeDeadlineSeconds": 1}}`, metadataOnly},
		{"finalizer", attack, web, `{"metadata": {"finalizers": ["attacker/stays"]}}`, metadataOnly},
		{"owner", attack, web, `{"metadata": {"ownerReferences": [{"$patch": "replace"}, {"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"}]}}`, metadataOnly},
		{"generateName", attack, web, `{"metadata": {"generateName": "attacker-"}}`, metadataOnly},
		{"managedFields emptied", attack, web, `{"metadata": {"managedFields": [{}]}}`, managedFields},
		{"managedFields replaced", attack, web, `{"metadata": {"managedFields": [{"manager": "attacker", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}}]}}`, managedFields},
		{"managedFields of the creator removed", attack, web, managedFieldsPatch(t, "web-0", func(all []map[string]any) []map[string]any {
			return slices.DeleteFunc(all, func(e map[string]any) bool { return e["manager"] == "kubectl-create" })
		}), managedFields},
		{"managedFields of the creator renamed", attack, web, managedFieldsPatch(t, "web-0", func(all []map[string]any) []map[string]any {
			for _, e := range all {
				if e["manager"] == "kubectl-create" {
					e["manager"] = "attacker"
				}
			}
			return all
		}), managedFields},
		{"managedFields of the creator changed", attack, web, managedFieldsPatch(t, "web-0", func(all []map[string]any) []map[string]any {
			for _, e := range all {
				if e["manager"] == "kubectl-create" {
					e["fieldsV1"] = map[string]any{"f:spec": map[string]any{}}
				}
			}
			return all
		}), managedFields},
		{"managedFields of the status changed", attack, web, managedFieldsPatch(t, "web-0", func(all []map[string]any) []map[string]any {
			for _, e := range all {
				if e["subresource"] == "status" {
					e["fieldsV1"] = map[string]any{"f:status": map[string]any{"f:phase": map[string]any{}}}
				}
			}
			return all
		}), managedFields},
	} {
		t.Run(c.name, func(t *testing.T) {
			kind := types.StrategicMergePatchType
			if strings.Contains(c.body, "managedFields") {
				kind = types.MergePatchType // replaces the list
			}
			if _, err := c.patch(c.pod.Name, kind, c.body); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the API server answers %v, want %q", err, c.want)
			}
		})
	}
}

// managedFieldsPatch changes the managed fields of a pod.
func managedFieldsPatch(t *testing.T, pod string, change func(entries []map[string]any) []map[string]any) string {
	t.Helper()
	out, err := run("", "kubectl", "get", "pod", pod, "-n", namespace, "-o", "json", "--show-managed-fields")
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		Metadata struct{ ManagedFields []map[string]any }
	}
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(map[string]any{"metadata": map[string]any{"managedFields": change(p.Metadata.ManagedFields)}})
	return string(b)
}

// podManifest returns the manifest of a pod as the Deployment of a service would create it.
func podManifest(t *testing.T, name, service string, annotations map[string]string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, service, "k8s/deployment.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Spec struct{ Template map[string]map[string]any }
	}
	if err := yaml.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	metadata := d.Spec.Template["metadata"]
	metadata["name"], metadata["generateName"], metadata["annotations"] = name, "generated-", annotations
	pod, _ := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": d.Spec.Template["spec"]})
	return string(pod)
}

// metadataPatch sets one label or annotation.
func metadataPatch(kind, key, value string) string {
	b, _ := json.Marshal(map[string]any{"metadata": map[string]any{kind: map[string]string{key: value}}})
	return string(b)
}
