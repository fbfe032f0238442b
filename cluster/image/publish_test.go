package image

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// In registries older than OCI 1.1 a tag stands for the list of referrers.
func TestPublishToAnOldRegistry(t *testing.T) {
	tag, err := name.NewTag(testRegistry(t) + "/you/go-micro-srv:v1")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time the registry already contains everything
		variants := []Variant{{testImage(t, "amd64"), []byte("{}")}, {testImage(t, "arm64"), []byte("{ }")}}
		digest, err := Publish(t.Context(), tag.String(), variants)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := remote.Head(tag); err != nil || d.Digest != digest {
			t.Errorf("the tag is %v, published was %s; %v", d, digest, err)
		}
		for _, v := range variants {
			imageDigest, err := v.Image.Digest()
			if err != nil {
				t.Fatal(err)
			}
			referrers, err := remote.Referrers(tag.Digest(imageDigest.String()))
			if err != nil {
				t.Fatal(err)
			}
			list, err := referrers.IndexManifest()
			if err != nil || len(list.Manifests) != 1 {
				t.Fatalf("referrers are %+v, %v", list, err)
			}
			sbom, err := remote.Image(tag.Digest(list.Manifests[0].Digest.String()))
			if err != nil {
				t.Fatal(err)
			}
			layers, err := sbom.Layers()
			if err != nil || len(layers) != 1 {
				t.Fatal(len(layers), err)
			}
			r, err := layers[0].Compressed()
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(r); err != nil || string(b) != string(v.SBOM) {
				t.Errorf("the SBOM is %q, %v", b, err)
			}
		}
	}
}

func TestPublishRefused(t *testing.T) {
	closed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	t.Cleanup(closed.Close)
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	host := closed.Listener.Addr().String()
	for _, tt := range []struct{ name, ref, want string }{
		{"no name", "a/B:c", ": write it as docker.io/you/go-micro-srv:v1"},
		{"a digest", "a/b@sha256:" + strings.Repeat("a", 64), ": write it as docker.io/you/go-micro-srv:v1"},
		{"no right", host + "/a/b:c", ": run `docker login " + host + "`, or name your own registry with REGISTRY="},
		{"nobody there", "127.0.0.1:1/a/b:c", "connection refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Publish(t.Context(), tt.ref, []Variant{{testImage(t, "amd64"), nil}})
			if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("pushing %q: ", tt.ref)) || !strings.HasSuffix(err.Error(), tt.want) {
				t.Errorf("error is\n%v, want\n%s", err, tt.want)
			}
		})
	}
}
