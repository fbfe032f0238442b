package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A server with a certificate of the authority accepts the clients of the authority, as the
// user and the groups of the certificate, and nobody else.
func TestClientsAndServers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	authority, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(t.TempDir(), "admin.conf")
	err = errors.Join(authority.Issue("server", "kube-apiserver", nil, "127.0.0.1", "localhost"),
		authority.Kubeconfig(kubeconfig, "https://127.0.0.1:6443", "admin", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if user := r.TLS.PeerCertificates[0].Subject; user.CommonName != "admin" || strings.Join(user.Organization, " ") != "system:masters" {
			t.Errorf("the client is %q", user)
		}
	}))
	config, err := authority.ClientConfig("server")
	if err != nil {
		t.Fatal(err)
	}
	server.TLS = &tls.Config{Certificates: config.Certificates, ClientCAs: config.RootCAs, ClientAuth: tls.RequireAndVerifyClientCert}
	server.StartTLS()
	defer server.Close()

	if config, err = authority.ClientConfig("client-admin.conf"); err != nil {
		t.Fatal(err)
	}
	get := func(config *tls.Config) error {
		transport := &http.Transport{TLSClientConfig: config}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get(server.URL)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if err := get(config); err != nil {
		t.Errorf("with the certificate of the kubeconfig: %v", err)
	}
	if err := get(&tls.Config{RootCAs: config.RootCAs}); err == nil {
		t.Error("the server accepts a client without a certificate")
	}
	if err := get(&tls.Config{Certificates: config.Certificates}); !errors.As(err, new(x509.UnknownAuthorityError)) {
		t.Errorf("without the authority's certificate: %v", err)
	}

	text, err := os.ReadFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"server: https://127.0.0.1:6443\n", "- name: admin\n", "certificate-authority-data: LS0t", "client-key-data: LS0t"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the kubeconfig has no %q:\n%s", want, text)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 8 {
		t.Errorf("the directory has %q, %v, want 4 pairs of files", files, err)
	}
	for _, f := range append(files, kubeconfig) {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%q has mode %v, want 0600; %v", f, info.Mode(), err)
		}
	}
}
