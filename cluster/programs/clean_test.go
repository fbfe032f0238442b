package programs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Clean removes what this checkout does not need, unless a cluster uses the cache.
func TestClean(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	cache, err := cacheDir()
	if err != nil {
		t.Fatal(err)
	}
	goMod, err := os.ReadFile("../kube/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseReleases(goMod)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{root: "../..", cache: cache, progress: t.Logf}
	built, err := p.builtKube(r)
	if err != nil {
		t.Fatal(err)
	}
	pause, err := p.pausePath()
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	make := func(needed bool, paths ...string) {
		t.Helper()
		for _, path := range paths {
			if !filepath.IsAbs(path) {
				path = filepath.Join(cache, path)
			}
			if err := errors.Join(os.MkdirAll(path, 0o755), os.WriteFile(filepath.Join(path, "program"), []byte("x"), 0o755)); err != nil {
				t.Fatal(err)
			}
			if needed {
				kept = append(kept, filepath.Base(path))
			}
		}
	}
	victoria, _, err := p.victoriaDir()
	if err != nil {
		t.Fatal(err)
	}
	policy, _, err := p.networkPolicyDir()
	if err != nil {
		t.Fatal(err)
	}
	make(true, built, r.dir(cache), pause, victoria, policy, "debian-0123abcd-20261101T000000.000", "debian-9999abcd", "node-new", "node-host")
	make(false, "kubernetes-v1.30.0-amd64-00000000", "official-amd64-kubernetes-v1.30.0-etcd-v3.5.0-coredns-v1.11.0", "debian-0123abcd", "debian-0123abcd-20261001T000000.000",
		"node-old", "node-empty", "kube-apiserver-v1.30.14-amd64", "pause-amd64-00000000", "victoriametrics-v1.0.0-amd64", "networkpolicy-v2.0.0-amd64-00000000")
	for dir, target := range map[string]string{"node-new": "../debian-0123abcd-20261101T000000.000/program", "node-old": "../debian-0123abcd/program", "node-host": "/usr/bin/env", "node-empty": ""} {
		if err := os.Remove(filepath.Join(cache, dir, "program")); err != nil {
			t.Fatal(err)
		}
		if target != "" {
			if err := os.Symlink(target, filepath.Join(cache, dir, "runc")); err != nil {
				t.Fatal(err)
			}
		}
	}
	before, err := os.ReadDir(cache)
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := Tools{Cache: cache}.Use()
	if err != nil {
		t.Fatal(err)
	}
	another, err := Tools{Cache: cache}.Use()
	if err != nil {
		t.Fatal(err)
	}
	another.Close()
	if err := Clean(t.Context(), "../..", t.Logf); err == nil || !strings.Contains(err.Error(), "make cluster-down") {
		t.Errorf("while a cluster uses the cache: %v", err)
	}
	for _, e := range before {
		if !exists(filepath.Join(cache, e.Name())) {
			t.Errorf("%s is removed although a cluster may use it", e.Name())
		}
	}
	cluster.Close()
	if err := Clean(t.Context(), "../..", t.Logf); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(cache)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	kept = append(kept, "lock", "in-use")
	slices.Sort(kept)
	if !slices.Equal(left, kept) {
		t.Errorf("left are %q, want %q", left, kept)
	}
}
