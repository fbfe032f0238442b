package signer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// newRequest is a request as kubelet makes it: the PKCS#10 request has no content but the key.
func newRequest(t *testing.T, name string, key crypto.Signer) request {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return request{
		Metadata: metadata{Namespace: "go-micro", Name: name, UID: "uid-of-" + name, ResourceVersion: "1"},
		Spec: requestSpec{SignerName: Name, PodName: "go-micro-srv-5d-x", PodUID: "9f7f4e34-1111-4c4c-9f3c-0123456789ab",
			ServiceAccountName: "go-micro-srv", MaxExpirationSeconds: 86400, StubPKCS10Request: csr},
	}
}

func ecKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newTestSigner(t *testing.T, server string) (*Signer, *testLog) {
	t.Helper()
	ca, err := OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	log := &testLog{}
	return New(server, http.DefaultClient, ca, log.line), log
}

type testLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *testLog) line(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *testLog) count(part string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

func leaf(t *testing.T, s status) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode([]byte(s.CertificateChain))
	if block == nil || len(rest) > 0 {
		t.Fatalf("want one certificate: %+v", s)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// A certificate contains what the API server has checked, and nothing else.
func TestIssuedCertificate(t *testing.T) {
	s, _ := newTestSigner(t, "")
	now := time.Now().Add(time.Hour)
	s.now = func() time.Time { return now }
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "P-521": ecKey(t, elliptic.P521()), "Ed25519": ed} {
		r := newRequest(t, "r", key)
		// The request's own subject and names are ignored.
		r.Spec.StubPKCS10Request, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"go-micro-web"}, EmailAddresses: []string{"a@b.c"}}, key)
		if err != nil {
			t.Fatal(err)
		}
		got := s.decide(r)
		if len(got.Conditions) != 1 || got.Conditions[0].Type != "Issued" || got.Conditions[0].Status != "True" {
			t.Fatalf("%s: %+v", name, got)
		}
		cert := leaf(t, got)
		var uid string
		for _, a := range cert.Subject.Names {
			if a.Type.Equal(podUID) {
				uid, _ = a.Value.(string)
			}
		}
		if len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://cluster.local/ns/go-micro/sa/go-micro-srv" || cert.Subject.CommonName != r.Spec.PodName || uid != r.Spec.PodUID || len(cert.Subject.Names) != 2 {
			t.Errorf("%s: URIs %v, subject %s, pod UID %q", name, cert.URIs, cert.Subject, uid)
		}
		if cert.DNSNames != nil || cert.IPAddresses != nil || cert.EmailAddresses != nil || cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature ||
			!slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}) {
			t.Errorf("%s: the certificate contains more: %+v", name, cert)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(s.ca.bundle()) {
			t.Fatal("the bundle contains no certificate")
		}
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cert.NotAfter.Sub(cert.NotBefore); d != time.Hour || !cert.NotBefore.Before(now) || now.Sub(cert.NotBefore) > 5*time.Minute ||
			!got.NotBefore.Equal(cert.NotBefore) || !got.NotAfter.Equal(cert.NotAfter) || got.BeginRefreshAt.Sub(cert.NotBefore) != 30*time.Minute {
			t.Errorf("%s: valid from %s for %s, refresh at %s", name, cert.NotBefore, d, got.BeginRefreshAt)
		}
	}
}

// Nothing that a pod's template may contain changes an identity: the request is denied, and the message says why.
func TestRefusedRequests(t *testing.T) {
	s, _ := newTestSigner(t, "")
	key := ecKey(t, elliptic.P256())
	weak, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name              string
		change            func(*request)
		key               crypto.Signer
		kind, reason, say string
	}{
		{"SPIFFE path of another account", func(r *request) {
			r.Spec.UnverifiedUserAnnotations = map[string]string{"spiffe/path-overriding": "ns/go-micro/sa/go-micro-web"}
		}, key, "Denied", "InvalidUnverifiedUserAnnotations", "service account"},
		{"any annotation", func(r *request) { r.Spec.UnverifiedUserAnnotations = map[string]string{"a.example/b": ""} }, key, "Denied", "InvalidUnverifiedUserAnnotations", "userAnnotations"},
		{"RSA", func(*request) {}, weak, "Denied", "UnsupportedKeyType", "ECDSAP256"},
		{"P-224", func(*request) {}, ecKey(t, elliptic.P224()), "Denied", "UnsupportedKeyType", "ECDSAP256"},
		{"no PKCS#10", func(r *request) { r.Spec.StubPKCS10Request = []byte("x") }, key, "Failed", "UnreadableRequest", "stubPKCS10Request"},
		{"signature of another key", func(r *request) { r.Spec.StubPKCS10Request[len(r.Spec.StubPKCS10Request)-1] ^= 1 }, key, "Failed", "UnreadableRequest", "stubPKCS10Request"},
		{"no service account", func(r *request) { r.Spec.ServiceAccountName = "" }, key, "Failed", "UnreadableRequest", "no service account"},
		{"no pod", func(r *request) { r.Spec.PodUID = "" }, key, "Failed", "UnreadableRequest", "no pod"},
	} {
		r := newRequest(t, "r", tt.key)
		tt.change(&r)
		got := s.decide(r)
		if len(got.Conditions) != 1 || got.CertificateChain != "" || got.NotAfter != nil {
			t.Errorf("%s: %+v", tt.name, got)
			continue
		}
		if c := got.Conditions[0]; c.Type != tt.kind || c.Status != "True" || c.Reason != tt.reason || !strings.Contains(c.Message, tt.say) {
			t.Errorf("%s: %+v", tt.name, c)
		}
	}
	s.now = func() time.Time { return time.Now().AddDate(1, 0, 0) }
	if got := s.decide(newRequest(t, "r", key)); got.Conditions[0].Type != "Failed" || !strings.Contains(got.Conditions[0].Message, "expires") {
		t.Errorf("with an authority that expires first: %+v", got)
	}
}

// A restart keeps the authority, so that certificates stay valid. Nobody else can read the key.
func TestAuthorityIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "signer")
	first, err := OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := OpenCA(dir)
	if err != nil || string(again.bundle()) != string(first.bundle()) || strings.Contains(string(first.bundle()), "KEY") {
		t.Errorf("%v: %s\n%s", err, first.bundle(), again.bundle())
	}
	for path, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, caFile): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, caFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCA(dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("with a damaged file: %v", err)
	}
}

func eventually(t *testing.T, description string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", description)
		}
	}
}

// run runs a signer until the end of the test.
func run(t *testing.T, s *Signer) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { s.Run(ctx); close(ended) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Error("the signer does not end with its context")
		}
	})
}

// Requests that exist and new ones are answered, each once.
func TestEachRequestIsAnsweredOnce(t *testing.T) {
	api, url := newFakeAPI(t)
	key := ecKey(t, elliptic.P256())
	for i := range 5 {
		api.add(newRequest(t, fmt.Sprint("old-", i), key))
	}
	other := newRequest(t, "other", key)
	other.Spec.SignerName = "example.com/other" // the API server's selector fails
	api.add(other)
	s, log := newTestSigner(t, url)
	run(t, s)
	eventually(t, "the old requests", func() bool { return api.issued("old-0") && api.issued("old-4") })
	for i := range 20 {
		api.add(newRequest(t, fmt.Sprint("new-", i), key))
	}
	eventually(t, "the new requests", func() bool {
		for i := range 20 {
			if !api.issued(fmt.Sprint("new-", i)) {
				return false
			}
		}
		return true
	})
	// The line of the last one comes after the API server has its answer.
	eventually(t, "25 lines of the log for 25 certificates", func() bool {
		return log.count("Issued spiffe://cluster.local/ns/go-micro/sa/go-micro-srv for pod \"go-micro-srv-5d-x\"") == 25
	})
	api.mu.Lock()
	defer api.mu.Unlock()
	for name, n := range api.updates {
		if n != 1 || name == "other" {
			t.Errorf("%d answers to %s", n, name)
		}
	}
	if api.bundle != string(s.ca.bundle()) {
		t.Errorf("the bundle is %q", api.bundle)
	}
}

// Conflicts and an API server that is away are retried; a request that the API server refuses for ever delays no other.
func TestErrorsAreRetried(t *testing.T) {
	api, url := newFakeAPI(t)
	key := ecKey(t, elliptic.P256())
	api.set(func() { api.down = true; api.conflict["conflict"] = 2; api.refused["refused"] = true })
	s, log := newTestSigner(t, url)
	s.firstRetry = minRetryDelay / 10
	run(t, s)
	eventually(t, "a line about the API server", func() bool { return log.count("503") > 0 })
	api.add(newRequest(t, "first", key))
	time.Sleep(2 * time.Second)
	if n := log.count("503"); n != 1 {
		t.Errorf("%d lines about one outage", n)
	}
	api.set(func() { api.down = false })
	eventually(t, "the request of the outage", func() bool { return api.issued("first") })
	eventually(t, "the line about the end of the outage", func() bool { return log.count("answering again") == 1 })
	api.add(newRequest(t, "conflict", key))
	eventually(t, "the request with conflicts", func() bool { return api.issued("conflict") })
	api.add(newRequest(t, "refused", key))
	eventually(t, "retries", func() bool { api.mu.Lock(); defer api.mu.Unlock(); return api.updates["refused"] > 4 })
	for i := range 3 {
		start, name := time.Now(), fmt.Sprint("meanwhile-", i)
		api.add(newRequest(t, name, key))
		eventually(t, name, func() bool { return api.issued(name) })
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("%s waited for %s", name, d)
		}
	}
	api.mu.Lock()
	defer api.mu.Unlock()
	if n := api.updates["refused"]; n > 15 {
		t.Errorf("%d retries without a delay", n)
	}
}

func TestRetryDelay(t *testing.T) {
	for failures, most := range map[int]time.Duration{1: minRetryDelay, 2: 2 * minRetryDelay, 4: 8 * minRetryDelay, 20: maxRetryDelay, 1 << 20: maxRetryDelay} {
		for range 100 {
			if d := retryDelay(minRetryDelay, failures); d < most/2 || d > most {
				t.Errorf("after %d failures: %s", failures, d)
			}
		}
	}
}

// The process needs all its files; without one it says which.
func TestMainErrors(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	if err := Main([]string{"-dir=" + t.TempDir(), "-cert=" + none, "-key=" + none}); err == nil || !strings.Contains(err.Error(), "certificate for the API server") {
		t.Errorf("without a certificate: %v", err)
	}
	if err := Main([]string{"-dir=/dev/null/x"}); err == nil || !strings.Contains(err.Error(), "/dev/null/x") {
		t.Errorf("without a directory: %v", err)
	}
}
