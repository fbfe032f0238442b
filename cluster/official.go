package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// envSource is the variable that selects where programs come from that the cache lacks.
const envSource = "K8S_MICRO_SOURCE"

// source is the value of envSource.
type source struct {
	build    bool     // only build
	download bool     // only download
	mirror   *url.URL // download from here, nil for the publishers
}

// sourceOf parses the value of envSource.
func sourceOf(value string) (source, error) {
	switch value {
	case "":
		return source{}, nil
	case "build":
		return source{build: true}, nil
	case "download":
		return source{download: true}, nil
	}
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return source{}, fmt.Errorf("reading %s=%q: want build, download, or the URL of a mirror such as https://mirror.example/releases", envSource, value)
	}
	return source{mirror: u}, nil
}

func sourceFromEnvironment() (source, error) { return sourceOf(os.Getenv(envSource)) }

// from returns the place of a file, which is the publisher's or the mirror's. A mirror has
// the files under their host names, as wget -x stores them.
func (s source) from(published string) string {
	if s.mirror == nil {
		return published
	}
	return strings.TrimSuffix(s.mirror.String(), "/") + "/" + strings.TrimPrefix(published, "https://")
}

// host describes the place of all files.
func (s source) host() string {
	if s.mirror == nil {
		return "dl.k8s.io and github.com"
	}
	return s.mirror.Redacted()
}

// decision is how long the servers have to answer before programs are built instead.
const decision = 3 * time.Second

// limit is how long a server has to answer.
func (s source) limit() time.Duration {
	if s.download { // there is no other way
		return 30 * time.Second
	}
	return decision
}

// releases are versions of programs that belong together.
type releases struct{ kubernetes, etcd, coredns string }

// releasesOf reads the versions from cluster/kube/go.mod, so that both ways of providing
// programs give the same release.
func releasesOf(goMod []byte) (r releases, err error) {
	for _, m := range []struct {
		module  string
		version *string
	}{{"k8s.io/kubernetes", &r.kubernetes}, {"go.etcd.io/etcd/server/v3", &r.etcd}, {"github.com/coredns/coredns", &r.coredns}} {
		found := regexp.MustCompile(`(?m)^\s*(?:require\s+)?` + regexp.QuoteMeta(m.module) + `\s+(v[0-9]+\.[0-9]+\.[0-9]+)\s*$`).FindSubmatch(goMod)
		if found == nil {
			return r, fmt.Errorf("reading the versions from cluster/kube/go.mod: no release of %s there", m.module)
		}
		*m.version = string(found[1])
	}
	return r, nil
}

func (r releases) String() string {
	return fmt.Sprintf("Kubernetes %s, etcd %s and CoreDNS %s", r.kubernetes, r.etcd, r.coredns)
}

// dir is the directory of the official programs in the cache.
func (r releases) dir(cache string) string {
	return filepath.Join(cache, fmt.Sprintf("official-%s-kubernetes-%s-etcd-%s-coredns-%s", runtime.GOARCH, r.kubernetes, r.etcd, r.coredns))
}

// files are the official files of the programs that cluster/kube also contains.
func (r releases) files(s source) (files []officialFile) {
	for _, name := range []string{"kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kubectl", "kube-proxy"} { // the largest first
		u := s.from(fmt.Sprintf("https://dl.k8s.io/release/%s/bin/linux/%s/%s", r.kubernetes, runtime.GOARCH, name))
		files = append(files, officialFile{url: u, sums: u + ".sha256", programs: []string{name}})
	}
	etcd := s.from("https://github.com/etcd-io/etcd/releases/download/" + r.etcd + "/")
	coredns := s.from(fmt.Sprintf("https://github.com/coredns/coredns/releases/download/%s/coredns_%s_linux_%s.tgz", r.coredns, r.coredns[1:], runtime.GOARCH))
	return append(files,
		officialFile{url: etcd + fmt.Sprintf("etcd-%s-linux-%s.tar.gz", r.etcd, runtime.GOARCH), sums: etcd + "SHA256SUMS", programs: []string{"etcd"}},
		officialFile{url: coredns, sums: coredns + ".sha256", programs: []string{"coredns"}})
}

// provideOfficial returns the directory of the official programs. It downloads them unless
// the cache contains them. The error says why this is impossible.
func provideOfficial(ctx context.Context, cache string, s source, r releases) (dir string, err error) {
	dir = r.dir(cache)
	if s.build {
		return "", fmt.Errorf("%s=build", envSource)
	}
	if exists(dir) {
		return dir, nil
	}
	if runtime.GOOS != "linux" {
		return "", errors.New("official binaries of kube-apiserver exist only for Linux")
	}
	d, files := newDownloader(), r.files(s)
	size, err := d.find(ctx, files, s.limit())
	if err != nil {
		return "", err
	}
	d.total.Store(size)
	amount := "about 400 MB"
	if size > 0 {
		amount = fmt.Sprintf("%.0f MB", float64(size)/1e6)
	}
	progress("downloading %s, once, because %s answered: %s; %s=build builds them instead", r, s.host(), amount, envSource)
	begin := time.Now()
	// kubelet is the only one that needs libraries of this machine.
	runs := func(dir string) error {
		if out, err := interruptible(ctx, filepath.Join(dir, "kubelet"), "--version").CombinedOutput(); err != nil {
			return fmt.Errorf("running the downloaded kubelet: %w: %s", err, lastLine(out))
		}
		return nil
	}
	if err := d.programs(ctx, dir, files, runs); err != nil {
		return "", err
	}
	progress("  downloaded and verified in %s", time.Since(begin).Round(100*time.Millisecond))
	return dir, nil
}

// downloadKube returns the directory of the official programs, or "" if the programs have
// to be built or are built already. Then why is the reason.
func downloadKube(ctx context.Context, cache string, r releases, built bool) (dir, why string, err error) {
	s, err := sourceFromEnvironment()
	if err != nil || built && !s.download && s.mirror == nil {
		return "", "", err
	}
	dir, err = provideOfficial(ctx, cache, s, r)
	if err == nil || ctx.Err() != nil {
		return dir, "", err
	}
	if s.download {
		return "", "", fmt.Errorf("downloading %s: %w; unset %s to build them instead", r, err, envSource)
	}
	if s.build {
		return "", err.Error(), nil
	}
	if built {
		progress("using the Kubernetes that was built earlier, because the official binaries cannot be downloaded: %s", err)
	}
	return "", fmt.Sprintf("the official binaries cannot be downloaded: %s", err), nil
}

// programs are the components and tools of a Kubernetes, official or built.
var programs = []string{"coredns", "etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet"}

// linkPrograms makes a link to the binary kube for each program in it. The binary runs the
// program whose name it has.
func linkPrograms(dir string) error {
	for _, name := range programs {
		if err := os.Symlink("kube", filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
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
func fromOfficial(ctx context.Context, cache string, want []nodeTool) (map[string]string, error) {
	s, err := sourceFromEnvironment()
	if err != nil {
		return nil, err
	}
	if s.build {
		return nil, fmt.Errorf("downloading official binaries: %s=build", envSource)
	}
	d, got := newDownloader(), map[string]string{}
	missing := map[string]officialFile{} // by the directory in the cache
	for _, t := range want {
		if f, ok := t.officialFile(s); ok {
			_, version, _ := strings.Cut(t.module, "@")
			dir := filepath.Join(cache, fmt.Sprintf("official-%s-%s-%s", runtime.GOARCH, f.programs[0], version))
			got[t.name] = filepath.Join(dir, t.name)
			if !exists(dir) {
				missing[dir] = f
			}
		}
	}
	size, err := d.find(ctx, slices.Collect(maps.Values(missing)), s.limit())
	if err != nil {
		return nil, err
	}
	d.total.Store(size)
	for _, dir := range slices.Sorted(maps.Keys(missing)) {
		progress("downloading %s from %s", path.Base(missing[dir].url), s.host())
		if err := d.programs(ctx, dir, []officialFile{missing[dir]}, nil); err != nil {
			return nil, err
		}
	}
	return got, nil
}
