package programs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// recordedBuild is the weight of the packages that go had begun to compile 10, 20, 30, …
// seconds after the first one, as a part of the total, in a build of Kubernetes 1.37.2 with
// an empty build cache: 2971 packages in 260 s on two cores.
var recordedBuild = []float64{0.036, 0.074, 0.109, 0.149, 0.198, 0.240, 0.264, 0.296, 0.342, 0.379, 0.429, 0.454, 0.498, 0.540,
	0.565, 0.599, 0.676, 0.757, 0.786, 0.818, 0.830, 0.850, 0.879, 0.918, 0.952}

// In the recorded build, and on a machine that is four times slower, the estimated time left
// is right to within a third.
func TestTimeLeft(t *testing.T) {
	for _, slower := range []time.Duration{1, 4} {
		end := slower * 260 * time.Second
		for i, part := range recordedBuild {
			elapsed := slower * time.Duration(i+1) * 10 * time.Second
			left, ok := timeLeft(int64(part*1e6), 1e6, elapsed)
			if real := end - elapsed; !ok || left < real*2/3-5*time.Second || left > real*4/3+5*time.Second {
				t.Errorf("after %s the estimate is %s, want %s", elapsed, left, real)
			}
		}
	}
	if left, ok := timeLeft(0, 1e6, time.Minute); ok {
		t.Errorf("without a compiled package the estimate is %s", left)
	}
}

// writeModule writes a main package that imports a package b, which imports a package a.
// Its source is new, so that go compiles it even if the test has run before.
func writeModule(t *testing.T) (dir, output string) {
	t.Helper()
	dir, output = t.TempDir(), fmt.Sprint(time.Now().UnixNano())
	for name, text := range map[string]string{
		"go.mod":  "module example\ngo 1.26\n",
		"a/a.go":  "package a\n\nfunc A() string { return \"" + output + "\" }\n",
		"b/b.go":  "package b\n\nimport \"example/a\"\n\nfunc B() string { return a.A() }\n",
		"main.go": "package main\n\nimport \"example/b\"\n\nfunc main() { print(b.B()) }\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir, output
}

// The progress counts only packages that go compiles, and it ends at the linker's share.
func TestBuildProgress(t *testing.T) {
	dir, _ := writeModule(t)
	// runtime and the packages below it are in the build cache, because this test binary contains them.
	if err := goBuild(t.Context(), dir, filepath.Join(dir, "program"), io.Discard, "."); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b/more.go"), []byte("package b\n\nconst C = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	p, err := newBuildProgress(t.Context(), dir, ".", &log)
	if err != nil {
		t.Fatalf("%v: %s", err, log.String())
	}
	if want := "0 %, 0 of 2 packages"; p.String() != want {
		t.Errorf("before the build the progress is %q, want %q", p, want)
	}
	if err := goBuild(t.Context(), dir, filepath.Join(dir, "program"), p, "."); err != nil {
		t.Fatalf("%v: %s", err, log.String())
	}
	if want := ", 2 of 2 packages, linking"; !strings.Contains(p.String(), want) { // after 10 s the time left follows
		t.Errorf("after the build the progress is %q, want …%q…", p, want)
	}

	whole := &buildProgress{log: io.Discard, weights: map[string]int64{"a": 60, "b": 35}, total: 100}
	for _, c := range []struct{ output, want string }{
		{"a", "0 %, 0 of 2 packages"},
		{"\nsomething else\n", "60 %, 1 of 2 packages"},
		{"b\n", "95 %, 2 of 2 packages, linking"},
	} {
		if _, err := whole.Write([]byte(c.output)); err != nil || whole.String() != c.want {
			t.Errorf("after %q the progress is %q, want %q; %v", c.output, whole, c.want, err)
		}
	}
	whole.first = time.Now().Add(-95 * time.Second)
	if want := "95 %, 2 of 2 packages, linking, about 5s left"; whole.String() != want {
		t.Errorf("the progress is %q, want %q", whole, want)
	}
}

// While go builds, its work directory contains links to the build cache instead of copies,
// and the program is the same.
func TestShareWithCache(t *testing.T) {
	dir, output := writeModule(t)
	tmp, waiting := filepath.Join(dir, "tmp"), filepath.Join(dir, "waiting")
	// The compiler of package b waits until the test has seen the links.
	compiler := filepath.Join(dir, "compiler")
	script := "#!/bin/sh\ncase \"$*\" in *-V=full*) ;; *'-p example/b '*) : >'" + waiting + "'; while [ -e '" + waiting + "' ]; do sleep 0.1; done ;; esac\nexec \"$@\"\n"
	if err := os.WriteFile(compiler, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	goCache, err := goCommand(t.Context(), dir, "env", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	cmd := goCommand(t.Context(), dir, "build", "-trimpath", "-toolexec="+compiler, "-o", "program", ".")
	cmd.Env = append(cmd.Env, "GOTMPDIR="+tmp)
	built := make(chan error, 1)
	go func() {
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		built <- err
	}()
	eventually(t, time.Minute, "the compiler of package b", func() bool { return exists(waiting) })
	links := func() (n int) {
		files, _ := filepath.Glob(filepath.Join(tmp, "go-build*", "b*", "_pkg_.a"))
		for _, f := range files {
			if info, err := os.Lstat(f); err == nil && info.Mode()&os.ModeSymlink != 0 {
				n++
			}
		}
		return n
	}
	eventually(t, time.Minute, "a link to the build cache", func() bool {
		shareWithCache(tmp, strings.TrimSpace(string(goCache)))
		return links() == 1
	})
	if err := os.Remove(waiting); err != nil {
		t.Fatal(err)
	}
	if err := <-built; err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(dir, "program")).CombinedOutput(); err != nil || string(out) != output {
		t.Errorf("the program prints %q, %v, want %q", out, err, output)
	}
}
