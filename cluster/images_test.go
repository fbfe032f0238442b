package main

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// The same files give the same images, whether they come from a source archive or from a
// git repository at another path with another umask.
func TestSameFilesSameImages(t *testing.T) {
	if testing.Short() {
		t.Skip("builds 8 programs: run without -short")
	}
	host := authorizedRegistry(t)
	var digests [2]string
	for i, umask := range []os.FileMode{0o022, 0o077} {
		root := copyOfCheckout(t, umask)
		if i == 1 {
			inShell(t, root, "git init -q . && git add -A && git -c user.name=t -c user.email=t@t commit -qm t")
		}
		inShell(t, root, fmt.Sprintf("umask %o && make push REGISTRY=%s TAG=%d", umask, host, i))
		for _, s := range []string{"go-micro-srv", "go-micro-web", "go-micro-client", "go-micro-config"} {
			for _, p := range pull(t, fmt.Sprintf("%s/%s:%d", host, s, i)) {
				digests[i] += fmt.Sprintf("%s for %s: %s, SBOM %s\n", s, p.platform, digest(t, p.image), digest(t, p.sbom))
				if i == 0 {
					checkImage(t, s, p)
				}
			}
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("from the archive:\n%s\nfrom the repository:\n%s", digests[0], digests[1])
	}
	t.Log(digests[0])
}

// authorizedRegistry starts a registry that requires a password, and stores the password
// as docker login does.
func authorizedRegistry(t *testing.T) (host string) {
	t.Helper()
	open := registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != credentials.Username || password != credentials.Password {
			w.Header().Set("WWW-Authenticate", "Basic realm=test")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		open.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	host = s.Listener.Addr().String()
	config := fmt.Sprintf(`{"auths": {%q: {"username": %q, "password": %q}}}`, host, credentials.Username, credentials.Password)
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return host
}

var credentials = &authn.Basic{Username: "you", Password: "secret"}

// pulled is the content of a registry for one platform.
type pulled struct {
	platform    v1.Platform
	image, sbom v1.Image
}

// pull returns the images of ref for all platforms.
func pull(t *testing.T, ref string) (all []pulled) {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	auth := remote.WithAuth(credentials)
	index, err := remote.Index(tag, auth)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range manifest(t, index).Manifests {
		image, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		referrers, err := remote.Referrers(tag.Digest(d.Digest.String()), auth)
		if err != nil {
			t.Fatal(err)
		}
		attached := manifest(t, referrers).Manifests
		if len(attached) != 1 || attached[0].ArtifactType != "application/vnd.cyclonedx+json" {
			t.Fatalf("%s for %s has the referrers %+v, want one SBOM", ref, d.Platform, attached)
		}
		sbom, err := remote.Image(tag.Digest(attached[0].Digest.String()), auth)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, pulled{*d.Platform, image, sbom})
	}
	if len(all) != 2 || all[0].platform.String() != "linux/amd64" || all[1].platform.String() != "linux/arm64" {
		t.Fatalf("%s is for %+v, want linux/amd64 and linux/arm64", ref, all)
	}
	return all
}

func manifest(t *testing.T, index v1.ImageIndex) *v1.IndexManifest {
	t.Helper()
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func digest(t *testing.T, img v1.Image) v1.Hash {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// checkImage checks the properties that the images of all services have in common.
func checkImage(t *testing.T, service string, p pulled) {
	t.Helper()
	config, err := p.image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	labels := config.Config.Labels
	if config.OS != "linux" || config.Architecture != p.platform.Architecture || config.Config.User != "65532:65532" {
		t.Errorf("%s for %s says %s/%s, user %q", service, p.platform, config.OS, config.Architecture, config.Config.User)
	}
	if labels["maintainer"] != "jiangjiancc" || labels["org.opencontainers.image.title"] != service {
		t.Errorf("%s has the labels %q", service, labels)
	}
	for _, l := range []string{"description", "source", "licenses"} {
		if labels["org.opencontainers.image."+l] == "" {
			t.Errorf("%s has no label %q", service, l)
		}
	}
	files := tar.NewReader(bytes.NewReader(layer(t, p.image, 0, 2)))
	h, err := files.Next()
	if err != nil {
		t.Fatal(err)
	}
	program, err := io.ReadAll(files)
	if err != nil {
		t.Fatal(err)
	}
	if more, err := files.Next(); err != io.EOF || h.Mode != 0o755 || "/"+h.Name != config.Config.Cmd[0] {
		t.Errorf("%s holds %s with mode %o, and %v, %v; its command is %q", service, h.Name, h.Mode, more, err, config.Config.Cmd)
	}
	file, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[p.platform.Architecture]; file.Machine != want {
		t.Errorf("%s for %s holds a program for %s", service, p.platform, file.Machine)
	}
	if libraries, err := file.ImportedLibraries(); len(libraries) > 0 {
		t.Errorf("%s is not static: %q, %v", service, libraries, err)
	}
	sbom := layer(t, p.sbom, 0, 1)
	modules, licensed := sbomModules(t, sbom)
	if want := programModules(t, program); !slices.Equal(modules, want) {
		t.Errorf("the SBOM of %s for %s lists\n%q, the program\n%q", service, p.platform, modules, want)
	}
	files = tar.NewReader(bytes.NewReader(layer(t, p.image, 1, 2)))
	if h, err := files.Next(); err != nil || h.Name != "licenses.txt" || h.Mode != 0o644 {
		t.Fatalf("%s holds %+v instead of the licences, %v", service, h, err)
	}
	texts, err := io.ReadAll(files)
	if err != nil {
		t.Fatal(err)
	}
	titles := regexp.MustCompile(`(?m)^==== (.*),`).FindAllString(string(texts), -1)
	if !slices.IsSorted(titles) { // otherwise the image depends on the paths of the modules
		t.Errorf("%s for %s has the licences in the order %q", service, p.platform, titles)
	}
	for _, module := range modules {
		if strings.HasPrefix(module, "./") { // a part of this repository
			continue
		}
		if !strings.Contains(string(texts), "\n==== "+module+", ") || !slices.Contains(licensed, module) {
			t.Errorf("%s for %s lacks the licence of %s in the image or in the SBOM", service, p.platform, module)
		}
	}
}

// layer returns the content of layer i of an image that has n layers.
func layer(t *testing.T, img v1.Image, i, n int) []byte {
	t.Helper()
	layers, err := img.Layers()
	if err != nil || len(layers) != n {
		t.Fatalf("%d layers, want %d; %v", len(layers), n, err)
	}
	r, err := layers[i].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// programModules lists the modules that the linker put into the program, after replacement.
func programModules(t *testing.T, program []byte) []string {
	t.Helper()
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	all := []string{info.Main.Path + " " + info.Main.Version, "std " + info.GoVersion}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		all = append(all, m.Path+" "+m.Version)
	}
	slices.Sort(all)
	return all
}

// sbomModules lists the modules in an SBOM, and those that have a licence there.
func sbomModules(t *testing.T, sbom []byte) (all, licensed []string) {
	t.Helper()
	type component struct {
		Name, Version string
		Licenses      []any
	}
	var bom struct {
		Metadata   struct{ Component component }
		Components []component
	}
	if err := json.Unmarshal(sbom, &bom); err != nil {
		t.Fatal(err)
	}
	for _, c := range append(bom.Components, bom.Metadata.Component) {
		all = append(all, c.Name+" "+c.Version)
		if len(c.Licenses) > 0 {
			licensed = append(licensed, c.Name+" "+c.Version)
		}
	}
	slices.Sort(all)
	return all, licensed
}

// copyOfCheckout copies the files of this checkout that git tracks or would add, with the
// modes that umask allows.
func copyOfCheckout(t *testing.T, umask os.FileMode) string {
	t.Helper()
	root := t.TempDir()
	copyCheckoutTo(t, root, umask)
	return root
}

func copyCheckoutTo(t *testing.T, root string, umask os.FileMode) {
	t.Helper()
	names := inShell(t, "..", "git ls-files -coz --exclude-standard")
	for _, f := range strings.Split(strings.Trim(names, "\x00"), "\x00") {
		from, to := filepath.Join("..", f), filepath.Join(root, f)
		info, err := os.Stat(from)
		if os.IsNotExist(err) {
			continue // deleted, but the deletion is not committed yet
		}
		b, err2 := os.ReadFile(from)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o777&^umask); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, info.Mode()&^umask); err != nil {
			t.Fatal(err)
		}
	}
}

// inShell runs a script in dir and returns its output.
func inShell(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	// -buildvcs=auto is Go's default. It replaces the flags that are set on this machine.
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=auto")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", script, err, out, stderr.Bytes())
	}
	return string(out)
}
