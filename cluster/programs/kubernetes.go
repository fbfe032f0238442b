package programs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// kubePrograms are the components and tools of a Kubernetes, official or built.
var kubePrograms = []string{"coredns", "etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet"}

// gcflags disable debug information and inlining, which a cluster of one node does not
// need. This shortens a cold build by a quarter.
const gcflags = "-gcflags=all=-dwarf=false -l"

// kubernetes returns the version of Kubernetes and the directory of kubePrograms. These
// are the official ones or, if they cannot be downloaded, one binary that is built from
// cluster/kube. kubernetes downloads or builds nothing that the cache contains.
func (p *provider) kubernetes(ctx context.Context) (version, dir string, err error) {
	src := filepath.Join(p.root, "cluster", "kube")
	goMod, err := os.ReadFile(filepath.Join(src, "go.mod"))
	if err != nil {
		return "", "", err
	}
	r, err := parseReleases(goMod)
	if err != nil {
		return "", "", err
	}
	version = r.kubernetes
	if dir, err = p.builtKube(r); err != nil {
		return "", "", err
	}
	built := exists(filepath.Join(dir, "kube"))
	official, why, err := p.officialKube(ctx, r, built)
	if official != "" || err != nil {
		return version, official, err
	}
	if !built {
		if err := p.buildKube(ctx, src, dir, version, why); err != nil {
			return "", "", fmt.Errorf("%w; it is built because %s", err, why)
		}
	}
	return version, dir, linkPrograms(dir)
}

// builtKube is the directory of the built binary in the cache.
func (p *provider) builtKube(r releases) (dir string, err error) {
	sum, err := sourceHash(filepath.Join(p.root, "cluster", "kube"))
	if err != nil {
		return "", err
	}
	return filepath.Join(p.cache, fmt.Sprintf("kubernetes-%s-%s-%x", r.kubernetes, runtime.GOARCH, sum[:4])), nil
}

// sourceHash returns a hash of the files in src and of the flags that build them.
func sourceHash(src string) ([]byte, error) {
	files, err := os.ReadDir(src) // sorted
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	fmt.Fprintln(sum, gcflags)
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(src, f.Name()))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(sum, "%s %d\n%s", f.Name(), len(b), b)
	}
	return sum.Sum(nil), nil
}

// buildKube builds the binary dir/kube from the module in src.
func (p *provider) buildKube(ctx context.Context, src, dir, version, why string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	goCache, err := checkSpace(ctx, p.cache)
	if err != nil {
		return err
	}
	logPath := filepath.Join(dir, "build.log")
	log, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer log.Close()
	p.progress("building Kubernetes %s from its Go modules, once, because %s", version, why)
	p.progress("  usually 4 to 12 minutes on two cores, less with more; the log is %s", logPath)
	p.progress("  downloading its modules, about 250 MB, unless they are in the module cache")
	// Every component reads its own version from these variables; kubectl fails without them.
	const v = "-X k8s.io/component-base/version."
	number := strings.Split(version[1:], ".")
	ldflags := fmt.Sprintf("-ldflags=-s -w %[1]sgitVersion=%[2]s %[1]sgitMajor=%[3]s %[1]sgitMinor=%[4]s %[1]sgitTreeState=clean", v, version, number[0], number[1])
	build, err := newBuildProgress(ctx, src, ".", log, gcflags, ldflags)
	if err != nil {
		return fmt.Errorf("downloading the modules of %q: %w; see %s", src, err, logPath)
	}
	begin, binary := time.Now(), filepath.Join(dir, "kube")
	stopReports := repeat(20*time.Second, func() { p.progress("  %s", build) })
	stopSharing := repeat(3*time.Second, func() { shareWithCache(workDir(binary), goCache) })
	err = goBuild(ctx, src, binary, build, gcflags, ldflags, ".")
	stopReports()
	stopSharing()
	if err != nil {
		return fmt.Errorf("building %q: %w; see %s", src, err, logPath)
	}
	p.progress("  built in %s", time.Since(begin).Round(time.Second))
	return nil
}

// linkPrograms makes a link to the binary kube for each program in it. The binary runs the
// program whose name it has.
func linkPrograms(dir string) error {
	for _, name := range kubePrograms {
		if err := os.Symlink("kube", filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}
