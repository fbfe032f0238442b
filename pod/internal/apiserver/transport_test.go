package apiserver_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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

// With HTTPS_PROXY in the environment, requests to the API server go through the proxy unless NO_PROXY names
// it. Errors then say so. Go reads the environment once, so that the requests are made in a process of their own.
func TestErrorThroughProxyNamesNoProxy(t *testing.T) {
	const host = "192.0.2.1" // RFC 5737: nobody answers
	if proxy := os.Getenv("BEHIND_PROXY"); proxy != "" {
		_, env := kubetest.StartFake(t, http.NotFoundHandler())
		getenv := env.Getenv
		env.Getenv = func(key string) string {
			if key == "KUBERNETES_SERVICE_HOST" {
				return host
			}
			return getenv(key)
		}
		err := get(t, env, "")
		want := ": the request to the API server went through the proxy " + proxy + " of the environment: add " + host + " to NO_PROXY"
		if err == nil || !strings.HasSuffix(err.Error(), want) || !strings.Contains(err.Error(), os.Getenv("PROXY_CAUSE")) {
			t.Errorf("got %v, want it with %q and %q", err, os.Getenv("PROXY_CAUSE"), want)
		}
		return
	}
	var asked atomic.Value
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method + " " + r.Host)
		http.Error(w, "no", http.StatusForbidden)
	}))
	defer refusing.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	for proxy, cause := range map[string]string{refusing.URL: "Forbidden", gone.URL: "connection refused"} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestErrorThroughProxyNamesNoProxy$")
		cmd.Env = append(os.Environ(), "HTTPS_PROXY="+proxy, "BEHIND_PROXY="+proxy, "PROXY_CAUSE="+cause, "NO_PROXY=", "https_proxy=", "no_proxy=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
	if got, _ := asked.Load().(string); !strings.HasPrefix(got, "CONNECT "+host+":") {
		t.Errorf("the proxy was asked for %q", got)
	}
}
