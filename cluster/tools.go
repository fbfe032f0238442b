package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// tools are the paths of the programs that a cluster runs.
type tools struct {
	Version string // of Kubernetes, such as v1.37.2
	Cache   string // directory that contains all of the following
	Kube    string // directory that contains etcd, the components of Kubernetes, CoreDNS and kubectl
	Pause   string // the program that holds a pod's namespaces
	Bin     string // directory with containerd, its shim, runc and nft
	CNI     string // directory with ptp, host-local and loopback
}

// relocated returns the paths of the tools when the cache is mounted at another path.
func (t tools) relocated(cache string) tools {
	for _, path := range []*string{&t.Kube, &t.Pause, &t.Bin, &t.CNI} {
		*path = filepath.Join(cache, strings.TrimPrefix(*path, t.Cache))
	}
	t.Cache = cache
	return t
}

// otherCluster is the remedy in every error about something that this machine cannot do.
const otherCluster = "or use any cluster you have (kind, minikube, a cloud) with `make push` and `make deploy`"

// provide finds, downloads or builds the programs of a cluster and prints progress.
// When ctx ends, provide stops its processes and removes incomplete files.
func (c *cluster) provide(ctx context.Context, controlPlane bool) (t tools, err error) {
	cache, err := cacheDir()
	if err != nil {
		return t, err
	}
	if _, err := sourceFromEnvironment(); err != nil {
		return t, err
	}
	t.Cache = cache
	// Only one process at a time builds, so that nothing is built twice.
	lock, err := openLock(filepath.Join(cache, "lock"))
	if err != nil {
		return t, err
	}
	defer lock.Close()
	if err := lockCache(ctx, lock); err != nil {
		return t, err
	}
	removeIncomplete(cache)
	ctx, cancel := context.WithCancelCause(ctx) // the first error stops the other goroutine
	defer cancel(nil)
	fetched := make(chan error, 1)
	if controlPlane {
		fetched <- nil
	} else {
		go func() { // in parallel: this waits mostly for the network, and the build mostly for the processor
			var err error
			if t.Bin, t.CNI, err = provideNodeTools(ctx, cache); err != nil {
				cancel(err)
			}
			fetched <- err
		}()
	}
	version, kube, err := c.provideKube(ctx, cache)
	if err != nil {
		cancel(err)
	}
	if err = errors.Join(err, <-fetched); err != nil {
		if err = context.Cause(ctx); errors.Is(err, context.Canceled) { // a signal ended ctx
			err = errors.New("interrupted")
		}
		return t, err
	}
	t.Version, t.Kube = version, kube
	if !controlPlane {
		t.Pause = filepath.Join(cache, fmt.Sprintf("pause-%s-%.8x", runtime.GOARCH, sha256.Sum256(pauseSource)))
		if !exists(t.Pause) {
			if err = goBuild(ctx, filepath.Join(c.root, "cluster"), t.Pause, io.Discard, "./pause"); err != nil {
				err = fmt.Errorf("building the pause program: %w", err)
			}
		}
	}
	return t, err
}

// lockCache waits until it gets the lock or ctx ends.
func lockCache(ctx context.Context, lock *os.File) error {
	for waiting := false; ; {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("locking %q: %w", lock.Name(), err)
		}
		if !waiting {
			progress("waiting for another process that is building in %s", filepath.Dir(lock.Name()))
			waiting = true
		}
		select {
		case <-ctx.Done():
			return errors.New("interrupted")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// removeIncomplete removes the incomplete files of processes that were killed while they
// built or downloaded. The caller holds the cache's lock, so no other process is
// building or downloading.
func removeIncomplete(cache string) {
	for _, pattern := range []string{"*.part-*", "*/*.part-*"} {
		files, _ := filepath.Glob(filepath.Join(escapeGlob(cache), pattern))
		for _, f := range files {
			_ = os.RemoveAll(f)
		}
	}
}

// cacheDir creates the directory for built and downloaded programs, and returns its path.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the user's cache directory: %w; set HOME or XDG_CACHE_HOME", err)
	}
	dir := filepath.Join(base, "k8s-micro")
	if err := makePrivate(dir); err != nil {
		return "", fmt.Errorf("making the cache: %w; set XDG_CACHE_HOME to a directory that you own", err)
	}
	return dir, nil
}

// goBuild builds a static program without debug information. The file out appears
// only when it is complete. args are further build flags and the package.
func goBuild(ctx context.Context, dir, out string, log io.Writer, args ...string) error {
	part := fmt.Sprintf("%s.part-%d", out, os.Getpid())
	defer os.Remove(part)
	tmp := workDir(out)
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	cmd := goCommand(ctx, dir, append([]string{"build", "-v", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", part}, args...)...)
	cmd.Env = append(cmd.Env, "GOTMPDIR="+tmp)
	var tail bytes.Buffer
	cmd.Stdout, cmd.Stderr = log, io.MultiWriter(log, &tail)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, lastLine(tail.Bytes()))
	}
	return os.Rename(part, out)
}

// workDir is the directory in which goBuild(…, out, …) keeps its temporary files. It is in
// the file system of the result, because /tmp may be too small.
func workDir(out string) string { return fmt.Sprintf("%s.part-%d.tmp", out, os.Getpid()) }

// goCommand returns a go command whose result does not depend on the user's settings.
func goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := interruptible(ctx, "go", args...)
	cmd.Dir = dir
	// With GOGC=400 the compiler collects garbage less often and takes a tenth less time.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GOGC=400", "GOOS=", "GOARCH=")
	return cmd
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// interruptible returns a command that receives SIGINT when ctx ends, and SIGKILL 5
// seconds later.
func interruptible(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

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
