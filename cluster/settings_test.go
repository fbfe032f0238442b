package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The Makefiles refuse values that a shell, a YAML parser or make itself would not read as
// a plain name, both in arguments and in the environment.
func TestMakeRefusesValues(t *testing.T) {
	root := copyOfCheckout(t, 0o022)
	marker := filepath.Join(t.TempDir(), "marker")
	tools := t.TempDir() // programs that write to marker when they run
	for _, name := range []string{"kubectl", "docker", "go"} {
		if err := os.WriteFile(filepath.Join(tools, name), []byte("#!/bin/sh\necho called >>'"+marker+"'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", tools+":"+os.Getenv("PATH"))
	run := func(target, variable, value string, fromEnvironment bool) (string, error) {
		args := append([]string{"--no-print-directory"}, strings.Fields(target)...)
		cmd := exec.Command("make", args...)
		cmd.Dir, cmd.Env = root, os.Environ()
		if fromEnvironment {
			cmd.Env = append(cmd.Env, variable+"="+value)
		} else {
			cmd.Args = append(cmd.Args, variable+"="+value)
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	command := "touch " + marker
	bad := []string{"", "v1&" + command, "v1;" + command, "`" + command + "`", "$(" + command + ")", "$(shell " + command + ")", "$$(" + command + ")", "${PATH}",
		"v1'", `v1"`, "a b", "a,b", "v1\n" + command, "v1\n", "\\", "#", "ä", "-rm", "a/../b", "{a}", "*"}
	badNodes := []string{"0", "10", "1000", "two", "-1"}
	for target, variables := range map[string][]string{
		"deploy": {"REGISTRY", "TAG"}, "undeploy": {"REGISTRY", "TAG"}, "push": {"REGISTRY", "TAG"}, "images": {"REGISTRY", "TAG"},
		"demo": {"CLUSTER", "NODES", "K8S_MICRO_SOURCE"}, "cluster-up": {"NODES", "NETWORK_POLICY"}, "cluster-down": {"CLUSTER"}, "load": {"CLUSTER"}, "faults": {"FAULT"},
		"-C go-micro-srv load": {"IMAGE", "CLUSTER", "TAG"}, "-C go-micro-web push": {"IMAGE"}, "-C go-micro-client docker-push": {"IMAGE", "REGISTRY"},
	} {
		for _, variable := range variables {
			values := bad
			if variable == "NODES" {
				values = append(badNodes, bad...)
			}
			for _, value := range values {
				if value == "" && (variable == "K8S_MICRO_SOURCE" || variable == "FAULT") { // the same as unset
					continue
				}
				for _, fromEnvironment := range []bool{false, true} {
					if out, err := run(target, variable, value, fromEnvironment); err == nil || !strings.Contains(out, "reading "+variable+"=") {
						t.Errorf("make %s %s=%q: %v: %s", target, variable, value, err, out)
					}
					if b, err := os.ReadFile(marker); err == nil {
						t.Fatalf("make %s %s=%q has run a program: %s", target, variable, value, b)
					}
				}
			}
		}
	}
	if out, err := run("cluster-build", "K8S_MICRO_SOURCE", "https://me:pass word@mirror.example", false); err == nil || strings.Contains(out, "word") {
		t.Errorf("a mirror with a password: %v: %s", err, out)
	}
	for target, values := range map[string][]string{
		"deploy REGISTRY": {"846602483", "docker.io/you", "localhost:5000", "127.0.0.1:5000/a/b_c", "ghcr.io/o-r/x__y", "Registry.Example:443/a"},
		"deploy TAG":      {"kubernetes", "v1.2-rc.1", "_x", "A"}, "-C go-micro-srv load IMAGE": {"a/b", "localhost:5000/b:c", "busybox:1.0"},
		"cluster-up NODES":               {"1", "3", "9"},
		"cluster-up NETWORK_POLICY":      {"0", "1"},
		"cluster-down CLUSTER":           {"demo", "e2e-demo", "A_1"},
		"cluster-build K8S_MICRO_SOURCE": {"", "build", "download", "http://127.0.0.1:8080", "https://[::1]/a-b/c_d~e%20f/", "https://you@mirror.example"},
	} {
		target, variable := target[:strings.LastIndex(target, " ")], target[strings.LastIndex(target, " ")+1:]
		for _, value := range values {
			os.Remove(marker)
			if out, err := run(target, variable, value, false); err != nil || !exists(marker) {
				t.Errorf("make %s %s=%s: %v: %s", target, variable, value, err, out)
			}
			if target != "deploy" {
				continue
			}
			b, err := os.ReadFile(filepath.Join(root, ".cluster/deploy/kustomization.yaml"))
			want := map[string]string{"REGISTRY": `newName: "` + value + `/go-micro-srv"`, "TAG": `newTag: "` + value + `"`}[variable]
			if err != nil || !strings.Contains(string(b), want) {
				t.Errorf("deploy with %s=%s wrote %s, want %s; %v", variable, value, b, want, err)
			}
		}
	}
}

// Who copies a service with service.mk and settings.mk into a repository of other services builds the program and its
// image with Docker. Targets that need more of this repository name what they need and what to use instead.
func TestCopiedService(t *testing.T) {
	root, tools := t.TempDir(), t.TempDir()
	checkout := copyOfCheckout(t, 0o022)
	for _, name := range []string{"go-micro-srv", "service.mk", "settings.mk"} {
		if err := os.Rename(filepath.Join(checkout, name), filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	calls := filepath.Join(tools, "calls")
	for _, name := range []string{"docker", "go"} { // go list and go env, for the licences, say nothing
		if err := os.WriteFile(filepath.Join(tools, name), []byte("#!/bin/sh\ncase $1 in env | list) ;; *) echo "+name+" \"$@\" >>'"+calls+"' ;; esac\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(target string) (out, called string) { // out is empty if make succeeds
		t.Helper()
		os.Remove(calls)
		cmd := exec.Command("make", "--no-print-directory", "-C", "go-micro-srv", target, "GOARCH=arm64", "REGISTRY=docker.io/you")
		cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"))
		text, err := cmd.CombinedOutput()
		if err != nil {
			out = string(text)
		}
		b, _ := os.ReadFile(calls) // make clean calls nothing
		return out, string(b)
	}
	build := "go build -buildvcs=false -ldflags=-s -w -o server .\n"
	image := build + "docker version\ndocker build --platform linux/arm64 -t docker.io/you/go-micro-srv:kubernetes .\n"
	for target, want := range map[string]string{"build": build, "docker-build": image, "docker-push": image + "docker push docker.io/you/go-micro-srv:kubernetes\n", "clean": ""} {
		if out, called := run(target); out != "" || called != want {
			t.Errorf("make %s called %q, want %q; %s", target, called, want, out)
		}
	}
	for target, folder := range map[string]string{"load": "cluster", "push": "cluster", "image": "cluster", "sbom": "test/tools"} {
		out, called := run(target)
		if called != "" || !strings.Contains(out, `looking for "../`+folder+`/go.mod"`) || !strings.Contains(out, "make docker-push") {
			t.Errorf("make %s called %q and printed %q", target, called, out)
		}
	}
}
