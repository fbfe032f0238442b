// Command verify checks on a cluster what the README tells people to look at. It prints
// one line for each check: what is true, or what is not and the remedy. It exits with 1 if
// a check fails. It asks the cluster of the current kubectl context:
//
//	make verify-deploy
//
// A check that is not yet true is repeated until the time limit, unless it cannot become
// true by itself, such as an image that does not exist.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

const namespace = "go-micro"

func main() {
	v := verifier{}
	limit := flag.Duration("timeout", time.Minute, "how long all checks together may take to become true")
	flag.StringVar(&v.kubectl, "kubectl", "kubectl", "path of kubectl")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	if !v.run(ctx) {
		os.Exit(1)
	}
}

// verifier makes the checks with kubectl.
type verifier struct {
	kubectl string
}

// check returns a sentence that says what is true, or a finding. The sentence is empty if there is nothing to check.
type check func(ctx context.Context) (string, error)

// finding is what is not true, and what the reader can do about it.
type finding struct {
	problem, remedy string
	final           bool // waiting does not help
}

func (f finding) Error() string { return f.problem + "; " + f.remedy }

// run prints the result of every check and returns whether all are true.
func (v verifier) run(ctx context.Context) bool {
	checks := []check{v.namespaceExists, v.identity}
	for _, s := range []string{"go-micro-srv", "go-micro-web", "go-micro-client"} {
		checks = append(checks, func(ctx context.Context) (string, error) { return v.deployment(ctx, s) })
	}
	checks = append(checks, v.policy, v.greeting, v.web, v.config, v.monitoring)
	good := true
	for i, c := range checks {
		text, err := repeat(ctx, c)
		if err == nil {
			if text != "" {
				fmt.Println("ok    ", text)
			}
			continue
		}
		fmt.Println("FAILED", err)
		good = false
		if i == 0 {
			break // without the namespace all others fail for the same reason
		}
	}
	return good
}

// repeat calls c until it returns no error, a final finding, or ctx ends.
func repeat(ctx context.Context, c check) (string, error) {
	for {
		text, err := c(context.WithoutCancel(ctx)) // every check is made at least once
		var f finding
		if err == nil || errors.As(err, &f) && f.final {
			return text, err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(time.Second):
		}
	}
}

// output returns the output of kubectl. The error is the last line that kubectl prints.
func (v verifier) output(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, v.kubectl, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if text := lastLine(stderr.String()); err != nil && text != "" {
		err = errors.New(text)
	}
	return out, err
}

// get decodes the answer of kubectl get.
func (v verifier) get(ctx context.Context, into any, args ...string) error {
	out, err := v.output(ctx, append([]string{"get", "-n", namespace, "-o", "json"}, args...)...)
	if err == nil {
		err = json.Unmarshal(out, into)
	}
	return err
}

func (v verifier) namespaceExists(ctx context.Context) (string, error) {
	current, err := v.output(ctx, "config", "current-context")
	if err != nil {
		return "", finding{err.Error(), "select a cluster with `kubectl config use-context NAME`, or set KUBECONFIG", true}
	}
	name := strings.TrimSpace(string(current))
	if _, err := v.output(ctx, "get", "namespace", namespace); err != nil {
		if strings.Contains(err.Error(), "NotFound") {
			return "", finding{fmt.Sprintf("the cluster of context %q has no namespace %q", name, namespace), "run `make deploy`, or select another cluster with `kubectl config use-context NAME`", true}
		}
		return "", finding{fmt.Sprintf("the cluster of context %q does not answer: %v", name, err), "start it, or select another one with `kubectl config use-context NAME`", false}
	}
	return fmt.Sprintf("the cluster of context %q has the namespace %q", name, namespace), nil
}

// pod has the fields of a Kubernetes Pod that the checks read.
type pod struct {
	Metadata struct {
		Name, DeletionTimestamp string
		Labels, Annotations     map[string]string
	}
	Status struct {
		Phase             string
		Conditions        []condition
		ContainerStatuses []struct {
			State struct {
				Waiting *struct{ Reason, Message string }
			}
		}
	}
	Spec struct{ Containers []struct{ Image string } }
}

type condition struct{ Type, Status, Reason, Message string }

func (p pod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

func (v verifier) deployment(ctx context.Context, name string) (string, error) {
	var d struct {
		Metadata struct{ Generation int }
		Spec     struct{ Replicas int }
		Status   struct {
			ObservedGeneration, UpdatedReplicas, ReadyReplicas, Replicas int
			Conditions                                                   []condition
		}
	}
	if err := v.get(ctx, &d, "deployment", name); err != nil {
		return "", finding{fmt.Sprintf("%s: %v", name, err), "run `make deploy`", strings.Contains(err.Error(), "NotFound")}
	}
	if d.Spec.Replicas == 0 {
		return "", finding{fmt.Sprintf("%s: the Deployment is scaled to 0 pods", name), fmt.Sprintf("run `kubectl scale -n %s deployment/%s --replicas=2`", namespace, name), false}
	}
	for _, c := range d.Status.Conditions {
		if c.Type == "ReplicaFailure" && c.Status == "True" {
			return "", finding{fmt.Sprintf("%s: a policy refuses its pods: %s", name, oneLine(c.Message)),
				"correct the Deployment's pod template, or the policy that the message names", true}
		}
	}
	var pods struct{ Items []pod }
	if err := v.get(ctx, &pods, "pods", "-l", "app="+name); err != nil {
		return "", finding{fmt.Sprintf("%s: listing its pods: %v", name, err), "your user needs the right to list pods", false}
	}
	registered := 0 // and ready
	for _, p := range pods.Items {
		if p.Metadata.DeletionTimestamp != "" || p.Status.Phase == "Failed" || p.Status.Phase == "Succeeded" {
			continue // an evicted pod, or one whose node was shut down, stays until somebody deletes it; the Deployment has replaced it
		}
		if err := v.podProblem(ctx, name, p); err != nil {
			return "", err
		}
		registered++
	}
	if d.Status.ObservedGeneration != d.Metadata.Generation || registered < d.Spec.Replicas || d.Status.UpdatedReplicas != d.Spec.Replicas ||
		d.Status.Replicas != d.Spec.Replicas || d.Status.ReadyReplicas != d.Spec.Replicas {
		return "", finding{fmt.Sprintf("%s: the rollout has not finished: %d of %d pods are updated and %d are ready", name, d.Status.UpdatedReplicas, d.Spec.Replicas, d.Status.ReadyReplicas),
			fmt.Sprintf("follow it with `kubectl rollout status -n %s deployment/%s`", namespace, name), false}
	}
	return fmt.Sprintf("%s: %d of %d pods are ready and registered", name, d.Status.ReadyReplicas, d.Spec.Replicas), nil
}

// describe returns the command that shows everything about a pod.
func describe(p pod) string {
	return fmt.Sprintf("see `kubectl describe pod -n %s %s`", namespace, p.Metadata.Name)
}

// containerProblem returns a finding if a container of the pod does not start.
func (v verifier) containerProblem(ctx context.Context, service string, p pod) error {
	for i, c := range p.Status.ContainerStatuses {
		waiting := c.State.Waiting
		if waiting == nil {
			continue
		}
		switch waiting.Reason {
		case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull":
			return finding{fmt.Sprintf("%s: image %q cannot be pulled: %s", service, p.Spec.Containers[i].Image, oneLine(waiting.Message)),
				"push it with `make push REGISTRY= TAG=` to a registry that the cluster reaches, or load it into the nodes and deploy with COMPONENTS=local-images", waiting.Reason != "ErrImagePull"} // the kubelet's first failure may be an accident
		case "CrashLoopBackOff":
			return finding{fmt.Sprintf("%s: pod %q crashes: %s", service, p.Metadata.Name, v.lastError(ctx, p.Metadata.Name)), describe(p), true}
		case "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
			return finding{fmt.Sprintf("%s: pod %q cannot start: %s", service, p.Metadata.Name, oneLine(waiting.Message)), describe(p), false}
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == "PodScheduled" && c.Status == "False" {
			return finding{fmt.Sprintf("%s: no node takes pod %q: %s", service, p.Metadata.Name, oneLine(c.Message)), describe(p), false}
		}
	}
	return nil
}

// podProblem returns a finding unless the pod is registered and ready.
func (v verifier) podProblem(ctx context.Context, service string, p pod) error {
	if err := v.containerProblem(ctx, service, p); err != nil {
		return err
	}
	switch {
	case p.Status.Phase != "Running":
		return finding{fmt.Sprintf("%s: pod %q is %s", service, p.Metadata.Name, p.Status.Phase), describe(p), false}
	case p.Metadata.Labels["micro.mu/selector-"+service] != "service" || p.Metadata.Annotations["micro.mu/service-"+service] == "":
		reason := v.lastError(ctx, p.Metadata.Name)
		return finding{fmt.Sprintf("%s: pod %q is not registered: %s", service, p.Metadata.Name, reason), remedyOf(reason), false}
	case !p.ready():
		return finding{fmt.Sprintf("%s: pod %q is registered, but not ready", service, p.Metadata.Name), describe(p), false}
	}
	return nil
}

// remedyOf returns what to do about an error of a service that cannot register.
func remedyOf(reason string) string {
	switch {
	case strings.Contains(reason, "micro-own-pod"):
		return "the registered name must be the pod's label app, or be listed in the annotation micro.mu/services of the pod template: see k8s/pod-admission.yaml"
	case strings.Contains(reason, "forbidden"):
		return "apply k8s/pod-rbac.yaml, and set serviceAccountName: micro-services in the pod template"
	default:
		return "if the API server does not answer and you use network policies, add its port to k8s/components/network-policy/network-policy.yaml"
	}
}

// lastError returns the last line of a pod's log that reports an error, or says that there
// is none.
func (v verifier) lastError(ctx context.Context, pod string) string {
	out, err := v.output(ctx, "logs", "-n", namespace, pod, "--tail=50")
	if err != nil {
		return "its log cannot be read: " + err.Error()
	}
	last := "its log reports no error"
	for line := range strings.SplitSeq(string(out), "\n") {
		if strings.Contains(line, "level=error") || strings.Contains(line, "running ") {
			last = line
		}
	}
	return oneLine(last)
}

func (v verifier) policy(ctx context.Context) (string, error) {
	if _, err := v.output(ctx, "get", "validatingadmissionpolicy/micro-own-pod", "validatingadmissionpolicybinding/micro-own-pod"); err != nil {
		return "", finding{fmt.Sprintf("the admission policy is missing: %v", err), "apply k8s/pod-admission.yaml", strings.Contains(err.Error(), "NotFound")}
	}
	label, err := v.output(ctx, "get", "namespace", namespace, "-o", `jsonpath={.metadata.labels.micro\.mu/pod-admission}`)
	if err != nil || string(label) != "enforce" {
		return "", finding{fmt.Sprintf("the admission policy does not apply to namespace %q: its label micro.mu/pod-admission is %q", namespace, label), "apply k8s/namespace.yaml", err == nil}
	}
	return "the admission policy lets a service change only its own pod", nil
}

// greeting checks the client's last call. The client makes one every 10 seconds.
func (v verifier) greeting(ctx context.Context) (string, error) {
	out, err := v.output(ctx, "logs", "-n", namespace, "deployment/go-micro-client", "--since=12s")
	if err != nil {
		return "", finding{fmt.Sprintf("reading the client's log: %v", err), "see `kubectl describe pods -n go-micro -l app=go-micro-client`", false}
	}
	last := "its log reports no call"
	for line := range strings.SplitSeq(string(out), "\n") {
		if strings.HasPrefix(line, "Server ") || strings.HasPrefix(line, "{") { // a greeting, or go-micro's error in JSON
			last = line
		}
	}
	if last == "Server Hello XXX!" {
		return "the client prints \"Server Hello XXX!\"", nil
	}
	return "", finding{"the client gets no answer from go-micro-srv: " + oneLine(last),
		"see the lines about go-micro-srv above; with network policies, the client must be among its callers", false}
}

func (v verifier) web(ctx context.Context) (string, error) {
	out, err := v.output(ctx, "get", "--raw", "/api/v1/namespaces/"+namespace+"/services/go-micro-web:9200/proxy/")
	if err != nil {
		return "", finding{fmt.Sprintf("the Service go-micro-web does not answer: %v", err),
			"see the line about go-micro-web above; with network policies, port 9200 must be open", false}
	}
	if !strings.Contains(string(out), "go-micro-web-") {
		return "", finding{fmt.Sprintf("the Service go-micro-web answers %q instead of the name of its pod", oneLine(string(out))), "see which image it runs: `kubectl get deployment -n go-micro go-micro-web -o wide`", false}
	}
	return "the Service go-micro-web answers with the name of its pod", nil
}

func (v verifier) config(ctx context.Context) (string, error) {
	const (
		name  = "go-micro-config"
		again = "run it again with `kubectl replace --force -f go-micro-config/k8s/pod.yaml`"
	)
	var p pod
	if err := v.get(ctx, &p, "pod", name); err != nil {
		return "", finding{fmt.Sprintf("%s: %v", name, err), "run `make deploy`", strings.Contains(err.Error(), "NotFound")}
	}
	if p.Status.Phase != "Succeeded" {
		if err := v.containerProblem(ctx, name, p); err != nil {
			return "", err
		}
		if p.Status.Phase == "Failed" {
			out, _ := v.output(ctx, "logs", "-n", namespace, name, "--tail=1")
			return "", finding{fmt.Sprintf("%s has failed: %s", name, oneLine(string(out))), "correct that, then " + again, true}
		}
		return "", finding{fmt.Sprintf("%s: pod %q is %s", name, name, p.Status.Phase), describe(p), false}
	}
	out, err := v.output(ctx, "logs", "-n", namespace, name)
	if err != nil {
		return "", finding{fmt.Sprintf("%s: reading its log: %v", name, err), again, true}
	}
	if !strings.Contains(string(out), "DB_HOST:") {
		return "", finding{fmt.Sprintf("%s has not printed the ConfigMap, but: %s", name, oneLine(string(out))), "apply go-micro-config/k8s/configmap.yaml, then " + again, true}
	}
	return "go-micro-config has printed the ConfigMap", nil
}

// monitoring checks the custom resources of the component monitoring-operator. kubectl apply leaves them out on a cluster that
// does not know them.
func (v verifier) monitoring(ctx context.Context) (string, error) {
	out, err := v.output(ctx, "get", "configmap", "go-micro-dashboard", "-n", namespace, "--ignore-not-found", "-o", "name")
	if err == nil && len(out) == 0 {
		return "", nil // deployed without the component
	}
	if err == nil {
		_, err = v.output(ctx, "get", "-n", namespace, "podmonitors.monitoring.coreos.com/go-micro", "prometheusrules.monitoring.coreos.com/go-micro")
	}
	switch {
	case err == nil:
		return "the Prometheus Operator has the PodMonitor and the alerts", nil
	case strings.Contains(err.Error(), "have a resource type"):
		return "", finding{"nothing reads the metrics: the cluster does not have the custom resources PodMonitor and PrometheusRule",
			"install the Prometheus Operator and deploy again, or deploy with COMPONENTS=monitoring for a scraper that reads annotations", true}
	case strings.Contains(err.Error(), "NotFound"):
		return "", finding{fmt.Sprintf("nothing reads the metrics: %v", err), "run `make deploy COMPONENTS=monitoring-operator` again", true}
	default:
		return "", finding{fmt.Sprintf("reading the PodMonitor and the alerts: %v", err), "your user needs the right to get them", false}
	}
}

// identity checks what the component identity needs of the cluster. Without it, pods wait for their certificates without an error.
func (v verifier) identity(ctx context.Context) (string, error) {
	out, err := v.output(ctx, "get", "configmap", "go-micro-srv-callers", "-n", namespace, "--ignore-not-found", "-o", "name")
	if err != nil || len(out) == 0 {
		return "", nil // deployed without the component; if the API server does not answer, other checks say so
	}
	var d struct {
		Spec struct{ Template struct{ Spec podIdentity } }
	}
	err = v.get(ctx, &d, "deployment", "go-micro-srv")
	if err != nil && !strings.Contains(err.Error(), "NotFound") { // the API server may have refused it
		return "", finding{fmt.Sprintf("go-micro-srv: %v", err), "your user needs the right to get Deployments", false}
	}
	signer, elsewhere := d.Spec.Template.Spec.signer()
	if elsewhere {
		return "go-micro-srv has its identity from other files than pod certificates", nil
	}
	resources, err := v.output(ctx, "api-resources", "--api-group=certificates.k8s.io", "-o", "name", "--cached=false")
	if err != nil {
		return "", finding{fmt.Sprintf("reading which certificates the API server serves: %v", err), "run it again", false}
	}
	if !strings.Contains(string(resources), "podcertificaterequests") {
		return "", finding{"the component identity needs pod certificates, and this API server serves no podcertificaterequests: they came with Kubernetes 1.35 and are on since 1.37",
			"run `make undeploy COMPONENTS=identity` and deploy without it, or with files from elsewhere, such as cert-manager's csi-driver-spiffe: docs/identity.md", true}
	}
	if signer == "" {
		return "", nil // the services were deployed again without the component
	}
	bundles, err := v.output(ctx, "get", "clustertrustbundles", "-o", `jsonpath={range .items[*]}{.spec.signerName}{"\n"}{end}`)
	if err != nil {
		return "", finding{fmt.Sprintf("listing the ClusterTrustBundles: %v", err), "your user needs the right to list them", false}
	}
	if !strings.Contains("\n"+string(bundles), "\n"+signer+"\n") {
		return "", finding{fmt.Sprintf("no ClusterTrustBundle is of the signer %q, so pods wait for their volume", signer),
			"run a signer of that name, or write the name of the cluster's signer into k8s/components/identity/kustomization.yaml: docs/identity.md", false}
	}
	return fmt.Sprintf("the signer %q issues the certificates of the pods", signer), nil
}

// podIdentity has the fields of a pod template that the component identity sets.
type podIdentity struct {
	Containers []struct{ Env []struct{ Name string } }
	Volumes    []struct {
		Projected struct {
			Sources []map[string]struct{ SignerName string } // by kind, of which each source has one
		}
	}
}

// signer returns the signer of the pods' certificates, or whether their identity is in files from elsewhere.
func (p podIdentity) signer() (name string, elsewhere bool) {
	for _, volume := range p.Volumes {
		for _, source := range volume.Projected.Sources {
			if certificate, ok := source["podCertificate"]; ok || len(source) == 0 { // an API server without pod certificates drops the field
				return certificate.SignerName, false
			}
		}
	}
	for _, c := range p.Containers {
		for _, e := range c.Env {
			elsewhere = elsewhere || e.Name == "POD_IDENTITY"
		}
	}
	return "", elsewhere
}

// lastLine returns the last line that is not empty.
func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndex(s, "\n")+1:]
}

// oneLine joins the lines of s and shortens it.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 400 {
		s = s[:400] + " ..."
	}
	return s
}
