package pod

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
	"github.com/micro/go-micro/v2/registry"
	"k8s.io/apimachinery/pkg/types"
)

// The labels and annotations that the plugin writes and reads.
const (
	typeLabel        = "micro.mu/type"
	typeValue        = "service"
	selectorPrefix   = "micro.mu/selector-"
	annotationPrefix = "micro.mu/service-"
)

// labelName replaces the bytes of a service's name that a label key must not contain,
// as the plugin does.
func labelName(service string) string {
	name := []byte(service)
	for i, c := range name {
		if c != '-' && c != '_' && c != '.' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			name[i] = '_'
		}
	}
	return string(name)
}

// podMetadata are labels and annotations of a pod. A nil value means that the key
// is absent.
type podMetadata struct {
	Labels      map[string]*string `json:"labels,omitempty"`
	Annotations map[string]*string `json:"annotations,omitempty"`
}

// podPatch is the strategic merge patch that the plugin and the registrar send. The
// uid, which no patch may change, makes the API server refuse the registrar's patch
// when another pod has taken over the name.
type podPatch struct {
	Metadata struct {
		UID types.UID `json:"uid,omitempty"`
		podMetadata
	} `json:"metadata"`
}

// diff returns the part of desired that differs from m.
func (m podMetadata) diff(desired podMetadata) podMetadata {
	return podMetadata{Labels: diffValues(m.Labels, desired.Labels), Annotations: diffValues(m.Annotations, desired.Annotations)}
}

func diffValues(observed, desired map[string]*string) (diff map[string]*string) {
	for k, want := range desired {
		if got := observed[k]; (got == nil) != (want == nil) || got != nil && *got != *want {
			if diff == nil {
				diff = map[string]*string{}
			}
			diff[k] = want
		}
	}
	return diff
}

func (m podMetadata) empty() bool { return len(m.Labels) == 0 && len(m.Annotations) == 0 }

// onlyRemoves reports whether m sets no value.
func (m podMetadata) onlyRemoves() bool {
	for _, values := range []map[string]*string{m.Labels, m.Annotations} {
		for _, v := range values {
			if v != nil {
				return false
			}
		}
	}
	return true
}

// capture runs the writes with the plugin and returns what the plugin sent in each.
//
// The plugin's HTTP client has no time limit and reads the service account only
// once. So capture makes the plugin write to a listener of this process, under a
// path that no other process knows. The registrar then sends the same metadata to the
// API server, with a time limit and with the current token.
func capture(plugin Plugin, writes ...func(registry.Registry) error) ([]podMetadata, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for the registry plugin: %w", err)
	}
	secret, written := rand.Text(), make(chan []byte, 1)
	server := &http.Server{ReadHeaderTimeout: apiserver.CallTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
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
	var captured []podMetadata
	for _, write := range writes {
		if err := write(p); err != nil {
			return nil, err
		}
		var patch podPatch
		select {
		case body := <-written:
			if err := json.Unmarshal(body, &patch); err != nil {
				return nil, fmt.Errorf("reading what the registry plugin writes: %w", err)
			}
		default:
			return nil, errors.New("the registry plugin has written nothing: use the plugin github.com/micro/go-plugins/registry/kubernetes/v2")
		}
		captured = append(captured, patch.Metadata.podMetadata)
	}
	return captured, nil
}
