package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tools are the programs a cluster is made of.
type tools struct {
	Version string // of Kubernetes, such as v1.37.2
	Kube    string // the binary made of cluster/kube
	Pause   string // the program that holds a pod's namespaces
	Bin     string // directory: containerd, its shim, runc and nft, wherever they came from
	CNI     string // directory: ptp, host-local and loopback
}

// elsewhere is the way out of everything this machine cannot do.
const elsewhere = "or use any cluster you have (kind, minikube, a cloud) with `make push` and `make deploy`"

// nodeTool is a program the node needs from elsewhere.
type nodeTool struct {
	name   string
	min    string   // oldest version that works, "" when any does
	deb    string   // the Debian package
	dirs   []string // where it may stand beside PATH
	module string   // the Go package that makes it, "" when it is not Go
	flags  []string // for go install
	cgo    bool
}

const containerd, cniPlugins = "github.com/containerd/containerd/v2@v2.4.2", "github.com/containernetworking/plugins@v1.9.1"

var (
	sbin      = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} // an ordinary user may not have them in PATH
	cniDirs   = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}
	nodeTools = []nodeTool{
		{name: "containerd", min: "1.6", deb: "containerd", module: within(containerd, "cmd/containerd"), flags: []string{"-tags=no_btrfs,no_devmapper,no_zfs,no_tracing"}},
		{name: "containerd-shim-runc-v2", deb: "containerd", module: within(containerd, "cmd/containerd-shim-runc-v2")},
		{name: "runc", min: "1.1", deb: "runc", dirs: sbin, module: "github.com/opencontainers/runc@v1.5.2", cgo: true},
		{name: "nft", min: "1.0.1", deb: "nftables", dirs: sbin},
		{name: "ptp", deb: "containernetworking-plugins", dirs: cniDirs, module: within(cniPlugins, "plugins/main/ptp")},
		{name: "loopback", deb: "containernetworking-plugins", dirs: cniDirs, module: within(cniPlugins, "plugins/main/loopback")},
		{name: "host-local", deb: "containernetworking-plugins", dirs: cniDirs, module: within(cniPlugins, "plugins/ipam/host-local")},
	}
)

// within names a package inside a module: module@version, dir -> module/dir@version.
func within(module, dir string) string {
	path, version, _ := strings.Cut(module, "@")
	return path + "/" + dir + "@" + version
}

// provide finds, fetches or builds everything a cluster needs and says what it does.
func (c *cluster) provide(controlPlane bool) (t tools, err error) {
	cache, err := cacheDir()
	if err != nil {
		return t, err
	}
	// One at a time: what another process is building now need not be built twice.
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return t, err
	}
	defer lock.Close()
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		say("waiting for another process that is building what is missing in %s", cache)
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
			return t, fmt.Errorf("locking %q: %w", lock.Name(), err)
		}
	}
	fetched := make(chan error, 1)
	if controlPlane {
		fetched <- nil
	} else {
		go func() { // mostly network: beside the build, which is mostly processor
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
			err = goBuild(filepath.Join(c.root, "cluster"), t.Pause, "", io.Discard, "./pause")
		}
	}
	return t, err
}

func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the user's cache directory: %w; set HOME or XDG_CACHE_HOME", err)
	}
	dir := filepath.Join(base, "k8s-micro")
	return dir, os.MkdirAll(dir, 0o755)
}

// provideKube builds cluster/kube unless the cache has it.
func (c *cluster) provideKube(cache string) (version, binary string, err error) {
	src := filepath.Join(c.root, "cluster", "kube")
	sum := sha256.New()
	fmt.Fprintln(sum, gcflags)
	files, _ := filepath.Glob(filepath.Join(src, "*"))
	slices.Sort(files)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", "", err
		}
		fmt.Fprintf(sum, "%s %d\n%s", filepath.Base(f), len(b), b)
		if m := regexp.MustCompile(`k8s\.io/kubernetes (v[0-9.]+)`).FindSubmatch(b); m != nil && filepath.Base(f) == "go.mod" {
			version = string(m[1])
		}
	}
	minor := regexp.MustCompile(`^v(\d+)\.(\d+)\.`).FindStringSubmatch(version)
	if minor == nil {
		return "", "", fmt.Errorf("reading the Kubernetes version from %q: no requirement of k8s.io/kubernetes there", filepath.Join(src, "go.mod"))
	}
	dir := filepath.Join(cache, fmt.Sprintf("kubernetes-%s-%s-%x", version, runtime.GOARCH, sum.Sum(nil)[:4]))
	binary = filepath.Join(dir, "kube")
	if exists(binary) {
		return version, binary, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	if err := room(cache); err != nil {
		return "", "", err
	}
	logPath := filepath.Join(dir, "build.log")
	log, err := os.Create(logPath)
	if err != nil {
		return "", "", err
	}
	defer log.Close()
	say("building Kubernetes %s, once: usually 5 to 7 minutes on two cores, less with more (log: %s)", version, logPath)
	say("  first its modules: about 250 MB to download when they are not here")
	total, err := packages(src, log)
	if err != nil {
		return "", "", fmt.Errorf("downloading the modules of %q: %w; see %s", src, err, logPath)
	}
	// The components read their own version from these; without them kubectl cannot parse it.
	const v = "-X k8s.io/component-base/version."
	stamp := fmt.Sprintf("%[1]sgitVersion=%[2]s %[1]sgitMajor=%[3]s %[1]sgitMinor=%[4]s %[1]sgitTreeState=clean", v, version, minor[1], minor[2])
	begin := time.Now()
	count := &counter{w: log, every: 20 * time.Second, report: func(n int) {
		say("  %s: %d of %d packages", time.Since(begin).Round(time.Second), min(n, total), total)
	}}
	if err := goBuild(src, binary, stamp, count, "."); err != nil {
		return "", "", fmt.Errorf("building %q: %w; see %s", src, err, logPath)
	}
	say("  built in %s", time.Since(begin).Round(time.Second))
	return version, binary, nil
}

// room refuses to start a build that would end in "no space left on device".
func room(cache string) error {
	const need = 6 << 30 // modules 1 GB, build cache 3.5 GB, the binary and its linking
	if free := freeBytes(cache); free > 0 && free < need {
		return fmt.Errorf("building Kubernetes in %q: %.1f GB free, %d GB needed; make room, set XDG_CACHE_HOME and GOCACHE elsewhere, %s", cache, float64(free)/(1<<30), need>>30, elsewhere)
	}
	return nil
}

// packages downloads the modules a build needs and counts what it will compile.
func packages(src string, log io.Writer) (int, error) {
	cmd := goCommand(src, "list", "-deps", ".")
	cmd.Stderr = log
	out, err := cmd.Output()
	return bytes.Count(out, []byte("\n")), err
}

// gcflags make a cold build a quarter cheaper: nobody debugs these binaries, and
// a small cluster does not miss inlining.
const gcflags = "-gcflags=all=-dwarf=false -l"

// goBuild makes a static, stripped binary; it appears at out only when whole.
func goBuild(dir, out, ldflags string, log io.Writer, pkg string) error {
	part := fmt.Sprintf("%s.part-%d", out, os.Getpid())
	defer os.Remove(part)
	cmd := goCommand(dir, "build", "-v", "-trimpath", "-buildvcs=false", gcflags, "-ldflags=-s -w "+ldflags, "-o", part, pkg)
	var tail bytes.Buffer
	cmd.Stdout, cmd.Stderr = log, io.MultiWriter(log, &tail)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, lastLine(tail.Bytes()))
	}
	return os.Rename(part, out)
}

// goCommand is the go command, apart from what the user has set for his own work.
func goCommand(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	// The compiler collects garbage less often and is done a tenth sooner.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GOGC=400", "GOOS=", "GOARCH=")
	return cmd
}

// counter counts the lines that pass and reports now and then.
type counter struct {
	w      io.Writer
	n      int
	every  time.Duration
	last   time.Time
	report func(lines int)
}

func (c *counter) Write(p []byte) (int, error) {
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

// provideNodeTools links every node tool into one directory and returns it with
// that of the CNI plugins. It takes what PATH has in a version that works, then
// what an earlier run made, then Debian's packages, then Go modules.
func provideNodeTools(cache string) (bin, cni string, err error) {
	found := map[string]string{}
	missing := func() (m []nodeTool) {
		for _, t := range nodeTools {
			if found[t.name] == "" {
				m = append(m, t)
			}
		}
		return m
	}
	for _, t := range nodeTools {
		found[t.name] = t.lookup()
	}
	var why []string
	for _, source := range []func(string, []nodeTool) (map[string]string, error){fromDebian, fromGo} {
		m := missing()
		if len(m) == 0 {
			break
		}
		got, err := source(cache, m)
		if err != nil {
			why = append(why, err.Error())
		}
		for name, path := range got {
			found[name] = path
		}
	}
	if m := missing(); len(m) > 0 {
		var names []string
		for _, t := range m {
			names = append(names, t.deb)
		}
		slices.Sort(names)
		return "", "", fmt.Errorf("providing the node's tools: %s; install the packages %s (Debian's names), %s",
			strings.Join(why, "; "), strings.Join(slices.Compact(names), " "), elsewhere)
	}
	// The links name this set of tools, so that two versions of it do not mix.
	sum := sha256.New()
	for _, t := range nodeTools {
		fmt.Fprintln(sum, t.name, found[t.name])
	}
	bin = filepath.Join(cache, fmt.Sprintf("node-%x", sum.Sum(nil)[:4]))
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", "", err
	}
	for _, t := range nodeTools {
		if err := os.Symlink(found[t.name], filepath.Join(bin, t.name)); err != nil && !errors.Is(err, os.ErrExist) {
			return "", "", err
		}
	}
	return bin, bin, nil
}

// lookup finds the tool on this machine in a version that works.
func (t nodeTool) lookup() string {
	path, err := exec.LookPath(t.name)
	for _, d := range t.dirs {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(d, t.name))
		}
	}
	if err != nil || t.min == "" {
		return path
	}
	out, _ := exec.Command(path, "--version").Output()
	if v := regexp.MustCompile(`\d+\.\d+(\.\d+)?`).FindString(string(out)); !older(v, t.min) {
		return path
	}
	return ""
}

// older compares dotted numbers; no version at all is older than any.
func older(v, min string) bool {
	a, b := strings.Split(v, "."), strings.Split(min, ".")
	for i := range b {
		if i == len(a) {
			return false
		}
		x, err := strconv.Atoi(a[i])
		y, _ := strconv.Atoi(b[i])
		if err != nil || x != y {
			return err != nil || x < y
		}
	}
	return false
}

// fromDebian downloads packages and what they depend on with the system's own
// apt, as any user and without touching the system: lists, downloads and
// unpacked files all stand in the cache.
func fromDebian(cache string, want []nodeTool) (map[string]string, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, errors.New("no apt-get here to fetch Debian packages")
	}
	var debs []string
	for _, t := range want {
		debs = append(debs, t.deb)
	}
	slices.Sort(debs)
	debs = slices.Compact(debs)
	release, _ := os.ReadFile("/etc/os-release")
	sum := sha256.Sum256(append(release, strings.Join(debs, " ")...))
	dir := filepath.Join(cache, fmt.Sprintf("debian-%x", sum[:4]))
	if !exists(dir) {
		say("fetching %s from Debian: usually under 30 seconds", strings.Join(debs, ", "))
		part := fmt.Sprintf("%s.part-%d", dir, os.Getpid())
		defer os.RemoveAll(part)
		if err := unpackDebs(part, debs); err != nil {
			return nil, fmt.Errorf("fetching Debian packages: %w", err)
		}
		if err := os.Rename(part, dir); err != nil && !exists(dir) {
			return nil, err
		}
	}
	got := map[string]string{}
	for _, t := range want {
		for _, d := range append([]string{"/usr/bin", "/usr/sbin"}, t.dirs...) {
			if path := filepath.Join(dir, "root", d, t.name); exists(path) {
				got[t.name] = filepath.Join(dir, "bin", t.name)
				if err := wrap(got[t.name], path, dir); err != nil {
					return nil, err
				}
			}
		}
	}
	return got, nil
}

func unpackDebs(dir string, debs []string) error {
	apt := func(args ...string) error {
		args = append([]string{"-qq", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=",
			"-o", "Dir::State::lists=" + filepath.Join(dir, "lists"), "-o", "Dir::Cache=" + filepath.Join(dir, "cache")}, args...)
		cmd := exec.Command("apt-get", args...)
		cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", args[len(args)-1], err, lastLine(out))
		}
		return nil
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "root", "bin"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := apt("update"); err != nil {
		return err
	}
	// install resolves dependencies against what the system has; --download-only keeps it from installing.
	if err := apt(append([]string{"install", "-y", "--no-install-recommends", "--download-only"}, debs...)...); err != nil {
		return err
	}
	files, _ := filepath.Glob(filepath.Join(dir, "cache", "archives", "*.deb"))
	for _, f := range files {
		if out, err := exec.Command("dpkg-deb", "-x", f, filepath.Join(dir, "root")).CombinedOutput(); err != nil {
			return fmt.Errorf("unpacking %q: %w: %s", filepath.Base(f), err, lastLine(out))
		}
	}
	return errors.Join(os.RemoveAll(filepath.Join(dir, "lists")), os.RemoveAll(filepath.Join(dir, "cache")))
}

// wrap writes a script that runs an unpacked program with its unpacked libraries.
func wrap(script, path, dir string) error {
	libs, _ := filepath.Glob(filepath.Join(dir, "root", "usr/lib/*-linux-gnu*"))
	libs = append(libs, filepath.Join(dir, "root", "usr/lib"))
	text := fmt.Sprintf("#!/bin/sh\nLD_LIBRARY_PATH='%s' exec '%s' \"$@\"\n", strings.Join(libs, ":"), path)
	return os.WriteFile(script, []byte(text), 0o755)
}

// fromGo builds tools from their modules at the versions named above.
func fromGo(cache string, want []nodeTool) (map[string]string, error) {
	bin := filepath.Join(cache, "go-"+runtime.GOARCH)
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	for _, t := range want { // before minutes of building what would be of no use
		if t.module == "" {
			return nil, fmt.Errorf("%s is not on this machine", t.name)
		}
	}
	got := map[string]string{}
	var errs []error
	for _, t := range want {
		_, version, _ := strings.Cut(t.module, "@")
		path := filepath.Join(bin, t.name+"-"+version)
		if !exists(path) {
			say("building %s %s: usually under 2 minutes", t.name, version)
			args := append([]string{"install", "-trimpath", "-ldflags=-s -w"}, t.flags...)
			cmd := goCommand(bin, append(args, t.module)...)
			cmd.Env = append(cmd.Env, "GOBIN="+bin)
			if t.cgo {
				cmd.Env = append(cmd.Env, "CGO_ENABLED=1")
			}
			out, err := cmd.CombinedOutput()
			if err == nil {
				err = os.Rename(filepath.Join(bin, t.name), path)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("building %s: %w: %s", t.name, err, lastLine(out)))
				continue
			}
		}
		got[t.name] = path
	}
	return got, errors.Join(errs...)
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

func lastLine(b []byte) string {
	var last string
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if l := strings.TrimSpace(s.Text()); l != "" {
			last = l
		}
	}
	return last
}
