package programs

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
)

// networkPolicy returns the path of the program of cluster/networkpolicy, which it builds unless the cache has it. The packages of
// client-go have the versions and the flags of cluster/kube, so that a Kubernetes that was built has compiled them.
func (p *provider) networkPolicy(ctx context.Context) (path string, err error) {
	dir, version, err := p.networkPolicyDir()
	if err != nil {
		return "", err
	}
	if path = filepath.Join(dir, "networkpolicy"); exists(path) {
		return path, nil
	}
	return path, p.buildModule(ctx, moduleBuild{
		what: "the network policies of kube-router " + version, usually: "1 to 2 minutes on two cores, seconds where Kubernetes was built, too", modules: "20 MB",
		src: filepath.Join(p.root, "cluster", "networkpolicy"), pkg: ".", flags: []string{gcflags},
	}, path)
}

// networkPolicyDir is the directory of the program in the cache.
func (p *provider) networkPolicyDir() (dir, version string, err error) {
	src := filepath.Join(p.root, "cluster", "networkpolicy")
	if version, err = moduleVersion(src, "github.com/cloudnativelabs/kube-router/v2"); err != nil {
		return "", "", err
	}
	sum, err := sourceHash(src)
	if err != nil {
		return "", "", err
	}
	return filepath.Join(p.cache, fmt.Sprintf("networkpolicy-%s-%s-%x", version, runtime.GOARCH, sum[:4])), version, nil
}
