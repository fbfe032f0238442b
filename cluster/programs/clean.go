package programs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/jiangjiancc/go_micro_k8s/cluster/private"
)

// Use prevents Clean, in every process, while the returned file is open.
func (t Tools) Use() (*os.File, error) { return private.Share(filepath.Join(t.Cache, "in-use")) }

// Clean removes what the checkout root does not need from the cache, such as other versions
// and packages that were renewed. It refuses while a cluster uses the cache.
func Clean(ctx context.Context, root string, progress func(format string, args ...any)) error {
	p := &provider{root: root, progress: progress}
	var err error
	if p.cache, err = cacheDir(); err != nil {
		return err
	}
	lock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	unused, err := private.Lock(filepath.Join(p.cache, "in-use"))
	if errors.Is(err, private.ErrLocked) {
		return fmt.Errorf("cleaning %q: a cluster of this or of another checkout uses it; stop it with `make cluster-down`", p.cache)
	}
	if err != nil {
		return err
	}
	defer unused.Close()
	needed, err := p.needed()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(p.cache)
	if err != nil {
		return err
	}
	var freed int64
	for _, e := range entries {
		path := filepath.Join(p.cache, e.Name())
		if needed(e.Name()) {
			continue
		}
		freed += size(path)
		progress("removing %s", path)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	progress("%.1f GB freed; `rm -r %s` removes the rest, and `go clean -cache` what was compiled for it", float64(freed)/1e9, private.ShellQuote(p.cache))
	return nil
}

// needed returns a function that reports whether the checkout uses a file or directory of the cache.
func (p *provider) needed() (func(name string) bool, error) {
	src := filepath.Join(p.root, "cluster", "kube")
	goMod, err := os.ReadFile(filepath.Join(src, "go.mod"))
	if err != nil {
		return nil, err
	}
	r, err := parseReleases(goMod)
	if err != nil {
		return nil, err
	}
	built, err := p.builtKube(r)
	if err != nil {
		return nil, err
	}
	pause, err := p.pausePath()
	if err != nil {
		return nil, err
	}
	victoria, _, err := p.victoriaDir()
	if err != nil {
		return nil, err
	}
	policy, _, err := p.networkPolicyDir()
	if err != nil {
		return nil, err
	}
	names := []string{"lock", "in-use", filepath.Base(victoria), filepath.Base(policy), filepath.Base(built), filepath.Base(pause), filepath.Base(r.dir("")), filepath.Base(r.dir("")) + verifiedSuffix}
	for _, t := range nodeTools {
		if f, version := t.officialFile(source{}, runtime.GOARCH); version != "" {
			names = append(names, officialDir(f, version))
		}
	}
	newest := map[string]string{}                                              // of the directories of Debian's packages, by the hash of what they are
	debian, _ := filepath.Glob(filepath.Join(escapeGlob(p.cache), "debian-*")) // sorted
	for _, dir := range debian {
		hash := strings.Join(strings.SplitN(filepath.Base(dir), "-", 3)[:2], "-")
		newest[hash] = filepath.Base(dir)
	}
	for _, dir := range newest {
		names = append(names, dir)
	}
	return func(name string) bool {
		if strings.HasPrefix(name, "node-") { // links to tools in the cache, or elsewhere on this machine
			links, _ := filepath.Glob(filepath.Join(escapeGlob(filepath.Join(p.cache, name)), "*"))
			for _, l := range links {
				target, err := os.Readlink(l)
				if inCache, ok := strings.CutPrefix(target, "../"); err != nil || ok && !slices.Contains(names, strings.Split(inCache, "/")[0]) {
					return false
				}
			}
			return len(links) > 0
		}
		return slices.Contains(names, name)
	}, nil
}

// size returns the number of bytes of a file, or of all files in a directory.
func size(path string) (total int64) {
	_ = filepath.WalkDir(path, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				total += info.Size()
			}
		}
		return nil
	})
	return total
}
