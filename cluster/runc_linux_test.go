package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReduceSpec(t *testing.T) {
	const config = `{"process":{"user":{"uid":7}},"linux":{"cgroupsPath":"/k","resources":{"cpu":{}},"seccomp":{"defaultAction":"x"},"namespaces":[]}}`
	for _, c := range []struct{ seccomp, noCgroups, want string }{
		{"", "", `{"linux":{"cgroupsPath":"/k","namespaces":[],"resources":{"cpu":{}}},"process":{"user":{"uid":7}}}`},
		{"1", "1", `{"linux":{"namespaces":[],"seccomp":{"defaultAction":"x"}},"process":{"user":{"uid":7}}}`},
	} {
		t.Setenv(envSeccomp, c.seccomp)
		t.Setenv(envNoCgroups, c.noCgroups)
		path := filepath.Join(t.TempDir(), "config.json")
		if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := reduceSpec(path); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(path); string(got) != c.want {
			t.Errorf("seccomp %q, no cgroups %q: %s, want %s", c.seccomp, c.noCgroups, got, c.want)
		}
	}
}
