package programs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"time"
)

// victoriaMetrics is the main package of VictoriaMetrics, and victoriaVersion finds its version in a go.mod file.
const victoriaMetrics = "github.com/VictoriaMetrics/VictoriaMetrics/app/victoria-metrics"

var victoriaVersion = regexp.MustCompile(`github\.com/VictoriaMetrics/VictoriaMetrics (v\S+)`)

// VictoriaMetrics builds the program victoria-metrics from its Go module, unless the cache has it, and returns its path. It has the
// version in cluster/victoriametrics/go.mod of the checkout root. When ctx ends, VictoriaMetrics stops the build and removes
// incomplete files.
func VictoriaMetrics(ctx context.Context, root string, progress func(format string, args ...any)) (path string, err error) {
	p := &provider{root: root, progress: progress}
	if p.cache, err = cacheDir(); err != nil {
		return "", err
	}
	dir, version, err := p.victoriaDir()
	if err != nil {
		return "", err
	}
	lock, err := p.lock(ctx)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	p.removeIncomplete()
	if path = filepath.Join(dir, "victoria-metrics"); exists(path) {
		return path, nil
	}
	if err = p.buildVictoria(ctx, dir, path, version); err != nil && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	return path, err
}

// victoriaDir is the directory of the program in the cache.
func (p *provider) victoriaDir() (dir, version string, err error) {
	goMod, err := os.ReadFile(filepath.Join(p.root, "cluster", "victoriametrics", "go.mod"))
	if err != nil {
		return "", "", err
	}
	found := victoriaVersion.FindSubmatch(goMod)
	if found == nil {
		return "", "", errors.New("reading cluster/victoriametrics/go.mod: it has no version of VictoriaMetrics")
	}
	version = string(found[1])
	return filepath.Join(p.cache, "victoriametrics-"+version+"-"+runtime.GOARCH), version, nil
}

func (p *provider) buildVictoria(ctx context.Context, dir, path, version string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	src, logPath := filepath.Join(p.root, "cluster", "victoriametrics"), filepath.Join(dir, "build.log")
	log, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer log.Close()
	p.progress("building VictoriaMetrics %s from its Go modules, once: usually 1 to 2 minutes on two cores; the log is %s", version, logPath)
	p.progress("  downloading its modules, about 20 MB, unless they are in the module cache")
	build, err := newBuildProgress(ctx, src, victoriaMetrics, log)
	if err != nil {
		return fmt.Errorf("downloading the modules of %q: %w; see %s", src, err, logPath)
	}
	begin, stop := time.Now(), repeat(5*time.Second, func() { p.progress("  %s", build) })
	err = goBuild(ctx, src, path, build, victoriaMetrics)
	stop()
	if err != nil {
		return fmt.Errorf("building %q: %w; see %s", src, err, logPath)
	}
	p.progress("  built in %s", time.Since(begin).Round(time.Second))
	return nil
}
