// Package programs provides the programs that a cluster runs.
//
//	tools, err := programs.Provide(ctx, checkout, programs.Options{Progress: log.Printf})
//
// Provide finds what this machine has, then downloads or builds what is missing, once:
// everything is cached by version in the user's cache directory.
//
//	Kubernetes, etcd,   the official binaries of dl.k8s.io and github.com (official.go,
//	CoreDNS, kubectl    download.go); if they cannot be downloaded, one binary that is built
//	                    from the modules in cluster/kube (kubernetes.go, build.go)
//	containerd, runc,   PATH, then Debian's packages, which apt-get downloads without root
//	nft, CNI plugins    (debian.go), then the official binaries, of which nft has none
//	                    (nodetools.go)
//	pause               built from cluster/pause
//	network policies    with Options.NetworkPolicy: built from cluster/networkpolicy (networkpolicy.go); its
//	                    ipset and iptables as the tools above
//
// The environment variable K8S_MICRO_SOURCE is build to forbid official binaries, download
// to forbid builds, or the URL of a mirror.
//
// Downloads are compared with the checksums in sums.txt before anything runs. Files that it
// lacks are downloaded only from their publishers, over HTTPS, and compared with the checksums
// that these name; a mirror is refused. Every file and directory appears in the cache only when it is complete, so an interrupted Provide leaves
// nothing that a later one could mistake for a program. It keeps the downloads that it has
// verified. Only one process at a time
// downloads or builds; the others wait.
package programs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/private"
)

// Tools are the paths of the programs that a cluster runs.
type Tools struct {
	Version string // of Kubernetes, such as v1.37.2
	Cache   string // directory that contains all of the following
	Kube    string // directory that contains etcd, the components of Kubernetes, CoreDNS and kubectl
	Pause   string // the program that holds a pod's namespaces
	Policy  string // the program that enforces network policies, or ""
	Bin     string // directory with containerd, its shim, runc and nft, and with Policy also ipset and iptables
	CNI     string // directory with ptp, host-local and loopback
}

// Relocated returns the paths of the tools when the cache is mounted at another path.
func (t Tools) Relocated(cache string) Tools {
	for _, path := range []*string{&t.Kube, &t.Pause, &t.Policy, &t.Bin, &t.CNI} {
		if *path != "" {
			*path = filepath.Join(cache, strings.TrimPrefix(*path, t.Cache))
		}
	}
	t.Cache = cache
	return t
}

// Path returns the PATH of processes that use the tools.
func (t Tools) Path() string {
	return strings.Join(append([]string{t.Bin, os.Getenv("PATH")}, sbin...), ":")
}

// OtherCluster is the remedy in every error about something that this machine cannot do.
const OtherCluster = "or use any cluster you have (kind, minikube, a cloud) with `make push` and `make deploy`"

// Options are the options of Provide.
type Options struct {
	ControlPlane  bool                             // leave out the programs of the node
	NetworkPolicy bool                             // add those that enforce network policies
	Progress      func(format string, args ...any) // prints a line
}

// provider provides the programs for one checkout.
type provider struct {
	root, cache string // directories
	source      source
	progress    func(format string, args ...any)
}

// Provide finds, downloads or builds the programs of a cluster; root is the checkout, which
// contains their versions and sources. When ctx ends, Provide stops its processes and
// removes incomplete files.
func Provide(ctx context.Context, root string, o Options) (t Tools, err error) {
	p := &provider{root: root, progress: func(format string, args ...any) { o.Progress("%s", redact(fmt.Sprintf(format, args...))) }}
	defer func() {
		if err != nil {
			err = errors.New(redact(err.Error()))
		}
	}()
	if p.cache, err = cacheDir(); err != nil {
		return t, err
	}
	if p.source, err = parseSource(os.Getenv(envSource)); err != nil {
		return t, err
	}
	if p.source.sums, err = readSums(root); err != nil {
		return t, err
	}
	lock, err := p.lock(ctx)
	if err != nil {
		return t, err
	}
	defer lock.Close()
	p.removeIncomplete()
	t.Cache = p.cache
	ctx, cancel := context.WithCancelCause(ctx) // the first error stops the other goroutine
	defer cancel(nil)
	fetched := make(chan error, 1)
	if o.ControlPlane {
		fetched <- nil
	} else {
		go func() { // in parallel: this waits mostly for the network, and the build mostly for the processor
			groups := [][]nodeTool{nodeTools}
			if o.NetworkPolicy {
				groups = append(groups, policyTools)
			}
			bin, err := p.nodeTools(ctx, groups...)
			if err != nil {
				cancel(err)
			}
			t.Bin, t.CNI = bin, bin
			fetched <- err
		}()
	}
	version, kube, err := p.kubernetes(ctx)
	if err == nil && o.NetworkPolicy { // after Kubernetes, because a Kubernetes that was built has compiled most of its packages
		t.Policy, err = p.networkPolicy(ctx)
	}
	if err != nil {
		cancel(err)
	}
	if err = errors.Join(err, <-fetched); err != nil {
		if err = context.Cause(ctx); errors.Is(err, context.Canceled) { // a signal ended ctx
			err = errors.New("interrupted")
		}
		return t, err
	}
	t.Version, t.Kube = version, kube
	if !o.ControlPlane {
		t.Pause, err = p.pause(ctx)
	}
	return t, err
}

var userInfo = regexp.MustCompile(`://[^/\s"]*@`)

// redact replaces the user names and passwords of the URLs in a text: those of mirrors and of proxies.
func redact(text string) string { return userInfo.ReplaceAllString(text, "://xxxxx@") }

// pausePath is the path of the pause program in the cache.
func (p *provider) pausePath() (string, error) {
	text, err := os.ReadFile(filepath.Join(p.root, "cluster", "pause", "main.go"))
	if err != nil {
		return "", err
	}
	return filepath.Join(p.cache, fmt.Sprintf("pause-%s-%.8x", runtime.GOARCH, sha256.Sum256(text))), nil
}

// pause returns the path of the pause program, which it builds if necessary.
func (p *provider) pause(ctx context.Context) (string, error) {
	path, err := p.pausePath()
	if err != nil || exists(path) {
		return path, err
	}
	if err := goBuild(ctx, filepath.Join(p.root, "cluster", "pause"), path, io.Discard, "."); err != nil {
		return "", fmt.Errorf("building the pause program: %w", err)
	}
	return path, nil
}

// lock waits until no other process builds or downloads.
func (p *provider) lock(ctx context.Context) (*os.File, error) {
	for waiting := false; ; {
		lock, err := private.Lock(filepath.Join(p.cache, "lock"))
		if !errors.Is(err, private.ErrLocked) {
			return lock, err
		}
		if !waiting {
			p.progress("waiting for another process that is building in %s", p.cache)
			waiting = true
		}
		select {
		case <-ctx.Done():
			return nil, errors.New("interrupted")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// removeIncomplete removes the incomplete files of processes that were killed while they
// built or downloaded, but not what they had verified. The caller holds the lock, so no other process is building or
// downloading.
func (p *provider) removeIncomplete() {
	for _, pattern := range []string{"*.part-*", "*/*.part-*", "*" + verifiedSuffix + "/*" + incompleteSuffix} {
		files, _ := filepath.Glob(filepath.Join(escapeGlob(p.cache), pattern))
		for _, f := range files {
			_ = os.RemoveAll(f)
		}
	}
}

// cacheDir creates the directory for built and downloaded programs, and returns its path.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the user's cache directory: %w; set HOME or XDG_CACHE_HOME", err)
	}
	dir := filepath.Join(base, "k8s-micro")
	if err := private.Dir(dir); err != nil {
		return "", fmt.Errorf("making the cache: %w; set XDG_CACHE_HOME to a directory that you own", err)
	}
	return dir, nil
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }
