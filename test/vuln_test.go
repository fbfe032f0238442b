package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// vuln.sh checks every module that has Go code, Kubernetes as a program, and fails for a vulnerability that SECURITY.md does
// not list, whichever module reaches it.
func TestVulnerabilities(t *testing.T) {
	root, bin := t.TempDir(), t.TempDir()
	for _, name := range []string{"vuln.sh", "modules"} {
		b, err := os.ReadFile(name)
		if err == nil {
			err = errors.Join(os.MkdirAll(filepath.Join(root, "test"), 0o755), os.WriteFile(filepath.Join(root, "test", name), b, 0o755))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	script := `#!/bin/sh
case "$*" in
build*) for a; do [ "$last" != -o ] || out=$a; last=$a; done; echo "$3" >"$out" ;;
*-mode=binary*) for last; do :; done; module=$(cat "$last") ;;
*) module=$5 ;;
esac
[ -z "$module" ] || echo "$module" >>'` + root + `/checked'
[ "$module" != "$VULNERABLE" ] || { echo "Vulnerability #1: GO-2099-0001"; exit 3; }
`
	if err := errors.Join(os.WriteFile(filepath.Join(bin, "go"), []byte(script), 0o755), os.WriteFile(filepath.Join(root, "SECURITY.md"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	run := func(vulnerable string) (string, error) {
		_ = os.Remove(filepath.Join(root, "checked"))
		cmd := exec.Command(filepath.Join(root, "test/vuln.sh"))
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "VULNERABLE="+vulnerable)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("none"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(root, "checked"))
	if err != nil {
		t.Fatal(err)
	}
	checked := strings.Fields(string(b))
	list, err := os.ReadFile("modules")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for line := range strings.Lines(string(list)) {
		if fields := strings.Fields(line); len(fields) > 0 && !strings.HasPrefix(line, "#") && fields[0] != "test/mutants" && fields[0] != "test/tools" { // these have no Go code
			want = append(want, fields[0])
		}
	}
	slices.Sort(checked)
	slices.Sort(want)
	if !slices.Equal(checked, want) {
		t.Errorf("checked are %q, want %q", checked, want)
	}
	for _, module := range []string{".", "cluster/kube"} {
		if out, err := run(module); err == nil || !strings.Contains(out, `checking module "`+module+`" for vulnerabilities: GO-2099-0001`) {
			t.Errorf("a vulnerability in %s: %v: %s", module, err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "SECURITY.md"), []byte("- GO-2099-0001: no code calls it.\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := run("cluster/kube"); err != nil {
		t.Errorf("a vulnerability in the list: %v: %s", err, out)
	}
}
