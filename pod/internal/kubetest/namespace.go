package kubetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/test/process"
	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ServiceAccount is the service account that every namespace has and every pod uses.
const ServiceAccount = "micro-services"

const registryRole = "micro-registry"

// Namespace is a namespace for one test.
type Namespace struct {
	*Server
	Name string

	t *testing.T
}

// CheckNoLeak fails the test if it leaves goroutines behind, except those that go-micro leaves: the one of a client, until the client is
// garbage collected, and those in the given functions.
func CheckNoLeak(t testing.TB, functions ...string) {
	t.Helper()
	var options []goleak.Option
	for _, f := range append(functions, "github.com/patrickmn/go-cache.(*janitor).Run") {
		options = append(options, goleak.IgnoreAnyFunction(f))
	}
	process.CheckNoLeak(t, options...)
}

// NewNamespace creates a namespace whose service account may do what k8s/pod-rbac.yaml grants, or only the given verbs on pods. The test
// fails if it leaves goroutines behind.
func NewNamespace(t *testing.T, verbs ...string) *Namespace {
	t.Helper()
	server := Start(t)
	CheckNoLeak(t,
		"github.com/micro/go-micro/v2/registry/memory.(*Registry).ttlPrune",
		"github.com/micro/go-micro/v2/util/auth.Generate.func1",   // of a web service that ran
		"github.com/micro/go-micro/v2/web.(*service).start.func2", // of a web service whose stop returned an error
	)
	if len(verbs) == 0 {
		verbs = []string{"list", "patch", "watch"}
	}
	created, err := server.Admin.CoreV1().Namespaces().Create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}})
	if err != nil {
		t.Fatal(err)
	}
	n := &Namespace{server, created.Name, t}
	if _, err := n.Admin.CoreV1().ServiceAccounts(n.Name).Create(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: ServiceAccount}}); err != nil {
		t.Fatal(err)
	}
	n.Grant(registryRole, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: verbs})
	return n
}

// Grant creates a role with one rule and binds it to the service account. It returns when the API server knows it.
func (n *Namespace) Grant(role string, rule rbacv1.PolicyRule) {
	n.t.Helper()
	_, err := n.Admin.RbacV1().Roles(n.Name).Create(&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: role}, Rules: []rbacv1.PolicyRule{rule}})
	if err == nil {
		_, err = n.Admin.RbacV1().RoleBindings(n.Name).Create(&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: role},
			RoleRef:  rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "Role", Name: role},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: ServiceAccount, Namespace: n.Name}}})
	}
	if err != nil {
		n.t.Fatal(err)
	}
	name := ""
	if len(rule.ResourceNames) > 0 {
		name = rule.ResourceNames[0]
	}
	Eventually(n.t, 10*time.Second, "the API server knows the role", func() error {
		for _, verb := range rule.Verbs {
			r, err := n.Admin.AuthorizationV1().SubjectAccessReviews().Create(&authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
				User:               "system:serviceaccount:" + n.Name + ":" + ServiceAccount,
				ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: n.Name, Resource: rule.Resources[0], Name: name, Verb: verb}}})
			if err != nil || !r.Status.Allowed {
				return fmt.Errorf("verb %q: %v", verb, err)
			}
		}
		return nil
	})
}

// GrantVerb grants the service account one more verb on pods.
func (n *Namespace) GrantVerb(verb string) {
	n.t.Helper()
	role, err := n.Admin.RbacV1().Roles(n.Name).Get(registryRole, metav1.GetOptions{})
	if err == nil {
		role.Rules[0].Verbs = append(role.Rules[0].Verbs, verb)
		_, err = n.Admin.RbacV1().Roles(n.Name).Update(role)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// CreatePod creates a pod whose status no kubelet has written yet.
func (n *Namespace) CreatePod(name string, changes ...func(*corev1.Pod)) *corev1.Pod {
	n.t.Helper()
	no := false
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		NodeName: "none", ServiceAccountName: ServiceAccount, AutomountServiceAccountToken: &no,
		Containers: []corev1.Container{{Name: "main", Image: "none"}}}}
	for _, change := range changes {
		change(p)
	}
	p, err := n.Admin.CoreV1().Pods(n.Name).Create(p)
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// CreateReadyPod creates a pod that is running and ready, as a kubelet would report it.
func (n *Namespace) CreateReadyPod(name string, changes ...func(*corev1.Pod)) *corev1.Pod {
	n.t.Helper()
	p := n.CreatePod(name, changes...)
	n.SetStatus(name, corev1.PodRunning, corev1.ConditionTrue)
	return p
}

// SetStatus sets a pod's phase and its condition Ready.
func (n *Namespace) SetStatus(pod string, phase corev1.PodPhase, ready corev1.ConditionStatus) {
	n.t.Helper()
	n.PatchPod(pod, fmt.Sprintf(`{"status":{"phase":%q,"conditions":[{"type":"Ready","status":%q}]}}`, phase, ready), "status")
}

// PatchPod applies a strategic merge patch to a pod or to one of its subresources.
func (n *Namespace) PatchPod(pod, patch string, subresources ...string) {
	n.t.Helper()
	if _, err := n.Admin.CoreV1().Pods(n.Name).Patch(pod, types.StrategicMergePatchType, []byte(patch), subresources...); err != nil {
		n.t.Fatal(err)
	}
}

// GetPod gets a pod.
func (n *Namespace) GetPod(name string) *corev1.Pod {
	n.t.Helper()
	p, err := n.Admin.CoreV1().Pods(n.Name).Get(name, metav1.GetOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// TerminatePod deletes a pod gracefully. Since no kubelet confirms the end of its containers, the pod stays and is terminating.
func (n *Namespace) TerminatePod(name string) {
	n.t.Helper()
	if err := n.Admin.CoreV1().Pods(n.Name).Delete(name, &metav1.DeleteOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

// RemovePod removes a pod at once. Removing a pod that does not exist is no error.
func (n *Namespace) RemovePod(name string) {
	n.t.Helper()
	var now int64
	if err := n.Admin.CoreV1().Pods(n.Name).Delete(name, &metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil && !apierrors.IsNotFound(err) {
		n.t.Fatal(err)
	}
}

// Register writes the labels and the annotation of a service onto a pod, as the registry plugin does. The service's name must be valid in
// a label key.
func (n *Namespace) Register(pod, service, annotation string) {
	n.t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"labels":      map[string]string{"micro.mu/type": "service", "micro.mu/selector-" + service: "service"},
		"annotations": map[string]string{"micro.mu/service-" + service: annotation}}})
	if err != nil {
		n.t.Fatal(err)
	}
	n.PatchPod(pod, string(patch))
}

// Deregister removes from a pod what the registry plugin's Deregister removes.
func (n *Namespace) Deregister(pod, service string) {
	n.t.Helper()
	n.PatchPod(pod, fmt.Sprintf(`{"metadata":{"labels":{%q:null},"annotations":{%q:null}}}`, "micro.mu/selector-"+service, "micro.mu/service-"+service))
}

// Registered reports whether a pod carries a service's label.
func (n *Namespace) Registered(pod, service string) bool {
	n.t.Helper()
	return n.GetPod(pod).Labels["micro.mu/selector-"+service] != ""
}

// Environment returns the environment of a process in a pod that uses this API server.
func (n *Namespace) Environment(pod string) apiserver.Environment {
	n.t.Helper()
	host, port, err := net.SplitHostPort(n.Address())
	if err != nil {
		n.t.Fatal(err)
	}
	return environment(n.t, n.Name, pod, host, port, n.Config.CAData, n.Token(nil))
}

// With returns env with another value of one variable.
func With(env apiserver.Environment, name, value string) apiserver.Environment {
	getenv := env.Getenv
	env.Getenv = func(k string) string {
		if k == name {
			return value
		}
		return getenv(k)
	}
	return env
}

// WriteVolumeFile replaces a file of a volume in one step, as the kubelet does.
func WriteVolumeFile(t testing.TB, dir, name string, content []byte) {
	t.Helper()
	part := filepath.Join(dir, name+".part")
	if err := errors.Join(os.WriteFile(part, content, 0o600), os.Rename(part, filepath.Join(dir, name))); err != nil {
		t.Fatal(err)
	}
}

// Token returns a token of the service account. A token that is bound to an object becomes invalid when the object is deleted.
func (n *Namespace) Token(bound *authenticationv1.BoundObjectReference) string {
	n.t.Helper()
	r, err := n.Admin.CoreV1().ServiceAccounts(n.Name).CreateToken(ServiceAccount, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"https://kubernetes.default.svc.cluster.local"}, BoundObjectRef: bound}})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.Status.Token
}
