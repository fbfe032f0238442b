package registration

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/registry"
)

// capture runs the writes with the plugin and returns what the plugin sent in each.
//
// The plugin's HTTP client has no time limit and reads the service account only
// once. So capture makes the plugin write to a listener of this process, under a
// path that no other process knows. The registrar then sends the same metadata to the
// API server, with a time limit and with the current token.
func capture(plugin Plugin, writes ...func(registry.Registry) error) ([]podmeta.Metadata, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for the registry plugin: %w", err)
	}
	secret, written := rand.Text(), make(chan []byte, 1)
	server := &http.Server{ReadHeaderTimeout: apiserver.CallTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 16<<20)) // the caller refuses more than Kubernetes allows
		if err != nil || r.Method != http.MethodPatch || !strings.HasPrefix(r.URL.Path, "/"+secret+"/") {
			http.NotFound(w, r)
			return
		}
		select {
		case written <- body:
		default: // only the first patch counts
		}
		_, _ = w.Write([]byte("{}"))
	})}
	server.SetKeepAlivesEnabled(false)
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(l) })
	defer served.Wait()
	defer server.Close()

	p := plugin(registry.Addrs("http://" + l.Addr().String() + "/" + secret))
	var captured []podmeta.Metadata
	for _, write := range writes {
		if err := write(p); err != nil {
			return nil, err
		}
		var patch podmeta.Patch
		select {
		case body := <-written:
			if err := json.Unmarshal(body, &patch); err != nil {
				return nil, fmt.Errorf("reading what the registry plugin writes: %w", err)
			}
		default:
			return nil, errors.New("the registry plugin has written nothing: use the plugin github.com/micro/go-plugins/registry/kubernetes/v2")
		}
		captured = append(captured, patch.Metadata.Metadata)
	}
	return captured, nil
}
