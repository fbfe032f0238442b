package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// up prints one line with what the machine lacks before it builds anything.
func TestPreflight(t *testing.T) {
	root := checkout(t)
	for _, c := range []struct{ name, script, want string }{
		{"open files", `ulimit -n 256; exec "$0" up`, "may open 256 files, 1024 needed; raise the limit with `ulimit"},
		{"inotify instances", `exec unshare -U -r sh -c 'echo 3 >/proc/sys/user/max_inotify_instances; exec "$0" up' "$0"`, "3 inotify instances left to this user, 24 needed; raise the limit with `sudo sysctl"},
		{"inotify instances of three nodes", `exec unshare -U -r sh -c 'echo 30 >/proc/sys/user/max_inotify_instances; exec "$0" up -nodes 3' "$0"`, "30 inotify instances left to this user, 40 needed"},
		{"no IPv6", `exec unshare -U -r -m sh -c 'mount -t tmpfs none /proc/$$/net && exec "$0" up -ip-family ipv6' "$0"`, "no IPv6; leave out -ip-family"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", c.script, program)
			cmd.Dir = root
			cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+t.TempDir())
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), c.want) || strings.Count(strings.TrimSpace(string(out)), "\n") > 0 {
				t.Errorf("%v: %s, want one line with %q", err, out, c.want)
			}
		})
	}
}
