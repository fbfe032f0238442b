//go:build e2e

package e2e

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
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/launch"
)

// verifyDeploy runs make verify-deploy with a short time limit and returns its lines.
func verifyDeploy(limit string) (string, error) {
	var out bytes.Buffer
	err := command(10*time.Minute, &out, "go", "run", "./test/verify", "-timeout="+limit)
	return out.String(), err
}

// verifyFails runs make verify-deploy until it fails with a line for each pair of texts, which
// the line must contain: problem and remedy. How long Kubernetes needs until a problem shows
// depends on the machine; with a short time limit, the first runs may report another problem.
func verifyFails(t *testing.T, limit string, want ...[2]string) {
	t.Helper()
	var out string
	eventually(t, 2*time.Minute, "the problem in the output of make verify-deploy", func() (err error) {
		out, err = verifyDeploy(limit)
		for _, w := range want {
			if err == nil || !slices.ContainsFunc(strings.Split(out, "\n"), func(line string) bool {
				return strings.HasPrefix(line, "FAILED ") && strings.Contains(line, w[0]) && strings.Contains(line, w[1])
			}) {
				return fmt.Errorf("no line with %q: %v\n%s", w, err, out)
			}
		}
		return nil
	})
	t.Log("\n" + out)
}

// TestDeployWithoutRegistry runs the services from the files of make images, which are
// imported into containerd as `ctr -n k8s.io images import` and kind do it, on a cluster of
// its own, which has never pulled the images: kubelet asks the registry again for an image
// that it has pulled under another name (KEP-2535).
func TestDeployWithoutRegistry(t *testing.T) {
	const registry, tag = "k8s-micro", "imported"
	shared := clusterName
	clusterName += "-images"
	t.Cleanup(func() { clusterName = shared })
	kubeconfig, down, err := launch.Up(clusterName)
	fatal(t, err)
	t.Cleanup(func() { fatal(t, down()) })
	t.Setenv("KUBECONFIG", kubeconfig)
	if err := command(15*time.Minute, nil, "make", "images", "REGISTRY="+registry, "TAG="+tag); err != nil {
		t.Fatal(err)
	}
	ctr := ctr(t)
	for _, s := range []string{"srv", "web", "client", "config"} {
		onNode(t, ctr, "--namespace=k8s.io", "images", "import", "--all-platforms", "--digests", filepath.Join(root, "images", "go-micro-"+s+".tar"))
	}
	deploy := func(components string) {
		t.Helper()
		kubectl(t, "delete", "pod", "go-micro-config", "-n", namespace, "--ignore-not-found") // its pull policy cannot be changed
		if err := command(3*time.Minute, nil, "make", "deploy", "REGISTRY="+registry, "TAG="+tag, "COMPONENTS="+components); err != nil {
			t.Fatal(err)
		}
	}
	deploy("local-images")
	rolledOut(t)
	if out, err := verifyDeploy("1m"); err != nil {
		t.Errorf("with the imported images: %v\n%s", err, out)
	}
	for _, s := range []string{"go-micro-srv", "go-micro-web", "go-micro-client"} {
		for _, p := range pods(t, s) {
			if got, want := p.Spec.Containers[0].Image, registry+"/"+s+":"+tag; got != want && p.DeletionTimestamp == nil {
				t.Errorf("pod %q runs %q, want %q", p.Name, got, want)
			}
		}
	}

	deploy("") // the registry does not contain the images, so without the component they cannot be pulled
	verifyFails(t, "20s", [2]string{`FAILED go-micro-srv: image "k8s-micro/go-micro-srv:imported" cannot be pulled: `, "COMPONENTS=local-images"})
}

// ctr returns the path of containerd's command line: the one of the package from which
// the node's containerd comes, or a build of the version that the launcher builds.
func ctr(t *testing.T) string {
	t.Helper()
	var state struct{ Tools struct{ Bin string } }
	b, err := os.ReadFile(filepath.Join(root, ".cluster", clusterName, "cluster.json"))
	if err = errors.Join(err, json.Unmarshal(b, &state)); err != nil {
		t.Fatal(err)
	}
	containerd := must(filepath.EvalSymlinks(filepath.Join(state.Tools.Bin, "containerd")))
	for _, path := range []string{"ctr", "../root/usr/bin/ctr"} { // the second is in the launcher's copy of the Debian package
		if path = filepath.Join(filepath.Dir(containerd), path); exec.Command(path, "--version").Run() == nil {
			return path
		}
	}
	dir := t.TempDir()
	install := exec.Command("go", "install", "github.com/containerd/containerd/v2/cmd/ctr@v2.4.2")
	install.Env = append(os.Environ(), "GOBIN="+dir)
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("building ctr: %v: %s", err, out)
	}
	return filepath.Join(dir, "ctr")
}

// TestVerifyDeploy breaks a deployment in each way that make verify-deploy must name.
func TestVerifyDeploy(t *testing.T) {
	kubectl(t, "apply", "-k", "k8s")
	rolledOut(t)
	good := func() {
		t.Helper()
		out, err := verifyDeploy("90s")
		if err != nil || strings.Count(out, "\nok ") != 7 {
			t.Fatalf("on a good deployment: %v\n%s", err, out)
		}
	}
	good()
	const srv = "deployment/go-micro-srv"
	for _, c := range []struct {
		name    string
		breaks  [][]string // arguments of kubectl
		repairs [][]string
		limit   string
		want    [][2]string // texts in the same line: problem and remedy
	}{
		{"image", [][]string{{"set", "image", "-n", namespace, srv, "go-micro-srv=846602483/go-micro-srv:missing"}},
			[][]string{{"rollout", "undo", "-n", namespace, srv}}, "5s",
			[][2]string{{`FAILED go-micro-srv: image "846602483/go-micro-srv:missing" cannot be pulled: `, "push it with `make push"}}},
		{"policy", [][]string{{"patch", "-n", namespace, srv, "--type=json", `-p=[{"op": "remove", "path": "/spec/template/spec/containers/0/securityContext"}]`}},
			[][]string{{"rollout", "undo", "-n", namespace, srv}}, "5s",
			[][2]string{{`FAILED go-micro-srv: a policy refuses its pods: `, "correct the Deployment's pod template"}}},
		{"registration forbidden", [][]string{{"delete", "rolebinding", "micro-registry", "-n", namespace}, {"rollout", "restart", "-n", namespace, srv}},
			[][]string{{"apply", "-f", "k8s/pod-rbac.yaml"}}, "5s",
			[][2]string{{"is not registered: ", "apply k8s/pod-rbac.yaml"}}},
		{"registration refused by the policy", [][]string{{"patch", "-n", namespace, srv, "--type=json",
			`-p=[{"op": "add", "path": "/spec/template/spec/containers/0/env/-", "value": {"name": "MICRO_SERVER_NAME", "value": "go-micro-web"}}]`}},
			[][]string{{"rollout", "undo", "-n", namespace, srv}}, "5s",
			[][2]string{{"is not registered: ", "see k8s/pod-admission.yaml"}}},
		{"no answers, no policy and no ConfigMap", [][]string{
			{"scale", "-n", namespace, srv, "deployment/go-micro-web", "--replicas=0"}, {"delete", "-f", "k8s/pod-admission.yaml"},
			{"delete", "configmap", "go-micro-config", "-n", namespace}, {"replace", "--force", "-f", "go-micro-config/k8s/pod.yaml"}},
			[][]string{{"apply", "-k", "k8s"}, {"replace", "--force", "-f", "go-micro-config/k8s/pod.yaml"}},
			"20s", // the check reads 12 s of the client's log, which must not contain the last answer
			[][2]string{{"FAILED go-micro-srv: the Deployment is scaled to 0 pods", "kubectl scale"},
				{"FAILED the client gets no answer from go-micro-srv: ", "network policies"},
				{"FAILED the Service go-micro-web does not answer: ", "network policies"},
				{"FAILED the admission policy is missing: ", "apply k8s/pod-admission.yaml"},
				{"FAILED go-micro-config has failed: ", "kubectl replace --force"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Cleanup(func() {
				for _, args := range c.repairs {
					kubectl(t, args...)
				}
				rolledOut(t)
			})
			for _, args := range c.breaks {
				kubectl(t, args...)
			}
			verifyFails(t, c.limit, c.want...)
		})
	}
	good()

	empty := filepath.Join(t.TempDir(), "kubeconfig")
	cmd := exec.Command("go", "run", "./test/verify")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "KUBECONFIG="+empty)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if want := "FAILED error: current-context is not set; select a cluster"; !errors.As(err, &exit) || !strings.HasPrefix(string(out), want) {
		t.Errorf("without a kubeconfig: %v\n%s\nwant %q", err, out, want)
	}
}
