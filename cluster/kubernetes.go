package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
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
	var goMod []byte
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
		if f.Name() == "go.mod" {
			goMod = b
		}
	}
	r, err := releasesOf(goMod)
	if err != nil {
		return "", "", err
	}
	version = r.kubernetes
	dir := filepath.Join(cache, fmt.Sprintf("kubernetes-%s-%s-%x", version, runtime.GOARCH, sum.Sum(nil)[:4]))
	binary := filepath.Join(dir, "kube")
	built := exists(binary)
	official, why, err := downloadKube(ctx, cache, r, built)
	if official != "" || err != nil {
		return version, official, err
	}
	if built {
		return version, dir, linkPrograms(dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	goCache, err := checkSpace(ctx, cache)
	if err != nil {
		return "", "", err
	}
	logPath := filepath.Join(dir, "build.log")
	log, err := os.Create(logPath)
	if err != nil {
		return "", "", err
	}
	defer log.Close()
	progress("building Kubernetes %s from its Go modules, once, because %s", version, why)
	progress("  usually 4 to 12 minutes on two cores, less with more; the log is %s", logPath)
	progress("  downloading its modules, about 250 MB, unless they are in the module cache")
	// Every component reads its own version from these variables; kubectl fails without them.
	const v = "-X k8s.io/component-base/version."
	number := strings.Split(version[1:], ".")
	ldflags := fmt.Sprintf("-ldflags=-s -w %[1]sgitVersion=%[2]s %[1]sgitMajor=%[3]s %[1]sgitMinor=%[4]s %[1]sgitTreeState=clean", v, version, number[0], number[1])
	build, err := newBuildProgress(ctx, src, log, gcflags, ldflags)
	if err != nil {
		return "", "", fmt.Errorf("downloading the modules of %q: %w; see %s", src, err, logPath)
	}
	begin := time.Now()
	stopReports := repeat(20*time.Second, func() { progress("  %s", build) })
	stopSharing := repeat(3*time.Second, func() { shareWithCache(workDir(binary), goCache) })
	err = goBuild(ctx, src, binary, build, gcflags, ldflags, ".")
	stopReports()
	stopSharing()
	if err != nil {
		return "", "", fmt.Errorf("building %q: %w; see %s", src, err, logPath)
	}
	progress("  built in %s", time.Since(begin).Round(time.Second))
	return version, dir, linkPrograms(dir)
}

// checkSpace refuses to start a build that would end in "no space left on device". It
// returns the directory of go's build cache.
func checkSpace(ctx context.Context, cache string) (goCache string, err error) {
	out, err := goCommand(ctx, cache, "env", "GOCACHE", "GOMODCACHE").Output()
	if err != nil {
		return "", fmt.Errorf("asking go for its caches: %w", err)
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
			return "", fmt.Errorf("building Kubernetes: %.1f GB free in %q, %d GB needed; free space, set XDG_CACHE_HOME, GOCACHE or GOMODCACHE to another file system, %s",
				float64(free)/(1<<30), dir, needed[dir]>>30, otherCluster)
		}
	}
	return dirs[min(1, len(dirs)-1)], nil
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

// gcflags disable debug information and inlining, which a cluster of one node does not
// need. This shortens a cold build by a quarter.
const gcflags = "-gcflags=all=-dwarf=false -l"
