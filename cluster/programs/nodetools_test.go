package programs

import (
	"bytes"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestOlder(t *testing.T) {
	for _, c := range []struct {
		v, min string
		want   bool
	}{{"1.6.20", "1.6", false}, {"1.5.9", "1.6", true}, {"2.0", "1.6", false}, {"", "1.1", true}, {"1.0.1", "1.0.1", false}, {"5.4.0", "5.13", true}, {"1", "1.1", false}} {
		if got := older(c.v, c.min); got != c.want {
			t.Errorf("older(%q, %q) = %v", c.v, c.min, got)
		}
	}
}

// The script that writeWrapper writes finds the program and its libraries in any path, and
// also when it runs through a link.
func TestWrapper(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's [a] cache:*", `$x "y"`)
	for name, text := range map[string]string{"root/usr/sbin/tool": "#!/bin/sh\nprintf '%s|' \"$LD_LIBRARY_PATH\" \"$@\"\n", "root/usr/lib/x86_64-linux-gnu/lib.so": "", "bin/x": ""} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeWrapper(dir, "tool", "/usr/sbin/tool"); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "tool")
	if err := os.Symlink(filepath.Join(dir, "bin/tool"), link); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root")
	for _, program := range []string{filepath.Join(dir, "bin/tool"), link} {
		out, err := exec.Command(program, "a b", "'").CombinedOutput()
		if want := root + "/usr/lib/x86_64-linux-gnu:" + root + "/usr/lib|a b|'|"; err != nil || string(out) != want {
			t.Errorf("%v: %q, want %q", err, out, want)
		}
	}
}

// An unpacked iptables finds its extensions. The other programs of the directory, which run for as long as the cluster, get no variable for it.
func TestWrapperOfIptables(t *testing.T) {
	dir := t.TempDir()
	const script = "#!/bin/sh\necho \"$XTABLES_LIBDIR\"\n"
	for name, text := range map[string]string{"root/usr/sbin/iptables-nft": script, "root/usr/bin/containerd": script, "root/usr/lib/x86_64-linux-gnu/xtables/libxt_set.so": "", "bin/x": ""} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ name, path, want string }{
		{"iptables", "/usr/sbin/iptables-nft", dir + "/root/usr/lib/x86_64-linux-gnu/xtables"},
		{"containerd", "/usr/bin/containerd", ""},
	} {
		if err := writeWrapper(dir, c.name, c.path); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(filepath.Join(dir, "bin", c.name)).CombinedOutput(); err != nil || string(out) != c.want+"\n" {
			t.Errorf("%s: %v: %q, want %q", c.name, err, out, c.want)
		}
	}
}

// The node tools that have official files are downloaded.
func TestOfficialNodeTools(t *testing.T) {
	m := newMirror(t, fakeProgram)
	s := m.source(t)
	for _, tool := range nodeTools {
		if f, version := tool.officialFile(s, runtime.GOARCH); version != "" {
			m.publish(t, strings.TrimPrefix(f.url, m.URL), strings.TrimPrefix(f.sumsURL, m.URL), f.programs, fakeProgram)
		}
	}
	s.sums = m.sums
	p := &provider{cache: t.TempDir(), source: s, progress: t.Logf}
	for range 2 { // the second time from the cache
		got, err := p.fromOfficial(t.Context(), nodeTools)
		if err != nil {
			t.Fatal(err)
		}
		for _, tool := range nodeTools {
			b, _ := os.ReadFile(got[tool.name])
			if found := bytes.Equal(b, fakeProgram(tool.name)); found != (tool.name != "nft") {
				t.Errorf("%s at %q: %t", tool.name, got[tool.name], found)
			}
		}
	}
	if n := len(m.requested("runc." + runtime.GOARCH)); n != 1 {
		t.Errorf("runc was requested %d times", n)
	}
}

// A machine without apt-get, and without official binaries, gets an error that says why no
// source has the tools, and which packages to install.
func TestMissingNodeTools(t *testing.T) {
	path := t.TempDir()
	for name, output := range map[string]string{"containerd": "containerd v1.5.9", "runc": "runc version 1.2.3"} {
		if err := os.WriteFile(filepath.Join(path, name), []byte("#!/bin/sh\necho "+output+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", path)
	all := sums{}
	for _, tool := range nodeTools {
		f, _ := tool.officialFile(source{}, runtime.GOARCH)
		all[f.url] = strings.Repeat("0", 64)
	}
	for _, c := range []struct {
		source source
		want   string
	}{
		{source{build: true}, "downloading official binaries: K8S_MICRO_SOURCE=build forbids it"},
		{source{mirror: &url.URL{Scheme: "http", Host: "127.0.0.1:9"}, sums: all}, "connection refused"},
	} {
		p := &provider{cache: t.TempDir(), source: c.source, progress: t.Logf}
		_, err := p.nodeTools(t.Context(), nodeTools)
		if err == nil {
			t.Fatal("an error is missing")
		}
		for _, want := range []string{c.want, `version "1.5.9" of "` + path + `/containerd" is older than 1.6`, `"` + path + `/runc" was built without seccomp`,
			"apt-get is not installed", "install the packages containerd ", " runc (Debian's names), or use any cluster you have"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error %q does not contain %q", err, want)
			}
		}
	}
}

// A tool of this machine is used if it is new enough, and a runc if it has seccomp.
func TestLookup(t *testing.T) {
	path := t.TempDir()
	t.Setenv("PATH", path)
	runc := filepath.Join(path, "runc")
	tool := nodeTool{name: "runc", min: "1.1", seccomp: true}
	for script, want := range map[string]string{
		`echo runc version 1.1.5`: "",
		`case $1 in features) echo '{"linux":{"seccomp":{"enabled":false}}}' ;; *) echo 1.1.5 ;; esac`: "",
		`case $1 in features) echo '{"linux":{"seccomp":{"enabled":true}}}' ;; *) echo 1.0.3 ;; esac`:  "",
		`case $1 in features) echo '{"linux":{"seccomp":{"enabled":true}}}' ;; *) echo 1.1.5 ;; esac`:  runc,
	} {
		if err := os.WriteFile(runc, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if got, err := tool.lookup(); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v, want %q", script, got, err, want)
		}
	}
	nft := filepath.Join(path, "iptables-nft")
	if err := os.WriteFile(nft, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := (nodeTool{name: "iptables", file: "iptables-nft"}).lookup(); got != nft || err != nil {
		t.Errorf("a program with another name: %q, %v, want %q", got, err, nft)
	}
	if got, err := (nodeTool{name: "missing", min: "1.1"}).lookup(); got != "" || err != nil {
		t.Errorf("a missing tool: %q, %v", got, err)
	}
}
