package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// place is a line of a file.
type place struct {
	file  string
	order int // of the file among all files
	line  int
}

func (p place) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

// value is a node of a manifest. The zero value stands for a field that is missing.
type value struct {
	*yaml.Node
	at place
}

// resolve replaces an alias by what it stands for.
func (v value) resolve(n *yaml.Node) value {
	at := place{v.at.file, v.at.order, n.Line}
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return value{n, at}
}

// get returns the field at a path of names.
func (v value) get(path ...string) value {
	for _, name := range path {
		v = v.field(name)
	}
	return v
}

func (v value) field(name string) value {
	for _, f := range v.fields() {
		if f.key.Value == name {
			return f.value
		}
	}
	return value{}
}

// field is a key of a mapping with its value.
type field struct{ key, value value }

// fields returns the fields of a mapping, and after them those that it merges with <<.
func (v value) fields() (all []field) {
	if v.Node == nil || v.Kind != yaml.MappingNode {
		return nil
	}
	var merged []field
	for i := 0; i+1 < len(v.Content); i += 2 {
		f := field{v.resolve(v.Content[i]), v.resolve(v.Content[i+1])}
		if f.key.Tag != "!!merge" {
			all = append(all, f)
			continue
		}
		merged = append(merged, f.value.fields()...)
		for _, item := range f.value.items() {
			merged = append(merged, item.fields()...)
		}
	}
	return append(all, merged...)
}

// items returns the items of a list.
func (v value) items() (all []value) {
	if v.Node == nil || v.Kind != yaml.SequenceNode {
		return nil
	}
	for _, n := range v.Content {
		all = append(all, v.resolve(n))
	}
	return all
}

// text returns the text of a scalar, "" if there is none.
func (v value) text() string {
	if v.Node == nil || v.Kind != yaml.ScalarNode || v.ShortTag() == "!!null" {
		return ""
	}
	return v.Value
}

func (v value) exists() bool { return v.Node != nil }

// object is an object of Kubernetes.
type object struct {
	value
	kind, name, namespace string
}

func (o object) String() string { return fmt.Sprintf("%s %q", o.kind, o.name) }

// manifests are the objects of all files.
type manifests struct {
	objects   []object
	workloads []workload
	files     int
}

// find returns the object of a kind and a name. An object without a namespace is in that of all others.
func (m *manifests) find(kind, namespace, name string) (object, bool) {
	for _, o := range m.objects {
		if o.kind == kind && o.name == name && sameNamespace(o.namespace, namespace) {
			return o, true
		}
	}
	return object{}, false
}

func sameNamespace(a, b string) bool { return a == b || a == "" || b == "" }

// read reads manifests, directories of manifests, and standard input.
func read(names []string, stdin io.Reader) (*manifests, error) {
	m := &manifests{}
	for _, name := range names {
		if name == "-" {
			if err := m.readFrom(stdin, "stdin"); err != nil {
				return nil, err
			}
			continue
		}
		info, err := os.Stat(name)
		if err != nil {
			return nil, fmt.Errorf("reading manifests: %w", err)
		}
		list := []string{name}
		if info.IsDir() {
			if list, err = manifestsIn(name); err != nil {
				return nil, err
			}
		}
		for _, file := range list {
			if err := m.readFile(file); err != nil {
				return nil, err
			}
		}
	}
	if len(m.workloads) == 0 && !slices.ContainsFunc(m.objects, func(o object) bool { return o.kind == "ConfigMap" || o.kind == "Kustomization" }) {
		return nil, fmt.Errorf("reading manifests: there is nothing to check in %s: give the file of a Deployment or of another workload, or of a ConfigMap", strings.Join(names, ", "))
	}
	return m, nil
}

// manifestsIn returns the files of a directory that kubectl apply -f would read, and its kustomization.
func manifestsIn(dir string) (files []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading manifests: %w", err)
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml" || ext == ".json") {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("reading manifests: directory %q has no file that ends in .yaml, .yml or .json, and directories in it are not read", dir)
	}
	return files, nil
}

func (m *manifests) readFile(name string) error {
	f, err := os.Open(name) //nolint:gosec // the user of the command names the file
	if err != nil {
		return fmt.Errorf("reading manifests: %w", err)
	}
	defer f.Close()
	return m.readFrom(f, name)
}

// maxSize is the most that one file may have: etcd accepts 1.5 MiB for one object.
const maxSize = 32 << 20

func (m *manifests) readFrom(r io.Reader, name string) error {
	text, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	switch {
	case err != nil:
		return fmt.Errorf("reading %s: %w", name, err)
	case len(text) > maxSize:
		return fmt.Errorf("reading %s: it has more than 32 MiB, which no manifest has", name)
	case len(bytes.TrimSpace(text)) == 0:
		return fmt.Errorf("reading %s: it is empty", name)
	case !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0:
		return fmt.Errorf("reading %s: it is not text in UTF-8: give a manifest in YAML or JSON", name)
	}
	m.files++
	d, before := yaml.NewDecoder(bytes.NewReader(text)), len(m.objects)
	for {
		var document yaml.Node
		err := d.Decode(&document)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return parseError(name, text, err)
		}
		v := value{document.Content[0], place{name, m.files, document.Content[0].Line}}
		if v.Tag == "!!null" {
			continue // an empty document, as generators leave
		}
		var tree any
		if err := document.Decode(&tree); err != nil { // a key twice, an alias that contains itself
			return parseError(name, text, err)
		}
		if err := m.addObject(v); err != nil {
			return err
		}
	}
	if len(m.objects) == before {
		return fmt.Errorf("reading %s: it has no object of Kubernetes, only comments", name)
	}
	return nil
}

// parseError says why a file cannot be parsed.
func parseError(name string, text []byte, err error) error {
	if bytes.Contains(text, []byte("{{")) {
		return fmt.Errorf("reading %s: it is a template: render it first, as with `helm template DIRECTORY | ... -f -`: %w", name, err)
	}
	return fmt.Errorf("reading %s: kubectl apply refuses it: %w", name, err)
}

// addObject adds an object, or the objects of a list.
func (m *manifests) addObject(v value) error {
	if v.Kind != yaml.MappingNode {
		return fmt.Errorf("reading %s: it is no object of Kubernetes, which has fields such as apiVersion and kind", v.at)
	}
	o := object{v, v.get("kind").text(), v.get("metadata", "name").text(), v.get("metadata", "namespace").text()}
	if o.kind == "" && isKustomization(v.at.file) {
		o.kind = "Kustomization"
	}
	switch {
	case o.kind == "":
		return fmt.Errorf("reading %s: it is no object of Kubernetes: the field kind is missing; a values.yaml of Helm is no manifest: `helm template` renders one", v.at)
	case strings.HasSuffix(o.kind, "List"):
		for _, item := range v.get("items").items() {
			if err := m.addObject(item); err != nil {
				return err
			}
		}
		return nil
	case o.name == "" && o.kind != "Kustomization" && v.get("metadata", "generateName").text() == "":
		return fmt.Errorf("reading %s: the %s has no metadata.name", v.at, o.kind)
	}
	m.objects = append(m.objects, o)
	w, err := newWorkload(o)
	if err == nil && w.pod.exists() {
		m.workloads = append(m.workloads, w)
	}
	return err
}

func isKustomization(file string) bool {
	name := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(file), ".yaml"), ".yml")
	return strings.EqualFold(name, "kustomization")
}
