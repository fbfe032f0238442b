package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write what the command prints into testdata/*.txt")

// inputs returns the manifests and the directories of manifests in testdata.
func inputs(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".yaml" || e.IsDir() && e.Name() != "mended" && e.Name() != "fuzz" {
			all = append(all, e.Name())
		}
	}
	return all
}

// result returns what the command prints, as a reader sees it in a terminal, and its status.
func result(args ...string) string {
	var stdout, stderr bytes.Buffer
	status, err := run(args, strings.NewReader(""), &stdout, &stderr)
	if err != nil {
		fmt.Fprintln(&stderr, err)
	}
	return fmt.Sprintf("%s%sexit status %d\n", &stdout, &stderr, status)
}

// TestFindings compares what the command prints for each of testdata with the file of the same name that ends in .txt. Every
// kind of finding occurs.
func TestFindings(t *testing.T) {
	t.Chdir("testdata")
	found := map[string]bool{}
	for _, name := range inputs(t, ".") {
		got := result("-f", name)
		golden := strings.TrimSuffix(name, ".yaml") + ".txt"
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: the command prints\n%s\nwant\n%s\n(-update replaces it)", name, got, want)
		}
		for _, m := range regexp.MustCompile(`(?m) \[([a-z-]+)\]$`).FindAllStringSubmatch(got, -1) {
			found[m[1]] = true
		}
	}
	for _, kind := range kinds {
		if !found[kind] {
			t.Errorf("no file of testdata has a finding of the kind %s", kind)
		}
		delete(found, kind)
	}
	if len(found) > 0 {
		t.Errorf("kinds does not list %v", found)
	}
}

// The manifests of this project, and those of testdata after the changes that the findings name, have no finding.
func TestNothingToFind(t *testing.T) {
	for _, args := range [][]string{
		{"../go-micro-srv/k8s"}, {"../go-micro-web/k8s"}, {"../go-micro-client/k8s"}, {"../go-micro-config/k8s"},
		{"../k8s", "../go-micro-srv/k8s", "../go-micro-web/k8s", "../go-micro-client/k8s", "../go-micro-config/k8s"},
	} {
		if got := result(args...); !strings.HasSuffix(got, "exit status 0\n") || strings.Contains(got, "[") {
			t.Errorf("%q: %s", args, got)
		}
	}
	mended, err := os.ReadDir("testdata/mended")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range mended {
		names = append(names, e.Name())
		if got := result("-f", "testdata/mended/"+e.Name()); got != "exit status 0\n" {
			t.Errorf("%s: %s", e.Name(), got)
		}
	}
	for _, name := range inputs(t, "testdata") {
		if prefix, _, _ := strings.Cut(name, "-"); (prefix == "deployment" || prefix == "configmap") && name != "configmap-values.yaml" && !slices.Contains(names, name) {
			t.Errorf("testdata/mended has no %s", name)
		}
	}
}

func TestSkip(t *testing.T) {
	const file = "testdata/deployment-registry-from-env.yaml"
	got := result("-skip", "grace-period,service-account", "-skip=readiness", "-f", file)
	for _, kind := range []string{"grace-period", "service-account", "readiness"} {
		if strings.Contains(got, "["+kind+"]") {
			t.Errorf("with -skip there is a finding of the kind %s", kind)
		}
	}
	if !strings.Contains(got, "[liveness]") || !strings.HasSuffix(got, "exit status 1\n") {
		t.Error(got)
	}
	if got := result("-skip", "pod-name,pod-ip,grace-period,service-account,readiness,liveness", "-f", file); got != "exit status 0\n" {
		t.Error(got)
	}
}

// Every kind of input that cannot be read ends with status 2 and says why, and what to do.
func TestInputErrors(t *testing.T) {
	const meta = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n"
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args  []string
		stdin string
		want  string
	}{
		"no file":            {nil, "", "reading manifests: no file is given: use -f FILE"},
		"missing":            {[]string{"-f", dir + "/missing.yaml"}, "", "missing.yaml: no such file or directory"},
		"empty directory":    {[]string{"-f", empty}, "", "has no file that ends in .yaml, .yml or .json"},
		"empty":              {[]string{"-f", "-"}, " \n", "reading stdin: it is empty"},
		"only comments":      {[]string{"-f", "-"}, "# nothing\n---\n", "it has no object of Kubernetes, only comments"},
		"too large":          {[]string{"-f", "-"}, strings.Repeat("#", maxSize+1), "it has more than 32 MiB"},
		"not text":           {[]string{"-f", "-"}, "\x7fELF\x00\xff", "it is not text in UTF-8"},
		"not YAML":           {[]string{"-f", "-"}, meta + "spec: [\n", "reading stdin: kubectl apply refuses it: yaml: line"},
		"template":           {[]string{"-f", "-"}, "metadata:\n  name: {{ .Values.name }}\n", "render it first, as with `helm template"},
		"key twice":          {[]string{"-f", "-"}, meta + "kind: Job\n", `line 4: mapping key "kind" already defined at line 2`},
		"alias of itself":    {[]string{"-f", "-"}, meta + "spec: &a {template: *a}\n", "anchor 'a' value contains itself"},
		"text":               {[]string{"-f", "-"}, "hello\n", "stdin:1: it is no object of Kubernetes"},
		"values.yaml":        {[]string{"-f", "-"}, "replicas: 1\n", "the field kind is missing; a values.yaml of Helm is no manifest"},
		"no name":            {[]string{"-f", "-"}, "kind: ConfigMap\n", "the ConfigMap has no metadata.name"},
		"no workload":        {[]string{"-f", "-"}, "kind: Service\nmetadata: {name: x}\n", "there is nothing to check in -: give the file of a Deployment"},
		"patch":              {[]string{"-f", "-"}, meta + "spec: {replicas: 2}\n", `Deployment "x" has no spec.template.spec.containers; if it is a patch`},
		"no list":            {[]string{"-f", "-"}, meta + "spec: {template: {spec: {containers: {name: x}}}}\n", "stdin:4: Deployment \"x\": spec.template.spec.containers is not a list of containers"},
		"no containers":      {[]string{"-f", "-"}, meta + "spec: {template: {spec: {containers: []}}}\n", "is not a list of containers"},
		"no container":       {[]string{"-f", "-"}, meta + "spec: {template: {spec: {containers: [x]}}}\n", "a container has fields such as name and image"},
		"env is a mapping":   {[]string{"-f", "-"}, meta + "spec: {template: {spec: {containers: [{name: x, env: {A: b}}]}}}\n", "env is not a list"},
		"unknown kind":       {[]string{"-skip", "all", "-f", "-"}, "", `"all" is none of registry, registry-address`},
		"unknown flag":       {[]string{"-x"}, "", "flag provided but not defined: -x"},
		"list with a nobody": {[]string{"-f", "-"}, "kind: List\nitems: [1]\n", "stdin:2: it is no object of Kubernetes"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			status, err := run(test.args, strings.NewReader(test.stdin), &stdout, &stderr)
			got := stderr.String()
			if err != nil {
				got += err.Error()
			}
			if status != 2 || stdout.Len() > 0 || !strings.Contains(got, test.want) {
				t.Errorf("status %d, output %q, error %q, want 2 and %q", status, &stdout, got, test.want)
			}
		})
	}
	unreadable := filepath.Join(dir, "unreadable.yaml")
	if err := os.WriteFile(unreadable, nil, 0); err != nil {
		t.Fatal(err)
	}
	if f, err := os.Open(unreadable); err == nil {
		f.Close() // the user is root
	} else if got := result("-f", unreadable); !strings.Contains(got, "permission denied") {
		t.Error(got)
	}
}

func TestHelp(t *testing.T) {
	status, err := run([]string{"-h"}, nil, new(bytes.Buffer), new(bytes.Buffer))
	if status != 0 || !errors.Is(err, flag.ErrHelp) {
		t.Errorf("status %d, error %v", status, err)
	}
}

// The scalars that a finding calls a surprise are those that YAML 1.1 changes, also inside of a list and behind an alias.
func TestPlain(t *testing.T) {
	for text, want := range map[string]any{"NO": false, "y": true, "0644": 420, "08123": 8123.0, `"NO"`: "NO", "!!str 1": "1", "a b": "a b", "~": nil} {
		var document yaml.Node
		if err := yaml.Unmarshal([]byte(text), &document); err != nil {
			t.Fatal(err)
		}
		if got := plain(value{Node: document.Content[0]}); got != want {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
}

// The tables of docs/manifests.md have a row for each kind, in both languages, and the page shows what the command prints.
func TestDocumented(t *testing.T) {
	for _, page := range []string{"../docs/manifests.md", "../docs/manifests_zh.md"} {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		var rows []string
		for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(string(b), -1) {
			rows = append(rows, m[1])
		}
		if !slices.Equal(rows, kinds) {
			t.Errorf("%s has the rows\n%q, want\n%q", page, rows, kinds)
		}
	}
}

// FuzzRun looks for input that makes the command panic or hang.
func FuzzRun(f *testing.F) {
	names, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(names) < 10 {
		f.Fatalf("testdata has %q, %v", names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, text string) {
		var stdout, stderr bytes.Buffer
		status, err := run([]string{"-f", "-"}, strings.NewReader(text), &stdout, &stderr)
		if (status == 1) != (stdout.Len() > 0) || (status == 2) != (err != nil) {
			t.Errorf("status %d, output %q, error %v", status, &stdout, err)
		}
	})
}
