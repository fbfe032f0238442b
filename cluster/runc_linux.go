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
// node supports cgroups and seccomp, otherwise a copy of this program under the name
// runc.
func (cp *controlPlane) chooseRunc(t programs.Tools) (string, error) {
	program := filepath.Join(t.Bin, "runc")
	var features struct {
		Linux struct{ Seccomp struct{ Enabled bool } }
	}
	// runc 1.1 and newer report whether they were built with libseccomp.
	if out, err := exec.Command(program, "features").Output(); err == nil {
		_ = json.Unmarshal(out, &features)
	}
	if features.Linux.Seccomp.Enabled {
		os.Setenv(envSeccomp, "1")
		if os.Getenv(envNoCgroups) == "" {
			return program, nil
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	path := cp.path("bin", "runc")
	return path, os.WriteFile(path, self, 0o755)
}

// runc removes settings that the node does not support from a container's
// configuration, and then executes the real runc. It removes cgroups if the node has
// none, and the seccomp profile if the real runc was built without libseccomp.
func runc(args []string) error {
	for i, a := range args {
		if a == "--bundle" && i+1 < len(args) {
			if err := reduceSpec(filepath.Join(args[i+1], "config.json")); err != nil {
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

// reduceSpec removes cgroups and seccomp from the OCI runtime specification at
// path if the environment variables say that the node does not support them.
func reduceSpec(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(b, &spec); err != nil {
		return fmt.Errorf("reading %q: %w", path, err)
	}
	if linux, ok := spec["linux"].(map[string]any); ok {
		if os.Getenv(envSeccomp) == "" {
			delete(linux, "seccomp")
		}
		if os.Getenv(envNoCgroups) != "" {
			delete(linux, "cgroupsPath")
			delete(linux, "resources")
		}
	}
	if b, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}
