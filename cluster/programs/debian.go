package programs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// fromDebian downloads packages and their dependencies with apt-get and unpacks them
// in the cache. It needs no root and does not change the system.
func (p *provider) fromDebian(ctx context.Context, want []nodeTool) (map[string]string, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, errors.New("downloading Debian packages: apt-get is not installed")
	}
	var debs []string
	for _, t := range want {
		debs = append(debs, t.deb)
	}
	slices.Sort(debs)
	debs = slices.Compact(debs)
	release, _ := os.ReadFile("/etc/os-release")
	sum := sha256.Sum256(append(release, strings.Join(debs, " ")...))
	dir, err := p.debianPackages(ctx, fmt.Sprintf("debian-%x", sum[:4]), debs)
	if err != nil {
		return nil, err
	}
	got := map[string]string{}
	for _, t := range want {
		for _, d := range append([]string{"/usr/bin", "/usr/sbin"}, t.dirs...) {
			if path := filepath.Join(d, t.program()); exists(filepath.Join(dir, "root", path)) {
				got[t.name] = filepath.Join(dir, "bin", t.name)
				if err := writeWrapper(dir, t.name, path); err != nil {
					return nil, err
				}
			}
		}
	}
	return got, nil
}

// Packages are renewed when they are a month old, because Debian repairs vulnerabilities. If
// this fails, the old ones are used for another day.
const debianAge, debianRetry, debianLimit = 30 * 24 * time.Hour, 24 * time.Hour, 2 * time.Minute

// debianPackages returns the newest directory in the cache whose name begins with prefix, after
// it has downloaded packages to a new one if there is none, or only an old one. A running
// cluster may use the old one, so it stays until Clean.
func (p *provider) debianPackages(ctx context.Context, prefix string, debs []string) (dir string, err error) {
	var downloaded time.Time
	dirs, _ := filepath.Glob(filepath.Join(escapeGlob(p.cache), prefix+"*")) // sorted
	if len(dirs) > 0 {
		dir = dirs[len(dirs)-1]
		info, err := os.Stat(dir)
		if err != nil {
			return "", err
		}
		if downloaded = info.ModTime(); time.Since(downloaded) < debianAge {
			return dir, nil
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, debianLimit)
		defer cancel()
	}
	p.progress("downloading %s from Debian: usually under 30 seconds", strings.Join(debs, ", "))
	renewed := filepath.Join(p.cache, prefix+time.Now().UTC().Format("-20060102T150405.000"))
	part := fmt.Sprintf("%s.part-%d", renewed, os.Getpid())
	defer os.RemoveAll(part)
	if err = unpackDebs(ctx, part, debs); err == nil {
		return renewed, os.Rename(part, renewed)
	}
	if dir == "" {
		return "", fmt.Errorf("downloading Debian packages: %w", err)
	}
	p.progress("  using the packages of %s, because they cannot be renewed: %s", downloaded.Format(time.DateOnly), err)
	return dir, os.Chtimes(dir, time.Time{}, time.Now().Add(debianRetry-debianAge))
}

// unpackDebs downloads packages that the system lacks and unpacks them to dir/root.
func unpackDebs(ctx context.Context, dir string, debs []string) error {
	apt := func(args ...string) error {
		args = append([]string{"-qq", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=",
			"-o", "Dir::State::lists=" + filepath.Join(dir, "lists"), "-o", "Dir::Cache=" + filepath.Join(dir, "cache")}, args...)
		cmd := interruptible(ctx, "apt-get", args...)
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
	// install finds the dependencies that the system lacks; --download-only prevents the installation.
	if err := apt(append([]string{"install", "-y", "--no-install-recommends", "--download-only"}, debs...)...); err != nil {
		return err
	}
	files, _ := filepath.Glob(filepath.Join(escapeGlob(dir), "cache", "archives", "*.deb"))
	for _, f := range files {
		if out, err := interruptible(ctx, "dpkg-deb", "-x", f, filepath.Join(dir, "root")).CombinedOutput(); err != nil {
			return fmt.Errorf("unpacking %q: %w: %s", filepath.Base(f), err, lastLine(out))
		}
	}
	return errors.Join(os.RemoveAll(filepath.Join(dir, "lists")), os.RemoveAll(filepath.Join(dir, "cache")))
}

// writeWrapper writes dir/bin/name, a script that runs the unpacked program dir/root/path
// with its unpacked libraries. The script finds both by its own path, which differs
// between host and node. writeWrapper replaces an older script atomically, because
// running clusters may execute it.
func writeWrapper(dir, name, path string) error {
	libs, err := filepath.Glob(filepath.Join(escapeGlob(dir), "root", "usr/lib/*-linux-gnu*"))
	if err != nil {
		return err
	}
	var search strings.Builder
	environment := ""
	for _, lib := range libs {
		search.WriteString("$root/usr/lib/" + filepath.Base(lib) + ":")
		if strings.HasPrefix(name, "iptables") && exists(filepath.Join(lib, "xtables")) { // its extensions
			environment = "XTABLES_LIBDIR=$root/usr/lib/" + filepath.Base(lib) + "/xtables "
		}
	}
	search.WriteString("$root/usr/lib")
	script := filepath.Join(dir, "bin", name)
	text := fmt.Sprintf("#!/bin/sh\nself=$(readlink -f \"$0\")\nroot=${self%%/bin/*}/root\n%sLD_LIBRARY_PATH=%s exec \"$root%s\" \"$@\"\n", environment, search.String(), path)
	if err := os.WriteFile(script+".part", []byte(text), 0o755); err != nil {
		return err
	}
	return os.Rename(script+".part", script)
}

// escapeGlob returns the pattern that matches only path.
func escapeGlob(path string) string {
	return regexp.MustCompile(`[*?\[\\]`).ReplaceAllString(path, `\$0`)
}
