package image

import (
	"archive/tar"
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestSameAsDocker builds and pushes the images of the four services with the targets
// docker-build and docker-push, and compares them with the images of this package: files,
// modes, owners, user, command, environment, ports and labels.
func TestSameAsDocker(t *testing.T) {
	if testing.Short() {
		t.Skip("builds 4 images with Docker or Podman: run without -short")
	}
	builder := realBuilder(t)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := server.Listener.Addr().String()
	if builder == "podman" {
		usePodmanStorage(t, host)
	}
	platform := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	for _, service := range []string{"go-micro-srv", "go-micro-web", "go-micro-client", "go-micro-config"} {
		dir := filepath.Join("..", "..", service)
		ref := host + "/" + service + ":same"
		unlock := lockPrograms(t)
		push := exec.Command("make", "--no-print-directory", "-C", dir, "docker-push", "DOCKER="+builder, "IMAGE="+ref)
		push.Env = append(os.Environ(), "GOFLAGS=-trimpath") // the tests run with the flags of make test
		if out, err := push.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", service, err, out)
		}
		tag, err := name.NewTag(ref)
		if err != nil {
			t.Fatal(err)
		}
		pushed, err := remote.Image(tag, remote.WithPlatform(platform))
		if err != nil {
			t.Fatal(err)
		}
		own, err := Build(dir, platform)
		if err != nil {
			t.Fatal(err)
		}
		unlock()
		if got, want := describe(t, own), describe(t, pushed); got != want {
			t.Errorf("%s: the image is\n%s\nwant, as %s builds it,\n%s", service, got, builder, want)
		}
	}
}

// lockPrograms prevents the tests of test/e2e, which may run at the same time, from building the
// same programs in this checkout: one of them could read what another is still writing.
func lockPrograms(t *testing.T) (unlock func()) {
	t.Helper()
	name := filepath.Join("..", "..", ".cluster", "images.lock")
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(name)
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return func() { f.Close() }
}

// describe returns what a container runtime reads of an image: a part of its configuration
// and its files. The rest differs between builders: times, and a label of Podman.
func describe(t *testing.T, img v1.Image) string {
	t.Helper()
	c := config(t, img)
	delete(c.Config.Labels, "io.buildah.version")
	lines := []string{
		fmt.Sprintf("platform %s/%s, user %q, entrypoint %q, command %q, directory %q", c.OS, c.Architecture, c.Config.User, c.Config.Entrypoint, c.Config.Cmd, cmp.Or(c.Config.WorkingDir, "/")),
		fmt.Sprintf("environment %q, ports %v, volumes %v, signal %q", c.Config.Env, nonEmpty(c.Config.ExposedPorts), nonEmpty(c.Config.Volumes), c.Config.StopSignal),
		fmt.Sprintf("labels %q", c.Config.Labels),
	}
	files := mutate.Extract(img) // of all layers
	defer files.Close()
	for tr := tar.NewReader(files); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return strings.Join(lines, "\n")
		}
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, tr); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("file %q, type %c, mode %o, owner %d:%d, SHA-256 %x", strings.TrimPrefix(h.Name, "/"), h.Typeflag, h.Mode&0o7777, h.Uid, h.Gid, sum.Sum(nil)))
	}
}

// realBuilder returns the name of the builder that answers.
func realBuilder(t *testing.T) string {
	t.Helper()
	var reasons []string
	for _, builder := range []string{"docker", "podman"} {
		out, err := exec.Command(builder, "version").CombinedOutput()
		if err == nil {
			return builder
		}
		reasons = append(reasons, fmt.Sprintf("%s: %v: %s", builder, err, strings.TrimSpace(string(out))))
	}
	t.Fatalf("looking for Docker or Podman: none answers; install one, on Debian with: apt-get install podman\n%s", strings.Join(reasons, "\n"))
	return ""
}

// usePodmanStorage gives Podman directories of its own, on any file system, and allows it
// to push to host over plain HTTP, as Docker does for a registry on the loopback.
func usePodmanStorage(t *testing.T, host string) {
	t.Helper()
	dir := t.TempDir()
	for variable, text := range map[string]string{
		"CONTAINERS_STORAGE_CONF":    fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n", filepath.Join(dir, "graph"), filepath.Join(dir, "run")),
		"CONTAINERS_REGISTRIES_CONF": fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", host),
	} {
		file := filepath.Join(dir, variable)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv(variable, file)
	}
}

func nonEmpty[M ~map[K]V, K comparable, V any](m M) M {
	if len(m) == 0 {
		return nil
	}
	return m
}
