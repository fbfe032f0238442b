package image

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func testRegistry(t *testing.T) string {
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func testImage(t *testing.T, arch string) v1.Image {
	img, err := Build(files{"Dockerfile": "FROM scratch\nCOPY server /\nCMD [\"/server\"]", "server": "#!" + arch}.write(t),
		v1.Platform{OS: "linux", Architecture: arch})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// containerd requests /v2/<path>/manifests/<tag> from a mirror of docker.io.
func TestPush(t *testing.T) {
	img := testImage(t, "amd64")
	for _, tt := range []struct{ ref, path string }{
		{"846602483/go-micro-srv:kubernetes", "846602483/go-micro-srv:kubernetes"},
		{"docker.io/846602483/go-micro-srv:kubernetes", "846602483/go-micro-srv:kubernetes"},
		{"846602483/go-micro-srv", "846602483/go-micro-srv:latest"},
		{"coredns:1.2", "library/coredns:1.2"},
		{"index.docker.io/busybox", "library/busybox:latest"},
	} {
		t.Run(tt.ref, func(t *testing.T) {
			addr := testRegistry(t)
			if changed, err := Push(t.Context(), img, tt.ref, addr); err != nil || !changed {
				t.Fatal(err)
			}
			if changed, err := Push(t.Context(), img, tt.ref, addr); err != nil || changed {
				t.Errorf("pushed again: changed %v, %v", changed, err)
			}
			at, err := name.NewTag(addr+"/"+tt.path, name.StrictValidation)
			if err != nil {
				t.Fatal(err)
			}
			got, err := remote.Image(at)
			if err != nil {
				t.Fatal(err)
			}
			want, _ := img.Digest()
			if d, _ := got.Digest(); d != want {
				t.Errorf("pulled %s, pushed %s", d, want)
			}
			if l := layers(t, got); len(l) != 1 || l[0][0] != "755 0:0 server #!amd64" {
				t.Errorf("pulled layers %q", l)
			}
			if c := config(t, got).Config.Cmd; len(c) != 1 || c[0] != "/server" {
				t.Errorf("pulled command %q", c)
			}
		})
	}
}

func TestPushIndexOfTwoPlatforms(t *testing.T) {
	addr := testRegistry(t)
	var index v1.ImageIndex = empty.Index
	for _, arch := range []string{"amd64", "arm64"} {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: testImage(t, arch), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	if _, err := Push(t.Context(), index, "846602483/go-micro-web:kubernetes", addr); err != nil {
		t.Fatal(err)
	}
	at, err := name.NewTag(addr + "/846602483/go-micro-web:kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := remote.Image(at, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}))
		if err != nil {
			t.Fatal(err)
		}
		if got := layers(t, img)[0][0]; got != "755 0:0 server #!"+arch {
			t.Errorf("%s pulls %q", arch, got)
		}
	}
}

func TestPushRefused(t *testing.T) {
	img := testImage(t, "amd64")
	digest := "@sha256:" + strings.Repeat("a", 64)
	for _, tt := range []struct{ ref, addr, want string }{
		{"a/b" + digest, "127.0.0.1:1", `pushing "a/b` + digest + `": it names a digest, which depends on the content: use a tag`},
		{"a/b:c" + digest, "127.0.0.1:1", `pushing "a/b:c` + digest + `": it names a digest`},
		{"quay.io/a/b:c", "127.0.0.1:1", `pushing "quay.io/a/b:c": it belongs to quay.io, the registry here serves docker.io: leave the host out`},
		{"localhost/b", "127.0.0.1:1", `pushing "localhost/b": it belongs to localhost`},
		{"a/B:c", "127.0.0.1:1", `pushing "a/B:c": invalid reference format`},
		{"", "127.0.0.1:1", `pushing "": invalid reference format`},
		{"a/b", "", `pushing "a/b": `},
	} {
		if _, err := Push(t.Context(), img, tt.ref, tt.addr); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("error is\n%v, want\n%s", err, tt.want)
		}
	}
}

func TestPushWithoutRegistry(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // accepts connections and never answers
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = Push(ctx, testImage(t, "amd64"), "a/b", l.Addr().String())
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("took %s, the deadline was 200ms", d)
	}
	l.Close()
	if _, err := Push(t.Context(), testImage(t, "amd64"), "a/b", l.Addr().String()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("error is %v", err)
	}
}
