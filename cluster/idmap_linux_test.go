package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/programs"
)

const ordinaryUID = 4242 // unused on the host

// asOrdinaryUser returns a command that runs cmd as an ordinary user, "micro". The
// user exists only in the command's mount namespace, which has its own /etc/passwd,
// /etc/subuid and /etc/subgid. The command has umask 077 and may open 1024 files. If
// root does not run the test, asOrdinaryUser returns cmd.
func asOrdinaryUser(t *testing.T, root string, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if os.Getuid() != 0 {
		return cmd
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"passwd": fmt.Sprintf("root:x:0:0::/root:/bin/sh\nmicro:x:%d:%d::%s:/bin/sh\n", ordinaryUID, ordinaryUID, root),
		"subuid": "micro:200000:65536\n", "subgid": "micro:200000:65536\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf(`set -e
for f in passwd subuid subgid; do [ -e /etc/$f ] || : > /etc/$f; mount -n --bind %[1]s/$f /etc/$f; done
umask 077; ulimit -n 1024
exec setpriv --reuid %[2]d --regid %[2]d --clear-groups "$@"`, dir, ordinaryUID)
	args := append([]string{"-m", "--propagation", "private", "sh", "-c", script, "sh", cmd.Path}, cmd.Args[1:]...)
	user := exec.Command("unshare", args...)
	user.Dir = cmd.Dir
	user.Env = append(os.Environ(), "HOME="+root, "XDG_CACHE_HOME="+filepath.Join(root, "cache"))
	return user
}

// provideUidmap puts newuidmap into PATH, from Debian's package if the host has none.
func provideUidmap(t *testing.T, cache string) {
	t.Helper()
	if _, err := exec.LookPath("newuidmap"); err == nil {
		return
	}
	downloads := filepath.Join(cache, "test-uidmap")
	if !exists(filepath.Join(downloads, "usr")) {
		script := `mkdir -p "$0/lists/partial" "$0/cache/archives/partial" && cd "$0"
apt() { apt-get -qq -o Debug::NoLocking=1 -o APT::Sandbox::User= -o Dir::State::lists="$0/lists" -o Dir::Cache="$0/cache" "$@"; }
apt update && apt download uidmap && dpkg-deb -x uidmap*.deb .`
		if out, err := exec.Command("sh", "-c", script, downloads).CombinedOutput(); err != nil {
			t.Fatalf("newuidmap is missing: install the package uidmap: %v: %s", err, out)
		}
	}
	// Copy the programs, because an ordinary user cannot enter root's cache.
	dir := filepath.Join(filepath.Dir(program), "uidmap")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"newuidmap", "newgidmap"} {
		if out, err := exec.Command("cp", "-p", filepath.Join(downloads, "usr/bin", name), dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// TestOrdinaryUser runs a cluster of two nodes without root: pods that run as another user work
// on both, network policies are enforced, and after SIGKILL of the supervisor nothing is left.
func TestOrdinaryUser(t *testing.T) {
	cache := provideToolsWith(t, programs.Options{NetworkPolicy: true}).Cache
	provideUidmap(t, cache)
	root := checkoutIn(t, filepath.Join(checkout(t), "it's a checkout"))
	if os.Getuid() == 0 { // the ordinary user needs a copy of root's cache
		for _, c := range [][]string{{"mkdir", "-p", filepath.Join(root, "cache")}, {"cp", "-a", cache, filepath.Join(root, "cache")},
			{"chown", "-R", fmt.Sprint(ordinaryUID), root}} {
			if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%q: %v: %s", c, err, out)
			}
		}
	}
	before := hostState(t, root)
	if out, err := asOrdinaryUser(t, root, launcher(root, "up", "-nodes", "2", "-network-policy")).CombinedOutput(); err != nil {
		t.Fatalf("up: %v: %s", err, out)
	}
	c := demoCluster(root)
	s, err := c.state()
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Supervisor))
	if err != nil || strings.Contains(string(status), "Uid:\t0\t") {
		t.Errorf("the supervisor runs as root: %v\n%s", err, status)
	}
	runPod(t, root)
	pods := runPodOnEachNode(t, root, 2)
	checkPodOfEachNode(t, root, pods)
	checkNetworkPolicy(t, root, pods)
	if out, err := asOrdinaryUser(t, root, launcher(root, "node", "-n", "2", "cat", "/proc/sys/kernel/hostname")).CombinedOutput(); err != nil || string(out) != "k8s-micro-2\n" {
		t.Errorf("entering the second node: %v: %s", err, out)
	}
	address, err := asOrdinaryUser(t, root, launcher(root, "forward", "default/kubernetes:443")).Output()
	if err != nil {
		t.Fatalf("forward: %v: %s", err, address)
	}
	eventually(t, time.Minute, "the API server through its Service", func() bool {
		resp, err := http.Get("http://" + strings.TrimSpace(string(address)))
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusBadRequest // the API server expects TLS
	})
	if err := syscall.Kill(s.Supervisor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the last process ending", func() bool { return len(leftProcesses(root)) == 0 })
	if after := hostState(t, root); after != before {
		t.Errorf("the host has changed:\n%s", diff(before, after))
	}
	if out, err := asOrdinaryUser(t, root, launcher(root, "down")).CombinedOutput(); err != nil || exists(c.dir) {
		t.Errorf("down after the kill: %v: %s", err, out)
	}
}

// After root has used the checkout, or the cache, up by an ordinary user says which directory is in the way.
func TestFilesOfAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	for private, commands := range map[string][][]string{".cluster": {{"up", "-control-plane"}, {"down"}}, "cache/k8s-micro": {{"up", "-control-plane"}}} {
		root := checkout(t)
		for _, dir := range []string{"", "cache"} {
			if err := errors.Join(os.MkdirAll(filepath.Join(root, dir), 0o755), os.Chown(filepath.Join(root, dir), ordinaryUID, ordinaryUID)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(filepath.Join(root, private), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, args := range commands {
			out, err := asOrdinaryUser(t, root, launcher(root, args...)).CombinedOutput()
			if want := "sudo rm -r " + filepath.Join(root, private); err == nil || !strings.Contains(string(out), "permission denied") || !strings.Contains(string(out), want) {
				t.Errorf("%q with %s of root: %v: %s", args, private, err, out)
			}
		}
	}
}

// Without newuidmap up prints one line that names the package to install.
func TestOrdinaryUserWithoutUidmap(t *testing.T) {
	root := checkout(t)
	if os.Getuid() == 0 {
		if err := os.Chown(root, ordinaryUID, ordinaryUID); err != nil {
			t.Fatal(err)
		}
	}
	cmd := asOrdinaryUser(t, root, launcher(root, "up"))
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	bare := pathWith(t, "unshare", "sh", "mount", "setpriv", "id") // without newuidmap
	_ = os.Chmod(filepath.Dir(bare), 0o755)
	cmd.Env = append(cmd.Env, "PATH="+bare)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "apt-get install uidmap") || strings.Count(strings.TrimSpace(string(out)), "\n") > 0 {
		t.Errorf("up: %v: %q, want one line that names uidmap", err, out)
	}
}
