package programs

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
)

// victoriaModule contains VictoriaMetrics, and victoriaMetrics is its main package.
const victoriaModule, victoriaMetrics = "github.com/VictoriaMetrics/VictoriaMetrics", victoriaModule + "/app/victoria-metrics"

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
	err = p.buildModule(ctx, moduleBuild{what: "VictoriaMetrics " + version, usually: "1 to 2 minutes on two cores", modules: "20 MB",
		src: filepath.Join(root, "cluster", "victoriametrics"), pkg: victoriaMetrics}, path)
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	return path, err
}

// victoriaDir is the directory of the program in the cache.
func (p *provider) victoriaDir() (dir, version string, err error) {
	if version, err = moduleVersion(filepath.Join(p.root, "cluster", "victoriametrics"), victoriaModule); err != nil {
		return "", "", err
	}
	return filepath.Join(p.cache, "victoriametrics-"+version+"-"+runtime.GOARCH), version, nil
}
