// Package private makes the directories and lock files of the launcher, which only their
// owner can use: a user who can read a file can also lock it, and so stop the launcher.
package private

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// Dir makes a directory that only its owner can enter.
func Dir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return err
	}
	return os.Chmod(path, 0o700) // an older version of the launcher made the directory readable for everyone
}

// ErrLocked is the error of Lock while another process holds the lock.
var ErrLocked = errors.New("another process holds the lock")

// Lock locks a file, which it creates if necessary, and makes it readable only for its
// owner. The lock ends when the file is closed in this process and in all that inherited it.
func Lock(path string) (*os.File, error) { return lock(path, syscall.LOCK_EX) }

// Share is like Lock, but several processes can hold the lock at the same time. Lock returns
// ErrLocked until the last of them has ended.
func Share(path string) (*os.File, error) { return lock(path, syscall.LOCK_SH) }

func lock(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = f.Chmod(0o600) // an older version of the launcher made the file readable for everyone
	}
	if errors.Is(err, os.ErrPermission) {
		dir := filepath.Dir(path)
		err = fmt.Errorf("locking: %w; %s belongs to another user, such as root after sudo: stop that user's clusters and remove it with `sudo rm -r %s`", err, dir, ShellQuote(dir))
	}
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, fmt.Errorf("locking %q: %w", path, err)
	}
	return f, nil
}

// ShellQuote quotes a path for a POSIX shell if it needs quotes.
func ShellQuote(path string) string {
	if regexp.MustCompile(`^[\p{L}\p{N}_@%+=:,./-]+$`).MatchString(path) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
