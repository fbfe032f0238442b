package main

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	yamlv2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v3"
)

// variable is an environment variable of a container, or a flag of its program.
type variable struct {
	name, text string
	at         place
	fieldPath  string // of the downward API
	secret     bool   // text comes from a Secret
	set        bool
}

// String returns the variable as a reader finds it, such as MICRO_REGISTRY=etcd, without the value of a Secret.
func (v variable) String() string {
	if v.secret {
		return v.name + " from a Secret"
	}
	return v.name + "=" + v.text
}

// flagValue is a flag of go-micro in the command or the arguments of a container.
type flagValue struct {
	name, text string
	at         place
}

// setting returns what go-micro reads for a variable: a flag counts before it.
func (c container) setting(name string) variable {
	flag := strings.ToLower(strings.TrimPrefix(name, "MICRO_"))
	for _, f := range c.flags {
		if f.name == flag {
			return variable{name: "--" + flag, text: f.text, at: f.at, set: true}
		}
	}
	return c.variables[name]
}

// goMicroFlags are the flags of go-micro that are checked.
var goMicroFlags = []string{"registry", "registry_address", "selector", "client", "server", "broker", "broker_address", "server_name", "server_address", "server_advertise",
	"register_ttl", "register_interval", "client_retries", "client_pool_size", "client_pool_ttl", "client_request_timeout"}

// flagsOf returns the flags of go-micro in the command and the arguments of a container, also in a script for a shell, and
// in variables that hold flags for such a script, as PARAMS="--registry=consul".
func flagsOf(c value, variables map[string]variable) (found []flagValue) {
	type word struct {
		text string
		at   place
	}
	var words []word
	add := func(text string, at place) {
		for _, w := range strings.Fields(text) {
			words = append(words, word{strings.Trim(w, `"'`), at})
		}
	}
	for _, v := range append(c.get("command").items(), c.get("args").items()...) {
		add(v.text(), v.at)
	}
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		if v := variables[name]; strings.HasPrefix(v.text, "-") && !v.secret {
			add(v.text, v.at)
		}
	}
	for i, w := range words {
		if !strings.HasPrefix(w.text, "-") {
			continue
		}
		name, text, hasText := strings.Cut(strings.TrimLeft(w.text, "-"), "=")
		if !slices.Contains(goMicroFlags, name) {
			continue
		}
		if !hasText && i+1 < len(words) {
			text = words[i+1].text
		}
		found = append(found, flagValue{name, strings.Trim(text, `"'`), w.at})
	}
	return found
}

// environment returns the variables of a container: those of envFrom, and env before them.
func (c *checker) environment(s container) map[string]variable {
	all := map[string]variable{}
	for _, from := range s.get("envFrom").items() {
		for kind, field := range map[string]string{"ConfigMap": "configMapRef", "Secret": "secretRef"} {
			name := from.get(field, "name").text()
			if name == "" {
				continue
			}
			source, ok := c.find(kind, s.workload.namespace, name)
			if !ok {
				c.note("%s: %s takes variables from %s %q, which is not in these files", from.at, s, kind, name)
				continue
			}
			for key, v := range data(source) {
				name := from.get("prefix").text() + key
				v.name = name
				all[name] = v
			}
		}
	}
	lines := map[string]int{}
	for _, e := range s.get("env").items() {
		name := e.get("name").text()
		if before, twice := lines[name]; twice {
			c.add(e.at, "duplicate", fmt.Sprintf("%s has the variable %s twice, and line %d has no effect", s, name, before), "remove one of the two")
		}
		lines[name] = e.at.line
		v := e.get("value")
		c.plainValue(v, fmt.Sprintf("the variable %s", name))
		got := variable{name: name, text: v.text(), at: e.at, fieldPath: e.get("valueFrom", "fieldRef", "fieldPath").text(), set: true}
		for kind, field := range map[string]string{"ConfigMap": "configMapKeyRef", "Secret": "secretKeyRef"} {
			ref := e.get("valueFrom", field)
			if !ref.exists() {
				continue
			}
			if source, ok := c.find(kind, s.workload.namespace, ref.get("name").text()); ok {
				v := data(source)[ref.get("key").text()]
				got.text, got.secret = v.text, v.secret
			} else if strings.HasPrefix(name, "MICRO_") {
				c.note("%s: %s has %s from %s %q, which is not in these files", e.at, s, name, kind, ref.get("name").text())
			}
		}
		all[name] = got
	}
	return all
}

// data returns the values of a ConfigMap or a Secret.
func data(o object) map[string]variable {
	all := map[string]variable{}
	for _, path := range []string{"data", "stringData"} { // stringData counts before data
		for _, f := range o.get(path).fields() {
			text := f.value.text()
			if o.kind == "Secret" && path == "data" {
				b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
				if err != nil {
					continue
				}
				text = string(b)
			}
			all[f.key.text()] = variable{name: f.key.text(), text: text, at: f.key.at, secret: o.kind == "Secret", set: true}
		}
	}
	return all
}

// plain returns what Kubernetes, which reads YAML 1.1, makes of a scalar without quotes. For other scalars it returns their text.
func plain(v value) any {
	const quoted = yaml.SingleQuotedStyle | yaml.DoubleQuotedStyle | yaml.LiteralStyle | yaml.FoldedStyle | yaml.TaggedStyle
	var read any
	if v.Kind != yaml.ScalarNode || v.Style&quoted != 0 || yamlv2.Unmarshal([]byte(v.Value), &read) != nil {
		return v.Value
	}
	return read
}

// plainValue checks a value that must be a string.
func (c *checker) plainValue(v value, what string) {
	if !v.exists() {
		return
	}
	if v.Kind != yaml.ScalarNode {
		c.add(v.at, "plain-value", fmt.Sprintf("%s is no string, which the API server refuses", what), "write it as a text: |, and the lines below it indented")
		return
	}
	switch read := plain(v).(type) {
	case string, nil:
	default:
		c.add(v.at, "plain-value", fmt.Sprintf("%s is %s, which YAML 1.1 reads as the %s %v: the API server wants a string and refuses it", what, v.Value, typeOf(read), read), fmt.Sprintf("write it in quotes: %q", v.Value))
	}
}

// typeOf returns what a reader calls the type of a scalar.
func typeOf(read any) string {
	if _, ok := read.(bool); ok {
		return "boolean"
	}
	return "number"
}

// goMicro checks the variables and flags that go-micro reads.
func (c *checker) goMicro(s container) {
	const remove = "remove this line"
	finding := func(name, kind, change, format string, args ...any) {
		v := s.setting(name)
		if strings.HasPrefix(v.name, "--") {
			change = strings.Replace(change, remove, "remove this flag", 1)
		}
		c.add(v.at, kind, fmt.Sprintf("%s has %s: ", s, v)+fmt.Sprintf(format, args...), change)
	}
	text := func(name string) string { return s.setting(name).text }

	if r := text("MICRO_REGISTRY"); r != "" && r != "kubernetes" {
		finding("MICRO_REGISTRY", "registry", remove+", when all callers have moved to pods", "it registers and finds services there instead of on pods, and is ready whether or not that works")
	}
	if text("MICRO_REGISTRY_ADDRESS") != "" {
		finding("MICRO_REGISTRY_ADDRESS", "registry-address", remove, "package pod takes this for the address of the API server")
	}
	if text("MICRO_PLUGIN") != "" {
		finding("MICRO_PLUGIN", "plugin", "remove this line, and import the package of the plugin in the program", "a program that is built without cgo exits with \"plugin: not implemented\"")
	}
	switch text("MICRO_SELECTOR") {
	case "":
	case "dns", "router", "static":
		finding("MICRO_SELECTOR", "selector", remove, "this selector chooses the instances instead of package pod: none is ejected, and dns and static do not ask the registry")
	default:
		finding("MICRO_SELECTOR", "selector", remove, "go-micro v2.9.1 has the selectors dns, router and static, and exits if the program imports no other of this name")
	}
	if v := text("MICRO_CLIENT"); v != "" && v != "grpc" {
		finding("MICRO_CLIENT", "client", remove, "this client takes the place of pod.NewClient")
	}
	if v := text("MICRO_SERVER"); v != "" && v != "grpc" {
		finding("MICRO_SERVER", "server", remove, "with pod.Lifecycle, Run returns an error for another server than grpc")
	}
	c.broker(s, finding)
	if v := text("MICRO_SERVER_ADVERTISE"); v != "" && !strings.Contains(v, "$(POD_IP)") {
		finding("MICRO_SERVER_ADVERTISE", "advertise", "remove this line, or give pod.AnyAddress() to pod.NewRegistry in every caller", "callers accept the address of the pod only")
	}
	for _, name := range []string{"MICRO_PROXY", "MICRO_NETWORK", "MICRO_NETWORK_ADDRESS"} {
		if s.variables[name].text != "" {
			finding(name, "proxy", remove, "every call goes there, and none to an instance")
		}
	}
	for _, name := range []string{"MICRO_REGISTER_TTL", "MICRO_REGISTER_INTERVAL", "MICRO_CLIENT_RETRIES", "MICRO_CLIENT_POOL_SIZE"} {
		if v := text(name); v != "" {
			if _, err := strconv.Atoi(v); err != nil {
				finding(name, "number", `write a number in quotes, such as "30"`, "go-micro wants a whole number and exits")
			}
		}
	}
	for _, name := range []string{"MICRO_CLIENT_REQUEST_TIMEOUT", "MICRO_CLIENT_POOL_TTL"} {
		if v := text(name); v != "" {
			if _, err := time.ParseDuration(v); err != nil {
				finding(name, "number", `write a duration, such as "5s"`, "go-micro wants a duration with its unit and exits")
			}
		}
	}
}

// broker checks the brokers that do not work between pods.
func (c *checker) broker(s container, finding func(name, kind, change, format string, args ...any)) {
	const topics = "micro.http.broker"
	services := s.workload.template.get("metadata", "annotations", "micro.mu/services").text()
	switch s.setting("MICRO_BROKER").text {
	case "memory":
		finding("MICRO_BROKER", "broker", "use a broker outside of the process, such as nats", "messages do not leave the process")
	case "service":
		finding("MICRO_BROKER", "broker", "use a broker that is not part of the Micro runtime, such as nats", "it calls the service go.micro.broker")
	case "http":
		if s.setting("MICRO_BROKER_ADDRESS").text == "" {
			finding("MICRO_BROKER", "broker", `add to env: - {name: MICRO_BROKER_ADDRESS, value: ":9300"}`, "without an address it listens on the loopback interface, and its topics are refused")
		}
		if !strings.Contains(services, topics) {
			finding("MICRO_BROKER", "broker", "add to the annotations of the pod template: micro.mu/services: "+topics, "the policy refuses its topics")
		}
	}
}
