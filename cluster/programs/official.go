package programs

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// envSource is the environment variable that selects the source of programs that are not in
// the cache.
const envSource = "K8S_MICRO_SOURCE"

// source says where programs come from, as the value of envSource selects it.
type source struct {
	build    bool     // only build
	download bool     // only download
	mirror   *url.URL // download from here, nil for the publishers
	sums     sums
}

// parseSource parses the value of envSource.
func parseSource(value string) (source, error) {
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

// locate returns the place of a file, which is the publisher's or the mirror's. A mirror has
// the files under their host names, as wget -x stores them.
func (s source) locate(published string) string {
	if s.mirror == nil {
		return published
	}
	return strings.TrimSuffix(s.mirror.String(), "/") + "/" + strings.TrimPrefix(published, "https://")
}

// file returns an official file that is published at an address, with its checksum at another.
func (s source) file(published, sumsPublished string, programs ...string) officialFile {
	return officialFile{url: s.locate(published), sum: s.sums[published], sumsURL: s.locate(sumsPublished), programs: programs}
}

// trusts returns an error if files would have to be trusted without a reason. The publishers
// are trusted for the checksums of their own files, over HTTPS. A mirror is not.
func (s source) trusts(files []officialFile) error {
	for _, f := range files {
		if s.mirror != nil && f.sum == "" {
			return fmt.Errorf("downloading %q: %s has no SHA-256 of it, so a mirror cannot be used: run `make sums` where dl.k8s.io and github.com can be reached, or unset %s", f.url, sumsFile, envSource)
		}
	}
	return nil
}

// host describes the place of all files.
func (s source) host() string {
	if s.mirror == nil {
		return "dl.k8s.io and github.com"
	}
	return s.mirror.Redacted()
}

const (
	answerLimit     = 3 * time.Second  // how long to wait for the servers before building instead
	lastAnswerLimit = 30 * time.Second // how long to wait where there is no other way
)

// releases are versions of programs that belong together.
type releases struct{ kubernetes, etcd, coredns string }

// parseReleases reads the versions from cluster/kube/go.mod, so that both ways of providing
// programs give the same release.
func parseReleases(goMod []byte) (r releases, err error) {
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

// files are the official files, for a processor architecture, of the programs that cluster/kube
// also contains.
func (r releases) files(s source, arch string) (files []officialFile) {
	for _, name := range []string{"kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kubectl", "kube-proxy"} { // the largest first
		u := fmt.Sprintf("https://dl.k8s.io/release/%s/bin/linux/%s/%s", r.kubernetes, arch, name)
		files = append(files, s.file(u, u+".sha256", name))
	}
	etcd := "https://github.com/etcd-io/etcd/releases/download/" + r.etcd + "/"
	coredns := fmt.Sprintf("https://github.com/coredns/coredns/releases/download/%s/coredns_%s_linux_%s.tgz", r.coredns, r.coredns[1:], arch)
	return append(files, s.file(etcd+fmt.Sprintf("etcd-%s-linux-%s.tar.gz", r.etcd, arch), etcd+"SHA256SUMS", "etcd"), s.file(coredns, coredns+".sha256", "coredns"))
}

// downloadKube returns the directory of the official programs. It downloads them unless
// the cache contains them. The error says why this is impossible.
func (p *provider) downloadKube(ctx context.Context, r releases) (dir string, err error) {
	dir = r.dir(p.cache)
	if p.source.build {
		return "", fmt.Errorf("%s=build", envSource)
	}
	if exists(dir) {
		return dir, nil
	}
	if runtime.GOOS != "linux" {
		return "", errors.New("official binaries of kube-apiserver exist only for Linux")
	}
	d, files, limit := newDownloader(p.progress), missing(dir, r.files(p.source, runtime.GOARCH)), answerLimit
	if err := p.source.trusts(files); err != nil {
		return "", err
	}
	if p.source.download {
		limit = lastAnswerLimit
	}
	size, err := d.find(ctx, files, limit)
	if err != nil {
		return "", err
	}
	d.total.Store(size)
	amount := "about 400 MB"
	if size > 0 {
		amount = fmt.Sprintf("%.0f MB", float64(size)/1e6)
	}
	p.progress("downloading %s, once, because %s answered: %s; %s=build builds them instead", r, p.source.host(), amount, envSource)
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
	p.progress("  downloaded and verified in %s", time.Since(begin).Round(100*time.Millisecond))
	return dir, nil
}

// officialKube returns the directory of the official programs, or "" if the programs have
// to be built or are built already. Then why is the reason.
func (p *provider) officialKube(ctx context.Context, r releases, built bool) (dir, why string, err error) {
	s := p.source
	if built && !s.download && s.mirror == nil {
		return "", "", nil
	}
	dir, err = p.downloadKube(ctx, r)
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
		p.progress("using the Kubernetes that was built earlier, because the official binaries cannot be downloaded: %s", err)
	}
	return "", fmt.Sprintf("the official binaries cannot be downloaded: %s", err), nil
}
