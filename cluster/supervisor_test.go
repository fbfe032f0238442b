package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A cluster does not end when its checkout is renamed, but when it is deleted, also if another one takes its place.
func TestDeletedDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "demo")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if deleted(dir) {
		t.Error("a directory that exists is deleted")
	}
	if err := os.Rename(path, path+"2"); err != nil {
		t.Fatal(err)
	}
	if deleted(dir) != !exists("/proc/self/fd") { // elsewhere only the path is known
		t.Error("a directory that was renamed is deleted")
	}
	if err := errors.Join(os.Remove(path+"2"), os.Mkdir(path+"2", 0o755)); err != nil {
		t.Fatal(err)
	}
	if !deleted(dir) {
		t.Error("a directory that was deleted and made again is not deleted")
	}
}

func TestControlPlaneOnly(t *testing.T) {
	root := checkout(t)
	setUserEnvironment(t)
	c := up(t, root, "-control-plane")
	checkEnvironment(t, root, 3)
	if out, err := cli(t, root, "kubectl", "-n", "default", "create", "configmap", "mine", "--from-literal=a=b"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, args := range [][]string{{"load", "a=b"}, {"node", "true"}, {"forward", "a/b:1"}} {
		if out, err := cli(t, root, args...); err == nil || !strings.Contains(out, "no node") {
			t.Errorf("%s: %v: %s", args, err, out)
		}
	}
	if out, err := cli(t, root, "up"); err == nil || !strings.Contains(out, "control plane only") {
		t.Errorf("up with a node: %v: %s", err, out)
	}
	line, _ := exec.Command("pgrep", "-f", "etcd --data-dir="+c.path("etcd")).Output()
	args, _ := os.ReadFile("/proc/" + strings.TrimSpace(string(line)) + "/cmdline")
	_, rest, _ := bytes.Cut(args, []byte("--listen-client-urls="))
	address, _, _ := strings.Cut(string(rest), "\x00")
	if resp, err := http.Get(strings.Replace(address, "https", "http", 1) + "/version"); err == nil && resp.StatusCode == http.StatusOK {
		t.Errorf("etcd at %q answers without a client certificate", address)
	}
	ports, _ := reachable(t, root)
	if len(ports) != 3 {
		t.Errorf("the control plane listens on ports %q, want those of kube-apiserver and of etcd for clients and peers", ports)
	}
	anonymous := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for _, port := range ports {
		for _, url := range []string{"http://127.0.0.1:" + port, "https://127.0.0.1:" + port} {
			for _, path := range []string{"/members", "/raft/probing", "/api/v1/secrets", "/metrics"} {
				resp, err := anonymous.Get(url + path)
				if err != nil {
					continue // the server refuses the connection without a client certificate
				}
				if resp.Body.Close(); resp.StatusCode == http.StatusOK {
					t.Errorf("%s answers without a client certificate", url+path)
				}
			}
		}
	}
	s, err := c.state()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.Supervisor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "etcd and kube-apiserver ending with their supervisor", func() bool { return len(leftProcesses(root)) == 0 })
}
