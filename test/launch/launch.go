// Package launch starts a cluster of the project's own for tests and
// benchmarks, and ties it to their process.
package launch

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Up starts the cluster called name with the launcher in cluster/, passing args
// on to its up command, and returns the path of its kubeconfig. What the launcher
// says goes to stderr. The cluster ends with down, or with this process, however
// that ends.
func Up(name string, args ...string) (kubeconfig string, down func() error, err error) {
	root, err := Root()
	if err != nil {
		return "", nil, err
	}
	cmd := exec.Command("go", append([]string{"run", "-C", "cluster", ".", "up", "-name", name, "-foreground"}, args...)...)
	cmd.Dir, cmd.Stderr = root, os.Stderr
	leash, err := cmd.StdinPipe() // at its end the launcher takes the cluster down
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
	ready, drained := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(drained)
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
		leash.Close()
		<-drained
		return cmd.Wait()
	}
	kubeconfig, ok := <-ready
	if !ok {
		return "", nil, errors.Join(fmt.Errorf("starting cluster %q: it did not start", name), down())
	}
	return kubeconfig, down, nil
}

// Root is the project's directory, found from the working directory upwards.
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
	return "", fmt.Errorf("looking for the project above %q: no cluster/kube/go.mod", wd)
}
