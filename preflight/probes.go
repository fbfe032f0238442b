package main

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ports are the ports of a container.
type ports struct {
	declared []string          // numbers
	named    map[string]string // name to number
	server   string            // of MICRO_SERVER_ADDRESS, "" if only the code has it
}

func (c *checker) portsOf(s container) ports {
	p := ports{named: map[string]string{}}
	for _, v := range s.get("ports").items() {
		number := v.get("containerPort").text()
		if protocol := v.get("protocol").text(); protocol != "" && protocol != "TCP" {
			continue
		}
		p.declared = append(p.declared, number)
		p.named[v.get("name").text()] = number
	}
	delete(p.named, "")
	address := s.setting("MICRO_SERVER_ADDRESS")
	if address.text == "" {
		return p
	}
	host, port, err := net.SplitHostPort(address.text)
	if err != nil || port == "0" {
		c.add(address.at, "port", fmt.Sprintf("%s has %s: without a port of its own the server listens on any free one, which probes cannot know", s, address), `write a port: ":9100"`)
		return p
	}
	p.server = port
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && ip.IsLoopback() {
		c.add(address.at, "loopback", fmt.Sprintf("%s has %s: neither the kubelet nor another pod reaches the loopback interface", s, address), fmt.Sprintf(`write: ":%s"`, port))
	}
	return p
}

// main returns the port that the service most likely listens on.
func (p ports) main() string {
	if p.server != "" {
		return p.server
	}
	if len(p.declared) > 0 {
		return p.declared[0]
	}
	return "9100"
}

// probes checks the probes of a service and the ports that they ask.
func (c *checker) probes(s container) {
	p := c.portsOf(s)
	readiness, liveness := s.get("readinessProbe"), s.get("livenessProbe")
	port := p.main()
	if !readiness.exists() {
		c.add(s.at, "readiness", fmt.Sprintf("%s has no readinessProbe: a rollout goes on before its new pods are registered", s),
			fmt.Sprintf("add: readinessProbe: {grpc: {port: %s}, periodSeconds: 2, failureThreshold: 2}, or in a web service httpGet: {port: %s, path: /readyz}", port, port))
	}
	if !liveness.exists() {
		c.add(s.at, "liveness", fmt.Sprintf("%s has no livenessProbe: a process that does not answer is never restarted", s),
			fmt.Sprintf("add: livenessProbe: {grpc: {port: %s, service: liveness}, timeoutSeconds: 3}, or in a web service httpGet: {port: %s, path: /healthz}", port, port))
	}
	asked := 0
	for _, probe := range []struct {
		name  string
		value value
	}{{"readinessProbe", readiness}, {"livenessProbe", liveness}, {"startupProbe", s.get("startupProbe")}} {
		if c.probePort(s, p, probe.name, probe.value) {
			asked++
		}
	}
	c.meaning(s, readiness, liveness)
	c.declared(s, p, asked > 0)
}

// probePort checks the port of a probe, and returns whether it can be asked.
func (c *checker) probePort(s container, p ports, name string, probe value) bool {
	for _, kind := range []string{"grpc", "httpGet", "tcpSocket"} {
		field := probe.get(kind, "port")
		if !field.exists() {
			continue
		}
		number, isNamed := p.named[field.text()]
		_, err := strconv.Atoi(field.text())
		change := "write the port of the server: port: " + p.main()
		switch {
		case kind == "grpc" && err != nil:
			c.add(field.at, "probe-port", fmt.Sprintf("the %s of %s names a port, and a grpc probe needs its number", name, s), change)
		case err != nil && !isNamed:
			c.add(field.at, "probe-port", fmt.Sprintf("the %s of %s asks port %q, which the container does not declare", name, s, field.text()), change)
		case p.server != "" && p.server != field.text() && p.server != number:
			c.add(field.at, "probe-port", fmt.Sprintf("the %s of %s asks port %s, but the server listens on %s", name, s, field.text(), p.server), change)
		case p.server == "" && len(p.declared) > 0 && err == nil && !slices.Contains(p.declared, field.text()):
			c.add(field.at, "probe-port", fmt.Sprintf("the %s of %s asks port %s, but the container declares %s", name, s, field.text(), strings.Join(p.declared, ", ")), change)
		default:
			return true
		}
	}
	return false
}

// meaning checks what the probes ask.
func (c *checker) meaning(s container, readiness, liveness value) {
	const ready, alive = "write: grpc: {port: PORT}, or in a web service httpGet: {path: /readyz}", "write: grpc: {port: PORT, service: liveness}, or in a web service httpGet: {path: /healthz}"
	app := s.workload.template.get("metadata", "labels", "app").text()
	if probe := readiness.get("grpc", "service"); probe.text() == "liveness" {
		c.add(probe.at, "readiness", fmt.Sprintf("the readinessProbe of %s asks for liveness, so it succeeds before the pod is registered and while it stops", s), "remove this line")
	} else if name := probe.text(); name != "" && name != app && name != s.setting("MICRO_SERVER_NAME").text && regexp.MustCompile(`^[a-z-]+$`).MatchString(name) {
		c.add(probe.at, "readiness", fmt.Sprintf("the readinessProbe of %s asks for %q: only the names of the service and of its handlers have an answer", s, name), "remove this line")
	}
	if path := readiness.get("httpGet", "path"); readiness.get("httpGet").exists() && path.text() != "/readyz" {
		c.add(readiness.get("httpGet").at, "readiness", fmt.Sprintf("the readinessProbe of %s does not ask /readyz, which says whether the pod is registered and not stopping", s), ready)
	}
	for _, kind := range []string{"tcpSocket", "exec"} {
		if v := readiness.get(kind); v.exists() && !(kind == "exec" && isHealthProbe(v)) {
			c.add(v.at, "readiness", fmt.Sprintf("the readinessProbe of %s does not ask whether the pod is registered and not stopping", s), ready)
		}
	}
	if v := liveness.get("tcpSocket"); v.exists() {
		c.add(v.at, "liveness", fmt.Sprintf("the livenessProbe of %s succeeds for a process that answers no call: Linux accepts its connections", s), alive)
	}
	if path := liveness.get("httpGet", "path"); path.text() == "/readyz" {
		c.add(path.at, "liveness", fmt.Sprintf("the livenessProbe of %s asks /readyz: pods restart when the API server refuses their registration", s), "path: /healthz")
	}
	if v := liveness.get("grpc"); v.exists() && v.get("service").text() != "liveness" {
		c.add(v.at, "liveness", fmt.Sprintf("the livenessProbe of %s asks for readiness: pods restart when the API server refuses their registration", s), "add to grpc: service: liveness")
	}
	for _, name := range []string{"livenessProbe", "startupProbe"} {
		if v := s.get(name, "exec"); isHealthProbe(v) && !slices.ContainsFunc(v.get("command").items(), func(v value) bool { return strings.Contains(v.text(), "liveness") }) {
			c.add(v.at, "liveness", fmt.Sprintf("the %s of %s asks for readiness: pods restart when the API server refuses their registration", name, s), "add to the command: -service=liveness")
		}
	}
	if v := s.get("startupProbe", "grpc"); v.exists() && v.get("service").text() == "" {
		c.add(v.at, "liveness", fmt.Sprintf("the startupProbe of %s asks for readiness: pods restart when the API server refuses their registration", s), "add to grpc: service: liveness")
	}
}

// isHealthProbe reports whether an exec probe runs grpc_health_probe, which asks as the kubelet's grpc probe does.
func isHealthProbe(exec value) bool {
	return slices.ContainsFunc(exec.get("command").items(), func(v value) bool { return strings.Contains(v.text(), "grpc_health_probe") })
}

// declared checks the declared ports. asked says that a probe asks a port that the container declares.
func (c *checker) declared(s container, p ports, asked bool) {
	for _, v := range s.get("ports").items() {
		field := v.get("containerPort")
		number, err := strconv.Atoi(field.text())
		switch {
		case err != nil:
			c.add(field.at, "port", fmt.Sprintf("%s declares the port %q, which is no number", s, field.text()), "containerPort: 9100")
		case number < 1024 && s.user() != "0":
			c.add(field.at, "low-port", fmt.Sprintf("%s listens on port %d, which is refused to a user other than root on nodes whose container runtime reserves ports below 1024, as containerd 1 does", s, number),
				"use a port from 1024 on, such as 9100; or add to the spec of the pod template: securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: \"0\"}]}")
		}
	}
	if len(p.declared) == 0 {
		return
	}
	switch first := s.get("ports").items()[0].get("containerPort").at; {
	case p.server != "" && !slices.Contains(p.declared, p.server):
		c.add(first, "port", fmt.Sprintf("%s declares %s, but its server listens on %s", s, strings.Join(p.declared, ", "), p.server), "containerPort: "+p.server)
	case p.server == "" && !asked && !slices.Contains(p.declared, "9100"):
		c.add(first, "port", fmt.Sprintf("%s uses port %s, not 9100 as the examples: nothing in the manifest says that its server listens there", s, p.main()),
			fmt.Sprintf(`write %s where the examples have 9100: server.Address(":%s") or MICRO_SERVER_ADDRESS=:%s, web.Address(":%s") in a web service; and both probes`, p.main(), p.main(), p.main(), p.main()))
	}
}

// user returns the user of a container, "" if the image decides or another number than 0 is given.
func (c container) user() string {
	if sysctls := c.workload.pod.get("securityContext", "sysctls").items(); slices.ContainsFunc(sysctls, func(v value) bool { return v.get("name").text() == "net.ipv4.ip_unprivileged_port_start" }) {
		return "0" // the port is allowed to every user
	}
	return firstOf(c.get("securityContext", "runAsUser").text(), c.workload.pod.get("securityContext", "runAsUser").text())
}

const (
	drainTime     = 6 // seconds of a stop that no call can use: 3 while clients notice, 3 for closing
	callTime      = 5 // seconds that go-micro's client waits for an answer by default
	defaultPeriod = 30
)

// sleeps finds the pause of a preStop hook.
var sleeps = regexp.MustCompile(`\bsleep\s+(\d+)`)

// lifetime checks how pods start and stop.
func (c *checker) lifetime(w workload, s container) {
	field, hook := w.pod.get("terminationGracePeriodSeconds"), s.get("lifecycle", "preStop")
	period, err := strconv.Atoi(field.text())
	change := "set in the spec of the pod template, to your longest call plus 6 s: terminationGracePeriodSeconds: 30"
	pause, _ := strconv.Atoi(hook.get("sleep", "seconds").text())
	for _, v := range hook.get("exec", "command").items() {
		if m := sleeps.FindStringSubmatch(v.text()); m != nil {
			pause, _ = strconv.Atoi(m[1])
		} else if n, err := strconv.Atoi(v.text()); err == nil {
			pause = n // the command is a list: sleep, 10
		}
	}
	switch {
	case !field.exists():
		c.add(w.pod.at, "grace-period", fmt.Sprintf("%s sets no terminationGracePeriodSeconds: of the default of %d s calls have %d s to finish", w, defaultPeriod, max(0, defaultPeriod-drainTime-pause)), change)
	case err != nil || period-pause < drainTime+callTime:
		left := max(0, period-pause-drainTime)
		hint := ""
		if pause > 0 {
			hint = fmt.Sprintf(", after %d s of the preStop hook, which pod.Lifecycle does not need", pause)
		}
		c.add(field.at, "grace-period", fmt.Sprintf("%s gives calls %d s to finish when a pod stops%s: go-micro's callers wait %d s by default", w, left, hint, callTime), change)
	}
	c.rollout(w)
	words := append(s.get("command").items(), s.get("args").items()...)
	for i, v := range words {
		if i > 0 && words[i-1].text() == "-c" && !strings.Contains(v.text(), "exec ") {
			c.add(v.at, "shell", fmt.Sprintf("%s starts its program with a shell, which may keep SIGTERM to itself: calls in flight are cut off when the pod stops", s), "write exec before the program, or start it without a shell")
		}
	}
}

// rollout checks that a rollout leaves a pod that can answer.
func (c *checker) rollout(w workload) {
	const change = "set in spec: strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}"
	if v := w.get("spec", "strategy", "type"); v.text() == "Recreate" {
		c.add(v.at, "rollout", fmt.Sprintf("%s stops all pods before it starts the first new one", w), change)
	}
	v := w.get("spec", "strategy", "rollingUpdate", "maxUnavailable")
	if !v.exists() {
		return
	}
	replicas := 1
	if n, err := strconv.Atoi(w.get("spec", "replicas").text()); err == nil {
		replicas = n
	}
	unavailable, err := strconv.Atoi(v.text())
	if share, percent := strings.CutSuffix(v.text(), "%"); percent {
		var n float64
		n, err = strconv.ParseFloat(share, 64)
		unavailable = int(math.Floor(n * float64(replicas) / 100))
	}
	if err == nil && replicas > 0 && unavailable >= replicas {
		c.add(v.at, "rollout", fmt.Sprintf("a rollout may stop all %d pods of %s at once", replicas, w), change)
	}
}
