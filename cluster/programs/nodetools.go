package programs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
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
	name    string
	file    string   // name of the program, if it is another
	deb     string   // the Debian package
	dirs    []string // directories to search after PATH
	min     string   // oldest version that works, "" for any
	seccomp bool     // it must have been built with libseccomp
}

// The versions of the official binaries. They are statically linked, and runc has seccomp.
const containerdVersion, runcVersion, cniVersion = "v2.4.2", "v1.5.2", "v1.9.1"

var (
	sbin      = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} // some users' PATH does not contain these directories
	cniDirs   = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}
	nodeTools = []nodeTool{
		{name: "containerd", deb: "containerd", min: "1.6"},
		{name: "containerd-shim-runc-v2", deb: "containerd"},
		{name: "runc", deb: "runc", dirs: sbin, min: "1.1", seccomp: true},
		{name: "nft", deb: "nftables", dirs: sbin, min: "1.0.1"},
		{name: "ptp", deb: "containernetworking-plugins", dirs: cniDirs},
		{name: "loopback", deb: "containernetworking-plugins", dirs: cniDirs},
		{name: "host-local", deb: "containernetworking-plugins", dirs: cniDirs},
	}

	// policyTools are what cluster/networkpolicy runs. The iptables that writes nftables needs no kernel module of its own,
	// which an ordinary user could not load.
	policyTools = []nodeTool{
		{name: "ipset", deb: "ipset", dirs: sbin},
		{name: "iptables", file: "iptables-nft", deb: "iptables", dirs: sbin, min: "1.8"},
		{name: "iptables-save", file: "iptables-nft-save", deb: "iptables", dirs: sbin},
		{name: "iptables-restore", file: "iptables-nft-restore", deb: "iptables", dirs: sbin},
	}
)

// nodeTools links the tools into one directory and returns it. A tool comes
// from PATH if that version works, otherwise from Debian's packages or from its project's
// release binaries, which are cached. Groups of tools come from different packages of Debian, which are
// downloaded together.
func (p *provider) nodeTools(ctx context.Context, groups ...[]nodeTool) (bin string, err error) {
	tools, found := slices.Concat(groups...), map[string]string{}
	missing := func(group []nodeTool) (m []nodeTool) {
		for _, t := range group {
			if found[t.name] == "" {
				m = append(m, t)
			}
		}
		return m
	}
	var reasons []string // why a source does not have a tool
	for _, t := range tools {
		if found[t.name], err = t.lookup(); err != nil {
			reasons = append(reasons, err.Error())
		}
	}
	for _, group := range groups {
		for _, source := range []func(context.Context, []nodeTool) (map[string]string, error){p.fromDebian, p.fromOfficial} {
			m := missing(group)
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
	}
	if m := missing(tools); len(m) > 0 {
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
	for _, t := range tools {
		if inCache, ok := strings.CutPrefix(found[t.name], p.cache+"/"); ok { // a relative link, because the node mounts the cache at another path
			found[t.name] = filepath.Join("..", inCache)
		}
		fmt.Fprintln(sum, t.name, found[t.name])
	}
	bin = filepath.Join(p.cache, fmt.Sprintf("node-%x", sum.Sum(nil)[:4]))
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	for _, t := range tools {
		if err := os.Symlink(found[t.name], filepath.Join(bin, t.name)); err != nil && !errors.Is(err, os.ErrExist) {
			return "", err
		}
	}
	return bin, nil
}

func (t nodeTool) program() string { return cmp.Or(t.file, t.name) }

// lookup returns the path of the tool on this machine, or "" if the tool is missing. The
// error says why an existing tool cannot be used.
func (t nodeTool) lookup() (string, error) {
	path, err := exec.LookPath(t.program())
	for _, d := range t.dirs {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(d, t.program()))
		}
	}
	if err != nil {
		return "", nil
	}
	if t.min != "" {
		out, _ := exec.Command(path, "--version").Output()
		if v := regexp.MustCompile(`\d+\.\d+(\.\d+)?`).FindString(string(out)); older(v, t.min) {
			return "", fmt.Errorf("version %q of %q is older than %s", v, path, t.min)
		}
	}
	if t.seccomp && !hasSeccomp(path) {
		return "", fmt.Errorf("%q was built without seccomp", path)
	}
	return path, nil
}

// hasSeccomp reports whether a runc was built with libseccomp. Without it, runc cannot
// start a pod that has a seccomp profile.
func hasSeccomp(runc string) bool {
	var features struct {
		Linux struct{ Seccomp struct{ Enabled bool } }
	}
	out, err := exec.Command(runc, "features").Output() // since runc 1.1
	return err == nil && json.Unmarshal(out, &features) == nil && features.Linux.Seccomp.Enabled
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

// officialFile returns the official file, for a processor architecture, that contains a node
// tool, and its version, or "" for nft, ipset and iptables, of which there is none.
func (t nodeTool) officialFile(s source, arch string) (f officialFile, version string) {
	const containerd, runc, cni = "https://github.com/containerd/containerd/releases/download/", "https://github.com/opencontainers/runc/releases/download/", "https://github.com/containernetworking/plugins/releases/download/"
	switch t.deb {
	case "containerd":
		u := containerd + containerdVersion + "/containerd-static-" + containerdVersion[1:] + "-linux-" + arch + ".tar.gz"
		return s.file(u, u+".sha256sum", "containerd", "containerd-shim-runc-v2"), containerdVersion
	case "runc":
		u := runc + runcVersion + "/runc."
		return s.file(u+arch, u+"sha256sum", "runc"), runcVersion
	case "containernetworking-plugins":
		u := cni + cniVersion + "/cni-plugins-linux-" + arch + "-" + cniVersion + ".tgz"
		return s.file(u, u+".sha256", "ptp", "loopback", "host-local"), cniVersion
	}
	return officialFile{}, ""
}

// officialDir is the name of the directory in the cache with the programs of an official file.
func officialDir(f officialFile, version string) string {
	return fmt.Sprintf("official-%s-%s-%s", runtime.GOARCH, f.programs[0], version)
}

// fromOfficial downloads the official files of tools. Debian's packages come before it,
// where apt-get exists: they are smaller, nft is among them, and apt-get verifies them
// with a key.
func (p *provider) fromOfficial(ctx context.Context, want []nodeTool) (map[string]string, error) {
	if p.source.build {
		return nil, fmt.Errorf("downloading official binaries: %s=build forbids it", envSource)
	}
	d, got := newDownloader(p.progress), map[string]string{}
	lacking := map[string]officialFile{} // by the directory in the cache
	for _, t := range want {
		if f, version := t.officialFile(p.source, runtime.GOARCH); version != "" {
			dir := filepath.Join(p.cache, officialDir(f, version))
			got[t.name] = filepath.Join(dir, t.name)
			if !exists(dir) {
				lacking[dir] = f
			}
		}
	}
	files := slices.Collect(maps.Values(lacking))
	if err := p.source.trusts(files); err != nil {
		return nil, err
	}
	size, err := d.find(ctx, files, lastAnswerLimit)
	if err != nil {
		return nil, err
	}
	d.total.Store(size)
	for _, dir := range slices.Sorted(maps.Keys(lacking)) {
		p.progress("downloading %s from %s", path.Base(lacking[dir].url), p.source.host())
		if err := d.programs(ctx, dir, []officialFile{lacking[dir]}, nil); err != nil {
			return nil, err
		}
	}
	return got, nil
}
