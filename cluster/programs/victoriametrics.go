package programs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
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
	err = p.buildModule(ctx, moduleBuild{what: "VictoriaMetrics " + version, usually: "1 to 2 minutes on two cores", modules: "20 MB",
		src: filepath.Join(root, "cluster", "victoriametrics"), pkg: victoriaMetrics}, path)
	if err != nil && ctx.Err() != nil {
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
