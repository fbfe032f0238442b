package image

import (
	"log"
	"net/http"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Registry is an image registry in memory. It stores images of all registries, each under
// a name that begins with the host of its registry.
type Registry struct{ images http.Handler }

// NewRegistry returns an empty registry that logs each request.
func NewRegistry(requests *log.Logger) *Registry {
	return &Registry{registry.New(registry.Logger(requests))}
}

// Writer accepts the images that Push sends.
func (r *Registry) Writer() http.Handler { return r.images }

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
