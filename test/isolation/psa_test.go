// Package isolation checks how the manifests isolate pods from their node and from each
// other: every pod against the newest version of the Pod Security Standard "restricted", with
// the library that the API server uses, and the network policies with the matcher of
// cyclonus, because the cluster of the end-to-end tests does not enforce them. The admission
// policy, which isolates registrations, is tested in test/manifests with an API server.
package isolation

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// templates returns the pod templates of all manifests by file and name.
func templates(t *testing.T) map[string]corev1.PodTemplateSpec {
	t.Helper()
	files, err := filepath.Glob("../../*/k8s/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]corev1.PodTemplateSpec{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(b), 4096); ; {
			var o struct {
				metav1.TypeMeta
				metav1.ObjectMeta `json:"metadata"`
				Spec              struct {
					corev1.PodSpec
					appsv1.DeploymentSpec
				}
			}
			if err := d.Decode(&o); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			switch o.Kind {
			case "Deployment":
				all[file+" "+o.Name] = o.Spec.Template
			case "Pod":
				all[file+" "+o.Name] = corev1.PodTemplateSpec{ObjectMeta: o.ObjectMeta, Spec: o.Spec.PodSpec}
			}
		}
	}
	return all
}

func TestPodsMeetRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	refusal := func(p *corev1.PodTemplateSpec) string {
		r := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &p.ObjectMeta, &p.Spec))
		return r.ForbiddenDetail()
	}
	all := templates(t)
	if len(all) != 5 {
		t.Errorf("%d pods in the manifests, want 5", len(all))
	}
	for name, p := range all {
		if detail := refusal(&p); detail != "" {
			t.Errorf("%s: %s", name, detail)
		}
		for field, remove := range map[string]func(*corev1.SecurityContext){
			"runAsNonRoot":             func(c *corev1.SecurityContext) { c.RunAsNonRoot = nil },
			"allowPrivilegeEscalation": func(c *corev1.SecurityContext) { c.AllowPrivilegeEscalation = nil },
			"capabilities":             func(c *corev1.SecurityContext) { c.Capabilities = nil },
			"seccompProfile":           func(c *corev1.SecurityContext) { c.SeccompProfile = nil },
		} {
			weaker := p.DeepCopy()
			remove(weaker.Spec.Containers[0].SecurityContext)
			if refusal(weaker) == "" {
				t.Errorf("%s: accepted without %s, want it refused", name, field)
			}
		}
	}
}
