package kubetest

import (
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
)

// StartFake serves h over TLS until the test ends, as a fake API server. It returns the
// environment of a pod "a" in the namespace "test" that uses this API server. It needs no
// Kubernetes.
func StartFake(t testing.TB, h http.Handler) (*httptest.Server, apiserver.Environment) {
	t.Helper()
	return startFake(t, h, true)
}

// StartFakeHTTP1 is StartFake without HTTP/2, so that h may break its connections.
func StartFakeHTTP1(t testing.TB, h http.Handler) (*httptest.Server, apiserver.Environment) {
	t.Helper()
	return startFake(t, h, false)
}

func startFake(t testing.TB, h http.Handler, http2 bool) (*httptest.Server, apiserver.Environment) {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.EnableHTTP2 = http2
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	host, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return server, environment(t, "test", "a", host, port, Certificate(server), "secret")
}

// environment returns the environment of a process in a pod: variables and a service account
// volume.
func environment(t testing.TB, namespace, pod, host, port string, ca []byte, token string) apiserver.Environment {
	t.Helper()
	dir := t.TempDir()
	WriteVolumeFile(t, dir, "namespace", []byte(namespace))
	WriteVolumeFile(t, dir, "ca.crt", ca)
	WriteVolumeFile(t, dir, "token", []byte(token))
	variables := map[string]string{"POD_NAME": pod, "POD_IP": "10.244.0.9", "KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
	return apiserver.Environment{Getenv: func(k string) string { return variables[k] }, ServiceAccountDir: dir}
}

// Certificate returns the certificate of a TLS server in PEM form.
func Certificate(server *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}
