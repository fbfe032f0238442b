package manifests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/test/launch"
)

// servesPodCertificates reports whether the API server knows pod certificates. make compat runs these tests with older ones.
func servesPodCertificates(t *testing.T) bool {
	t.Helper()
	resources, err := run("", "kubectl", "api-resources", "--api-group=certificates.k8s.io", "-o", "name")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(resources, "podcertificaterequests")
}

// TestIdentityComponent builds k8s/ with mutual TLS, without and with the other components.
func TestIdentityComponent(t *testing.T) {
	needsAPIServer(t)
	alone, err := run("", "kubectl", "kustomize", "k8s")
	if err != nil || strings.Contains(alone, "POD_IDENTITY") || strings.Contains(alone, "podCertificate") || strings.Contains(alone, "POD_HEALTH_ADDRESS") {
		t.Errorf("k8s/ alone has identities: %v", err)
	}
	for components, permissive := range map[string]int{"identity": 0, "network-policy monitoring traces identity": 0, "identity identity-permissive": 3, "identity network-policy traces": 0} {
		if _, err := run("", "make", "overlay", "COMPONENTS="+components); err != nil {
			t.Fatal(err)
		}
		built, err := run("", "kubectl", "kustomize", ".cluster/deploy")
		if err == nil && servesPodCertificates(t) {
			err = dryRun(built)
		}
		if err != nil {
			t.Fatal(err)
		}
		for text, want := range map[string]int{
			"signerName: go-micro.local/pod\n": 6, "credentialBundlePath: credentialbundle.pem\n": 3, "path: trustbundle.pem\n": 3, "labelSelector: {}\n": 3,
			"name: POD_IDENTITY\n          value: /var/run/secrets/pod-identity\n": 3, "mountPath: /var/run/secrets/pod-identity\n": 3,
			"name: POD_IDENTITY_MODE\n          value: permissive\n": permissive,
			"name: POD_HEALTH_ADDRESS\n          value: :9101\n":     1, "name: POD_HEALTH_ADDRESS\n          value: :9301\n": 1,
			"grpc:\n            port: 9101\n": 2, "grpc:\n            port: 9301\n": 2, "grpc:\n            port: 9100\n": 0, "grpc:\n            port: 9300\n": 0, "port: http-port\n": 2,
			"serviceAccountName: go-micro-srv\n": 1, "serviceAccountName: go-micro-web\n": 1, "serviceAccountName: go-micro-client\n": 1, "serviceAccountName: micro-services\n": 0,
			"micro.mu/service-accounts: micro-services,go-micro-srv,go-micro-web,go-micro-client\n": 1,
		} {
			if got := strings.Count(built, text); got != want {
				t.Errorf("with COMPONENTS=%q %q occurs %d times, want %d", components, text, got, want)
			}
		}
	}
}

// The services keep what they may do: the accounts of the component have the rights of micro-services, and the policy limits them.
func TestIdentityAccounts(t *testing.T) {
	needsAPIServer(t)
	if _, err := run("", "kubectl", "apply", "-f", "k8s/components/identity/accounts.yaml"); err != nil {
		t.Fatal(err)
	}
	rights := func(account string) string {
		t.Helper()
		out, err := run("", "kubectl", "auth", "can-i", "--list", "--no-headers", "-n", namespace, "--as=system:serviceaccount:"+namespace+":"+account,
			"--as-group=system:serviceaccounts", "--as-group=system:serviceaccounts:"+namespace, "--as-group=system:authenticated")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	want := rights("micro-services")
	if !strings.Contains(want, "pods ") || !strings.Contains(want, "configmaps ") {
		t.Fatalf("micro-services may do only\n%s", want)
	}
	for _, account := range []string{"go-micro-srv", "go-micro-web", "go-micro-client"} {
		if got := rights(account); got != want {
			t.Errorf("%s may do\n%swant\n%s", account, got, want)
		}
	}
}

// TestIdentityNeedsPodCertificates deploys the component to an API server without pod certificates. make verify-deploy says so at once.
func TestIdentityNeedsPodCertificates(t *testing.T) {
	needsAPIServer(t)
	program := os.Getenv("KUBE_APISERVER") // of make compat
	if program == "" {                     // today's version without the feature
		kubectl, err := filepath.EvalSymlinks(filepath.Join(filepath.Dir(os.Getenv("KUBECONFIG")), "bin", "kubectl"))
		if err != nil {
			t.Fatal(err)
		}
		program = filepath.Join(t.TempDir(), "kube-apiserver")
		script := fmt.Sprintf("#!/bin/sh\nexec '%s' \"$@\" --feature-gates=PodCertificateRequest=false --runtime-config=certificates.k8s.io/v1/podcertificaterequests=false\n",
			filepath.Join(filepath.Dir(kubectl), "kube-apiserver"))
		if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("KUBE_APISERVER", program)
	kubeconfig, down, err := launch.Up("manifests-old", "-control-plane")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := down(); err != nil {
			t.Error(err)
		}
	}()
	t.Setenv("KUBECONFIG", kubeconfig)
	if servesPodCertificates(t) {
		if os.Getenv("KUBE_APISERVER_VERSION") != "" {
			t.Skip("this version of Kubernetes has pod certificates")
		}
		t.Fatal("the API server serves pod certificates although they are turned off")
	}
	_, err = run("", "make", "deploy", "COMPONENTS=identity")
	t.Logf("make deploy: %v", err)
	out, err := run("", "go", "run", "./test/verify", "-timeout=1s")
	if err == nil || !strings.Contains(out, "FAILED the component identity needs pod certificates, and this API server serves no podcertificaterequests") || !strings.Contains(out, "docs/identity.md") {
		t.Errorf("make verify-deploy: %v:\n%s", err, out)
	}
}
