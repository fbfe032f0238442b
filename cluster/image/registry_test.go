package image

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// stored reports whether the registry whose Reader has this address stores the layer of an image.
func stored(t *testing.T, reader string, img v1.Image) bool {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + reader + "/v2/a/b/blobs/" + digest.String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// The layers of an image that another image has replaced are deleted, unless an image of another name contains them or a
// Push has used them in the meantime.
func TestReplacedImagesAreDeleted(t *testing.T) {
	r := NewRegistry(log.New(io.Discard, "", 0))
	r.keep = time.Second // a push to a busy machine takes a part of it
	w := httptest.NewServer(r.Writer())
	defer w.Close()
	s := httptest.NewServer(r.Reader())
	defer s.Close()
	reader := s.Listener.Addr().String()
	old, kept, again, current := testImage(t, "old"), testImage(t, "kept"), testImage(t, "again"), testImage(t, "current")
	push := func(ref string, img v1.Image) {
		t.Helper()
		if changed, err := Push(t.Context(), img, ref, dialTo(w.Listener.Addr().String())); err != nil || !changed {
			t.Fatal(changed, err)
		}
	}
	push("a/kept:1", kept)
	for _, img := range []v1.Image{old, kept, again, current} {
		push("a/b:c", img)
	}
	push("a/again:1", again) // with the layer that the registry still has
	for end := time.Now().Add(20 * time.Second); stored(t, reader, old); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the layer of a replaced image is not deleted")
		}
	}
	time.Sleep(2 * r.keep) // until a wrong deletion would have happened
	for name, img := range map[string]v1.Image{"of another name": kept, "used again": again, "current": current} {
		if !stored(t, reader, img) {
			t.Errorf("the layer of the image %s is deleted", name)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.unused) > 0 {
		t.Errorf("%d blobs are still to be deleted", len(r.unused))
	}
}
