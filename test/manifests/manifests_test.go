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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/test/launch"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
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
	components, err := filepath.Glob(filepath.Join(root, "k8s", "components", "*"))
	components = slices.DeleteFunc(components, func(dir string) bool { // local-images has only patches, monitoring-operator custom resources
		return len(files(dir)) == 0 || filepath.Base(dir) == "monitoring-operator"
	})
	if err != nil || len(components) != 3 {
		t.Fatalf("components with manifests: %q, %v", components, err)
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

// TestApply applies everything for real, twice. The second time nothing changes.
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
	for _, what := range [][]string{{"-k", "k8s"}, {"-f", "k8s/components/network-policy/network-policy.yaml"},
		{"-f", "k8s/components/laptop/laptop-rbac.yaml"}, {"-f", "k8s/components/identity/accounts.yaml"}, {"-f", "k8s/components/identity/callers.yaml"},
		{"-f", "go-micro-config/k8s/follow.yaml"}} {
		for i := range 2 {
			out, err := run("", "kubectl", "apply", "--validate=strict", "--warnings-as-errors", what[0], what[1])
			if err != nil {
				t.Error(err)
			}
			for line := range strings.Lines(out) {
				// kubectl always sends the selector of a PodDisruptionBudget again, because its patch strategy is "replace".
				if i == 1 && !strings.HasSuffix(line, " unchanged\n") && !strings.HasPrefix(line, "poddisruptionbudget.policy/") {
					t.Errorf("kubectl apply %s %s prints again: %s", what[0], what[1], line)
				}
			}
		}
	}
	for _, kind := range []string{"deployments", "pods"} { // other tests create pods of these names
		if _, err := run("", "kubectl", "delete", kind, "--all", "-n", namespace, "--force", "--grace-period=0"); err != nil {
			t.Error(err)
		}
	}
}

// TestDrainEvictsPodsThatAreNotReady evicts one, as kubectl drain does, while no pod of its service is ready. No controller
// runs, so the test writes what the disruption controller would write.
func TestDrainEvictsPodsThatAreNotReady(t *testing.T) {
	needsAPIServer(t)
	for _, service := range []string{"go-micro-srv", "go-micro-web"} {
		pod := "drained-" + service
		steps := []struct {
			stdin string
			args  []string
		}{
			{"", []string{"apply", "-f", service + "/k8s/pdb.yaml"}},
			{"", []string{"patch", "pdb", service, "-n", namespace, "--subresource=status", "--type=merge", "-p",
				`{"status": {"observedGeneration": 1, "expectedPods": 2, "desiredHealthy": 1, "currentHealthy": 0, "disruptionsAllowed": 0}}`}},
			{podManifest(t, pod, service, nil), []string{"create", "-n", namespace, "-f", "-"}},
			{"", []string{"patch", "pod", pod, "-n", namespace, "--subresource=status", "--type=merge", "-p",
				`{"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}}`}},
			{`{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "` + pod + `"}, "deleteOptions": {"gracePeriodSeconds": 0}}`,
				[]string{"create", "--raw", "/api/v1/namespaces/" + namespace + "/pods/" + pod + "/eviction", "-f", "-"}},
		}
		for _, s := range steps {
			if _, err := run(s.stdin, "kubectl", s.args...); err != nil {
				t.Error(err)
			}
		}
		for _, object := range [][2]string{{"pdb", service}, {"pod", pod}} {
			if _, err := run("", "kubectl", "delete", object[0], object[1], "-n", namespace, "--ignore-not-found", "--force"); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestSpreadCountsNewPods checks that the pods of a rollout are spread over the nodes without regard to the old pods, which
// are about to end: a constraint that counted them could put all new pods on one node.
func TestSpreadCountsNewPods(t *testing.T) {
	count := 0
	var all []string
	for _, dir := range folders(t) {
		all = append(all, files(dir)...)
	}
	for _, file := range all {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for document := range strings.SplitSeq(string(b), "\n---\n") {
			var d struct {
				Spec struct {
					Template struct {
						Spec struct {
							TopologySpreadConstraints []struct{ MatchLabelKeys []string }
						}
					}
				}
			}
			if err := yaml.Unmarshal([]byte(document), &d); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			for _, c := range d.Spec.Template.Spec.TopologySpreadConstraints {
				count++
				if !slices.Contains(c.MatchLabelKeys, "pod-template-hash") {
					t.Errorf("%s spreads the pods by %q, want pod-template-hash", file, c.MatchLabelKeys)
				}
			}
		}
	}
	if count != 3 {
		t.Errorf("%d constraints, want those of go-micro-srv, go-micro-web and go-micro-client", count)
	}
}

// TestComponentsAreOptIn builds k8s/ alone and with each component, as make deploy does.
func TestComponentsAreOptIn(t *testing.T) {
	needsAPIServer(t)
	alone, err := run("", "kubectl", "kustomize", "k8s")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		component, text string
		count           int
	}{
		{"network-policy", "kind: NetworkPolicy", 4},
		{"laptop", "name: micro-laptop", 3}, // of the Role, of its binding, and the binding's reference to it
		{"local-images", "imagePullPolicy: IfNotPresent", 4},
	} {
		if strings.Contains(alone, c.text) {
			t.Errorf("k8s/ alone contains %q, want it only with COMPONENTS=%s", c.text, c.component)
		}
		if _, err := run("", "make", "overlay", "COMPONENTS="+c.component); err != nil {
			t.Fatal(err)
		}
		withComponent, err := run("", "kubectl", "kustomize", ".cluster/deploy")
		if err == nil && c.component != "local-images" { // the API server refuses another pull policy for the pod of an earlier test
			err = dryRun(withComponent)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(withComponent, c.text); got != c.count {
			t.Errorf("with COMPONENTS=%s the manifests contain %q %d times, want %d", c.component, c.text, got, c.count)
		}
		if c.component == "local-images" && strings.Contains(withComponent, "imagePullPolicy: Always") {
			t.Error("with COMPONENTS=local-images a container uses an image registry, want none")
		}
	}
	if strings.Contains(alone, "9464") {
		t.Error("k8s/ alone contains the port of metrics, want it only with the component")
	}
}

// TestMonitoringOperator applies k8s/ with the component to an API server that does not know its custom resources: everything else
// is applied, and make verify-deploy tells what is missing. test/alerts decodes them with the operator's types.
func TestMonitoringOperator(t *testing.T) {
	needsAPIServer(t)
	if _, err := run("", "make", "overlay", "COMPONENTS=network-policy monitoring-operator"); err != nil {
		t.Fatal(err)
	}
	built, err := run("", "kubectl", "kustomize", ".cluster/deploy")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]int{"name: POD_METRICS_ADDRESS\n          value: :9464": 3, "- containerPort: 9464\n          name: metrics": 3, "prometheus.io": 0,
		"kind: PodMonitor\n": 1, "kind: PrometheusRule\n": 1, `grafana_dashboard: "1"`: 1, "kubernetes.io/metadata.name: monitoring\n    ports:\n    - port: 9464": 1} {
		if got := strings.Count(built, text); got != want {
			t.Errorf("with COMPONENTS=\"network-policy monitoring-operator\" %q occurs %d times, want %d", text, got, want)
		}
	}
	const missing = `no matches for kind "%s" in version "monitoring.coreos.com/v1"`
	out, err := run(built, "kubectl", "apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", "-")
	for _, applied := range []string{"configmap/go-micro-dashboard ", "deployment.apps/go-micro-srv ", "networkpolicy.networking.k8s.io/default "} {
		if !strings.Contains(out, applied) {
			t.Errorf("kubectl apply prints %q, want %q", out, applied)
		}
	}
	for _, kind := range []string{"PodMonitor", "PrometheusRule"} {
		if text := fmt.Sprintf(missing, kind); err == nil || strings.Count(err.Error(), text) != 1 {
			t.Errorf("an API server without the custom resources answers %v, want %q", err, text)
		}
	}
	if _, err := run("", "kubectl", "get", "podmonitors.monitoring.coreos.com/go-micro"); err == nil || !strings.Contains(err.Error(), "have a resource type") { // what test/verify looks for
		t.Errorf("kubectl get says %v", err)
	}
}

// TestMonitoringComponents builds k8s/ with the port of metrics, without and with its opening in the network policies.
func TestMonitoringComponents(t *testing.T) {
	needsAPIServer(t)
	for components, openings := range map[string]int{"monitoring": 0, "network-policy monitoring": 1} {
		if _, err := run("", "make", "overlay", "COMPONENTS="+components); err != nil {
			t.Fatal(err)
		}
		withComponent, err := run("", "kubectl", "kustomize", ".cluster/deploy")
		if err == nil {
			err = dryRun(withComponent)
		}
		if err != nil {
			t.Fatal(err)
		}
		for text, want := range map[string]int{"name: POD_METRICS_ADDRESS\n          value: :9464": 3, "- containerPort: 9464\n          name: metrics": 3, `prometheus.io/port: "9464"`: 3, `prometheus.io/scrape: "true"`: 3,
			"containerPort: 9100": 1, "containerPort: 9200": 1, "kubernetes.io/metadata.name: monitoring\n    ports:\n    - port: 9464": openings} {
			if got := strings.Count(withComponent, text); got != want {
				t.Errorf("with COMPONENTS=%q %q occurs %d times, want %d", components, text, got, want)
			}
		}
	}
}

// TestTracesComponent builds k8s/ with the page of traces, without and with the network policies.
func TestTracesComponent(t *testing.T) {
	needsAPIServer(t)
	alone, err := run("", "kubectl", "kustomize", "k8s")
	if err != nil || strings.Contains(alone, "POD_DEBUG_TRACE") {
		t.Errorf("k8s/ alone turns Debug.Trace on: %v", err)
	}
	for components, openings := range map[string]int{"traces": 0, "network-policy monitoring traces": 1} {
		if _, err := run("", "make", "overlay", "COMPONENTS="+components); err != nil {
			t.Fatal(err)
		}
		built, err := run("", "kubectl", "kustomize", ".cluster/deploy")
		if err == nil {
			err = dryRun(built)
		}
		if err != nil {
			t.Fatal(err)
		}
		for text, want := range map[string]int{"name: POD_DEBUG_TRACE\n          value: \"on\"": 3,
			"    - port: 9100\n      protocol: TCP\n    - port: 9300\n      protocol: TCP\n    - port: 9200\n      protocol: TCP\n    to:\n": openings, // of go-micro-web
			"      - go-micro-srv\n      - go-micro-client\n  policyTypes:\n  - Ingress":                                                     openings} {
			if got := strings.Count(built, text); got != want {
				t.Errorf("with COMPONENTS=%q %q occurs %d times, want %d:\n%s", components, text, got, want, built)
			}
		}
	}
}

// GOGC is set where it pays, in the service that serves calls, and GOMEMLIMIT bounds what it costs.
func TestGOGC(t *testing.T) {
	gogc, memory := regexp.MustCompile(`name: GOGC #.*\n +value: "200"\n`), regexp.MustCompile(`name: GOMEMLIMIT `)
	for _, dir := range folders(t) {
		for _, file := range files(dir) {
			manifest, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := strings.HasSuffix(file, "go-micro-srv/k8s/deployment.yaml")
			if got := gogc.Match(manifest); got != want || got && !memory.Match(manifest) {
				t.Errorf("%s: GOGC is set: %v, want %v, and with GOMEMLIMIT only", file, got, want)
			}
		}
	}
}

// The services that call others know their zone from their first call on.
func TestCallersKnowTheirZone(t *testing.T) {
	for _, service := range []string{"go-micro-client", "go-micro-web"} {
		manifest, err := os.ReadFile(filepath.Join(root, service, "k8s/deployment.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var d appsv1.Deployment
		if err := yaml.Unmarshal(manifest, &d); err != nil {
			t.Fatal(err)
		}
		zone := ""
		for _, v := range d.Spec.Template.Spec.Containers[0].Env {
			if v.Name == "POD_ZONE" {
				zone = v.ValueFrom.FieldRef.FieldPath
			}
		}
		if want := "metadata.labels['" + corev1.LabelZoneFailureDomainStable + "']"; zone != want {
			t.Errorf("%s: POD_ZONE comes from %q, want %q", service, zone, want)
		}
	}
}

// TestMemoryLimits compares GOMEMLIMIT with 90 % of the memory limit in every manifest of a container.
func TestMemoryLimits(t *testing.T) {
	limits, memory := regexp.MustCompile(`limits: \{memory: (\d+)Mi\}`), regexp.MustCompile(`name: GOMEMLIMIT .*\n +value: (\d+)MiB\n`)
	checked := 0
	for _, dir := range folders(t) {
		for _, file := range files(dir) {
			manifest, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			limit, set := limits.FindSubmatch(manifest), memory.FindSubmatch(manifest)
			if limit == nil && set == nil {
				continue
			}
			checked++
			if limit == nil || set == nil {
				t.Errorf("%s: a memory limit needs GOMEMLIMIT, and GOMEMLIMIT a memory limit", file)
				continue
			}
			all, _ := strconv.Atoi(string(limit[1]))
			if got := string(set[1]); got != strconv.Itoa(all*9/10) {
				t.Errorf("%s: GOMEMLIMIT is %s MiB, want 90 %% of %d MiB", file, got, all)
			}
		}
	}
	if checked != 5 {
		t.Errorf("%d manifests have a memory limit, want 5", checked)
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

// TestApplyLeavesNumberOfAutoscaler scales a Deployment as a HorizontalPodAutoscaler does, and applies its manifest again. See
// docs/manifests.md.
func TestApplyLeavesNumberOfAutoscaler(t *testing.T) {
	needsAPIServer(t)
	const manifest = `{apiVersion: apps/v1, kind: Deployment, metadata: {name: scaled, namespace: default}, spec: {%s selector: {matchLabels: {app: scaled}},
  template: {metadata: {labels: {app: scaled}}, spec: {containers: [{name: scaled, image: "example/scaled:1"}]}}}}`
	t.Cleanup(func() {
		if _, err := run("", "kubectl", "delete", "deployment", "scaled", "-n", "default"); err != nil {
			t.Error(err)
		}
	})
	for _, c := range []struct{ replicas, want string }{{"", "5"}, {"replicas: 2,", "2"}} {
		text := fmt.Sprintf(manifest, c.replicas)
		for _, step := range []struct {
			stdin string
			args  []string
		}{{text, []string{"apply", "-f", "-"}}, {"", []string{"scale", "deployment", "scaled", "-n", "default", "--replicas=5"}}, {text, []string{"apply", "-f", "-"}}} {
			if _, err := run(step.stdin, "kubectl", step.args...); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := run("", "kubectl", "get", "deployment", "scaled", "-n", "default", "-o", "jsonpath={.spec.replicas}"); err != nil || got != c.want {
			t.Errorf("with %q in the manifest: %s replicas, %v; want %s", c.replicas, got, err, c.want)
		}
	}
}

// TestRights lists the rights of each service account and of the developers with the component laptop, beyond those that
// every service account has.
func TestRights(t *testing.T) {
	needsAPIServer(t)
	if _, err := run("", "kubectl", "apply", "-f", "k8s/components/laptop/laptop-rbac.yaml"); err != nil {
		t.Fatal(err)
	}
	const developers = "go-micro-developers"
	rights := map[string][]string{}
	for _, account := range []string{"default", "micro-services", "micro-config", developers} {
		user := []string{"--as=system:serviceaccount:go-micro:" + account, "--as-group=system:serviceaccounts", "--as-group=system:serviceaccounts:go-micro"}
		if account == developers {
			user = []string{"--as=jane", "--as-group=" + developers}
		}
		review := `{"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "go-micro"}}`
		out, err := run(review, "kubectl", append([]string{"create", "--validate=false", "-f", "-", "-o", "json", "--as-group=system:authenticated"}, user...)...)
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
		developers:       {"configmaps/go-micro-config [get list watch]", "pods [list watch]", "pods/portforward [create get]"},
	} {
		got := slices.DeleteFunc(rights[account], func(rule string) bool { return slices.Contains(rights["default"], rule) })
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%q has the rights %q, want %q", account, got, want)
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
