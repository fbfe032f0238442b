// Package manifests checks the manifests against a real kube-apiserver, without
// a node: its schema, its Pod Security level, its RBAC, and against kube-score.
package manifests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/test/launch"
	"sigs.k8s.io/yaml"
)

const root = "../.."

func TestMain(m *testing.M) {
	code, err := withControlPlane(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		code = 1
	}
	os.Exit(code)
}

func withControlPlane(f func() int) (int, error) {
	kubeconfig, down, err := launch.Up("manifests", "-control-plane")
	if err != nil {
		return 1, err
	}
	os.Setenv("KUBECONFIG", kubeconfig)
	os.Setenv("PATH", filepath.Join(filepath.Dir(kubeconfig), "bin")+":"+os.Getenv("PATH")) // its own kubectl
	// What the others are checked against.
	_, err = run("", "kubectl", "apply", "-f", "k8s/namespace.yaml", "-f", "k8s/pod-rbac.yaml", "-f", "k8s/configmap-rbac.yaml")
	code := 1
	if err == nil {
		code = f()
	}
	return code, errors.Join(err, down())
}

// run runs a program at the project's root.
func run(stdin, name string, args ...string) (stdout string, err error) {
	cmd := exec.Command(name, args...)
	var out, complaint bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = root, strings.NewReader(stdin), &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("running %s %s: %w: %s", name, strings.Join(args, " "), err, &complaint)
	}
	return out.String(), nil
}

// accepted says what the API server has against a manifest: an unknown
// field, a value it refuses, or a pod or pod template that is not up to the
// namespace's Pod Security level, which it evaluates with k8s.io/pod-security-admission.
func accepted(manifest string) error {
	_, err := run(manifest, "kubectl", "apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", "-")
	return err
}

func folders(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(root, "go-micro-*", "k8s"))
	if err != nil || len(all) != 4 {
		t.Fatalf("folders with manifests: %q, %v", all, err)
	}
	return append(all, filepath.Join(root, "k8s"))
}

// files are a folder's manifests, also those that no kustomization names.
func files(dir string) []string {
	all, _ := filepath.Glob(filepath.Join(dir, "*.yaml"))
	return slices.DeleteFunc(all, func(f string) bool { return filepath.Base(f) == "kustomization.yaml" })
}

func TestTheAPIServerAcceptsThem(t *testing.T) {
	for _, dir := range folders(t) {
		name, _ := filepath.Rel(root, dir)
		t.Run(name, func(t *testing.T) {
			built, err := run("", "kubectl", "kustomize", name)
			if err == nil {
				err = accepted(built)
			}
			if err != nil {
				t.Error(err)
			}
			for _, file := range files(dir) {
				manifest, err := os.ReadFile(file)
				if err == nil {
					err = accepted(string(manifest))
				}
				if err != nil {
					t.Errorf("%s: %v", file, err)
				}
			}
		})
	}
}

// Were these accepted, the test above would see nothing.
func TestTheAPIServerRefusesWhatItShould(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "go-micro-srv/k8s/deployment.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	for _, c := range []struct{ name, old, new, want string }{
		{"a field that is none", "replicas: 2", "replica: 2", `unknown field "spec.replica"`},
		{"root", "runAsNonRoot: true", "runAsNonRoot: false", `violate PodSecurity "restricted:latest"`},
		{"no seccomp profile", "seccompProfile: {type: RuntimeDefault}", "", "seccompProfile"},
		{"capabilities", "capabilities: {drop: [ALL]}", "", "unrestricted capabilities"},
		{"more privilege", "allowPrivilegeEscalation: false", "", "allowPrivilegeEscalation != false"},
	} {
		if bad := strings.Replace(good, c.old, c.new, 1); bad == good {
			t.Errorf("%s: the manifest holds no %q", c.name, c.old)
		} else if err := accepted(bad); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the API server says %v, want %q", c.name, err, c.want)
		}
	}
	const pod = `{apiVersion: v1, kind: Pod, metadata: {name: root, namespace: go-micro}, spec: {serviceAccountName: micro-services, containers: [{name: main, image: x}]}}`
	if err := accepted(pod); err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted:v1.`) {
		t.Errorf("a pod that says nothing: the API server says %v, want it refused", err)
	}
}

// TestRights lists all that the service accounts may do, beyond what any may.
func TestRights(t *testing.T) {
	of := map[string][]string{}
	for _, account := range []string{"default", "micro-services", "micro-config"} {
		review := `{"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "go-micro"}}`
		out, err := run(review, "kubectl", "create", "--validate=false", "-f", "-", "-o", "json", "--as=system:serviceaccount:go-micro:"+account,
			"--as-group=system:serviceaccounts", "--as-group=system:serviceaccounts:go-micro", "--as-group=system:authenticated")
		if err != nil {
			t.Fatal(err)
		}
		var r struct {
			Status struct {
				ResourceRules []struct{ Verbs, Resources, ResourceNames []string }
			}
		}
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatal(err)
		}
		for _, rule := range r.Status.ResourceRules {
			slices.Sort(rule.Verbs)
			of[account] = append(of[account], fmt.Sprint(strings.Join(append(rule.Resources, rule.ResourceNames...), "/"), " ", rule.Verbs))
		}
	}
	for account, want := range map[string][]string{
		"micro-services": {"configmaps/go-micro-config [get list watch]", "pods [list patch watch]"},
		"micro-config":   {"configmaps/go-micro-config [get list watch]"},
	} {
		got := slices.DeleteFunc(of[account], func(rule string) bool { return slices.Contains(of["default"], rule) })
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("service account %q may %q, want %q", account, got, want)
		}
	}
	if some := strings.Join(of["default"], ", "); strings.Contains(some, "pods") || strings.Contains(some, "configmaps") {
		t.Errorf("any service account may %s", some)
	}
}

// exception is a finding of kube-score that stands, and why.
type exception struct {
	Check, Reason string
	Objects       []string
}

func TestKubeScore(t *testing.T) {
	var exceptions []exception
	b, err := os.ReadFile("exceptions.yaml")
	if err == nil {
		err = yaml.UnmarshalStrict(b, &exceptions)
	}
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{} // and whether it occurs
	for _, e := range exceptions {
		if e.Reason == "" {
			t.Errorf("exceptions.yaml: %q has no reason", e.Check)
		}
		for _, o := range e.Objects {
			listed[e.Check+" "+o] = false
		}
	}
	var manifests []string
	for _, dir := range folders(t) {
		for _, file := range files(dir) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			manifests = append(manifests, string(b))
		}
	}
	out, err := run(strings.Join(manifests, "\n---\n"), "go", "tool", "-modfile=test/tools/go.mod", "kube-score", "score", "--output-format=json", "-")
	var scored []struct {
		TypeMeta   struct{ Kind string } `json:"type_meta"`
		ObjectMeta struct{ Name string } `json:"object_meta"`
		Checks     []struct {
			Check    struct{ ID string }
			Grade    int
			Skipped  bool
			Comments []struct{ Path, Summary, Description string }
		}
	}
	if e := json.Unmarshal([]byte(out), &scored); e != nil {
		t.Fatal(errors.Join(err, e)) // a finding is an error of kube-score's, too
	}
	if len(scored) < 10 {
		t.Errorf("kube-score has seen %d objects: is this test blind?", len(scored))
	}
	const allOK = 10
	for _, object := range scored {
		for _, c := range object.Checks {
			if c.Skipped || c.Grade == allOK {
				continue
			}
			finding := fmt.Sprintf("%s %s/%s", c.Check.ID, object.TypeMeta.Kind, object.ObjectMeta.Name)
			if _, known := listed[finding]; !known {
				t.Errorf("kube-score finds %s: %v", finding, c.Comments)
			}
			listed[finding] = true
		}
	}
	for finding, occurs := range listed {
		if !occurs {
			t.Errorf("exceptions.yaml: kube-score does not find %s any more", finding)
		}
	}
}
