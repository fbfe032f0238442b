package programs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

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

// moduleBuild describes a program that is built from a module of its own.
type moduleBuild struct {
	what, usually, modules string // texts: the program and its version, how long the build takes, the size of the downloads
	src, pkg               string
	flags                  []string
}

// buildModule builds the program path and prints the progress. The log is beside the program.
func (p *provider) buildModule(ctx context.Context, b moduleBuild, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	logPath := filepath.Join(filepath.Dir(path), "build.log")
	log, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer log.Close()
	p.progress("building %s from Go modules, once: usually %s; the log is %s", b.what, b.usually, logPath)
	p.progress("  downloading the modules, about %s, unless they are in the module cache", b.modules)
	build, err := newBuildProgress(ctx, b.src, b.pkg, log, b.flags...)
	if err != nil {
		return fmt.Errorf("downloading the modules of %q: %w; see %s", b.src, err, logPath)
	}
	begin, stop := time.Now(), repeat(5*time.Second, func() { p.progress("  %s", build) })
	err = goBuild(ctx, b.src, path, build, append(b.flags, b.pkg)...)
	stop()
	if err != nil {
		return fmt.Errorf("building %q: %w; see %s", b.src, err, logPath)
	}
	p.progress("  built in %s", time.Since(begin).Round(time.Second))
	return nil
}

// moduleVersion returns the version of a module that the go.mod file in src requires.
func moduleVersion(src, module string) (string, error) {
	path := filepath.Join(src, "go.mod")
	goMod, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	found := regexp.MustCompile(`\s` + regexp.QuoteMeta(module) + ` (v\S+)`).FindSubmatch(goMod)
	if found == nil {
		return "", fmt.Errorf("reading %q: it has no version of %s", path, module)
	}
	return string(found[1]), nil
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
	b = bytes.TrimSpace(b)
	return string(bytes.TrimSpace(b[bytes.LastIndexByte(b, '\n')+1:]))
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
				float64(free)/(1<<30), dir, needed[dir]>>30, OtherCluster)
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

// freeBytes returns the space that the caller may use on dir's file system, or -1 if
// it is unknown.
func freeBytes(dir string) int64 {
	var s syscall.Statfs_t
	if syscall.Statfs(dir, &s) != nil {
		return -1
	}
	return int64(s.Bavail) * int64(s.Bsize)
}
