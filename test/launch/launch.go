// Package launch starts a cluster for tests and benchmarks. The cluster ends
// with the process that started it.
package launch

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Up runs `go run -C cluster . up` with the given cluster name and further
// arguments, and returns the path of the cluster's kubeconfig once the cluster is
// ready. The launcher's messages go to stderr. The cluster ends when the caller
// calls down, or when this process ends for any reason.
func Up(name string, args ...string) (kubeconfig string, down func() error, err error) {
	root, err := Root()
	if err != nil {
		return "", nil, err
	}
	// make compat sets the variable to run tests with another version of Kubernetes.
	if path := os.Getenv("KUBE_APISERVER"); path != "" && slices.Contains(args, "-control-plane") {
		args = append(args, "-kube-apiserver", path)
	}
	cmd := exec.Command("go", append([]string{"run", "-C", "cluster", ".", "up", "-name", name, "-foreground"}, args...)...)
	cmd.Dir, cmd.Stderr = root, os.Stderr
	stdin, err := cmd.StdinPipe() // the launcher removes the cluster when its standard input is closed
	if err != nil {
		return "", nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("starting cluster %q: %w", name, err)
	}
	ready, outputEnded := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(outputEnded)
		defer close(ready)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if _, path, ok := strings.Cut(lines.Text(), "export KUBECONFIG="); ok {
				ready <- path
			} else if strings.TrimSpace(lines.Text()) != "" {
				fmt.Fprintln(os.Stderr, lines.Text())
			}
		}
	}()
	down = func() error {
		stdin.Close()
		<-outputEnded
		return cmd.Wait()
	}
	kubeconfig, ok := <-ready
	if !ok {
		return "", nil, errors.Join(fmt.Errorf("starting cluster %q: the launcher ended before the cluster was ready; its messages are above", name), down())
	}
	return kubeconfig, down, nil
}

// Root returns the project's root directory: the nearest directory that contains
// cluster/kube/go.mod, from the working directory upwards.
func Root() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "cluster", "kube", "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("looking for the project's root above %q: no directory contains cluster/kube/go.mod", wd)
}
