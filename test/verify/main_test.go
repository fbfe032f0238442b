package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestMain makes the test binary a kubectl that knows one Deployment if the variable FAKE_PODS is set.
func TestMain(m *testing.M) {
	pods, set := os.LookupEnv("FAKE_PODS")
	if !set {
		os.Exit(m.Run())
	}
	switch args := os.Args[1:]; {
	case os.Getenv("FAKE_IDENTITY") != "": // lines of: part of the arguments, a tab, the answer; "!" before an error
		for line := range strings.Lines(os.Getenv("FAKE_IDENTITY")) {
			part, answer, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			if !strings.Contains(strings.Join(args, " "), part) {
				continue
			}
			if text, isError := strings.CutPrefix(answer, "!"); isError {
				fmt.Fprintln(os.Stderr, text)
				os.Exit(1)
			}
			fmt.Print(strings.ReplaceAll(answer, "|", "\n"))
			return
		}
		os.Exit(1)
	case slices.Contains(args, "deployment"):
		fmt.Print(`{"metadata": {"generation": 3}, "spec": {"replicas": 2}, "status": {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}}`)
	case slices.Contains(args, "namespace"):
		fmt.Print(os.Getenv("FAKE_LABEL"))
	case slices.Contains(args, "validatingadmissionpolicy/micro-own-pod"):
	case slices.Contains(args, "configmap"):
		fmt.Print(os.Getenv("FAKE_DASHBOARD"))
	case slices.Contains(args, "podmonitors.monitoring.coreos.com/go-micro"):
		if text := os.Getenv("FAKE_ERROR"); text != "" {
			fmt.Fprintln(os.Stderr, text)
			os.Exit(1)
		}
	case slices.Contains(args, "pods"):
		fmt.Printf(`{"items": [%s]}`, pods)
	default:
		fmt.Fprintf(os.Stderr, "unexpected arguments %q\n", args)
		os.Exit(1)
	}
}

const (
	good = `{"metadata": {"name": "a", "labels": {"micro.mu/selector-go-micro-srv": "service"}, "annotations": {"micro.mu/service-go-micro-srv": "{}"}},
		"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}`
	evicted   = `{"metadata": {"name": "b"}, "status": {"phase": "Failed", "reason": "Evicted"}}`
	shutDown  = `{"metadata": {"name": "c"}, "status": {"phase": "Failed", "reason": "Terminated", "containerStatuses": [{"state": {"terminated": {"exitCode": 137}}}]}}`
	completed = `{"metadata": {"name": "d"}, "status": {"phase": "Succeeded", "conditions": [{"type": "Ready", "status": "False"}]}}`
	pending   = `{"metadata": {"name": "e"}, "status": {"phase": "Pending"}}`
	deleted   = `{"metadata": {"name": "f", "deletionTimestamp": "2026-11-28T00:00:00Z"}, "status": {"phase": "Running"}}`
)

// A pod that the kubelet has evicted, or that ended with its node, stays Failed or Succeeded beside the pod that replaces it.
func TestDeploymentPassesOverPodsThatHaveEnded(t *testing.T) {
	for _, tt := range []struct {
		pods []string
		want string
	}{
		{[]string{good, good}, "2 of 2 pods are ready and registered"},
		{[]string{evicted, good, shutDown, completed, good, deleted}, "2 of 2 pods are ready and registered"},
		{[]string{evicted, good}, "the rollout has not finished"},
		{[]string{good, good, pending}, `pod "e" is Pending`},
	} {
		t.Setenv("FAKE_PODS", strings.Join(tt.pods, ","))
		text, err := verifier{kubectl: os.Args[0]}.deployment(t.Context(), "go-micro-srv")
		if err != nil {
			text = err.Error()
		}
		if !strings.Contains(text, tt.want) {
			t.Errorf("of %d pods make verify-deploy says %q, want %q", len(tt.pods), text, tt.want)
		}
	}
}

func TestPolicyAppliesToNamespace(t *testing.T) {
	t.Setenv("FAKE_PODS", "")
	for label, want := range map[string]string{"enforce": "", "": "apply k8s/namespace.yaml"} {
		t.Setenv("FAKE_LABEL", label)
		_, err := verifier{kubectl: os.Args[0]}.policy(t.Context())
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("with the label %q make verify-deploy says %v", label, err)
		}
	}
}

func TestMonitoringNeedsCustomResources(t *testing.T) {
	t.Setenv("FAKE_PODS", "")
	for _, tt := range []struct{ dashboard, err, want string }{
		{"", "", ""},
		{"configmap/go-micro-dashboard", "", "has the PodMonitor and the alerts"},
		{"configmap/go-micro-dashboard", `error: the server doesn't have a resource type "podmonitors"`, "install the Prometheus Operator and deploy again"},
		{"configmap/go-micro-dashboard", `Error from server (NotFound): prometheusrules.monitoring.coreos.com "go-micro" not found`, "run `make deploy COMPONENTS=monitoring-operator` again"},
		{"configmap/go-micro-dashboard", "Error from server (Forbidden): no", "needs the right"},
	} {
		t.Setenv("FAKE_DASHBOARD", tt.dashboard)
		t.Setenv("FAKE_ERROR", tt.err)
		text, err := verifier{kubectl: os.Args[0]}.monitoring(t.Context())
		if err != nil {
			text = err.Error()
		}
		if !strings.Contains(text, tt.want) || tt.want == "" && text != "" {
			t.Errorf("with %q and %q make verify-deploy says %q, want %q", tt.dashboard, tt.err, text, tt.want)
		}
	}
}

// make verify-deploy refuses the component identity where pods would wait for certificates that nobody issues.
func TestIdentity(t *testing.T) {
	const (
		component  = "configmap\tconfigmap/go-micro-srv-callers\n"
		deployment = "deployment\t" + `{"spec": {"template": {"spec": {"containers": [{"env": [{"name": "POD_IDENTITY"}]}], "volumes": [{"name": "identity", "projected": {"sources": [{"podCertificate": {"signerName": "go-micro.local/pod"}}]}}]}}}}` + "\n"
		dropped    = "deployment\t" + `{"spec": {"template": {"spec": {"containers": [{"env": [{"name": "POD_IDENTITY"}]}], "volumes": [{"name": "identity", "projected": {"sources": [{}, {"configMap": {"name": "x"}}]}}]}}}}` + "\n"
		files      = "deployment\t" + `{"spec": {"template": {"spec": {"containers": [{"env": [{"name": "POD_IDENTITY"}]}], "volumes": [{"name": "identity", "csi": {"driver": "spiffe.csi.cert-manager.io"}}]}}}}` + "\n"
		plaintext  = "deployment\t" + `{"spec": {"template": {"spec": {"containers": [{}]}}}}` + "\n"
		refused    = "deployment\t" + `!Error from server (NotFound): deployments.apps "go-micro-srv" not found` + "\n"
		old        = "api-resources\tcertificatesigningrequests.certificates.k8s.io\n"
		today      = "api-resources\tcertificatesigningrequests.certificates.k8s.io|clustertrustbundles.certificates.k8s.io|podcertificaterequests.certificates.k8s.io\n"
		noBundle   = "clustertrustbundles\tkubernetes.io/kube-apiserver-serving|go-micro.local/pods|\n"
		bundle     = "clustertrustbundles\tkubernetes.io/kube-apiserver-serving|go-micro.local/pod|\n"
	)
	for name, tt := range map[string]struct {
		answers, ok, problem, remedy string
		final                        bool
	}{
		"without the component":           {"configmap\t\n", "", "", "", false},
		"deployed again without it":       {component + plaintext + today, "", "", "", false},
		"with it":                         {component + deployment + today + bundle, `the signer "go-micro.local/pod" issues`, "", "", false},
		"Kubernetes without certificates": {component + deployment + old, "", "serves no podcertificaterequests", "docs/identity", true},
		"which refused the Deployment":    {component + refused + old, "", "serves no podcertificaterequests", "csi-driver-spiffe", true},
		"which dropped the volume":        {component + dropped + old, "", "serves no podcertificaterequests", "docs/identity", true},
		"with files from elsewhere":       {component + files + old, "other files", "", "", false},
		"no signer":                       {component + deployment + today + noBundle, "", `no ClusterTrustBundle is of the signer "go-micro.local/pod"`, "docs/identity", false},
		"no right to list bundles":        {component + deployment + today + "clustertrustbundles\t!forbidden\n", "", "listing the ClusterTrustBundles: forbidden", "right", false},
	} {
		t.Setenv("FAKE_PODS", "")
		t.Setenv("FAKE_IDENTITY", tt.answers)
		text, err := verifier{kubectl: os.Args[0]}.identity(t.Context())
		f := finding{}
		if err != nil && !errors.As(err, &f) {
			t.Errorf("%s: %v", name, err)
		}
		if tt.ok == "" && text != "" || !strings.Contains(text, tt.ok) || (f.problem == "") != (tt.problem == "") || !strings.Contains(f.problem, tt.problem) || !strings.Contains(f.remedy, tt.remedy) || f.final != tt.final {
			t.Errorf("%s: make verify-deploy says %q, %v", name, text, err)
		}
	}
}
