package programs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fakeDebian puts programs named apt-get and dpkg-deb into PATH, which provide a containerd, and count the updates.
func fakeDebian(t *testing.T) (updates func() int, fail func(bool)) {
	t.Helper()
	bin := t.TempDir()
	log, failing := filepath.Join(bin, "log"), filepath.Join(bin, "failing")
	for name, script := range map[string]string{
		"apt-get": `for last; do :; done
for a; do case $a in Dir::Cache=*) cache=${a#*=} ;; esac; done
if [ "$last" = update ]; then echo update >>'` + log + `'; [ ! -e '` + failing + `' ] || { echo 'no network' >&2; exit 1; }; fi
: >"$cache/archives/containerd.deb"`,
		"dpkg-deb": `mkdir -p "$3/usr/bin"; printf '#!/bin/sh\n' >"$3/usr/bin/containerd"; chmod 755 "$3/usr/bin/containerd"`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh -e\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return func() int {
			b, _ := os.ReadFile(log) // does not exist before the first update
			return strings.Count(string(b), "update")
		}, func(on bool) {
			if err := os.RemoveAll(failing); err != nil {
				t.Fatal(err)
			}
			if on {
				if err := os.WriteFile(failing, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
}

// Debian's packages are downloaded again after a month. Without an answer of apt-get the old ones are used, and apt-get is
// asked again after a day.
func TestDebianPackagesAreRenewed(t *testing.T) {
	updates, fail := fakeDebian(t)
	p := &provider{cache: t.TempDir(), progress: t.Logf}
	want := []nodeTool{{name: "containerd", deb: "containerd"}}
	get := func(wantUpdates int) (dir string) {
		t.Helper()
		got, err := p.fromDebian(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		if n := updates(); n != wantUpdates {
			t.Errorf("%d updates, want %d", n, wantUpdates)
		}
		if !exists(got["containerd"]) {
			t.Errorf("%q does not exist", got["containerd"])
		}
		return filepath.Dir(filepath.Dir(got["containerd"]))
	}
	age := func(dir string, days int) {
		t.Helper()
		if err := os.Chtimes(dir, time.Time{}, time.Now().AddDate(0, 0, -days)); err != nil {
			t.Fatal(err)
		}
	}
	fail(true)
	if _, err := p.fromDebian(t.Context(), want); err == nil || !strings.Contains(err.Error(), "no network") {
		t.Errorf("without packages and without a network: %v", err)
	}
	fail(false)
	first := get(2)
	age(first, 29)
	get(2)
	age(first, 31)
	fail(true)
	for range 2 { // the second time without asking
		if dir := get(3); dir != first {
			t.Errorf("%q is used, want %q", dir, first)
		}
	}
	age(first, 31)
	fail(false)
	if second := get(4); second == first || !exists(first) {
		t.Errorf("%q is used, the older %q exists: %t", second, first, exists(first))
	}
	get(4)
}
