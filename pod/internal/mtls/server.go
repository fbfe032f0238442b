package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
)

// handshakeTimeout is how long a client may take from its connection to the end of the handshake. It is that of net/http for clients.
const handshakeTimeout = 10 * time.Second

// server is the side of a source that is called.
type server struct {
	source  *Source
	refuser *refuser

	mu   sync.Mutex
	open map[*serverConn]bool
	seen map[string]bool // IDs whose calls the log has mentioned
}

func newServer(s *Source) *server {
	return &server{source: s, refuser: newRefuser(s), open: map[*serverConn]bool{}, seen: map[string]bool{}}
}

// Server returns the options of a gRPC server. They must come before all others, so that nothing sees a call before it is
// checked. Without Start, plaintext connections are closed without an answer, and open ones are not ended.
func (s *Source) Server() []grpc.ServerOption {
	leaf := s.current.Load().leaf
	return []grpc.ServerOption{
		grpc.Creds(s.server),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := s.server.check(stream.Context()); err != nil {
				return err
			}
			return next(srv, stream)
		}),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := s.server.check(ctx); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		// Clients that do not renew their connections themselves show their new certificates then.
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: leaf.NotAfter.Sub(leaf.NotBefore) / 4}),
		grpc.ReadBufferSize(0), // crypto/tls has a buffer of its own
	}
}

// caller is what is known of the client of a connection. grpc-go gives it to each call.
type caller struct {
	credentials.TLSInfo
	id        ID
	pod       string              // "" if it is not known
	notAfter  time.Time           // of the certificate
	permitted atomic.Pointer[set] // with which the caller was last found to be permitted; nil if it never was
}

func (c *caller) name() string {
	if c.pod != "" {
		return fmt.Sprintf("%s (pod %s)", c.id.URI, c.pod)
	}
	return c.id.URI
}

// plaintext is what is known of the client of a connection without TLS.
type plaintext struct{ credentials.CommonAuthInfo }

func (plaintext) AuthType() string { return "insecure" }

// CallerOf returns the ID of the client that made a call, by the context of its handler.
func CallerOf(ctx context.Context) (ID, bool) {
	if p, ok := peer.FromContext(ctx); ok {
		if c, ok := p.AuthInfo.(*caller); ok {
			return c.id, true
		}
	}
	return ID{}, false
}

// check returns an error if the client of a call may not make it.
func (s *server) check(ctx context.Context) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return s.source.Refusal(codes.Unauthenticated, "the caller is not known")
	}
	c, ok := p.AuthInfo.(*caller)
	if !ok {
		if _, ok := p.AuthInfo.(plaintext); ok && s.source.Permissive {
			return nil
		}
		return s.source.Refusal(codes.Unauthenticated, s.onlyTLS())
	}
	if code, why := s.refuses(c); why != "" {
		s.log(c.id.URI, "refusing calls of %s: %s", c.name(), why)
		return s.source.Refusal(code, fmt.Sprintf("%s refuses calls of %s: %s", s.source.ID().Account, c.id.URI, why))
	}
	return nil
}

// refuses returns why a caller may not call now, "" if it may.
func (s *server) refuses(c *caller) (code codes.Code, why string) {
	current := s.source.current.Load()
	if s.source.Now().After(c.notAfter) {
		return codes.Unauthenticated, fmt.Sprintf("its certificate expired at %s", c.notAfter.UTC().Format(time.RFC3339))
	}
	switch {
	case c.permitted.Load() == current:
		return codes.OK, ""
	case current.callers.permits(c.id):
	case current.callers.listed == nil:
		return codes.PermissionDenied, "it is not of the namespace " + current.id.Namespace + ", and there is no list of callers"
	default:
		return codes.PermissionDenied, "it is not in the list of callers"
	}
	if _, err := current.verify(c.State.PeerCertificates, x509.ExtKeyUsageClientAuth, s.source.Now()); err != nil {
		return codes.Unauthenticated, err.Error()
	}
	c.permitted.Store(current)
	return codes.OK, ""
}

// onlyTLS is the error for clients that speak plaintext.
func (s *server) onlyTLS() string {
	return s.source.ID().Account + " speaks TLS only: call it with a certificate of the trust domain " + s.source.ID().TrustDomain + ", which POD_IDENTITY mounts (docs/identity.md)"
}

// log logs a line about a client, once a minute.
func (s *server) log(key, format string, args ...any) {
	if skipped, ok := s.source.refusals.allow(key); ok {
		s.source.Logf("%s%s", fmt.Sprintf(format, args...), skipped)
	}
}

// ---- Connections ----

func (s *server) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (s *server) Clone() credentials.TransportCredentials { return s }

func (s *server) OverrideServerName(string) error { return nil }

func (s *server) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are the credentials of a server")
}

const recordHandshake = 0x16 // RFC 8446, 5.1: the first byte of a client that speaks TLS

// ServerHandshake tells TLS and plaintext apart by the first byte that the client sends.
func (s *server) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	_ = raw.SetDeadline(time.Now().Add(handshakeTimeout)) // grpc-go clears it after the handshake
	first := make([]byte, 1)
	if _, err := io.ReadFull(raw, first); err != nil {
		return nil, nil, io.EOF // such as a load balancer's check of the port, which grpc-go does not log
	}
	begun := &replayed{Conn: raw, first: first}
	conn := net.Conn(begun)
	host, _, _ := net.SplitHostPort(raw.RemoteAddr().String())
	switch {
	case first[0] == recordHandshake:
	case s.source.Permissive:
		s.log(host, "%s calls in plaintext, which the mode strict refuses", host)
		return conn, plaintext{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}, nil
	default:
		s.log(host, "refusing calls of %s: it speaks plaintext", host)
		s.refuser.refuse(conn)
		return nil, nil, credentials.ErrConnDispatched
	}
	begun.stays = true
	conn, info, err := s.source.current.Load().server.ServerHandshake(conn)
	begun.stays = false
	if err != nil {
		s.logHandshake(host, err)
		begun.linger()
		return nil, nil, err
	}
	c := &caller{TLSInfo: info.(credentials.TLSInfo)}
	leaf := c.State.PeerCertificates[0]
	if c.id, err = idOf(leaf); err != nil { // impossible: the handshake has verified it
		return nil, nil, errors.Join(err, conn.Close())
	}
	c.pod, _ = podOf(leaf)
	c.notAfter = leaf.NotAfter
	if _, why := s.refuses(c); why == "" {
		s.logFirst(c)
	}
	return s.add(conn, c), c, nil
}

// logHandshake logs why a client was refused.
func (s *server) logHandshake(host string, err error) {
	var untrusted *tls.CertificateVerificationError
	if !errors.As(err, &untrusted) || len(untrusted.UnverifiedCertificates) == 0 {
		s.log(host, "refusing the connection of %s: %v", host, err)
		return
	}
	leaf := untrusted.UnverifiedCertificates[0]
	id := "a certificate without a SPIFFE ID"
	if parsed, err := idOf(leaf); err == nil {
		id = parsed.URI
	}
	s.log("unverified "+id, "refusing the connection of %s, which claims to be %s: %v", host, id, explain(leaf, untrusted.Err, s.source.Now()))
}

// logFirst logs the first connection of a permitted caller.
func (s *server) logFirst(c *caller) {
	s.mu.Lock()
	isNew := !s.seen[c.id.URI] && len(s.seen) < maxKeys
	if isNew {
		s.seen[c.id.URI] = true
	}
	s.mu.Unlock()
	if isNew {
		s.source.Logf("%s calls this service", c.name())
	}
}

// replayed is a connection whose first byte was read already.
type replayed struct {
	net.Conn
	first []byte // that Read has not returned yet
	stays bool   // whether Close leaves the connection open
}

func (r *replayed) Close() error {
	if r.stays {
		return nil
	}
	return r.Conn.Close()
}

// lingerTime is how long a refused client may take to read why.
const lingerTime = time.Second

// linger closes a connection when the client has closed it. With TLS 1.3 a client may have sent its first requests before it learns that its
// certificate is refused. A connection that is closed before these are read is reset, and the client never sees the reason.
func (r *replayed) linger() {
	if half, ok := r.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_ = r.SetDeadline(time.Now().Add(lingerTime))
		_, _ = io.Copy(io.Discard, io.LimitReader(r.Conn, 1<<20))
	}
	_ = r.Close()
}

func (r *replayed) Read(b []byte) (int, error) {
	if len(r.first) > 0 && len(b) > 0 {
		n := copy(b, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(b)
}

// serverConn is a connection of a caller.
type serverConn struct {
	net.Conn
	server *server
	caller *caller
}

func (s *server) add(conn net.Conn, c *caller) net.Conn {
	added := &serverConn{conn, s, c}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[added] = true
	return added
}

func (c *serverConn) Close() error {
	c.server.mu.Lock()
	delete(c.server.open, c)
	c.server.mu.Unlock()
	return c.Conn.Close()
}

// closeEnded closes the connections of callers that were permitted and are no longer, such as those whose certificates have
// expired. Those that never were get an error for each call.
func (s *server) closeEnded() {
	s.mu.Lock()
	open := slices.Collect(maps.Keys(s.open))
	s.mu.Unlock()
	for _, c := range open {
		if c.caller.permitted.Load() == nil {
			continue
		}
		if _, why := s.refuses(c.caller); why != "" {
			s.log(c.caller.id.URI, "closing a connection of %s: %s", c.caller.name(), why)
			_ = c.Close()
		}
	}
}
