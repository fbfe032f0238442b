package programs

import (
	"os"
	"os/exec"
	"path/filepath"
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
