package image

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

var buildkit = flag.String("buildkit", "", "address of a buildkitd: build every Dockerfile of testdata/buildkit.txt there and write the file again; needs buildctl")

// buildkitContext is the build context of all blocks in testdata/buildkit.txt. A block
// consists of the lines of a Dockerfile, to which the test prepends FROM scratch if they
// contain no FROM; optionally a .dockerignore; and the image that BuildKit v0.31.2 built
// from them. "refused" precedes an image that this package does not build.
var buildkitContext = files{
	"server": "#!s", "a.txt": "a", "b.txt": "b", "c.TXT": "C", "conf/app.yaml": "y", "conf/sub/deep": "d", "conf/current": "->sub/deep", "conf/empty/": "",
	"link": "->conf/app.yaml", "dirlink": "->conf", "we[i]rd": "w", "doc/a.md": "a", "doc/b.md": "b", "doc/sub/c.md": "c", "x/y/z.tmp": "t", "x/k": "k", "sp ace": "s",
}

const blockEnd, ignorePart, imagePart = "\n====\n", "\n--ignore--\n", "\n--image--\n"

func TestSameAsBuildKit(t *testing.T) {
	const path = "testdata/buildkit.txt"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var written []string
	for _, block := range strings.Split(strings.TrimSuffix(string(text), blockEnd), blockEnd) {
		source, want, _ := strings.Cut(block, imagePart)
		dockerfile, ignore, _ := strings.Cut(source, ignorePart)
		t.Run(dockerfile, func(t *testing.T) {
			context := maps.Clone(buildkitContext)
			context["Dockerfile"] = dockerfile + "\n"
			if !strings.Contains(dockerfile, "FROM ") {
				context["Dockerfile"] = "FROM scratch\n" + dockerfile + "\n"
			}
			if ignore != "" {
				context[".dockerignore"] = ignore + "\n"
			}
			dir := context.write(t)
			img, err := Build(dir, amd64)
			got := "refused"
			if err == nil {
				got = contents(t, img)
			} else if !regexp.MustCompile(`": line \d+: `).MatchString(err.Error()) {
				t.Errorf("refused without a line: %v", err)
			}
			if *buildkit != "" {
				if want = buildWithBuildKit(t, dir); got == "refused" {
					want = "refused\n" + want
				}
			}
			if got != want && !(got == "refused" && strings.HasPrefix(want, "refused\n")) {
				t.Errorf("image is\n%s\nwant, as BuildKit builds it,\n%s", got, want)
			}
		})
		written = append(written, source+imagePart+want)
	}
	if *buildkit != "" {
		if err := os.WriteFile(path, []byte(strings.Join(written, blockEnd)+blockEnd), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// contents describes an image: its configuration and the merged files of all layers.
func contents(t *testing.T, img v1.Image) string {
	t.Helper()
	c := config(t, img)
	c.Config.Labels, c.Config.ExposedPorts, c.Config.Volumes = nonEmpty(c.Config.Labels), nonEmpty(c.Config.ExposedPorts), nonEmpty(c.Config.Volumes)
	b, err := json.Marshal(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, layer := range layers(t, img) {
		for _, line := range layer {
			name := strings.TrimSuffix(strings.SplitN(line, " ", 3)[2], "/")
			name, _, _ = strings.Cut(name, " -> ")
			files[strings.TrimPrefix(name, "./")] = line
		}
	}
	lines := append([]string{fmt.Sprintf("%s/%s %q %s", c.OS, c.Architecture, c.Author, b)}, slices.Sorted(maps.Values(files))...)
	return strings.Join(lines, "\n")
}

func nonEmpty[M ~map[K]V, K comparable, V any](m M) M {
	if len(m) == 0 {
		return nil
	}
	return m
}

// buildWithBuildKit returns the contents of the image that BuildKit builds, or its error.
func buildWithBuildKit(t *testing.T, dir string) string {
	t.Helper()
	tmp, err := os.MkdirTemp("", "image-") // not t.TempDir, whose name may contain a comma
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "image")
	text, err := exec.Command("buildctl", "--addr", *buildkit, "build", "--no-cache", "--frontend", "dockerfile.v0", "--local", "context="+dir,
		"--local", "dockerfile="+dir, "--opt", "platform=linux/amd64", "--opt", "build-arg:SOURCE_DATE_EPOCH=0",
		"--output", "type=oci,oci-mediatypes=true,rewrite-timestamp=true,tar=false,dest="+out).CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		return "error: " + regexp.MustCompile(`ref \S+ `).ReplaceAllString(lines[len(lines)-1], "")
	}
	index, err := layout.ImageIndexFromPath(out)
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(manifest(t, index).Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return contents(t, img)
}

func manifest(t *testing.T, index v1.ImageIndex) *v1.IndexManifest {
	t.Helper()
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	return m
}
