package main

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestNothingIsLeftOnTheHost(t *testing.T) {
	ends := map[string]func(t *testing.T, root string){
		"down": func(t *testing.T, root string) {
			up(t, root)
			runPod(t, root)
			if out, err := cli(t, root, "down"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		},
		"SIGKILL of the supervisor": func(t *testing.T, root string) {
			c := up(t, root)
			runPod(t, root)
			s, err := c.state()
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(s.Supervisor, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		"SIGKILL of up while the cluster starts": func(t *testing.T, root string) {
			provided(t)
			cmd := launch(root, "up")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if strings.Contains(lines.Text(), "API server ready") {
					_ = cmd.Process.Kill()
				}
			}
			if err := cmd.Wait(); err == nil {
				t.Fatal("up succeeded: it was not killed in time")
			}
		},
		"SIGINT to up in the foreground": func(t *testing.T, root string) {
			provided(t)
			cmd := launch(root, "up", "-foreground")
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if strings.Contains(lines.Text(), "is ready") {
					_ = cmd.Process.Signal(syscall.SIGINT)
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			root := checkout(t)
			provided(t)
			before := host(t)
			end(t, root)
			eventually(t, 20*time.Second, "the last process ending", func() bool { return len(leftProcesses(root)) == 0 })
			if after := host(t); after != before {
				t.Errorf("the host has changed:\n%s", diff(before, after))
			}
		})
	}
}

func TestClustersAreIndependent(t *testing.T) {
	one, two := checkout(t), checkout(t)
	home := t.TempDir()
	t.Setenv("KUBECONFIG", filepath.Join(home, "mine"))
	a, b := up(t, one), up(t, two)
	runPod(t, one)
	if out, err := cli(t, two, "kubectl", "--", "get", "pods", "-o", "name"); err != nil || out != "" && !strings.Contains(out, "No resources") {
		t.Errorf("the other cluster has pods %q, %v", out, err)
	}
	sa, _ := a.state()
	sb, _ := b.state()
	if sa.API == sb.API {
		t.Errorf("both clusters listen on %s", sa.API)
	}
	if out, err := cli(t, one, "up"); err != nil || !strings.Contains(out, "is already running") {
		t.Errorf("second up: %v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(home, "mine")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the user's kubeconfig was touched: %v", err)
	}
	checkForward(t, one, two)
}
