package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// tools are the programs of a cluster.
type tools struct {
	Version string // of Kubernetes, such as v1.37.2
	Kube    string // the binary made of cluster/kube
	Pause   string // the program that holds a pod's namespaces
	Bin     string // directory with containerd, its shim, runc and nft
	CNI     string // directory with ptp, host-local and loopback
}

// elsewhere is the remedy for everything that this machine cannot do.
const elsewhere = "or use any cluster you have (kind, minikube, a cloud) with `make push` and `make deploy`"

// provide finds, downloads or builds the programs of a cluster and prints progress.
func (c *cluster) provide(controlPlane bool) (t tools, err error) {
	cache, err := cacheDir()
	if err != nil {
		return t, err
	}
	// One process at a time, so that nothing is built twice.
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return t, err
	}
	defer lock.Close()
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		progress("waiting for another process that is building in %s", cache)
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
			return t, fmt.Errorf("locking %q: %w", lock.Name(), err)
		}
	}
	fetched := make(chan error, 1)
	if controlPlane {
		fetched <- nil
	} else {
		go func() { // waits mostly for the network, the build mostly for the processor
			var err error
			t.Bin, t.CNI, err = provideNodeTools(cache)
			fetched <- err
		}()
	}
	version, kube, err := c.provideKube(cache)
	if err = errors.Join(err, <-fetched); err != nil {
		return t, err
	}
	t.Version, t.Kube = version, kube
	if !controlPlane {
		t.Pause = filepath.Join(cache, "pause-"+runtime.GOARCH)
		if !exists(t.Pause) {
			err = goBuild(filepath.Join(c.root, "cluster"), t.Pause, io.Discard, "./pause")
		}
	}
	return t, err
}

// cacheDir makes the directory that holds what was built and downloaded.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the user's cache directory: %w; set HOME or XDG_CACHE_HOME", err)
	}
	dir := filepath.Join(base, "k8s-micro")
	return dir, os.MkdirAll(dir, 0o755)
}

// goBuild builds a static program without debug information. The file out appears
// only when it is complete. args are further build flags and the package.
func goBuild(dir, out string, log io.Writer, args ...string) error {
	part := fmt.Sprintf("%s.part-%d", out, os.Getpid())
	defer os.Remove(part)
	cmd := goCommand(dir, append([]string{"build", "-v", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", part}, args...)...)
	var tail bytes.Buffer
	cmd.Stdout, cmd.Stderr = log, io.MultiWriter(log, &tail)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, lastLine(tail.Bytes()))
	}
	return os.Rename(part, out)
}

// goCommand is a go command whose result does not depend on the user's settings.
func goCommand(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	// With GOGC=400 the compiler collects garbage less often and takes a tenth less time.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GOGC=400", "GOOS=", "GOARCH=")
	return cmd
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// lastLine returns the last line that is not blank.
func lastLine(b []byte) string {
	var last string
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if l := strings.TrimSpace(s.Text()); l != "" {
			last = l
		}
	}
	return last
}
