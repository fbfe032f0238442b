package programs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
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

// nodeTools links every node tool into one directory and returns it. A tool comes
// from PATH if that version works, otherwise from Debian's packages, from its project's
// release binaries or from Go modules. All of these are cached.
func (p *provider) nodeTools(ctx context.Context) (bin string, err error) {
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
	for _, source := range []func(context.Context, []nodeTool) (map[string]string, error){p.fromDebian, p.fromOfficial, p.fromGo} {
		m := missing()
		if len(m) == 0 || ctx.Err() != nil {
			break
		}
		got, err := source(ctx, m)
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
		return "", fmt.Errorf("providing the node's tools: %s; install the packages %s (Debian's names), %s",
			strings.Join(reasons, "; "), strings.Join(slices.Compact(names), " "), OtherCluster)
	}
	// The directory's name is a hash of its links, so that it never mixes two sets of tools.
	sum := sha256.New()
	for _, t := range nodeTools {
		if inCache, ok := strings.CutPrefix(found[t.name], p.cache+"/"); ok { // a relative link, because the node mounts the cache at another path
			found[t.name] = filepath.Join("..", inCache)
		}
		fmt.Fprintln(sum, t.name, found[t.name])
	}
	bin = filepath.Join(p.cache, fmt.Sprintf("node-%x", sum.Sum(nil)[:4]))
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	for _, t := range nodeTools {
		if err := os.Symlink(found[t.name], filepath.Join(bin, t.name)); err != nil && !errors.Is(err, os.ErrExist) {
			return "", err
		}
	}
	return bin, nil
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

// fromGo builds tools from their Go modules.
func (p *provider) fromGo(ctx context.Context, want []nodeTool) (map[string]string, error) {
	bin := filepath.Join(p.cache, "go-"+runtime.GOARCH)
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
			p.progress("building %s %s: usually under 2 minutes", t.name, version)
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

// officialFile returns the official file that contains a node tool. There is none of
// nft.
func (t nodeTool) officialFile(s source) (f officialFile, ok bool) {
	module, version, _ := strings.Cut(t.module, "@")
	arch := runtime.GOARCH
	switch {
	case strings.HasPrefix(module, "github.com/containerd/containerd/"):
		u := s.from(fmt.Sprintf("https://github.com/containerd/containerd/releases/download/%s/containerd-static-%s-linux-%s.tar.gz", version, version[1:], arch))
		return officialFile{u, u + ".sha256sum", []string{"containerd", "containerd-shim-runc-v2"}}, true
	case module == "github.com/opencontainers/runc":
		base := s.from("https://github.com/opencontainers/runc/releases/download/" + version + "/")
		return officialFile{base + "runc." + arch, base + "runc.sha256sum", []string{"runc"}}, true
	case strings.HasPrefix(module, "github.com/containernetworking/plugins/"):
		u := s.from(fmt.Sprintf("https://github.com/containernetworking/plugins/releases/download/%s/cni-plugins-linux-%s-%s.tgz", version, arch, version))
		return officialFile{u, u + ".sha256", []string{"ptp", "loopback", "host-local"}}, true
	}
	return officialFile{}, false
}

// fromOfficial downloads the official files of tools. Debian's packages come before it,
// where apt-get exists: they are smaller, nft is among them, and apt-get verifies them
// with a key, while a checksum from the same server only proves that a file is complete.
func (p *provider) fromOfficial(ctx context.Context, want []nodeTool) (map[string]string, error) {
	if p.source.build {
		return nil, fmt.Errorf("downloading official binaries: %s=build", envSource)
	}
	d, got := newDownloader(p.progress), map[string]string{}
	missing := map[string]officialFile{} // by the directory in the cache
	for _, t := range want {
		if f, ok := t.officialFile(p.source); ok {
			_, version, _ := strings.Cut(t.module, "@")
			dir := filepath.Join(p.cache, fmt.Sprintf("official-%s-%s-%s", runtime.GOARCH, f.programs[0], version))
			got[t.name] = filepath.Join(dir, t.name)
			if !exists(dir) {
				missing[dir] = f
			}
		}
	}
	size, err := d.find(ctx, slices.Collect(maps.Values(missing)), p.source.answerLimit())
	if err != nil {
		return nil, err
	}
	d.total.Store(size)
	for _, dir := range slices.Sorted(maps.Keys(missing)) {
		p.progress("downloading %s from %s", path.Base(missing[dir].url), p.source.host())
		if err := d.programs(ctx, dir, []officialFile{missing[dir]}, nil); err != nil {
			return nil, err
		}
	}
	return got, nil
}
