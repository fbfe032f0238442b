// Package manifests checks the manifests: with a real kube-apiserver, which
// validates the schema, the Pod Security level and RBAC, and with kube-score. It
// starts a control plane without a node, so no container runs.
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

var stopControlPlane func() error // nil while no control plane runs

func TestMain(m *testing.M) {
	code := m.Run()
	if stopControlPlane != nil {
		if err := stopControlPlane(); err != nil {
			fmt.Fprintln(os.Stderr, "manifests:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// needsAPIServer starts the control plane that all tests share when the first
// test needs it.
func needsAPIServer(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs an API server: run without -short")
	}
	if stopControlPlane != nil {
		return
	}
	kubeconfig, down, err := launch.Up("manifests", "-control-plane")
	if err != nil {
		t.Fatal(err)
	}
	stopControlPlane = down
	os.Setenv("KUBECONFIG", kubeconfig)
	os.Setenv("PATH", filepath.Join(filepath.Dir(kubeconfig), "bin")+":"+os.Getenv("PATH")) // the cluster's own kubectl comes first
	// The API server checks the other manifests against the namespace and the service accounts.
	if _, err := run("", "kubectl", "apply", "-f", "k8s/namespace.yaml", "-f", "k8s/pod-rbac.yaml", "-f", "k8s/configmap-rbac.yaml"); err != nil {
		t.Fatal(err)
	}
}

// run runs a program in the project's root directory.
func run(stdin, name string, args ...string) (stdout string, err error) {
	cmd := exec.Command(name, args...)
	var out, errOut bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = root, strings.NewReader(stdin), &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("running %s %s: %w: %s", name, strings.Join(args, " "), err, &errOut)
	}
	return out.String(), nil
}

// dryRun returns the API server's objection to a manifest: an unknown field, an
// invalid value, or a pod or pod template that violates the namespace's Pod
// Security level.
func dryRun(manifest string) error {
	_, err := run(manifest, "kubectl", "apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", "-")
	return err
}

func folders(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(root, "go-micro-*", "k8s"))
	if err != nil || len(all) != 4 {
		t.Fatalf("folders with manifests: %q, %v", all, err)
	}
	components, err := filepath.Glob(filepath.Join(root, "k8s", "components", "network-*")) // local-images has only patches
	if err != nil || len(components) != 1 {
		t.Fatalf("components: %q, %v", components, err)
	}
	return append(append(all, filepath.Join(root, "k8s")), components...)
}

// files returns all manifests of a folder, including those that no kustomization names.
func files(dir string) []string {
	all, _ := filepath.Glob(filepath.Join(dir, "*.yaml"))
	return slices.DeleteFunc(all, func(f string) bool { return filepath.Base(f) == "kustomization.yaml" })
}

func TestAPIServerAccepts(t *testing.T) {
	needsAPIServer(t)
	for _, dir := range folders(t) {
		name, _ := filepath.Rel(root, dir)
		t.Run(name, func(t *testing.T) {
			built, err := run("", "kubectl", "kustomize", name)
			if err == nil {
				err = dryRun(built)
			}
			if err != nil {
				t.Error(err)
			}
			for _, file := range files(dir) {
				manifest, err := os.ReadFile(file)
				if err == nil {
					err = dryRun(string(manifest))
				}
				if err != nil {
					t.Errorf("%s: %v", file, err)
				}
			}
		})
	}
}

// TestApply applies everything for real, twice.
func TestApply(t *testing.T) {
	needsAPIServer(t)
	out, err := run("", "kubectl", "version", "-o", "json")
	var version struct{ ServerVersion struct{ GitVersion string } }
	if err = errors.Join(err, json.Unmarshal([]byte(out), &version)); err != nil {
		t.Fatal(err)
	}
	t.Log("Kubernetes", version.ServerVersion.GitVersion)
	if want := os.Getenv("KUBE_APISERVER_VERSION"); want != "" && version.ServerVersion.GitVersion != want { // set by make compat
		t.Fatalf("the API server has version %q, want %q", version.ServerVersion.GitVersion, want)
	}
	for _, what := range [][]string{{"-k", "k8s"}, {"-f", "k8s/components/network-policy/network-policy.yaml"}, {"-f", "go-micro-config/k8s/follow.yaml"}} {
		for range 2 {
			if _, err := run("", "kubectl", "apply", "--validate=strict", "--warnings-as-errors", what[0], what[1]); err != nil {
				t.Error(err)
			}
		}
	}
	for _, kind := range []string{"deployments", "pods"} { // other tests create pods of these names
		if _, err := run("", "kubectl", "delete", kind, "--all", "-n", namespace, "--force", "--grace-period=0"); err != nil {
			t.Error(err)
		}
	}
}

// TestComponentsAreOptIn builds k8s/ alone and with each component, as make deploy does.
func TestComponentsAreOptIn(t *testing.T) {
	needsAPIServer(t)
	alone, err := run("", "kubectl", "kustomize", "k8s")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(alone, "kind: NetworkPolicy") {
		t.Error("k8s/ alone contains a NetworkPolicy, want it only with the component")
	}
	if _, err := run("", "make", "overlay", "COMPONENTS=network-policy"); err != nil {
		t.Fatal(err)
	}
	withComponent, err := run("", "kubectl", "kustomize", ".cluster/deploy")
	if err == nil {
		err = dryRun(withComponent)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(withComponent, "kind: NetworkPolicy"); got != 4 {
		t.Errorf("with COMPONENTS=network-policy there are %d NetworkPolicies, want 4", got)
	}
	if _, err := run("", "make", "overlay", "COMPONENTS=local-images"); err != nil {
		t.Fatal(err)
	}
	if withComponent, err = run("", "kubectl", "kustomize", ".cluster/deploy"); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(withComponent, "imagePullPolicy: IfNotPresent"); got != 4 || strings.Contains(withComponent, "imagePullPolicy: Always") {
		t.Errorf("with COMPONENTS=local-images %d containers use local images, want all 4", got)
	}
}

// TestAPIServerRefuses shows that TestAPIServerAccepts can fail.
func TestAPIServerRefuses(t *testing.T) {
	needsAPIServer(t)
	b, err := os.ReadFile(filepath.Join(root, "go-micro-srv/k8s/deployment.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown field", "replicas: 2", "replica: 2", `unknown field "spec.replica"`},
		{"runs as root", "runAsNonRoot: true", "runAsNonRoot: false", `violate PodSecurity "restricted:latest"`},
		{"no seccomp profile", "seccompProfile: {type: RuntimeDefault}", "", "seccompProfile"},
		{"keeps capabilities", "capabilities: {drop: [ALL]}", "", "unrestricted capabilities"},
		{"may gain privileges", "allowPrivilegeEscalation: false", "", "allowPrivilegeEscalation != false"},
	} {
		if bad := strings.Replace(good, c.old, c.new, 1); bad == good {
			t.Errorf("%s: the manifest does not contain %q", c.name, c.old)
		} else if err := dryRun(bad); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the API server answers %v, want %q", c.name, err, c.want)
		}
	}
	const pod = `{apiVersion: v1, kind: Pod, metadata: {name: root, namespace: go-micro}, spec: {serviceAccountName: micro-services, containers: [{name: main, image: x}]}}`
	if err := dryRun(pod); err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted:v1.`) {
		t.Errorf("pod without a security context: the API server answers %v, want it refused", err)
	}
}

// TestRights lists the rights of each service account beyond those that every
// service account has.
func TestRights(t *testing.T) {
	needsAPIServer(t)
	rights := map[string][]string{}
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
			rights[account] = append(rights[account], fmt.Sprint(strings.Join(append(rule.Resources, rule.ResourceNames...), "/"), " ", rule.Verbs))
		}
	}
	for account, want := range map[string][]string{
		"micro-services": {"configmaps/go-micro-config [get list watch]", "pods [list patch watch]"},
		"micro-config":   {"configmaps/go-micro-config [get list watch]"},
	} {
		got := slices.DeleteFunc(rights[account], func(rule string) bool { return slices.Contains(rights["default"], rule) })
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("service account %q has the rights %q, want %q", account, got, want)
		}
	}
	if all := strings.Join(rights["default"], ", "); strings.Contains(all, "pods") || strings.Contains(all, "configmaps") {
		t.Errorf("every service account has the rights %s", all)
	}
}

// exception is a finding of kube-score that this project accepts.
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
	listed := map[string]bool{} // finding to whether kube-score reports it
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
		t.Fatal(errors.Join(err, e)) // kube-score exits 1 if it finds anything, so err alone is no failure
	}
	if len(scored) < 10 {
		t.Errorf("kube-score read %d objects, want at least 10", len(scored))
	}
	const allOK = 10
	for _, object := range scored {
		for _, c := range object.Checks {
			if c.Skipped || c.Grade == allOK {
				continue
			}
			finding := fmt.Sprintf("%s %s/%s", c.Check.ID, object.TypeMeta.Kind, object.ObjectMeta.Name)
			if _, known := listed[finding]; !known {
				t.Errorf("kube-score reports %s: %v", finding, c.Comments)
			}
			listed[finding] = true
		}
	}
	for finding, occurs := range listed {
		if !occurs {
			t.Errorf("exceptions.yaml: kube-score no longer reports %s", finding)
		}
	}
}
