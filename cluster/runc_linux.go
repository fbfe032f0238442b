package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/jiangjiancc/go_micro_k8s/cluster/programs"
)

// chooseRunc returns the path of the runc that containerd runs: the real runc if the
// node has cgroups, otherwise a copy of this program under the name runc.
func (cp *controlPlane) chooseRunc(t programs.Tools) (string, error) {
	if os.Getenv(envNoCgroups) == "" {
		return filepath.Join(t.Bin, "runc"), nil
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	path := cp.path("bin", "runc")
	return path, os.WriteFile(path, self, 0o755)
}

// runc removes the cgroups from a container's configuration, because the node has none, and
// then executes the real runc.
func runc(args []string) error {
	for i, a := range args {
		if a == "--bundle" && i+1 < len(args) {
			if err := removeCgroupSettings(filepath.Join(args[i+1], "config.json")); err != nil {
				return err
			}
		}
	}
	path, err := exec.LookPath("runc")
	if err != nil {
		return err
	}
	return syscall.Exec(path, append([]string{"runc"}, args...), os.Environ())
}

// removeCgroupSettings removes cgroups from the OCI runtime specification at path.
func removeCgroupSettings(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(b, &spec); err != nil {
		return fmt.Errorf("reading %q: %w", path, err)
	}
	if linux, ok := spec["linux"].(map[string]any); ok {
		delete(linux, "cgroupsPath")
		delete(linux, "resources")
	}
	if b, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}
