package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// When nothing arrives on a connection for idleTimeout, the transport sends an HTTP/2
// ping, and closes the connection if no answer arrives within pingTimeout. So a watch
// that a firewall or a lost Kubernetes node has cut silently ends after the sum of the
// two.
const idleTimeout, pingTimeout = 10 * time.Second, 5 * time.Second

// serviceAccountTransport adds the service account's token to each request and
// trusts the certificate authority that the volume holds at the time of the TLS
// handshake. The kubelet replaces both files while the pod runs (projected service
// account tokens, KEP-1205). This version of client-go rereads the token only.
type serviceAccountTransport struct {
	dir    string
	server *url.URL // the only server that receives the token
	base   *http.Transport
}

func newServiceAccountTransport(dir string, server *url.URL, d *dialer) *serviceAccountTransport {
	t := &serviceAccountTransport{dir: dir, server: server, base: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           d.DialContext,
		TLSHandshakeTimeout:   CallTimeout,
		ResponseHeaderTimeout: CallTimeout,
		IdleConnTimeout:       time.Minute,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: idleTimeout, PingTimeout: pingTimeout},
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies with the current authority
		},
	}}
	t.base.TLSClientConfig.VerifyConnection = func(s tls.ConnectionState) error {
		file := filepath.Join(dir, "ca.crt")
		pem, err := os.ReadFile(file) //nolint:gosec // the service account's directory
		if err != nil {
			return err
		}
		roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return fmt.Errorf("reading %q: no certificate in it", file)
		}
		for _, c := range s.PeerCertificates[1:] {
			intermediates.AddCert(c)
		}
		_, err = s.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: server.Hostname(), Roots: roots, Intermediates: intermediates})
		return err
	}
	return t
}

func (t *serviceAccountTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" || r.URL.Host != t.server.Host { // not encrypted, or the target of a redirect
		return t.base.RoundTrip(r)
	}
	token, err := os.ReadFile(filepath.Join(t.dir, "token")) // requests are rare, so there is no cache
	if err != nil {
		return nil, fmt.Errorf("reading the service account's token: %w", err)
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	return t.base.RoundTrip(r)
}

// maxRetryAfter is the longest time for which the transport respects a header
// Retry-After. API Priority and Fairness sends up to 32 s.
const maxRetryAfter = 32 * time.Second

// retryAfterTransport records the header Retry-After and removes it from the response.
// Otherwise this version of client-go sleeps for that time within the call, up to ten
// times, and looks neither at the call's context nor at its time limit.
type retryAfterTransport struct {
	base    http.RoundTripper
	retryAt *atomic.Int64
}

func (t *retryAfterTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	rsp, err := t.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if seconds, err := strconv.Atoi(rsp.Header.Get("Retry-After")); err == nil {
		wait := min(time.Duration(seconds)*time.Second, maxRetryAfter)
		t.retryAt.Store(time.Now().Add(wait).UnixNano())
	}
	rsp.Header.Del("Retry-After")
	return rsp, nil
}

// dialer tracks its open connections, so that close can close them all. An HTTP
// transport closes only idle connections.
type dialer struct {
	lastRead atomic.Int64 // Unix time in nanoseconds; 0: never

	mu     sync.Mutex
	closed bool
	open   map[net.Conn]bool
}

func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: CallTimeout, KeepAlive: idleTimeout}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		c.Close()
		return nil, net.ErrClosed
	}
	if d.open == nil {
		d.open = map[net.Conn]bool{}
	}
	d.open[c] = true
	return &trackedConn{c, d}, nil
}

func (d *dialer) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for c := range d.open {
		c.Close()
	}
	d.open = nil
}

// trackedConn tells its dialer when data arrives and when it is closed.
type trackedConn struct {
	net.Conn
	dialer *dialer
}

// Read records the time of arrival. The response to an HTTP/2 ping counts too.
func (c *trackedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.dialer.lastRead.Store(time.Now().UnixNano())
	}
	return n, err
}

func (c *trackedConn) Close() error {
	c.dialer.mu.Lock()
	delete(c.dialer.open, c.Conn)
	c.dialer.mu.Unlock()
	return c.Conn.Close()
}
