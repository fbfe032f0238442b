package main

import (
	"os"
	"path/filepath"
	"testing"
)

// Only the cgroups go: a pod keeps its user, its namespaces and its seccomp profile.
func TestRemoveCgroupSettings(t *testing.T) {
	const config = `{"process":{"user":{"uid":7}},"linux":{"cgroupsPath":"/k","resources":{"cpu":{}},"seccomp":{"defaultAction":"x"},"namespaces":[]}}`
	const want = `{"linux":{"namespaces":[],"seccomp":{"defaultAction":"x"}},"process":{"user":{"uid":7}}}`
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := removeCgroupSettings(path); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}
