package manifests

import (
	"encoding/json"
	"fmt"
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
	n := admissionTest{t, config, admin, namespace, "micro-services"}
	create, patchAs := n.create, n.patchAs
	srv, web, client := create("srv-0", "go-micro-srv", nil), create("web-0", "go-micro-web", nil), create("client-0", "go-micro-client", nil)
	several := create("several-0", "go-micro-web", map[string]string{"micro.mu/services": "accounts.v1, orders_admin"})
	const (
		ownPodOnly      = "a service may change only its own pod, with the token that is mounted into it"
		ownServicesOnly = "a service may register only the services in its pod's label app and annotation micro.mu/services"
		tooLarge        = "metadata.annotations: Too long"
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

	value := strings.Repeat("x", 250<<10) // Kubernetes allows 256 KiB for all annotations together
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
		{"value of more than 256 KiB", attack, web, metadataPatch("annotations", "micro.mu/service-go-micro-web", value+value[:6<<10]), tooLarge},
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

// admissionTest makes pods in a namespace, and requests with the tokens of its service accounts.
type admissionTest struct {
	*testing.T
	config    *rest.Config
	admin     *clientset.Clientset
	namespace string
	account   string // service account of the pods
}

// create creates a pod as the Deployment of a service would do, until the test ends.
func (a admissionTest) create(name, service string, annotations map[string]string) *corev1.Pod {
	a.Helper()
	if _, err := run(strings.Replace(podManifest(a.T, name, service, annotations), `"micro-services"`, fmt.Sprintf("%q", a.account), 1), "kubectl", "create", "-n", a.namespace, "-f", "-"); err != nil {
		a.Fatal(err)
	}
	pods := a.admin.CoreV1().Pods(a.namespace)
	a.Cleanup(func() {
		if err := pods.Delete(name, metav1.NewDeleteOptions(0)); err != nil {
			a.Error(err)
		}
	})
	p, err := pods.Patch(name, types.MergePatchType, []byte(`{"status": {"phase": "Running", "podIP": "10.0.0.1"}}`), "status") // as the kubelet would
	if err != nil {
		a.Fatal(err)
	}
	return p
}

// patchFunc patches a pod.
type patchFunc func(pod string, kind types.PatchType, body string) (*corev1.Pod, error)

// patchAs returns a function that uses the token that Kubernetes would mount into the pod.
func (a admissionTest) patchAs(p *corev1.Pod, bound bool) patchFunc {
	request := &authenticationv1.TokenRequest{}
	if bound {
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID}
	}
	return a.patchWith(p.Spec.ServiceAccountName, request)
}

func (a admissionTest) patchWith(account string, request *authenticationv1.TokenRequest) patchFunc {
	a.Helper()
	token, err := a.admin.CoreV1().ServiceAccounts(a.namespace).CreateToken(account, request)
	if err != nil {
		a.Fatal(err)
	}
	config := rest.AnonymousClientConfig(a.config)
	config.BearerToken = token.Status.Token
	service, err := clientset.NewForConfig(config)
	if err != nil {
		a.Fatal(err)
	}
	return func(pod string, kind types.PatchType, body string) (*corev1.Pod, error) {
		return service.CoreV1().Pods(a.namespace).Patch(pod, kind, []byte(body))
	}
}

// TestPodAdmissionOfSeveralNamespaces has two namespaces that use one policy, each for other service accounts, a third
// one that does not use it, and an operator in the first one.
func TestPodAdmissionOfSeveralNamespaces(t *testing.T) {
	needsAPIServer(t)
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	admin, err := clientset.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	setUp := func(namespace, label, account, accounts string) admissionTest {
		t.Helper()
		commands := [][]string{
			{"apply", "-f", "k8s/pod-admission.yaml"}, // each namespace applies the file
			{"label", "namespace", namespace, "--overwrite", label},
			{"create", "role", "patch-pods", "-n", namespace, "--verb=patch", "--resource=pods"},
		}
		if namespace != "go-micro" {
			commands = append([][]string{{"create", "namespace", namespace}, {"create", "serviceaccount", "micro-services", "-n", namespace}}, commands...)
		}
		if accounts != "" {
			commands = append(commands, []string{"annotate", "namespace", namespace, "micro.mu/service-accounts=" + accounts})
		}
		for _, account := range []string{"micro-services", "orders", "operator"} {
			if account != "micro-services" {
				commands = append(commands, []string{"create", "serviceaccount", account, "-n", namespace})
			}
			commands = append(commands, []string{"create", "rolebinding", account, "-n", namespace, "--role=patch-pods", "--serviceaccount=" + namespace + ":" + account})
		}
		for _, args := range commands {
			if _, err := run("", "kubectl", args...); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() {
			if _, err := run("", "kubectl", "delete", "role", "patch-pods", "-n", namespace); err != nil {
				t.Error(err)
			}
		})
		return admissionTest{t, config, admin, namespace, account}
	}
	const enforce = "micro.mu/pod-admission=enforce"
	for _, tt := range []struct {
		admissionTest
		refused, free []string // service accounts
	}{
		{setUp("go-micro", enforce, "micro-services", ""), []string{"micro-services"}, []string{"orders", "operator"}},
		{setUp("shop", enforce, "orders", "billing, orders"), []string{"orders"}, []string{"micro-services", "operator"}},
		{setUp("elsewhere", "a=b", "micro-services", ""), nil, []string{"micro-services", "orders", "operator"}},
	} {
		victim := tt.create("victim", "go-micro-srv", nil)
		own := metadataPatch("annotations", "micro.mu/service-go-micro-srv", "{}")
		if _, err := tt.patchAs(victim, true)(victim.Name, types.StrategicMergePatchType, own); err != nil {
			t.Errorf("namespace %q: a pod of %q cannot register: %v", tt.namespace, tt.account, err)
		}
		patch := func(account, body string) error { // with the token of another pod than the victim, or of none
			_, err := tt.patchWith(account, &authenticationv1.TokenRequest{})(victim.Name, types.StrategicMergePatchType, body)
			return err
		}
		for _, body := range []string{metadataPatch("labels", "app", "go-micro-web"), metadataPatch("labels", "operator.example/seen", "true"),
			metadataPatch("annotations", "micro.mu/service-go-micro-srv", "redirected"), `{"metadata": {"finalizers": ["operator.example/keep"]}}`, `{"metadata": {"$deleteFromPrimitiveList/finalizers": ["operator.example/keep"]}}`} {
			for _, account := range tt.refused {
				deadline := time.Now().Add(30 * time.Second) // until the API server has loaded the policy and the namespace
				err := patch(account, body)
				for err == nil && time.Now().Before(deadline) {
					time.Sleep(100 * time.Millisecond)
					err = patch(account, body)
				}
				if err == nil || !strings.Contains(err.Error(), "a service may change only its own pod") {
					t.Errorf("namespace %q: the API server answers %v to %s of %q, want it refused", tt.namespace, err, body, account)
				}
			}
			for _, account := range tt.free {
				if err := patch(account, body); err != nil {
					t.Errorf("namespace %q: the API server refuses %s of %q: %v", tt.namespace, body, account, err)
				}
			}
		}
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
