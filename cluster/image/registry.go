package image

import (
	"log"
	"net/http"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Registry is an image registry in memory that has images of every registry: the
// name of an image contains its host.
type Registry struct{ images http.Handler }

// NewRegistry returns an empty registry that logs each request.
func NewRegistry(requests *log.Logger) *Registry {
	return &Registry{registry.New(registry.Logger(requests))}
}

// Writer accepts the images that Push sends.
func (r *Registry) Writer() http.Handler { return r.images }

// Reader answers containerd, which adds the host of the image's name as the query
// parameter ns when it asks a mirror. It refuses every method that writes.
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

var notInRepository = regexp.MustCompile(`[^a-z0-9.-]`)

// hostDirectory is the first element of the repositories of a registry's host. A
// repository may not contain the colon of a port.
func hostDirectory(host string) string {
	return notInRepository.ReplaceAllString(strings.ToLower(host), "_")
}
