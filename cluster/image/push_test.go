package image

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
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

// pushTarget starts a Registry. It returns the function with which Push connects to the
// Writer, and the address of the Reader.
func pushTarget(t *testing.T) (dial func(context.Context) (net.Conn, error), reader string) {
	r := NewRegistry(log.New(io.Discard, "", 0))
	w := httptest.NewServer(r.Writer())
	t.Cleanup(w.Close)
	s := httptest.NewServer(r.Reader())
	t.Cleanup(s.Close)
	return dialTo(w.Listener.Addr().String()), s.Listener.Addr().String()
}

func dialTo(address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", address) }
}

// mirrorClient adds the query parameter ns to requests, as containerd does for a mirror.
type mirrorClient struct{ host string }

func (c mirrorClient) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Path != "/v2/" && c.host != "" {
		req = req.Clone(req.Context())
		req.URL.RawQuery = "ns=" + url.QueryEscape(c.host)
	}
	return http.DefaultTransport.RoundTrip(req)
}

// containerd requests /v2/<path>/manifests/<tag>?ns=<host> from a mirror.
func TestPush(t *testing.T) {
	img := testImage(t, "amd64")
	for _, tt := range []struct{ ref, host, path string }{
		{"846602483/go-micro-srv:kubernetes", "docker.io", "846602483/go-micro-srv:kubernetes"},
		{"docker.io/846602483/go-micro-srv:kubernetes", "docker.io", "846602483/go-micro-srv:kubernetes"},
		{"846602483/go-micro-srv", "docker.io", "846602483/go-micro-srv:latest"},
		{"coredns:1.2", "docker.io", "library/coredns:1.2"},
		{"index.docker.io/busybox", "docker.io", "library/busybox:latest"},
		{"busybox", "", "library/busybox:latest"}, // a client that does not send ns
		{"quay.io/a/b:c", "quay.io", "a/b:c"},
		{"registry.k8s.io/pause:3.10", "registry.k8s.io", "pause:3.10"},
		{"localhost/b", "localhost", "b:latest"},
		{"localhost:5000/you/b:v1", "localhost:5000", "you/b:v1"},
		{"Registry.Example:443/b", "Registry.Example:443", "b:latest"},
		{"[::1]:5000/b", "[::1]:5000", "b:latest"},
	} {
		t.Run(tt.ref, func(t *testing.T) {
			dial, reader := pushTarget(t)
			if changed, err := Push(t.Context(), img, tt.ref, dial); err != nil || !changed {
				t.Fatal(changed, err)
			}
			if changed, err := Push(t.Context(), img, tt.ref, dial); err != nil || changed {
				t.Errorf("pushed again: changed %v, %v", changed, err)
			}
			tag, err := name.NewTag(reader+"/"+tt.path, name.StrictValidation)
			if err != nil {
				t.Fatal(err)
			}
			got, err := remote.Image(tag, remote.WithTransport(mirrorClient{tt.host}))
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

// Images with the same path in two registries are two images.
func TestRegistriesAreSeparate(t *testing.T) {
	dial, reader := pushTarget(t)
	for ref, arch := range map[string]string{"a/b:c": "amd64", "quay.io/a/b:c": "arm64"} {
		if _, err := Push(t.Context(), testImage(t, arch), ref, dial); err != nil {
			t.Fatal(err)
		}
	}
	tag, err := name.NewTag(reader + "/a/b:c")
	if err != nil {
		t.Fatal(err)
	}
	for host, arch := range map[string]string{"docker.io": "amd64", "quay.io": "arm64"} {
		img, err := remote.Image(tag, remote.WithTransport(mirrorClient{host}))
		if err != nil {
			t.Fatal(err)
		}
		if got := config(t, img).Architecture; got != arch {
			t.Errorf("%s/a/b:c is for %s, pushed for %s", host, got, arch)
		}
	}
	if _, err := remote.Head(tag, remote.WithTransport(mirrorClient{"gcr.io"})); err == nil {
		t.Error("gcr.io/a/b:c exists, but was never pushed")
	}
}

// The Reader refuses every request that would change an image.
func TestReaderRefusesWrites(t *testing.T) {
	dial, reader := pushTarget(t)
	if _, err := Push(t.Context(), testImage(t, "amd64"), "a/b:c", dial); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(reader + "/a/b:c")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Push(tag, testImage(t, "arm64")); err == nil {
		t.Error("pushing to the reader succeeded")
	}
	for _, r := range []struct{ method, path string }{
		{"POST", "/v2/docker.io/a/b/blobs/uploads/"}, {"PUT", "/v2/a/b/manifests/c"}, {"PATCH", "/v2/a/b/blobs/uploads/1"}, {"DELETE", "/v2/a/b/manifests/c"},
	} {
		req, err := http.NewRequest(r.method, "http://"+reader+r.path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s %s: %s, want 405", r.method, r.path, resp.Status)
		}
	}
	img, err := remote.Image(tag)
	if err != nil {
		t.Fatal(err)
	}
	if got := config(t, img).Architecture; got != "amd64" {
		t.Errorf("the image is for %s, want amd64 as pushed", got)
	}
}

func TestPushIndexOfTwoPlatforms(t *testing.T) {
	dial, reader := pushTarget(t)
	var index v1.ImageIndex = empty.Index
	for _, arch := range []string{"amd64", "arm64"} {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: testImage(t, arch), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	if _, err := Push(t.Context(), index, "846602483/go-micro-web:kubernetes", dial); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(reader + "/846602483/go-micro-web:kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := remote.Image(tag, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}))
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
	for _, tt := range []struct{ ref, want string }{
		{"a/b" + digest, `pushing "a/b` + digest + `": it names a digest, which depends on the content: use a tag`},
		{"a/b:c" + digest, `pushing "a/b:c` + digest + `": it names a digest`},
		{"a/B:c", `pushing "a/B:c": invalid reference format`},
		{"", `pushing "": invalid reference format`},
	} {
		if _, err := Push(t.Context(), img, tt.ref, dialTo("127.0.0.1:1")); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
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
	_, err = Push(ctx, testImage(t, "amd64"), "a/b", dialTo(l.Addr().String()))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	if d := time.Since(start); d > 20*time.Second { // without the deadline it would wait for ever
		t.Errorf("took %s, the deadline was 200ms", d)
	}
	l.Close()
	if _, err := Push(t.Context(), testImage(t, "amd64"), "a/b", dialTo(l.Addr().String())); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("error is %v", err)
	}
}
