package image

import (
	"bytes"
	"context"
	"io"
	"log"
	"net/http"
	"path"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Registry is an image registry in memory. It stores images of all registries, each under
// a name that begins with the host of its registry. When another image replaces an image,
// Registry deletes what only the old image contains, after a minute: a Push that began
// earlier may have found it and not sent it again, and containerd may be pulling it.
type Registry struct {
	images http.Handler
	blobs  interface { // what the images consist of
		registry.BlobHandler
		registry.BlobDeleteHandler
	}
	keep time.Duration // how long blobs stay after their last use

	mu        sync.Mutex
	manifests map[string][]string  // the blobs of each manifest, by its digest
	tags      map[string][]string  // the blobs of the image that has the name now
	unused    map[string]time.Time // blobs of replaced images, and when they were last used
}

// NewRegistry returns an empty registry that logs each request.
func NewRegistry(requests *log.Logger) *Registry {
	blobs := registry.NewInMemoryBlobHandler()
	return &Registry{
		images: registry.New(registry.Logger(requests), registry.WithBlobHandler(blobs)),
		blobs: blobs.(interface {
			registry.BlobHandler
			registry.BlobDeleteHandler
		}),
		keep: time.Minute, manifests: map[string][]string{}, tags: map[string][]string{}, unused: map[string]time.Time{},
	}
}

// Writer accepts the images that Push sends.
func (r *Registry) Writer() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		directory, name := path.Split(req.URL.Path)
		switch kind := path.Base(directory); {
		case kind == "blobs":
			r.used(name)
		case kind == "manifests" && req.Method == http.MethodPut:
			manifest, err := io.ReadAll(http.MaxBytesReader(w, req.Body, 4<<20))
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			req.Body = io.NopCloser(bytes.NewReader(manifest))
			defer r.replace(req.URL.Path, manifest) // also of a manifest that is refused: it only keeps more
		}
		r.images.ServeHTTP(w, req)
	})
}

// used records that a Push has found a blob or sends it.
func (r *Registry) used(digest string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.unused[digest]; ok {
		r.unused[digest] = time.Now()
	}
}

var digests = regexp.MustCompile(`"digest"\s*:\s*"(sha256:[0-9a-f]{64})"`)

// replace records the blobs of a manifest, and those of the manifest that had the name before.
func (r *Registry) replace(name string, manifest []byte) {
	digest, _, err := v1.SHA256(bytes.NewReader(manifest))
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var blobs []string
	for _, m := range digests.FindAllSubmatch(manifest, -1) {
		blobs = append(append(blobs, string(m[1])), r.manifests[string(m[1])]...) // of an index, the blobs of its images
	}
	r.manifests[digest.String()] = blobs
	if path.Base(name) == digest.String() { // part of an index, which has a name
		return
	}
	for _, b := range r.tags[name] {
		r.unused[b] = time.Now()
	}
	r.tags[name] = blobs
	time.AfterFunc(r.keep+time.Millisecond, r.collect)
}

// collect deletes the blobs that no image contains and that were not used for some time. It
// also returns the memory of the uploads to the system, which takes more than the images.
func (r *Registry) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, blobs := range r.tags {
		for _, b := range blobs {
			delete(r.unused, b)
		}
	}
	for b, last := range r.unused {
		if digest, err := v1.NewHash(b); err == nil && time.Since(last) >= r.keep {
			_ = r.blobs.Delete(context.Background(), "", digest) // an index has the digests of manifests, which are no blobs
			delete(r.unused, b)
		}
	}
	if len(r.unused) > 0 {
		time.AfterFunc(r.keep, r.collect)
	}
	debug.FreeOSMemory()
}

// Reader serves images to containerd. When containerd asks a mirror, it adds the host in
// the image's name as the query parameter ns. Reader refuses every method that writes.
func (r *Registry) Reader() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			http.Error(w, "this registry is read-only here; use the launcher's command load", http.StatusMethodNotAllowed)
			return
		}
		if image, ok := strings.CutPrefix(req.URL.Path, "/v2/"); ok && image != "" {
			host := req.URL.Query().Get("ns")
			if host == "" {
				host = "docker.io"
			}
			req = req.Clone(req.Context())
			req.URL.Path = "/v2/" + hostDirectory(host) + "/" + image
		}
		r.images.ServeHTTP(w, req)
	})
}

var invalidInRepository = regexp.MustCompile(`[^a-z0-9.-]`)

// hostDirectory returns the first path element of the repositories that belong to a
// registry's host. A repository may not contain the colon of a port.
func hostDirectory(host string) string {
	return invalidInRepository.ReplaceAllString(strings.ToLower(host), "_")
}
