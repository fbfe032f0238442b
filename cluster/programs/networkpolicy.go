package programs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
)

var kubeRouterVersion = regexp.MustCompile(`github\.com/cloudnativelabs/kube-router/v2 (v\S+)`)

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
	goMod, err := os.ReadFile(filepath.Join(src, "go.mod"))
	if err != nil {
		return "", "", err
	}
	found := kubeRouterVersion.FindSubmatch(goMod)
	if found == nil {
		return "", "", errors.New("reading cluster/networkpolicy/go.mod: it has no version of kube-router")
	}
	sum, err := sourceHash(src)
	return filepath.Join(p.cache, fmt.Sprintf("networkpolicy-%s-%s-%x", found[1], runtime.GOARCH, sum[:min(4, len(sum))])), string(found[1]), err
}
