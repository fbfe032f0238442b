package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// When nothing arrives on a connection for idleTimeout, the transport sends an HTTP/2
// ping, and closes the connection if no answer arrives within pingTimeout. So a watch
// that a firewall or a lost Kubernetes node has cut silently ends after the sum of the
// two.
const idleTimeout, pingTimeout = 10 * time.Second, 5 * time.Second

// credentials prove to the API server who the process is.
type credentials interface {
	token(ctx context.Context) (string, error) // empty if there is none
	certificate(ctx context.Context) (*tls.Certificate, error)
	answered(token string, refused bool) // the API server has answered a request, or refused it with 401
}

// serverTransport adds credentials to the requests to one server, and to no others. It trusts
// the certificate authority that roots returns at the time of the TLS handshake.
type serverTransport struct {
	server      *url.URL    // the only server that receives the credentials
	credentials credentials // nil: none
	base        *http.Transport
	ownProxy    bool // that of the kubeconfig, not of the environment
}

// proxied is the error of a request that went through a proxy of the environment.
type proxied struct {
	error
	proxy, host string // host: of the API server
}

func (p proxied) Unwrap() error { return p.error }

// send sends a request through the proxy of the environment, unless NO_PROXY names its host.
func (t *serverTransport) send(r *http.Request) (*http.Response, error) {
	rsp, err := t.base.RoundTrip(r)
	if err != nil && !t.ownProxy {
		if proxy, _ := http.ProxyFromEnvironment(r); proxy != nil {
			err = proxied{err, proxy.Redacted(), r.URL.Hostname()}
		}
	}
	return rsp, err
}

// serverTLS says how the server proves who it is.
type serverTLS struct {
	name     string                 // in its certificate
	roots    func() ([]byte, error) // PEM; nil: the roots of the system
	insecure bool                   // accepts every certificate
}

func newServerTransport(server *url.URL, proof serverTLS, c credentials, d *dialer) *serverTransport {
	t := &serverTransport{server: server, credentials: c, base: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           d.DialContext,
		TLSHandshakeTimeout:   CallTimeout,
		ResponseHeaderTimeout: CallTimeout,
		IdleConnTimeout:       time.Minute,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: idleTimeout, PingTimeout: pingTimeout},
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			ServerName:         proof.name,
			InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies with the current authority
		},
	}}
	if !proof.insecure {
		t.base.TLSClientConfig.VerifyConnection = proof.verify
	}
	if c != nil {
		t.base.TLSClientConfig.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.certificate(r.Context())
		}
	}
	return t
}

func (p serverTLS) verify(s tls.ConnectionState) error {
	options := x509.VerifyOptions{DNSName: p.name, Intermediates: x509.NewCertPool()}
	if p.roots != nil {
		pem, err := p.roots()
		if err != nil {
			return err
		}
		options.Roots = x509.NewCertPool()
		if !options.Roots.AppendCertsFromPEM(pem) {
			return errors.New("reading the certificate authority of the API server: no certificate in it")
		}
	}
	for _, c := range s.PeerCertificates[1:] {
		options.Intermediates.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(options)
	return err
}

func (t *serverTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.credentials == nil || r.URL.Scheme != "https" || r.URL.Host != t.server.Host { // not encrypted, or the target of a redirect
		return t.send(r)
	}
	token, err := t.credentials.token(r.Context())
	if err != nil {
		return nil, err
	}
	if token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+token)
	}
	rsp, err := t.send(r)
	if err == nil {
		t.credentials.answered(token, rsp.StatusCode == http.StatusUnauthorized)
	}
	return rsp, err
}

// serviceAccount is the volume that Kubernetes mounts into a pod. The kubelet replaces its files while
// the pod runs (projected service account tokens, KEP-1205), so they are read for each use.
// This version of client-go rereads the token only.
type serviceAccount struct{ dir string }

func (a serviceAccount) roots() ([]byte, error) { return os.ReadFile(filepath.Join(a.dir, "ca.crt")) }

func (a serviceAccount) token(context.Context) (string, error) {
	token, err := os.ReadFile(filepath.Join(a.dir, "token")) // requests are rare, so there is no cache
	if err != nil {
		return "", fmt.Errorf("reading the service account's token: %w", err)
	}
	return string(bytes.TrimSpace(token)), nil
}

func (serviceAccount) certificate(context.Context) (*tls.Certificate, error) {
	return &tls.Certificate{}, nil // none
}

func (serviceAccount) answered(string, bool) {}

// maxRetryAfter is the longest time for which the transport respects a header
// Retry-After. API Priority and Fairness sends up to 32 s.
const maxRetryAfter = 32 * time.Second

// clientGoTransport stands between client-go and the network, because of three things that this version
// of client-go does:
//
//   - For a header Retry-After it sleeps within the call, up to ten times, and looks neither at the call's
//     context nor at its time limit. The transport records the header and removes it.
//   - It writes an answer that breaks off to a log of its own. The transport reads the whole answer of a call
//     first, so that such an answer is an error of the call.
//   - If the connection of a GET or LIST is reset, or that of a new watch breaks, it repeats the request every
//     second, up to ten times, and logs nothing, or it returns a watch that is closed and no error. The callers
//     repeat their requests themselves: the transport hides the kind of the error from client-go, and passes it
//     on to listWatch through requestFailure.
type clientGoTransport struct {
	base    http.RoundTripper
	retryAt *atomic.Int64
}

// requestFailure is the key in a request's context for a *error, which is the error of the request.
type requestFailure struct{}

func (t *clientGoTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	rsp, err := t.base.RoundTrip(r)
	failure, _ := r.Context().Value(requestFailure{}).(*error)
	if failure != nil {
		*failure = err
	}
	if failure != nil && err != nil || errors.Is(err, syscall.ECONNRESET) {
		return nil, fmt.Errorf("%w", err) // client-go does not recognise a wrapped error, and does not repeat the request
	}
	if err != nil {
		return nil, err
	}
	if seconds, err := strconv.Atoi(rsp.Header.Get("Retry-After")); err == nil {
		wait := min(time.Duration(seconds)*time.Second, maxRetryAfter)
		t.retryAt.Store(time.Now().Add(wait).UnixNano())
	}
	rsp.Header.Del("Retry-After")
	if r.URL.Query().Get("watch") != "" && rsp.StatusCode == http.StatusOK {
		return rsp, nil
	}
	body, err := io.ReadAll(rsp.Body)
	rsp.Body.Close()
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	rsp.Body = io.NopCloser(bytes.NewReader(body))
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
	d.closed = true
	d.mu.Unlock()
	d.closeOpen()
}

// closeOpen closes the open connections. New ones may be opened.
func (d *dialer) closeOpen() {
	d.mu.Lock()
	defer d.mu.Unlock()
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
