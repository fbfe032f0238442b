//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
)

// identityPod is the manifest of a pod that runs the probe with the certificate of its service account.
func identityPod(name, account string, labels map[string]string, env []string, args ...string) string {
	var variables strings.Builder
	for _, v := range env {
		key, value, _ := strings.Cut(v, "=")
		fmt.Fprintf(&variables, ", {name: %s, value: %q}", key, value)
	}
	return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %[1]q, namespace: %[2]q, labels: %[3]s, annotations: {micro.mu/services: go-micro-srv}},
  spec: {restartPolicy: Never, serviceAccountName: %[4]q, terminationGracePeriodSeconds: 1, containers: [{name: main, image: %[5]q, args: %[6]s, %[7]s,
  volumeMounts: [{name: identity, mountPath: /var/run/secrets/pod-identity}],
  env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}},
    {name: POD_IDENTITY, value: /var/run/secrets/pod-identity}%[8]s]}],
  volumes: [{name: identity, projected: {sources: [
    {podCertificate: {signerName: go-micro.local/pod, keyType: ECDSAP256, credentialBundlePath: credentialbundle.pem}},
    {clusterTrustBundle: {signerName: go-micro.local/pod, labelSelector: {}, path: trustbundle.pem}}]}}]}}`,
		name, namespace, must(json.Marshal(labels)), account, probeImage, must(json.Marshal(args)), faults.Restricted, &variables)
}

// startIdentityLoad calls go-micro-srv with the certificate of a service account until the test ends.
func startIdentityLoad(t *testing.T, name, account, mode string) *load {
	t.Helper()
	manifest := identityPod(name, account, map[string]string{"app": name}, []string{"POD_IDENTITY_MODE=" + mode}, "call", "-retries=0", "2", "20ms")
	l, err := faults.StartLoadPod(context.Background(), faults.Cluster{Root: root, Name: clusterName}, namespace, name, manifest, nil)
	fatal(t, err)
	started := &load{Load: l, pod: name}
	t.Cleanup(func() { started.stop(t) })
	return started
}

// startOutside calls go-micro-srv from this machine, through the API server, until the test ends.
func startOutside(t *testing.T, name, program string, env ...string) *load {
	t.Helper()
	config, err := clientcmd.LoadFromFile(os.Getenv("KUBECONFIG"))
	fatal(t, err)
	config.Contexts[config.CurrentContext].Namespace = namespace
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	fatal(t, clientcmd.WriteToFile(*config, kubeconfig))
	p := new(laptop).command(t, kubeconfig, program, "call", "-retries=0", "1", "100ms")
	p.Env = append(p.Env, env...)
	l, err := faults.StartProcess(context.Background(), name, p.Cmd)
	fatal(t, err)
	started := &load{Load: l, pod: name}
	t.Cleanup(func() { started.stop(t) })
	return started
}

// copyIdentity copies the files of a pod from the node to a directory of this machine.
func copyIdentity(t *testing.T, p corev1.Pod) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, file := range []string{"credentialbundle.pem", "trustbundle.pem"} {
		text := onNode(t, "cat", "/var/lib/kubelet/pods/"+string(p.UID)+"/volumes/kubernetes.io~projected/identity/"+file)
		fatal(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
	}
	return dir
}

// lastSecond returns the calls of a second that began after this call.
func lastSecond(t *testing.T, l *load) faults.Second {
	t.Helper()
	return secondAfter(t, l, time.Now().Add(2*time.Second))
}

func secondAfter(t *testing.T, l *load, end time.Time) faults.Second {
	t.Helper()
	all := l.secondsUntil(t, end)
	return all[len(all)-1]
}

// shownCertificate is a certificate as the page of go-micro-web shows it.
type shownCertificate struct {
	Signer   string
	NotAfter time.Time
}

// shownCertificates sends the form of the page until the page shows the certificates of both pods of go-micro-srv, and returns them.
func shownCertificates(t *testing.T, page string) map[string]shownCertificate {
	t.Helper()
	shown := map[string]shownCertificate{}
	eventually(t, time.Minute, "the certificates on the page", func() error {
		rsp, err := http.PostForm(page, url.Values{"name": {"you"}})
		if err != nil {
			return err
		}
		rsp.Body.Close()
		var view struct {
			Services []struct {
				Name      string
				Instances []struct {
					Pod   string
					Calls struct{ Certificate shownCertificate }
				}
			}
		}
		if err := getJSON(page+"services.json", &view); err != nil {
			return err
		}
		for _, s := range view.Services {
			for _, i := range s.Instances {
				if c := i.Calls.Certificate; !c.NotAfter.IsZero() {
					shown[i.Pod] = c
				}
			}
		}
		if len(shown) != 2 {
			return fmt.Errorf("it shows %v", shown)
		}
		return nil
	})
	return shown
}

// getJSON reads a URL.
func getJSON(address string, into any) error {
	rsp, err := http.Get(address)
	if err != nil {
		return err
	}
	defer rsp.Body.Close()
	if rsp.StatusCode != http.StatusOK {
		return fmt.Errorf("reading %s: %s", address, rsp.Status)
	}
	return json.NewDecoder(rsp.Body).Decode(into)
}

// stopSigner stops the signer of the cluster until resume is called, or the test ends.
func stopSigner(t *testing.T) (resume func()) {
	t.Helper()
	signer := nodeProcess(t, "^/proc/self/exe pod-signer")
	onNode(t, "kill", "-STOP", signer)
	resume = sync.OnceFunc(func() { onNode(t, "kill", "-CONT", signer) })
	t.Cleanup(resume)
	return resume
}

// tracesOfAll waits until the page of traces shows the spans of all pods, except those of the impostor, which it must not ask.
func tracesOfAll(t *testing.T, page string) {
	t.Helper()
	eventually(t, time.Minute, "the spans of go-micro-srv and go-micro-client", func() error {
		var list struct {
			Pods []struct {
				Service, Pod, Problem string
				Spans                 int
			}
		}
		if err := getJSON(page+"traces.json", &list); err != nil {
			return err
		}
		answers := map[string]int{}
		for _, p := range list.Pods {
			isImpostor := p.Pod == "identity-impostor"
			if isImpostor != (p.Problem == "no answer") || !isImpostor && p.Problem != "" {
				return fmt.Errorf("the pods are %+v", list.Pods)
			}
			if p.Spans > 0 {
				answers[p.Service]++
			}
		}
		if answers["go-micro-srv"] != 2 || answers["go-micro-client"] != 2 {
			return fmt.Errorf("the pods are %+v", list.Pods)
		}
		return nil
	})
}

// captured counts the packets of calls to go-micro-srv on the node, and those that contain a greeting.
func captured(t *testing.T, program string) (c struct{ Packets, Text int }) {
	t.Helper()
	fatal(t, json.Unmarshal([]byte(onNode(t, program, "capture", "2s", "9100", "Hello")), &c))
	return c
}

// TestIdentity changes the services from plaintext to mutual TLS and back under load, with certificates that kubelet gets from
// the signer of the cluster, and attacks them while only TLS is allowed.
func TestIdentity(t *testing.T) {
	deploy := func(components string) {
		t.Helper()
		begin := time.Now()
		fatal(t, command(3*time.Minute, nil, "make", "deploy", "COMPONENTS="+components))
		rolledOut(t)
		t.Logf("COMPONENTS=%q: rolled out in %.1f s", components, time.Since(begin).Seconds())
	}
	deploy("")
	t.Cleanup(func() {
		if t.Failed() {
			deploy("") // the next tests call in plaintext
		}
		kubectl(t, "delete", "-f", "k8s/components/identity/accounts.yaml", "-f", "k8s/components/identity/callers.yaml", "--ignore-not-found")
	})
	kubectl(t, "apply", "-f", "k8s/components/identity/accounts.yaml")
	program := filepath.Join(t.TempDir(), "probe")
	fatal(t, command(5*time.Minute, nil, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./test/e2e/probe"))
	calls := startIdentityLoad(t, "identity-calls", "go-micro-client", "permissive")
	if c := captured(t, program); c.Text == 0 {
		t.Errorf("%d packets of calls in plaintext, %d with a greeting: the capture sees nothing", c.Packets, c.Text)
	}

	deploy("identity identity-permissive traces")
	deploy("identity traces")
	t.Run("strict", func(t *testing.T) { attackIdentities(t, program) })
	deploy("identity identity-permissive")
	deploy("")

	succeeded, failed, refused, first := 0, 0, 0, ""
	for _, s := range calls.secondsUntil(t, time.Now()) {
		succeeded += s.Succeeded
		if strings.Contains(s.Error, "not calling go-micro-srv at ") { // without retries, the call fails that finds out who the impostor is
			refused += s.Failed
		} else if failed += s.Failed; first == "" {
			first = s.Error
		}
	}
	t.Logf("%d calls succeeded during the change to strict and back, %d failed, %d were not sent to the impostor", succeeded, failed, refused)
	if succeeded == 0 || failed > 0 || refused > 4 { // of two callers
		t.Errorf("%d calls succeeded, %d failed and %d were not sent to the impostor, want at most 4, and none to fail: %s\n%s", succeeded, failed, refused, first, calls.messages)
	}
}

// attackIdentities runs while go-micro-srv answers TLS only. The signer is away meanwhile.
func attackIdentities(t *testing.T, program string) {
	stranger := startIdentityLoad(t, "identity-stranger", "micro-services", "strict")
	plain := startLoad(t, "identity-plain", "call", "-retries=0", "1", "100ms") // without a certificate
	t.Cleanup(func() { plain.stop(t) })
	// Its registration says go-micro-srv, and its certificate micro-services.
	apply(t, identityPod("identity-impostor", "micro-services", map[string]string{"app": "go-micro-srv"}, []string{"MICRO_SERVER_ADDRESS=:9100"}, "greeter"))
	t.Cleanup(func() {
		kubectl(t, "delete", "pod", "identity-impostor", "-n", namespace, "--wait=false", "--ignore-not-found")
	})
	eventually(t, time.Minute, "registration of the impostor", func() error {
		var p corev1.Pod
		if err := getPod("identity-impostor", &p); err != nil {
			return err
		}
		if p.Labels["micro.mu/selector-go-micro-srv"] == "" || !faults.IsReady(p) {
			return fmt.Errorf("labels %v, %s", p.Labels, p.Status.Phase)
		}
		return nil
	})
	owner := startIdentityLoad(t, "identity-permitted", "go-micro-web", "strict")

	resume := stopSigner(t)
	away := time.Now()
	apply(t, identityPod("identity-waits", "micro-services", nil, nil, "never"))
	t.Cleanup(func() {
		kubectl(t, "delete", "pod", "identity-waits", "-n", namespace, "--wait=false", "--ignore-not-found")
	})

	files := "POD_IDENTITY=" + copyIdentity(t, pods(t, "go-micro-client")[0])
	outside, outsidePlain := startOutside(t, "outside", program, files), startOutside(t, "outside-plain", program)
	page := pageURL(t)
	for instance, c := range shownCertificates(t, page) {
		if left := time.Until(c.NotAfter); c.Signer != "go-micro.local pod signer" || left < 0 || left > time.Hour {
			t.Errorf("the page shows for instance %s the certificate %+v", instance, c)
		}
	}
	tracesOfAll(t, page)
	if c := captured(t, program); c.Packets == 0 || c.Text > 0 {
		t.Errorf("%d packets of calls, %d with a greeting in clear; want many and none", c.Packets, c.Text)
	}
	end := time.Now().Add(2 * time.Second)
	for _, tt := range []struct {
		name    string
		calls   *load
		refused string // "" if the caller is permitted
	}{
		{"go-micro-web, which is a permitted caller", owner, ""},
		{"the account micro-services", stranger, "go-micro-srv refuses calls of spiffe://cluster.local/ns/go-micro/sa/micro-services: it is not in the list of callers"},
		{"a pod without a certificate", plain, "go-micro-srv speaks TLS only: call it with a certificate"},
		{"this machine, with the files of go-micro-client", outside, ""},
		{"this machine, without files", outsidePlain, "go-micro-srv speaks TLS only: call it with a certificate"},
	} {
		s := secondAfter(t, tt.calls, end)
		t.Logf("%s: %d calls succeeded, %d failed: %s", tt.name, s.Succeeded, s.Failed, s.Error)
		failed := s.Failed > 0 && !strings.Contains(s.Error, "not calling go-micro-srv at ") // a trial of the impostor
		if tt.refused == "" && (s.Succeeded == 0 || failed) || tt.refused != "" && (s.Succeeded > 0 || !strings.Contains(fmt.Sprint(s.TryErrors), tt.refused)) {
			t.Errorf("%s: %d calls succeeded, %d failed: %s", tt.name, s.Succeeded, s.Failed, s.Error)
		}
	}
	const refusal = "refusing calls of spiffe://cluster.local/ns/go-micro/sa/micro-services"
	for _, p := range pods(t, "go-micro-srv") {
		if p.Name == "identity-impostor" {
			continue
		}
		if log := kubectl(t, "logs", p.Name, "-n", namespace); strings.Count(log, refusal) != 1 || !strings.Contains(log, "it speaks plaintext") {
			t.Errorf("the log of %s has no line, or several, for a refused caller:\n%s", p.Name, log)
		}
	}
	if log := kubectl(t, "logs", "identity-impostor", "-n", namespace); strings.Contains(log, "calls this service") {
		t.Errorf("a client calls the impostor:\n%s", log)
	}

	// A pod gets its files again when its annotations change; otherwise within a minute and a half.
	permit := func(accounts string) {
		t.Helper()
		kubectl(t, "patch", "configmap", "go-micro-srv-callers", "-n", namespace, "--type=merge", "-p", string(must(json.Marshal(map[string]any{"data": map[string]string{"callers": accounts}}))))
		kubectl(t, "annotate", "pods", "-n", namespace, "-l", "app=go-micro-srv", "--overwrite", "changed="+fmt.Sprint(time.Now().Unix()))
	}
	permit("go-micro-client\nmicro-services\n")
	eventually(t, 2*time.Minute, "the calls of the account that is a caller now", func() error {
		if s := lastSecond(t, stranger); s.Succeeded == 0 || s.Failed > 0 {
			return fmt.Errorf("%d succeeded, %d failed: %s", s.Succeeded, s.Failed, s.Error)
		}
		return nil
	})
	eventually(t, 2*time.Minute, "no more calls of the account that was a caller", func() error {
		if s := lastSecond(t, owner); s.Succeeded > 0 || s.Failed == 0 {
			return fmt.Errorf("%d succeeded, %d failed", s.Succeeded, s.Failed)
		}
		return nil
	})
	kubectl(t, "apply", "-f", "k8s/components/identity/callers.yaml")
	kubectl(t, "annotate", "pods", "-n", namespace, "-l", "app=go-micro-srv", "changed-")

	kubectl(t, "delete", "pod", "identity-impostor", "-n", namespace)
	fatal(t, command(time.Minute, nil, "go", "run", "./test/verify", "-timeout=30s"))

	time.Sleep(time.Until(away.Add(time.Minute)))
	if out := kubectl(t, "get", "pod", "identity-waits", "-n", namespace); !strings.Contains(out, "ContainerCreating") {
		t.Errorf("without the signer a new pod does not wait for its certificate: %s", out)
	}
	t.Logf("the signer was away for %.0f s", time.Since(away).Seconds())
	resume()
	eventually(t, time.Minute, "the pod that waited for the signer", func() error {
		var out bytes.Buffer
		if err := command(time.Minute, &out, "kubectl", "wait", "pod/identity-waits", "-n", namespace, "--for=condition=Ready", "--timeout=30s"); err != nil {
			return err
		}
		return nil
	})
}
