package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"time"
)

// provideKube returns the version and the path of the binary made of cluster/kube,
// which it builds unless the cache has it.
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
	if err := checkSpace(cache); err != nil {
		return "", "", err
	}
	logPath := filepath.Join(dir, "build.log")
	log, err := os.Create(logPath)
	if err != nil {
		return "", "", err
	}
	defer log.Close()
	progress("building Kubernetes %s, once: usually 5 to 7 minutes on two cores, less on more (log: %s)", version, logPath)
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
func checkSpace(cache string) error {
	const need = 6 << 30 // modules 1 GB, build cache 3.5 GB, the binary and the files of the linker
	if free := freeBytes(cache); free > 0 && free < need {
		return fmt.Errorf("building Kubernetes in %q: %.1f GB free, %d GB needed; free space, set XDG_CACHE_HOME and GOCACHE elsewhere, %s", cache, float64(free)/(1<<30), need>>30, elsewhere)
	}
	return nil
}

// countPackages downloads the modules of a build and counts its packages.
func countPackages(ctx context.Context, src string, log io.Writer) (int, error) {
	cmd := goCommand(ctx, src, "list", "-deps", ".")
	cmd.Stderr = log
	out, err := cmd.Output()
	return bytes.Count(out, []byte("\n")), err
}

// gcflags shorten a cold build by a quarter: without debug information and without
// inlining, which a cluster of one node does not need.
const gcflags = "-gcflags=all=-dwarf=false -l"

// lineCounter passes what is written to it on to w and reports the number of lines
// periodically.
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
