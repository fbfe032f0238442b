package main

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v3"
)

var (
	// properties finds a value whose lines all have the form name=value, which the configmap plugin splits.
	properties = regexp.MustCompile(`^(\s*[A-Za-z_][\w.-]*=.*(\n\s*|$))+$`)
	// changedNumber finds a number whose text looks like no number: octal, a telephone number, with a separator.
	changedNumber = regexp.MustCompile(`^([-+]?0[0-9_]|\+)|_`)
	// hashSuffix finds the suffix that kustomize adds: ten characters of an alphabet without vowels.
	hashSuffix = regexp.MustCompile(`^(.+)-[2456789bcdfghkmt]{10}$`)
)

// isUsed reports whether a workload takes its environment from a ConfigMap or, if mounted, mounts it.
func (m *manifests) isUsed(name, namespace string, mounted bool) bool {
	for _, w := range m.workloads {
		if !sameNamespace(w.namespace, namespace) {
			continue
		}
		var names []string
		for _, s := range append(w.pod.get("containers").items(), w.pod.get("initContainers").items()...) {
			for _, e := range s.get("envFrom").items() {
				names = append(names, e.get("configMapRef", "name").text())
			}
			for _, e := range s.get("env").items() {
				names = append(names, e.get("valueFrom", "configMapKeyRef", "name").text())
			}
		}
		for _, v := range w.pod.get("volumes").items() {
			if mounted {
				names = append(names, v.get("configMap", "name").text())
				for _, source := range v.get("projected", "sources").items() {
					names = append(names, source.get("configMap", "name").text())
				}
			}
		}
		if slices.Contains(names, name) {
			return true
		}
	}
	return false
}

// configMap checks the values of a ConfigMap as package configwatch reads them.
func (c *checker) configMap(o object) {
	for _, f := range o.get("data").fields() {
		c.plainValue(f.value, fmt.Sprintf("the value of %s", f.key.text()))
	}
	if c.isUsed(o.name, o.namespace, false) {
		return // its values are variables
	}
	if m := hashSuffix.FindStringSubmatch(o.name); m != nil && !c.isUsed(o.name, o.namespace, true) {
		c.add(o.get("metadata", "name").at, "hash-suffix", fmt.Sprintf("each edit of ConfigMap %q makes one with another name, so a program that reads it by its name sees no change", o.name),
			fmt.Sprintf("set in the kustomization: generatorOptions: {disableNameSuffixHash: true}; the name is then %s", m[1]))
	}
	for _, f := range o.get("data").fields() {
		key, text := f.key.text(), f.value.text()
		switch path.Ext(key) {
		case ".json":
			if err := validJSON(text); err != nil {
				c.invalid(f, err)
			}
		case ".yaml", ".yml":
			c.embedded(f)
		default:
			if properties.MatchString(text) && !c.isUsed(o.name, o.namespace, true) {
				name, _, _ := strings.Cut(strings.TrimSpace(text), "=")
				change := fmt.Sprintf("for configwatch remove %q from the value, and read it with cfg.Get(%q).String(\"\")", name+"=", key)
				if strings.Contains(strings.TrimSpace(text), "\n") {
					change = fmt.Sprintf("for configwatch write the lines as YAML under the key %s.yaml, and read it with cfg.Get(%q, %q).String(\"\")", key, key+".yaml", name)
				}
				c.add(f.key.at, "properties", fmt.Sprintf("the configmap plugin makes %s a map with the key %q, and package configwatch one text: code for one does not work with the other", key, name), change)
			}
		}
	}
}

func (c *checker) invalid(f field, err error) {
	c.add(f.key.at, "yaml-invalid", fmt.Sprintf("the value of %s cannot be parsed, so the program gets it as one text: %s", f.key.text(), strings.Join(strings.Fields(err.Error()), " ")), "correct the value")
}

func validJSON(text string) error {
	var tree any
	return json.Unmarshal([]byte(strings.TrimPrefix(text, "\ufeff")), &tree)
}

// embedded checks the words of a YAML file in a value.
func (c *checker) embedded(f field) {
	text := f.value.text()
	first := f.value.at.line // of the text; a block begins on the next line
	if f.value.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		first++
	}
	var tree any
	if err := yamlv2.Unmarshal([]byte(text), &tree); err != nil { // as configwatch does
		c.invalid(f, err)
		return
	}
	var document yaml.Node
	if yaml.NewDecoder(strings.NewReader(text)).Decode(&document) != nil || document.Decode(&tree) != nil {
		return // it is empty, or YAML 1.2 reads it in another way
	}
	at := f.value.at
	c.words(f.key.text(), "", value{document.Content[0], place{at.file, at.order, 1}}, first-1)
}

// words checks the scalars of a tree. The lines of the tree are counted from offset.
func (c *checker) words(file, name string, v value, offset int) {
	for _, f := range v.fields() {
		c.words(file, f.key.text(), f.value, offset)
	}
	for _, item := range v.items() {
		c.words(file, name, item, offset)
	}
	if v.Kind != yaml.ScalarNode {
		return
	}
	read := plain(v)
	surprising := false
	switch text := v.Value; n := read.(type) {
	case bool:
		surprising = text != "true" && text != "false"
	case int, int64, uint64, float64:
		same := fmt.Sprint(n) == text
		version := strings.Contains(strings.ToLower(name), "version") && strings.HasSuffix(text, "0") && strings.Contains(text, ".")
		surprising = !same && (changedNumber.MatchString(text) || version)
	}
	if surprising {
		at := place{v.at.file, v.at.order, v.Line + offset}
		c.add(at, "yaml-words", fmt.Sprintf("%s in %s is the text %s, but YAML 1.1 reads %v", name, file, v.Value, read), fmt.Sprintf("write it in quotes, unless you mean %v: %s: %q", read, name, v.Value))
	}
}

// kustomization checks the generators of ConfigMaps.
func (c *checker) kustomization(o object) {
	if o.get("generatorOptions", "disableNameSuffixHash").text() == "true" {
		return
	}
	for _, g := range o.get("configMapGenerator").items() {
		name := g.get("name").text()
		if g.get("options", "disableNameSuffixHash").text() != "true" && !c.isUsed(name, g.get("namespace").text(), true) {
			c.add(g.at, "hash-suffix", fmt.Sprintf("kustomize adds a hash to the name of ConfigMap %q, so a program that reads it by its name does not find it", name),
				"add to the kustomization: generatorOptions: {disableNameSuffixHash: true}")
		}
	}
}
