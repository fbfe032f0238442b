package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// workload is an object that makes pods.
type workload struct {
	object
	template value // the metadata and the spec of its pods
	pod      value // the spec
	serving  bool  // its pods run until they are stopped
}

// templates are the paths of the pod templates of all workloads.
var templates = map[string][]string{
	"Pod": {}, "Deployment": {"spec", "template"}, "StatefulSet": {"spec", "template"}, "DaemonSet": {"spec", "template"}, "ReplicaSet": {"spec", "template"},
	"ReplicationController": {"spec", "template"}, "Job": {"spec", "template"}, "CronJob": {"spec", "jobTemplate", "spec", "template"},
}

// newWorkload returns the workload of an object, without a pod if it makes none.
func newWorkload(o object) (workload, error) {
	path, ok := templates[o.kind]
	if !ok {
		return workload{}, nil
	}
	w := workload{object: o, template: o.get(path...)}
	w.pod = w.template.get("spec")
	policy := w.pod.get("restartPolicy").text()
	w.serving = policy == "" && o.kind != "Job" && o.kind != "CronJob" || policy == "Always"
	where := strings.Join(append(slices.Clip(path), "spec", "containers"), ".")
	containers := w.pod.get("containers")
	switch {
	case !containers.exists():
		return w, fmt.Errorf("reading %s: %s has no %s; if it is a patch, read the whole manifest: `kubectl kustomize DIRECTORY | ... -f -`", o.at, o, where)
	case containers.Kind != yaml.SequenceNode || len(containers.Content) == 0:
		return w, fmt.Errorf("reading %s: %s: %s is not a list of containers", containers.at, o, where)
	}
	for _, c := range containers.items() {
		if c.Kind != yaml.MappingNode {
			return w, fmt.Errorf("reading %s: %s: a container has fields such as name and image", c.at, o)
		}
		for _, list := range []string{"env", "envFrom", "ports", "command", "args"} {
			if l := c.get(list); l.exists() && l.Kind != yaml.SequenceNode && l.ShortTag() != "!!null" {
				return w, fmt.Errorf("reading %s: %s: %s is not a list", l.at, o, list)
			}
		}
	}
	return w, nil
}

// container is a container of a workload.
type container struct {
	value
	workload  workload
	variables map[string]variable
	flags     []flagValue
}

func (c container) String() string { return fmt.Sprintf("container %q", c.get("name").text()) }

// isService reports whether something in the container says that it is a service.
func (c container) isService() bool {
	for name := range c.variables {
		if strings.HasPrefix(name, "MICRO_") || name == "POD_NAME" || name == "POD_IP" {
			return true
		}
	}
	return len(c.flags) > 0 || c.get("ports").exists() || c.get("readinessProbe").exists() || c.get("livenessProbe").exists()
}

// service returns the container with the Go-Micro service: the first one with a variable or a flag of go-micro, or the first.
func service(containers []container) container {
	for _, c := range containers {
		if len(c.flags) > 0 || c.hasVariable() {
			return c
		}
	}
	return containers[0]
}

// hasVariable reports whether a container has a variable that a service needs.
func (c container) hasVariable() bool {
	return slices.ContainsFunc(slices.Collect(maps.Keys(c.variables)), func(name string) bool { return strings.HasPrefix(name, "MICRO_") || name == "POD_NAME" })
}

// workload checks a workload and its pods.
func (c *checker) workload(w workload) {
	var all []container
	for _, v := range w.pod.get("containers").items() {
		container := container{value: v, workload: w}
		container.variables = c.environment(container)
		container.flags = flagsOf(v, container.variables)
		c.goMicro(container)
		c.image(container)
		all = append(all, container)
	}
	c.strings(w)
	c.hostNetwork(w)
	c.restricted(w, all)
	s := service(all)
	switch {
	case w.serving && s.isService():
		c.labels(w, s)
		c.account(w, "list", "watch", "patch")
		c.downward(s)
		c.probes(s)
		c.lifetime(w, s)
		for _, other := range all {
			if other.at != s.at && other.hasVariable() {
				c.note("%s: %s has variables of go-micro too; its probes and its address are checked if it stands before %s", other.at, other, s)
			}
		}
	case !w.serving && s.isService():
		c.account(w, "list", "watch") // a caller
	case w.serving:
		c.note("%s: %s has no port, no probe and no variable of go-micro, so it is not checked as a service", w.at, w)
	}
}

// strings checks that labels and annotations are strings.
func (c *checker) strings(w workload) {
	for _, metadata := range []value{w.get("metadata"), w.template.get("metadata")} {
		for _, name := range []string{"labels", "annotations"} {
			for _, f := range metadata.get(name).fields() {
				c.plainValue(f.value, fmt.Sprintf("the value of %s", f.key.text()))
			}
		}
	}
}

// labels checks what the policy and the controller read.
func (c *checker) labels(w workload, s container) {
	metadata := w.template.get("metadata")
	labels, services := metadata.get("labels"), metadata.get("annotations", "micro.mu/services").text()
	app := labels.get("app").text()
	name := s.setting("MICRO_SERVER_NAME").text
	switch {
	case app == "" && services == "":
		at := labels.at
		if !labels.exists() {
			at = w.template.at
		}
		suggested := firstOf(name, labels.get("app.kubernetes.io/name").text(), w.name)
		c.add(at, "label-app", fmt.Sprintf("the pods of %s have no label app, which the policy compares with the registered name", w),
			fmt.Sprintf("add to the labels of the pod template, not to the selector, with the name of the service: app: %s", suggested))
	case name != "" && name != app && !slices.Contains(strings.FieldsFunc(services, func(r rune) bool { return r == ',' || r == ' ' }), labelName(name)):
		c.add(s.setting("MICRO_SERVER_NAME").at, "label-app", fmt.Sprintf("the service registers as %q, but its label app is %q: the policy refuses that", name, app),
			fmt.Sprintf("set app: %s in the labels, or add to the annotations of the pod template: micro.mu/services: %s", labelName(name), labelName(name)))
	}
	if w.kind == "Pod" || w.kind == "ReplicationController" {
		return
	}
	selector := w.get("spec", "selector")
	if !selector.exists() {
		c.add(w.get("spec").at, "match-labels", fmt.Sprintf("%s has no selector, which apps/v1 requires", w), "add to spec: selector: {matchLabels: {app: NAME}}")
	}
	for _, f := range selector.get("matchLabels").fields() {
		if got := labels.get(f.key.text()).text(); got != f.value.text() {
			c.add(f.key.at, "match-labels", fmt.Sprintf("the selector wants %s: %s, the pod template has %q: the API server refuses %s", f.key.text(), f.value.text(), got, w),
				fmt.Sprintf("add to the labels of the pod template: %s: %s", f.key.text(), f.value.text()))
		}
	}
}

// labelName returns a name as the plugin writes it in a label.
func labelName(name string) string {
	return strings.Map(func(r rune) rune {
		if r < 128 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r)) {
			return r
		}
		return '_'
	}, name)
}

func firstOf(all ...string) string {
	for _, s := range all {
		if s != "" {
			return s
		}
	}
	return ""
}

// account checks the service account and its rights on pods, as far as they are in the files.
func (c *checker) account(w workload, verbs ...string) {
	const own = "micro-services" // of k8s/pod-rbac.yaml
	field := w.pod.get("serviceAccountName")
	if !field.exists() {
		field = w.pod.get("serviceAccount") // the old name
	}
	name := field.text()
	if name == "" || name == "default" {
		at := w.pod.at
		if field.exists() {
			at = field.at
		}
		c.add(at, "service-account", fmt.Sprintf("the pods of %s run with the service account default, which may not %s pods", w, list(verbs)),
			"set in the spec of the pod template: serviceAccountName: "+own)
		return
	}
	account, _ := c.find("ServiceAccount", w.namespace, name)
	for _, v := range []value{w.pod.get("automountServiceAccountToken"), account.get("automountServiceAccountToken")} {
		if v.exists() {
			if v.text() == "false" {
				c.add(v.at, "token", fmt.Sprintf("the pods of %s have no token for the API server, so they register nothing", w), "remove this line")
			}
			break // the pod's field counts before the account's
		}
	}
	if name == own {
		return
	}
	missing := slices.Clone(verbs)
	var roleRule value
	for _, o := range c.objects {
		if o.kind != "RoleBinding" && o.kind != "ClusterRoleBinding" {
			continue
		}
		for _, subject := range o.get("subjects").items() {
			if subject.get("kind").text() != "ServiceAccount" || subject.get("name").text() != name || !sameNamespace(subject.get("namespace").text(), w.namespace) {
				continue
			}
			role, ok := c.find(o.get("roleRef", "kind").text(), w.namespace, o.get("roleRef", "name").text())
			if !ok {
				return // the role is in another file
			}
			roleRule = role.get("rules")
			for _, rule := range roleRule.items() {
				if !has(rule.get("resources"), "pods") || len(rule.get("resourceNames").items()) > 0 {
					continue
				}
				missing = slices.DeleteFunc(missing, func(verb string) bool { return has(rule.get("verbs"), verb) })
			}
		}
	}
	switch {
	case !roleRule.exists():
		c.add(field.at, "service-account", fmt.Sprintf("no RoleBinding of these files lets the service account %q %s pods", name, list(verbs)),
			fmt.Sprintf("add to the subjects of the RoleBinding micro-registry in k8s/pod-rbac.yaml: {kind: ServiceAccount, name: %s, namespace: %s}, and the name to the namespace's annotation micro.mu/service-accounts", name, firstOf(w.namespace, "NAMESPACE")))
	case len(missing) > 0:
		c.add(roleRule.at, "rights", fmt.Sprintf("the service account %q may not %s pods", name, list(missing)),
			fmt.Sprintf(`use the rule {apiGroups: [""], resources: [pods], verbs: [%s]}`, strings.Join(verbs, ", ")))
	}
}

// list returns words as in a sentence.
func list(words []string) string {
	last := len(words) - 1
	if last == 0 {
		return words[0]
	}
	return strings.Join(words[:last], ", ") + " and " + words[last]
}

// has reports whether a list of a role contains a word.
func has(all value, word string) bool {
	return slices.ContainsFunc(all.items(), func(v value) bool { return v.text() == word || v.text() == "*" })
}

// downward checks the variables that Kubernetes fills in.
func (c *checker) downward(s container) {
	for _, v := range []struct{ name, path, kind, use string }{
		{"POD_NAME", "metadata.name", "pod-name", "the pod to register"},
		{"POD_IP", "status.podIP", "pod-ip", "the address to register"},
	} {
		change := fmt.Sprintf("{name: %s, valueFrom: {fieldRef: {fieldPath: %s}}}", v.name, v.path)
		got, set := s.variables[v.name]
		switch {
		case !set:
			c.add(s.at, v.kind, fmt.Sprintf("%s has no variable %s, %s", s, v.name, v.use), "add to env: - "+change)
		case got.fieldPath != v.path:
			c.add(got.at, v.kind, fmt.Sprintf("%s does not take %s, %s, from %s", s, v.name, v.use, v.path), "replace by: - "+change)
		}
	}
}

// image checks the tag of an image.
func (c *checker) image(s container) {
	image := s.get("image")
	name, tag := image.text(), ""
	if strings.Contains(name, "@") || !image.exists() {
		return // a digest; or a field that another file adds
	}
	if slash, colon := strings.LastIndex(name, "/"), strings.LastIndex(name, ":"); colon > slash {
		name, tag = name[:colon], name[colon+1:]
	}
	if tag == "" || tag == "latest" {
		c.add(image.at, "image-tag", fmt.Sprintf("%s has the image tag latest: kubectl rollout undo starts the same image again, and pods of one Deployment may differ", s), fmt.Sprintf("name a version: image: %s:v1", name))
	}
}

func (c *checker) hostNetwork(w workload) {
	if v := w.pod.get("hostNetwork"); v.text() == "true" {
		c.add(v.at, "host-network", fmt.Sprintf("the pods of %s use the network of their node: two pods on it cannot listen on one port, and the Pod Security Standards baseline and restricted refuse them", w), "remove this line")
	}
	for _, s := range w.pod.get("containers").items() {
		for _, p := range s.get("ports").items() {
			if v := p.get("hostPort"); v.exists() && v.text() != "0" {
				c.add(v.at, "host-network", "a hostPort allows one pod on a node, and the Pod Security Standards baseline and restricted refuse it", "remove this line: callers use the pod's own address")
			}
		}
	}
}

// restricted checks the settings that the Pod Security Standard "restricted" requires, if the namespace in the files enforces it.
func (c *checker) restricted(w workload, all []container) {
	namespace, ok := c.find("Namespace", "", w.namespace)
	if !ok || namespace.get("metadata", "labels", "pod-security.kubernetes.io/enforce").text() != "restricted" {
		return
	}
	for _, s := range all {
		var missing []string
		of := func(path ...string) string {
			return firstOf(s.get("securityContext").get(path...).text(), w.pod.get("securityContext").get(path...).text())
		}
		if of("runAsNonRoot") != "true" {
			missing = append(missing, "runAsNonRoot: true")
		}
		if s.get("securityContext", "allowPrivilegeEscalation").text() != "false" {
			missing = append(missing, "allowPrivilegeEscalation: false")
		}
		if !slices.ContainsFunc(s.get("securityContext", "capabilities", "drop").items(), func(v value) bool { return v.text() == "ALL" }) {
			missing = append(missing, "capabilities: {drop: [ALL]}")
		}
		if of("seccompProfile", "type") == "" {
			missing = append(missing, "seccompProfile: {type: RuntimeDefault}")
		}
		if len(missing) > 0 {
			c.add(s.at, "restricted", fmt.Sprintf("%s does not meet the Pod Security Standard that namespace %q enforces", s, w.namespace), "add to its securityContext: {"+strings.Join(missing, ", ")+"}")
		}
	}
}

// servedUntil are the versions that old manifests have, with the last Kubernetes that served them and what replaces them.
var servedUntil = map[string][2]string{
	"extensions/v1beta1 Deployment": {"1.15", "apps/v1"}, "extensions/v1beta1 DaemonSet": {"1.15", "apps/v1"}, "extensions/v1beta1 ReplicaSet": {"1.15", "apps/v1"},
	"apps/v1beta1 Deployment": {"1.15", "apps/v1"}, "apps/v1beta1 StatefulSet": {"1.15", "apps/v1"},
	"apps/v1beta2 Deployment": {"1.15", "apps/v1"}, "apps/v1beta2 StatefulSet": {"1.15", "apps/v1"}, "apps/v1beta2 DaemonSet": {"1.15", "apps/v1"},
	"extensions/v1beta1 Ingress": {"1.21", "networking.k8s.io/v1"}, "networking.k8s.io/v1beta1 Ingress": {"1.21", "networking.k8s.io/v1"},
	"rbac.authorization.k8s.io/v1beta1 Role": {"1.21", "rbac.authorization.k8s.io/v1"}, "rbac.authorization.k8s.io/v1beta1 RoleBinding": {"1.21", "rbac.authorization.k8s.io/v1"},
	"batch/v1beta1 CronJob": {"1.24", "batch/v1"}, "policy/v1beta1 PodDisruptionBudget": {"1.24", "policy/v1"},
	"autoscaling/v2beta1 HorizontalPodAutoscaler": {"1.24", "autoscaling/v2"}, "autoscaling/v2beta2 HorizontalPodAutoscaler": {"1.25", "autoscaling/v2"},
}

func (c *checker) apiVersion(o object) {
	v := o.get("apiVersion")
	if until, old := servedUntil[v.text()+" "+o.kind]; old {
		c.add(v.at, "api-version", fmt.Sprintf("Kubernetes %s was the last to serve %s of %s", until[0], v.text(), o), "apiVersion: "+until[1])
	}
}

// service checks that a Service with the name of a workload reaches its pods.
func (c *checker) service(o object) {
	for _, w := range c.workloads {
		selector := o.get("spec", "selector")
		if w.name != o.name || !sameNamespace(w.namespace, o.namespace) || !selector.exists() {
			continue
		}
		labels := w.template.get("metadata", "labels")
		for _, f := range selector.fields() {
			if got := labels.get(f.key.text()).text(); got != f.value.text() {
				c.add(f.key.at, "service", fmt.Sprintf("the Service %q selects %s: %s, but the pods of %s have %q", o.name, f.key.text(), f.value.text(), w, got), "use a label of the pod template")
			}
		}
		var ports []string
		for _, s := range w.pod.get("containers").items() {
			for _, p := range s.get("ports").items() {
				ports = append(ports, p.get("name").text(), p.get("containerPort").text())
			}
		}
		for _, p := range o.get("spec", "ports").items() {
			target := p.get("targetPort")
			if !target.exists() {
				target = p.get("port")
			}
			_, notNumber := strconv.Atoi(target.text())
			if (len(ports) > 0 || notNumber != nil) && !slices.Contains(ports, target.text()) {
				c.add(target.at, "service", fmt.Sprintf("the Service %q sends to port %s, which no container of %s declares", o.name, target.text(), w), "set targetPort to the container's port")
			}
		}
	}
}

// autoscaler checks that a manifest does not set the number of replicas that an autoscaler sets.
func (c *checker) autoscaler(o object) {
	target := o.get("spec", "scaleTargetRef")
	w, ok := c.find(target.get("kind").text(), o.namespace, target.get("name").text())
	if v := w.get("spec", "replicas"); ok && v.exists() {
		c.add(v.at, "replicas", fmt.Sprintf("each kubectl apply sets %s to %s replicas, until %s corrects that: pods stop or start in between", w, v.text(), o), "remove this line")
	}
}
