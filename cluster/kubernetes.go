package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// provideKube returns the version of Kubernetes and the directory of its programs. These
// are the official ones or, if they cannot be downloaded, one binary that is built from
// cluster/kube. provideKube downloads or builds nothing that the cache contains.
func (c *cluster) provideKube(ctx context.Context, cache string) (version, programs string, err error) {
	src := filepath.Join(c.root, "cluster", "kube")
	sum := sha256.New()
	fmt.Fprintln(sum, gcflags)
	files, err := os.ReadDir(src) // sorted
	if err != nil {
		return "", "", err
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(src, f.Name()))
		if err != nil {
			return "", "", err
		}
		fmt.Fprintf(sum, "%s %d\n%s", f.Name(), len(b), b)
		if m := regexp.MustCompile(`k8s\.io/kubernetes (v[0-9.]+)`).FindSubmatch(b); m != nil && f.Name() == "go.mod" {
			version = string(m[1])
		}
	}
	minor := regexp.MustCompile(`^v(\d+)\.(\d+)\.`).FindStringSubmatch(version)
	if minor == nil {
		return "", "", fmt.Errorf("reading the Kubernetes version from %q: no requirement of k8s.io/kubernetes there", filepath.Join(src, "go.mod"))
	}
	dir := filepath.Join(cache, fmt.Sprintf("kubernetes-%s-%s-%x", version, runtime.GOARCH, sum.Sum(nil)[:4]))
	binary := filepath.Join(dir, "kube")
	official, err := c.downloadKube(ctx, cache, exists(binary))
	if official != "" || err != nil {
		return version, official, err
	}
	if exists(binary) {
		return version, dir, linkPrograms(dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	if err := checkSpace(ctx, cache); err != nil {
		return "", "", err
	}
	logPath := filepath.Join(dir, "build.log")
	log, err := os.Create(logPath)
	if err != nil {
		return "", "", err
	}
	defer log.Close()
	progress("building Kubernetes %s, once: usually 5 to 7 minutes on two cores, less with more cores (log: %s)", version, logPath)
	progress("  downloading its modules, about 250 MB, unless they are in the module cache")
	total, err := countPackages(ctx, src, log)
	if err != nil {
		return "", "", fmt.Errorf("downloading the modules of %q: %w; see %s", src, err, logPath)
	}
	// Every component reads its own version from these variables; kubectl fails without them.
	const v = "-X k8s.io/component-base/version."
	ldflags := fmt.Sprintf("-ldflags=-s -w %[1]sgitVersion=%[2]s %[1]sgitMajor=%[3]s %[1]sgitMinor=%[4]s %[1]sgitTreeState=clean", v, version, minor[1], minor[2])
	begin := time.Now()
	count := &lineCounter{w: log, every: 20 * time.Second, report: func(n int) {
		progress("  %s: %d of %d packages", time.Since(begin).Round(time.Second), min(n, total), total)
	}}
	if err := goBuild(ctx, src, binary, count, gcflags, ldflags, "."); err != nil {
		return "", "", fmt.Errorf("building %q: %w; see %s", src, err, logPath)
	}
	progress("  built in %s", time.Since(begin).Round(time.Second))
	return version, dir, linkPrograms(dir)
}

// checkSpace refuses to start a build that would end in "no space left on device".
func checkSpace(ctx context.Context, cache string) error {
	out, err := goCommand(ctx, cache, "env", "GOCACHE", "GOMODCACHE").Output()
	if err != nil {
		return fmt.Errorf("asking go for its caches: %w", err)
	}
	dirs := append([]string{cache}, strings.Split(strings.TrimSpace(string(out)), "\n")...)
	needed := map[string]int64{}                 // bytes on each file system, which the first of dirs on it represents
	for i, gigabytes := range []int64{1, 4, 1} { // in the order of dirs: binary and linker files, build cache, modules
		if i < len(dirs) {
			first := slices.IndexFunc(dirs, func(d string) bool { return sameFileSystem(d, dirs[i]) })
			needed[dirs[max(first, 0)]] += gigabytes << 30
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(needed)) {
		if free := freeBytes(existingParent(dir)); free >= 0 && free < needed[dir] {
			return fmt.Errorf("building Kubernetes: %.1f GB free in %q, %d GB needed; free space, set XDG_CACHE_HOME, GOCACHE or GOMODCACHE to another file system, %s",
				float64(free)/(1<<30), dir, needed[dir]>>30, otherCluster)
		}
	}
	return nil
}

// existingParent returns dir if it exists, otherwise its closest parent that exists.
func existingParent(dir string) string {
	for !exists(dir) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
	}
	return dir
}

// sameFileSystem reports whether two directories share the same free space.
func sameFileSystem(a, b string) bool {
	var device [2]any
	for i, dir := range []string{a, b} {
		info, err := os.Stat(existingParent(dir))
		if err != nil {
			return false
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return false
		}
		device[i] = stat.Dev
	}
	return device[0] == device[1]
}

// countPackages downloads the modules of a build and counts its packages.
func countPackages(ctx context.Context, src string, log io.Writer) (int, error) {
	cmd := goCommand(ctx, src, "list", "-deps", ".")
	cmd.Stderr = log
	out, err := cmd.Output()
	return bytes.Count(out, []byte("\n")), err
}

// gcflags disable debug information and inlining, which a cluster of one node does not
// need. This shortens a cold build by a quarter.
const gcflags = "-gcflags=all=-dwarf=false -l"

// lineCounter forwards writes to w and periodically reports the number of lines so far.
type lineCounter struct {
	w      io.Writer
	n      int
	every  time.Duration
	last   time.Time
	report func(lines int)
}

func (c *lineCounter) Write(p []byte) (int, error) {
	c.n += bytes.Count(p, []byte("\n"))
	if c.last.IsZero() {
		c.last = time.Now()
	}
	if time.Since(c.last) > c.every {
		c.last = time.Now()
		c.report(c.n)
	}
	return c.w.Write(p)
}
