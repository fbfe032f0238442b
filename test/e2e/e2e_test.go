//go:build e2e

// Package e2e runs the walk-through of the README on a real cluster and looks
// at what the world is afterwards: labels, annotations, logs, answers.
//
// It starts a cluster of its own, named e2e, and takes it down again, also when
// it is killed. `make test` runs it; alone: go test -tags e2e ./test/e2e
package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/docs"
	"github.com/jiangjiancc/go_micro_k8s/test/launch"
	"github.com/micro/go-micro/v2/registry"
	corev1 "k8s.io/api/core/v1"
)

const (
	namespace  = "go-micro"
	probeImage = "k8s-micro/probe:e2e"
)

var (
	root        = must(filepath.Abs("../.."))
	clusterName = cmp.Or(os.Getenv("E2E_CLUSTER"), "e2e") // another name: a second run beside the first

	environ, path = os.Environ(), os.Getenv("PATH") // before TestMain points them to the cluster
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestMain(m *testing.M) {
	code, err := withCluster(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// withCluster runs f beside a cluster that ends with this process, however that ends.
func withCluster(f func() int) (code int, err error) {
	kubeconfig, down, err := launch.Up(clusterName)
	if err != nil {
		return 0, err
	}
	os.Setenv("KUBECONFIG", kubeconfig)
	os.Setenv("PATH", filepath.Join(filepath.Dir(kubeconfig), "bin")+":"+os.Getenv("PATH")) // its own kubectl
	if err = loadImages(); err == nil {
		code = f()
	}
	return code, errors.Join(err, down())
}

func loadImages() error {
	for _, s := range []string{"go-micro-srv", "go-micro-web", "go-micro-client", "go-micro-config"} {
		if err := command(2*time.Minute, nil, "make", "--no-print-directory", "-C", s, "load", "CLUSTER="+clusterName); err != nil {
			return err
		}
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", "probe", ".")
	build.Dir, build.Env = filepath.Join(root, "test/e2e/probe"), append(os.Environ(), "CGO_ENABLED=0")
	defer os.Remove(filepath.Join(build.Dir, "probe"))
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the probe: %w: %s", err, out)
	}
	return command(time.Minute, nil, "go", "run", "-C", "cluster", ".", "load", "-name", clusterName, probeImage+"="+build.Dir)
}

// command runs a program at the project's root; its output goes to out, or into
// the error when out is nil.
func command(limit time.Duration, out io.Writer, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var both bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = root, &both, &both
	if out != nil {
		cmd.Stdout = out
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running %s %s: %w: %s", name, strings.Join(args, " "), err, both.String())
	}
	return nil
}

// kubectl returns what kubectl prints; an error of it ends the test.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := command(3*time.Minute, &out, "kubectl", args...); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// apply applies a manifest given as text.
func apply(t *testing.T, manifest string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "apply", "-f", file)
}

// eventually tries until try returns nil, for the given time at most.
func eventually(t *testing.T, limit time.Duration, what string, try func() error) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(250 * time.Millisecond)
	}
}

// pods returns an app's pods that are running and not on their way out.
func pods(t *testing.T, app string) (live []corev1.Pod) {
	t.Helper()
	var list corev1.PodList
	if err := json.Unmarshal([]byte(kubectl(t, "get", "pods", "-n", namespace, "-l", "app="+app, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Items {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			live = append(live, p)
		}
	}
	return live
}

// probe runs the probe in a pod and decodes what it prints.
func probe(t *testing.T, into any, args ...string) {
	t.Helper()
	out, err := runPod(t, "probe", "micro-services", probeImage, args...)
	if err != nil {
		t.Fatalf("probe %q: %v: %s", args, err, out)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("probe %q: %v: %s", args, err, out)
	}
}

// runPod runs an image once and returns its log and how it exited.
func runPod(t *testing.T, name, serviceAccount, image string, args ...string) (log string, err error) {
	t.Helper()
	kubectl(t, "delete", "pod", name, "-n", namespace, "--ignore-not-found")
	quoted := must(json.Marshal(append([]string{}, args...)))
	apply(t, fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %q, namespace: %q}, spec: {restartPolicy: Never, serviceAccountName: %q,
  containers: [{name: main, image: %q, imagePullPolicy: Always, args: %s, %s}]}}`, name, namespace, serviceAccount, image, quoted, restricted))
	var pod corev1.Pod
	eventually(t, time.Minute, "pod "+name+" ending", func() error {
		if err := json.Unmarshal([]byte(kubectl(t, "get", "pod", name, "-n", namespace, "-o", "json")), &pod); err != nil {
			return err
		}
		if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			return fmt.Errorf("phase %s", pod.Status.Phase)
		}
		return nil
	})
	log = kubectl(t, "logs", name, "-n", namespace)
	kubectl(t, "delete", "pod", name, "-n", namespace, "--wait=false")
	if end := pod.Status.ContainerStatuses[0].State.Terminated; end.ExitCode != 0 {
		return log, fmt.Errorf("exit status %d", end.ExitCode)
	}
	return log, nil
}

// registration decodes what a pod says of a service on itself.
func registration(p corev1.Pod, service string) (*registry.Service, error) {
	for label, want := range map[string]string{"micro.mu/type": "service", "micro.mu/selector-" + service: "service"} {
		if got := p.Labels[label]; got != want {
			return nil, fmt.Errorf("pod %q: label %q is %q, want %q", p.Name, label, got, want)
		}
	}
	var s registry.Service
	if err := json.Unmarshal([]byte(p.Annotations["micro.mu/service-"+service]), &s); err != nil {
		return nil, fmt.Errorf("pod %q: annotation %q: %w", p.Name, "micro.mu/service-"+service, err)
	}
	return &s, nil
}

// TestDemo is the golden journey, on a cluster of its own beside this one: what
// README.md says, from `make demo` to its end, and `make demo` again where all is there.
func TestDemo(t *testing.T) {
	name := clusterName + "-demo"
	t.Cleanup(func() {
		if err := command(time.Minute, nil, "make", "cluster-down", "CLUSTER="+name); err != nil {
			t.Error(err)
		}
	})
	kubectl := filepath.Join(root, ".cluster", name, "bin") // its own, whichever this machine has
	reader := docs.Reader{Checkout: root, Cluster: name, Environ: append(environ, "PATH="+kubectl+":"+path), Log: t.Logf}
	if err := reader.Read("README.md"); err != nil {
		t.Error(err)
	}
	var out bytes.Buffer
	if err := command(5*time.Minute, &out, "make", "demo", "CLUSTER="+name); err != nil {
		t.Fatalf("make demo again: %v\n%s", err, out.String())
	}
	for _, want := range []string{"micro.mu/selector-go-micro-srv=service", `{"name":"go-micro-srv"`, "\nServer Hello XXX!\n",
		"proxy/\ngo-micro-web-", "map[DB_HOST:map[192.168.0.1:] DB_NAME:map[MICRO:]", "export KUBECONFIG=", "make cluster-down"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("make demo again did not show %q:\n%s", want, out.String())
		}
	}
	page := regexp.MustCompile(`http://127\.0\.0\.1:\d+/registry/`).FindString(out.String())
	rsp, err := http.Get(page)
	if err != nil {
		t.Fatalf("the page, at %q: %v", page, err)
	}
	if rsp.Body.Close(); rsp.StatusCode != http.StatusOK {
		t.Errorf("the page, at %q, is %s", page, rsp.Status)
	}
}

// TestWalkthrough is the README from top to bottom. Its steps build on each other.
func TestWalkthrough(t *testing.T) {
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"apply the manifests in the README's order", applyInOrder},
		{"each registering pod carries its labels and annotation", registeredOnPods},
		{"the registry lists them from inside the cluster", registeredInside},
		{"the client is greeted", clientGreeted},
		{"the web service answers from both replicas through its Service", webAnswers},
		{"the dumper prints environment and ConfigMap", dumperPrints},
		{"a deleted pod leaves the registry and the client is still served", podDeleted},
		{"a pod without rights says so and is ready once they are granted", noRights},
		{"the dumper without rights exits 1 and names what grants them", dumperNoRights},
		{"the dumper without its ConfigMap exits 1 and names it", dumperNoConfigMap},
		{"undeploy removes it all and deploy brings it back at once", deploy},
	} {
		if !t.Run(step.name, step.run) {
			t.Fatalf("the next steps need this one; pods:\n%s", kubectl(t, "get", "pods", "-A", "-o", "wide"))
		}
	}
}

func applyInOrder(t *testing.T) {
	for _, f := range []string{
		"k8s/namespace.yaml", "k8s/configmap-rbac.yaml", "k8s/pod-rbac.yaml", "k8s/pod-policy.yaml", "k8s/network-policy.yaml",
		"go-micro-srv/k8s/deployment.yaml", "go-micro-srv/k8s/service.yaml", "go-micro-srv/k8s/pdb.yaml",
		"go-micro-web/k8s/deployment.yaml", "go-micro-web/k8s/service.yaml", "go-micro-web/k8s/pdb.yaml",
		"go-micro-client/k8s/deployment.yaml",
		"go-micro-config/k8s/configmap.yaml", "go-micro-config/k8s/pod.yaml",
	} {
		kubectl(t, "apply", "-f", f)
	}
	rolledOut(t)
}

func rolledOut(t *testing.T) {
	t.Helper()
	for _, s := range []string{"go-micro-srv", "go-micro-web", "go-micro-client"} {
		kubectl(t, "rollout", "status", "-n", namespace, "deployment/"+s, "--timeout=2m")
	}
	kubectl(t, "wait", "-n", namespace, "pod/go-micro-config", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=2m")
}

// what each service is to say of itself
var services = []struct {
	name, version, port string
	endpoints           []string
}{
	{"go-micro-srv", "latest", "9100", []string{"Greeter.Hello"}},
	{"go-micro-web", "latest", "9200", nil},
	{"go-micro-client", "latest", "9300", nil},
}

func registeredOnPods(t *testing.T) {
	for _, want := range services {
		eventually(t, time.Minute, want.name+" registering", func() error {
			live := pods(t, want.name)
			if len(live) != 2 {
				return fmt.Errorf("%d pods of %q run, want 2", len(live), want.name)
			}
			for _, p := range live {
				s, err := registration(p, want.name)
				if err != nil {
					return err
				}
				if s.Name != want.name || s.Version != want.version {
					return fmt.Errorf("pod %q: registered as %s %s, want %s %s", p.Name, s.Name, s.Version, want.name, want.version)
				}
				var endpoints []string
				for _, e := range s.Endpoints {
					endpoints = append(endpoints, e.Name)
				}
				if want.name != "go-micro-web" && !slices.Equal(endpoints, want.endpoints) {
					return fmt.Errorf("pod %q: endpoints %q, want %q", p.Name, endpoints, want.endpoints)
				}
				if len(s.Nodes) != 1 || !strings.HasPrefix(s.Nodes[0].Address, p.Status.PodIP+":"+want.port) {
					return fmt.Errorf("pod %q: nodes %v, want one at %s:%s", p.Name, s.Nodes, p.Status.PodIP, want.port)
				}
			}
			return nil
		})
	}
}

// seen is what the probe prints for "services".
type seen struct {
	List []*registry.Service
	Get  map[string][]*registry.Service
}

func (s seen) addresses(service string) (all []string) {
	for _, v := range s.Get[service] {
		for _, n := range v.Nodes {
			all = append(all, n.Address)
		}
	}
	slices.Sort(all)
	return all
}

func addresses(live []corev1.Pod, port string) (all []string) {
	for _, p := range live {
		all = append(all, p.Status.PodIP+":"+port)
	}
	slices.Sort(all)
	return all
}

func registeredInside(t *testing.T) {
	var s seen
	probe(t, &s, "services", "go-micro-srv", "go-micro-web", "go-micro-client")
	var names []string
	for _, v := range s.List {
		names = append(names, v.Name)
	}
	slices.Sort(names)
	if want := []string{"go-micro-client", "go-micro-srv", "go-micro-web"}; !slices.Equal(slices.Compact(names), want) {
		t.Errorf("ListServices: %q, want %q", names, want)
	}
	for _, want := range services {
		got := s.addresses(want.name)
		if want.port == "" {
			if len(got) != 2 {
				t.Errorf("GetService %q: nodes %q, want 2", want.name, got)
			}
		} else if pods := addresses(pods(t, want.name), want.port); !slices.Equal(got, pods) {
			t.Errorf("GetService %q: nodes %q, pods %q", want.name, got, pods)
		}
	}
}

// greetings counts the lines the client has printed since a time.
func greetings(t *testing.T, pod string, since time.Time) (good int, other []string) {
	t.Helper()
	log := kubectl(t, "logs", pod, "-n", namespace, "--since-time="+since.UTC().Format(time.RFC3339Nano))
	for _, l := range strings.Split(strings.TrimSpace(log), "\n") {
		switch {
		case l == "Server Hello XXX!":
			good++
		case l != "" && !strings.Contains(l, "level=info"):
			other = append(other, l)
		}
	}
	return good, other
}

func clientGreeted(t *testing.T) {
	for _, p := range pods(t, "go-micro-client") {
		eventually(t, time.Minute, p.Name+" being greeted twice", func() error {
			good, other := greetings(t, p.Name, time.Unix(0, 0))
			if len(other) > 0 {
				t.Errorf("client %q printed %q", p.Name, other)
			}
			if good < 2 {
				return fmt.Errorf("%d greetings", good)
			}
			return nil
		})
	}
}

func webAnswers(t *testing.T) {
	var names []string
	for _, p := range pods(t, "go-micro-web") {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	var got []string
	probe(t, &got, "get", "http://go-micro-web."+namespace+".svc.cluster.local:9200/", "40")
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(got, names) {
		t.Errorf("40 requests to the Service were answered by %q, want by both of %q", got, names)
	}
}

func dumperPrints(t *testing.T) {
	log := strings.TrimSpace(kubectl(t, "logs", "go-micro-config", "-n", namespace))
	if strings.Contains(log, "\n") || !strings.HasPrefix(log, "map[DB_HOST:map[192.168.0.1:] DB_NAME:map[MICRO:] ") {
		t.Errorf("the dumper printed %q, want one map with DB_HOST and DB_NAME", log)
	}
	if strings.Contains(log, "<nil>") {
		t.Errorf("the dumper printed %q, with a <nil>", log)
	}
	if want := "hostname:go-micro-config"; !strings.Contains(log, want) {
		t.Errorf("the dumper printed %q, without the environment's %q", log, want)
	}
}

func podDeleted(t *testing.T) {
	before := pods(t, "go-micro-srv")
	kubectl(t, "delete", "pod", before[0].Name, "-n", namespace)
	deleted := time.Now()
	kubectl(t, "rollout", "status", "-n", namespace, "deployment/go-micro-srv", "--timeout=1m")
	registeredOnPods(t)
	var s seen
	probe(t, &s, "services", "go-micro-srv")
	want := addresses(pods(t, "go-micro-srv"), "9100")
	if got := s.addresses("go-micro-srv"); !slices.Equal(got, want) {
		t.Errorf("after the deletion of %q at %s the registry has %q, want the live pods' %q", before[0].Name, before[0].Status.PodIP, got, want)
	}
	for _, p := range pods(t, "go-micro-client") {
		eventually(t, time.Minute, p.Name+" being greeted after the deletion", func() error {
			if good, _ := greetings(t, p.Name, deleted); good < 2 {
				return fmt.Errorf("%d greetings", good)
			}
			return nil
		})
	}
}

func noRights(t *testing.T) {
	apply(t, `{apiVersion: v1, kind: Pod, metadata: {name: no-rights, namespace: go-micro, labels: {app: no-rights}}, spec: {serviceAccountName: default,
  containers: [{name: main, image: "846602483/go-micro-srv:kubernetes", imagePullPolicy: Always, readinessProbe: {grpc: {port: 9100}, periodSeconds: 1}, `+restricted+`}]}}`)
	t.Cleanup(func() {
		kubectl(t, "delete", "rolebinding", "no-rights", "-n", namespace, "--ignore-not-found")
		kubectl(t, "delete", "pod", "no-rights", "-n", namespace, "--grace-period=0", "--force")
	})
	eventually(t, time.Minute, "the log of a pod without rights saying so", func() error {
		var log bytes.Buffer
		if err := command(time.Minute, &log, "kubectl", "logs", "no-rights", "-n", namespace); err != nil {
			return err
		}
		if !strings.Contains(log.String(), "forbidden") || !strings.Contains(log.String(), `verb "patch" on pods (k8s/pod-rbac.yaml grants it)`) {
			return fmt.Errorf("it says %q", log.String())
		}
		return nil
	})
	eventually(t, time.Minute, "its readiness probe failing", func() error {
		if events := kubectl(t, "get", "events", "-n", namespace, "--field-selector=involvedObject.name=no-rights"); !strings.Contains(events, "Readiness probe failed") {
			return errors.New(events)
		}
		return nil
	})
	for _, p := range pods(t, "no-rights") {
		if s, err := registration(p, "go-micro-srv"); err == nil || isReady(p) {
			t.Errorf("a pod without rights is ready: %v, or registered: %v", isReady(p), s)
		}
	}
	kubectl(t, "create", "rolebinding", "no-rights", "-n", namespace, "--role=micro-registry", "--serviceaccount=go-micro:default")
	kubectl(t, "wait", "-n", namespace, "pod/no-rights", "--for=condition=Ready", "--timeout=1m")
	for _, p := range pods(t, "no-rights") {
		if _, err := registration(p, "go-micro-srv"); err != nil || p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("with its rights granted: %v, %d restarts", err, p.Status.ContainerStatuses[0].RestartCount)
		}
	}
}

const dumperImage = "846602483/go-micro-config:kubernetes"

func dumperFails(t *testing.T, serviceAccount string, want ...string) {
	t.Helper()
	log, err := runPod(t, "dumper", serviceAccount, dumperImage)
	if err == nil || err.Error() != "exit status 1" {
		t.Errorf("the dumper ended with %v, want exit status 1", err)
	}
	for _, w := range append(want, "go-micro-config", "go-micro") {
		if !strings.Contains(log, w) {
			t.Errorf("the dumper said %q, which does not name %q", log, w)
		}
	}
}

func dumperNoRights(t *testing.T) { dumperFails(t, "default", `verb "get"`, "k8s/configmap-rbac.yaml") }

func dumperNoConfigMap(t *testing.T) {
	kubectl(t, "delete", "-f", "go-micro-config/k8s/configmap.yaml")
	dumperFails(t, "micro-config", "not found", "create it")
	kubectl(t, "apply", "-f", "go-micro-config/k8s/configmap.yaml")
}

func deploy(t *testing.T) {
	for _, target := range []string{"undeploy", "deploy"} {
		if err := command(3*time.Minute, nil, "make", target); err != nil {
			t.Fatal(err)
		}
		if target == "undeploy" {
			if left := kubectl(t, "get", "namespace", namespace, "--ignore-not-found"); left != "" {
				t.Fatalf("after make undeploy there is still %s", left)
			}
		}
	}
	rolledOut(t)
	registeredOnPods(t)
	dumperPrints(t)
}
