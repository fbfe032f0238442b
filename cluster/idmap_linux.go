package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// idMapping maps 65,536 users and groups into the node's user namespace, so that pods
// may run as any user: the caller becomes 0, and the caller's ranges in /etc/subuid and
// /etc/subgid become 1 to 65535.
type idMapping struct{ newuidmap, newgidmap, uids, gids string }

func newIDMapping() (*idMapping, error) {
	newuidmap, err1 := exec.LookPath("newuidmap")
	newgidmap, err2 := exec.LookPath("newgidmap")
	if err1 != nil || err2 != nil {
		return nil, errors.New("newuidmap is missing, and without it every pod would have to run as root; install it with `sudo apt-get install uidmap` (Fedora: shadow-utils)")
	}
	name := os.Getenv("USER")
	if out, err := exec.Command("id", "-un").Output(); err == nil {
		name = strings.TrimSpace(string(out))
	}
	m := &idMapping{newuidmap, newgidmap, subordinateIDs("/etc/subuid", name), subordinateIDs("/etc/subgid", name)}
	if m.uids == "" || m.gids == "" {
		return nil, fmt.Errorf("user %q has no range of 65,535 ids in /etc/subuid and /etc/subgid; add one with `sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s`", name, name)
	}
	return m, nil
}

// subordinateIDs returns the start of the user's first range of at least 65,535
// ids in /etc/subuid or /etc/subgid, or "".
func subordinateIDs(file, name string) string {
	b, _ := os.ReadFile(file)
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Split(strings.TrimSpace(l), ":")
		if len(f) == 3 && (f[0] == name || f[0] == strconv.Itoa(os.Getuid())) {
			if n, _ := strconv.Atoi(f[2]); n >= 65535 {
				return f[1]
			}
		}
	}
	return ""
}

// apply writes the mapping for the process pid, which owns a new user namespace.
func (m *idMapping) apply(pid int) error {
	for _, c := range [][]string{
		{m.newuidmap, strconv.Itoa(pid), "0", strconv.Itoa(os.Getuid()), "1", "1", m.uids, "65535"},
		{m.newgidmap, strconv.Itoa(pid), "0", strconv.Itoa(os.Getgid()), "1", "1", m.gids, "65535"},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("mapping ids with %q: %w: %s", filepath.Base(c[0]), err, lastLine(out))
		}
	}
	return nil
}
