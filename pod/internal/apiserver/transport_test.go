package apiserver_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
)

// recorder records the Authorization headers that it receives.
type recorder struct {
	mu     sync.Mutex
	tokens []string
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	r.mu.Lock()
	r.tokens = append(r.tokens, request.Header.Get("Authorization"))
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprint(w, `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"}}`)
}

func (r *recorder) seen() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.tokens, " ")
}

func get(t *testing.T, env apiserver.Environment, address string) error {
	t.Helper()
	c, err := apiserver.Connect(env, apiserver.Options{Address: address})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.GetConfigMap(t.Context(), "x")
	return err
}

func TestTokenIsSentOnlyToTheAPIServerOverTLS(t *testing.T) {
	var api, stranger recorder
	server, env := kubetest.StartFake(t, &api)
	if err := get(t, env, ""); err != nil || api.seen() != "Bearer secret" {
		t.Errorf("the API server of the environment received %q, %v", api.seen(), err)
	}
	if err := get(t, env, server.URL); err != nil || api.seen() != "Bearer secret Bearer secret" {
		t.Errorf("the API server by its address received %q, %v", api.seen(), err)
	}

	plain := httptest.NewServer(&stranger)
	defer plain.Close()
	_ = get(t, env, plain.URL)                                // http://...
	_ = get(t, env, strings.TrimPrefix(plain.URL, "http://")) // host:port, as in a left-over MICRO_REGISTRY_ADDRESS=consul:8500
	if strings.Contains(stranger.seen(), "secret") {
		t.Errorf("an address without TLS received %q", stranger.seen())
	}

	// The certificate of this server is trusted, but names another host.
	elsewhere := strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
	if err := get(t, env, elsewhere); err == nil || !strings.Contains(err.Error(), "certificate") || strings.Count(api.seen(), "secret") != 2 {
		t.Errorf("a certificate for another host: %v, received %q", err, api.seen())
	}

	// A trusted server redirects to another server.
	second := httptest.NewTLSServer(&stranger)
	defer second.Close()
	_, redirecting := kubetest.StartFake(t, http.RedirectHandler(second.URL, http.StatusFound))
	ca, err := os.ReadFile(filepath.Join(redirecting.ServiceAccountDir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	kubetest.WriteVolumeFile(t, redirecting.ServiceAccountDir, "ca.crt", append(ca, kubetest.Certificate(second)...))
	_ = get(t, redirecting, "")
	if strings.Contains(stranger.seen(), "secret") {
		t.Errorf("the target of a redirect received %q", stranger.seen())
	}
}
