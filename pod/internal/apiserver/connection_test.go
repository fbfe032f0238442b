package apiserver_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
)

// outside is the environment of a process that does not run in a pod.
var outside = apiserver.Environment{Getenv: func(string) string { return "" }}

func TestConnectOutsideCluster(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("HOME", t.TempDir())
	if _, err := apiserver.Connect(outside, apiserver.Options{}); err == nil || !strings.Contains(err.Error(), "run it in a cluster or set KUBECONFIG") {
		t.Errorf("without a kubeconfig: %v", err)
	}

	var api recorder
	server := httptest.NewServer(&api)
	defer server.Close()
	kubeconfig := filepath.Join(t.TempDir(), "config")
	t.Setenv("KUBECONFIG", kubeconfig)
	if err := os.WriteFile(kubeconfig, fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: a,
clusters: [{name: a, cluster: {server: "https://kubernetes.example:6443"}}], users: [{name: a, user: {token: secret}}],
contexts: [{name: a, context: {cluster: a, user: a, namespace: shop}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ address, namespace, wantHost, wantNamespace string }{
		{"", "", "https://kubernetes.example:6443", "shop"},
		{"", "go-micro", "https://kubernetes.example:6443", "go-micro"},
		{"10.0.0.1:6443", "", "https://10.0.0.1:6443", "shop"},
		{server.URL, "", server.URL, "shop"},
	} {
		c, err := apiserver.Connect(outside, apiserver.Options{Address: tt.address, Namespace: tt.namespace})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if c.Host != tt.wantHost || c.Namespace != tt.wantNamespace || !c.OutsideCluster || c.PodName != "" {
			t.Errorf("address %q, namespace %q: connected to %s, namespace %q, outside %t, pod %q", tt.address, tt.namespace, c.Host, c.Namespace, c.OutsideCluster, c.PodName)
		}
		if tt.address != server.URL {
			continue
		}
		if _, err := c.GetConfigMap(t.Context(), "x"); err != nil || api.seen() != "" {
			t.Errorf("without TLS the server received %q, %v", api.seen(), err)
		}
	}
}

// Without POD_NAME the host's name is the pod's.
func TestPodName(t *testing.T) {
	_, env := kubetest.StartFake(t, http.NotFoundHandler())
	for _, tt := range []struct{ podName, hostname, want string }{{"a", "b", "a"}, {"", "b", "b"}} {
		changed := apiserver.Environment{ServiceAccountDir: env.ServiceAccountDir, Getenv: func(name string) string {
			switch name {
			case "POD_NAME":
				return tt.podName
			case "HOSTNAME":
				return tt.hostname
			}
			return env.Getenv(name)
		}}
		c, err := apiserver.Connect(changed, apiserver.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if c.Close(); c.PodName != tt.want || c.OutsideCluster || c.Namespace != "test" {
			t.Errorf("POD_NAME=%q HOSTNAME=%q: pod %q, namespace %q, outside %t", tt.podName, tt.hostname, c.PodName, c.Namespace, c.OutsideCluster)
		}
	}
}

// One of the two variables that Kubernetes sets is not enough.
func TestHalfAnEnvironmentIsNone(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("HOME", t.TempDir())
	_, env := kubetest.StartFake(t, http.NotFoundHandler())
	for _, missing := range []string{"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"} {
		half := apiserver.Environment{ServiceAccountDir: env.ServiceAccountDir, Getenv: func(name string) string {
			if name == missing {
				return ""
			}
			return env.Getenv(name)
		}}
		if _, err := apiserver.Connect(half, apiserver.Options{}); err == nil || !strings.Contains(err.Error(), "not in a pod") {
			t.Errorf("without %s: %v", missing, err)
		}
	}
}

func TestLastContact(t *testing.T) {
	var api recorder
	_, env := kubetest.StartFake(t, &api)
	c, err := apiserver.Connect(env, apiserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.LastContact(); !got.IsZero() {
		t.Errorf("before the first call the last contact was at %s", got)
	}
	begin := time.Now()
	if _, err := c.GetConfigMap(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if got := c.LastContact(); got.Before(begin) || got.After(time.Now()) {
		t.Errorf("the last contact was at %s, the call began at %s", got, begin)
	}
}

func TestRetryAfter(t *testing.T) {
	header := ""
	_, env := kubetest.StartFake(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if header != "" {
			w.Header().Set("Retry-After", header)
		}
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	for _, tt := range []struct {
		header    string
		low, high time.Duration
	}{
		{"", 0, 0},
		{"soon", 0, 0},
		{"20", 10 * time.Second, 20 * time.Second}, // a busy machine may take a while
		{"100", 22 * time.Second, 32 * time.Second},
	} {
		header = tt.header
		c, err := apiserver.Connect(env, apiserver.Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.GetConfigMap(t.Context(), "x")
		if got := c.RetryAfter(); err == nil || got < tt.low || got > tt.high {
			t.Errorf("Retry-After: %q: %v, wait %s, want %s to %s", tt.header, err, got, tt.low, tt.high)
		}
		c.Close()
	}
}
