package private

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Only one process at a time holds the lock, and no other user can open what Dir and Lock
// make, also if it was readable before.
func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	path := filepath.Join(dir, "lock")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(path, nil, 0o644), Dir(dir)); err != nil {
		t.Fatal(err)
	}
	first, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]os.FileMode{dir: 0o700, path: 0o600} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != want {
			t.Errorf("%q has mode %v, want %o; %v", file, info.Mode(), want, err)
		}
	}
	if _, err := Lock(path); !errors.Is(err, ErrLocked) {
		t.Errorf("the second lock: %v, want %v", err, ErrLocked)
	}
	first.Close()
	second, err := Lock(path)
	if err != nil {
		t.Errorf("the lock after it was free again: %v", err)
	}
	second.Close()
}

func TestShellQuote(t *testing.T) {
	for path, want := range map[string]string{"/home/ü/a-b": "/home/ü/a-b", "/a b": "'/a b'", "it's": `'it'\''s'`, "$HOME": "'$HOME'", "": "''"} {
		if got := ShellQuote(path); got != want {
			t.Errorf("ShellQuote(%q) = %s, want %s", path, got, want)
		}
	}
}
