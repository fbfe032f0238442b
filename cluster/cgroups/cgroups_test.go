package cgroups

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestParseMounts(t *testing.T) {
	for name, c := range map[string]struct {
		mounts string
		want   Set
	}{
		"version 2": {"proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nsdelegate 0 0\n", Set{{"/sys/fs/cgroup", "cgroup2", "", "/sys/fs/cgroup/x"}}},
		"version 1, and version 2 without controllers": {`tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,nodev,noexec,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
cgroup /somewhere/else cgroup rw,memory 0 0
`, Set{
			{"/sys/fs/cgroup/cpu,cpuacct", "cgroup", "cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/x"},
			{"/sys/fs/cgroup/systemd", "cgroup", "xattr,name=systemd", "/sys/fs/cgroup/systemd/x"},
			{"/sys/fs/cgroup/unified", "cgroup2", "", "/sys/fs/cgroup/unified/x"},
		}},
		"in the node, over that of the host": {"cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\ntmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
			Set{{"/sys/fs/cgroup", "cgroup2", "", "/sys/fs/cgroup/x"}}},
		"none": {"proc /proc proc rw 0 0\n", nil},
	} {
		if got := parseMounts(c.mounts, "x"); !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// Remove removes a cgroup with its children. It returns false while one cannot be removed,
// such as one that contains a process.
func TestRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	busy := filepath.Join(dir, "a", "busy")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "b", "c"), 0o755), os.MkdirAll(busy, 0o755), os.WriteFile(filepath.Join(busy, "process"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	set := Set{{dir: dir}, {dir: filepath.Join(dir, "missing")}}
	if set.Remove() {
		t.Error("Remove has removed a cgroup that is in use")
	}
	if _, err := os.Stat(filepath.Join(dir, "b")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unused child is left: %v", err)
	}
	if err := os.Remove(filepath.Join(busy, "process")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !set.Remove() || err != nil {
		t.Errorf("Remove does not remove what is free: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cgroup is left: %v", err)
	}
}
