package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// nodeTool is a program of the node that is not part of cluster/kube.
type nodeTool struct {
	name   string
	min    string   // oldest version that works, "" for any
	deb    string   // the Debian package
	dirs   []string // directories to search after PATH
	module string   // Go package and version, "" if the tool is not written in Go
	flags  []string // for go install
	cgo    bool     // go install needs cgo
}

const containerd, cniPlugins = "github.com/containerd/containerd/v2@v2.4.2", "github.com/containernetworking/plugins@v1.9.1"

var (
	sbin      = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} // some users' PATH does not contain these directories
	cniDirs   = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}
	nodeTools = []nodeTool{
		{name: "containerd", min: "1.6", deb: "containerd", module: packageIn(containerd, "cmd/containerd"), flags: []string{"-tags=no_btrfs,no_devmapper,no_zfs,no_tracing"}},
		{name: "containerd-shim-runc-v2", deb: "containerd", module: packageIn(containerd, "cmd/containerd-shim-runc-v2")},
		{name: "runc", min: "1.1", deb: "runc", dirs: sbin, module: "github.com/opencontainers/runc@v1.5.2", cgo: true},
		{name: "nft", min: "1.0.1", deb: "nftables", dirs: sbin},
		{name: "ptp", deb: "containernetworking-plugins", dirs: cniDirs, module: packageIn(cniPlugins, "plugins/main/ptp")},
		{name: "loopback", deb: "containernetworking-plugins", dirs: cniDirs, module: packageIn(cniPlugins, "plugins/main/loopback")},
		{name: "host-local", deb: "containernetworking-plugins", dirs: cniDirs, module: packageIn(cniPlugins, "plugins/ipam/host-local")},
	}
)

// packageIn names a package in a module: packageIn("m@v1", "cmd") is "m/cmd@v1".
func packageIn(module, dir string) string {
	path, version, _ := strings.Cut(module, "@")
	return path + "/" + dir + "@" + version
}

// provideNodeTools links every node tool into one directory. It returns the directory of
// the programs and the directory of the CNI plugins, which are the same. A tool comes
// from PATH if that version works, otherwise from Debian's packages, from its project's
// release binaries or from Go modules. All of these are cached.
func provideNodeTools(ctx context.Context, cache string) (bin, cni string, err error) {
	found := map[string]string{}
	missing := func() (m []nodeTool) {
		for _, t := range nodeTools {
			if found[t.name] == "" {
				m = append(m, t)
			}
		}
		return m
	}
	for _, t := range nodeTools {
		found[t.name] = t.lookup()
	}
	var reasons []string
	for _, source := range []func(context.Context, string, []nodeTool) (map[string]string, error){fromDebian, fromOfficial, fromGo} {
		m := missing()
		if len(m) == 0 || ctx.Err() != nil {
			break
		}
		got, err := source(ctx, cache, m)
		if err != nil {
			reasons = append(reasons, err.Error())
		}
		for name, path := range got {
			found[name] = path
		}
	}
	if m := missing(); len(m) > 0 {
		var names []string
		for _, t := range m {
			names = append(names, t.deb)
		}
		slices.Sort(names)
		return "", "", fmt.Errorf("providing the node's tools: %s; install the packages %s (Debian's names), %s",
			strings.Join(reasons, "; "), strings.Join(slices.Compact(names), " "), otherCluster)
	}
	// The directory's name is a hash of its links, so that it never mixes two sets of tools.
	sum := sha256.New()
	for _, t := range nodeTools {
		if inCache, ok := strings.CutPrefix(found[t.name], cache+"/"); ok { // a relative link, because the node mounts the cache at another path
			found[t.name] = filepath.Join("..", inCache)
		}
		fmt.Fprintln(sum, t.name, found[t.name])
	}
	bin = filepath.Join(cache, fmt.Sprintf("node-%x", sum.Sum(nil)[:4]))
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", "", err
	}
	for _, t := range nodeTools {
		if err := os.Symlink(found[t.name], filepath.Join(bin, t.name)); err != nil && !errors.Is(err, os.ErrExist) {
			return "", "", err
		}
	}
	return bin, bin, nil
}

// lookup returns the path of the tool on this machine, or "" if the tool is missing or
// too old.
func (t nodeTool) lookup() string {
	path, err := exec.LookPath(t.name)
	for _, d := range t.dirs {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(d, t.name))
		}
	}
	if err != nil || t.min == "" {
		return path
	}
	out, _ := exec.Command(path, "--version").Output()
	if v := regexp.MustCompile(`\d+\.\d+(\.\d+)?`).FindString(string(out)); !older(v, t.min) {
		return path
	}
	return ""
}

// older reports whether version v is older than min. An empty version is older than
// any other.
func older(v, min string) bool {
	a, b := strings.Split(v, "."), strings.Split(min, ".")
	for i := range b {
		if i == len(a) {
			return false
		}
		x, err := strconv.Atoi(a[i])
		y, _ := strconv.Atoi(b[i])
		if err != nil || x != y {
			return err != nil || x < y
		}
	}
	return false
}

// fromDebian downloads packages and their dependencies with apt-get and unpacks them
// in the cache. It needs no root and does not change the system.
func fromDebian(ctx context.Context, cache string, want []nodeTool) (map[string]string, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, errors.New("downloading Debian packages: apt-get is not installed")
	}
	var debs []string
	for _, t := range want {
		debs = append(debs, t.deb)
	}
	slices.Sort(debs)
	debs = slices.Compact(debs)
	release, _ := os.ReadFile("/etc/os-release")
	sum := sha256.Sum256(append(release, strings.Join(debs, " ")...))
	dir := filepath.Join(cache, fmt.Sprintf("debian-%x", sum[:4]))
	if !exists(dir) {
		progress("downloading %s from Debian: usually under 30 seconds", strings.Join(debs, ", "))
		part := fmt.Sprintf("%s.part-%d", dir, os.Getpid())
		defer os.RemoveAll(part)
		if err := unpackDebs(ctx, part, debs); err != nil {
			return nil, fmt.Errorf("downloading Debian packages: %w", err)
		}
		if err := os.Rename(part, dir); err != nil && !exists(dir) {
			return nil, err
		}
	}
	got := map[string]string{}
	for _, t := range want {
		for _, d := range append([]string{"/usr/bin", "/usr/sbin"}, t.dirs...) {
			if path := filepath.Join(d, t.name); exists(filepath.Join(dir, "root", path)) {
				got[t.name] = filepath.Join(dir, "bin", t.name)
				if err := writeWrapper(dir, t.name, path); err != nil {
					return nil, err
				}
			}
		}
	}
	return got, nil
}

// unpackDebs downloads packages that the system lacks and unpacks them to dir/root.
func unpackDebs(ctx context.Context, dir string, debs []string) error {
	apt := func(args ...string) error {
		args = append([]string{"-qq", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=",
			"-o", "Dir::State::lists=" + filepath.Join(dir, "lists"), "-o", "Dir::Cache=" + filepath.Join(dir, "cache")}, args...)
		cmd := interruptible(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", args[len(args)-1], err, lastLine(out))
		}
		return nil
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "root", "bin"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := apt("update"); err != nil {
		return err
	}
	// install finds the dependencies that the system lacks; --download-only prevents the installation.
	if err := apt(append([]string{"install", "-y", "--no-install-recommends", "--download-only"}, debs...)...); err != nil {
		return err
	}
	files, _ := filepath.Glob(filepath.Join(escapeGlob(dir), "cache", "archives", "*.deb"))
	for _, f := range files {
		if out, err := interruptible(ctx, "dpkg-deb", "-x", f, filepath.Join(dir, "root")).CombinedOutput(); err != nil {
			return fmt.Errorf("unpacking %q: %w: %s", filepath.Base(f), err, lastLine(out))
		}
	}
	return errors.Join(os.RemoveAll(filepath.Join(dir, "lists")), os.RemoveAll(filepath.Join(dir, "cache")))
}

// writeWrapper writes dir/bin/name, a script that runs the unpacked program dir/root/path
// with its unpacked libraries. The script finds both by its own path, which differs
// between host and node. writeWrapper replaces an older script atomically, because
// running clusters may execute it.
func writeWrapper(dir, name, path string) error {
	libs, err := filepath.Glob(filepath.Join(escapeGlob(dir), "root", "usr/lib/*-linux-gnu*"))
	if err != nil {
		return err
	}
	var search strings.Builder
	for _, lib := range libs {
		search.WriteString("$root/usr/lib/" + filepath.Base(lib) + ":")
	}
	search.WriteString("$root/usr/lib")
	script := filepath.Join(dir, "bin", name)
	text := fmt.Sprintf("#!/bin/sh\nself=$(readlink -f \"$0\")\nroot=${self%%/bin/*}/root\nLD_LIBRARY_PATH=%s exec \"$root%s\" \"$@\"\n", search.String(), path)
	if err := os.WriteFile(script+".part", []byte(text), 0o755); err != nil {
		return err
	}
	return os.Rename(script+".part", script)
}

// escapeGlob returns the pattern that matches only path.
func escapeGlob(path string) string {
	return regexp.MustCompile(`[*?\[\\]`).ReplaceAllString(path, `\$0`)
}

// fromGo builds tools from their Go modules.
func fromGo(ctx context.Context, cache string, want []nodeTool) (map[string]string, error) {
	bin := filepath.Join(cache, "go-"+runtime.GOARCH)
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	for _, t := range want { // check all tools first: one missing tool would make minutes of building useless
		if t.module == "" {
			return nil, fmt.Errorf("building %s: the program is not written in Go", t.name)
		}
	}
	got := map[string]string{}
	var errs []error
	for _, t := range want {
		_, version, _ := strings.Cut(t.module, "@")
		path := filepath.Join(bin, t.name+"-"+version)
		if !exists(path) {
			progress("building %s %s: usually under 2 minutes", t.name, version)
			args := append([]string{"install", "-trimpath", "-ldflags=-s -w"}, t.flags...)
			cmd := goCommand(ctx, bin, append(args, t.module)...)
			cmd.Env = append(cmd.Env, "GOBIN="+bin)
			if t.cgo {
				cmd.Env = append(cmd.Env, "CGO_ENABLED=1")
			}
			out, err := cmd.CombinedOutput()
			if err == nil {
				err = os.Rename(filepath.Join(bin, t.name), path)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("building %s: %w: %s", t.name, err, lastLine(out)))
				continue
			}
		}
		got[t.name] = path
	}
	return got, errors.Join(errs...)
}
