package main

import (
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
