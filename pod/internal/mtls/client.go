package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"
)

// Callee is whom a client wants to reach.
type Callee struct {
	Service string
	Address string // for errors
	Pod     string // "" if it is not known
	PodUID  string // "" if it is not known
}

// clientCredentials are the credentials of a connection to a callee. Each handshake uses the files as they are then.
type clientCredentials struct {
	source *Source
	to     Callee
}

// Client returns the credentials of connections to a callee.
func (s *Source) Client(to Callee) credentials.TransportCredentials {
	return &clientCredentials{s, to}
}

func (c *clientCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (c *clientCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName does nothing: the name of the host is not compared.
func (c *clientCredentials) OverrideServerName(string) error { return nil }

func (c *clientCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are the credentials of a client")
}

// ClientHandshake verifies the server. It sends no name of the server, which would not be encrypted.
func (c *clientCredentials) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	now, set := c.source.Now, c.source.current.Load()
	if now().After(set.leaf.NotAfter) {
		return nil, nil, fmt.Errorf("calling %s: the own certificate expired at %s and has not been renewed", c.to.Service, set.leaf.NotAfter.UTC())
	}
	conn, info, err := credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Time: now,
		// With Certificates, crypto/tls sends no certificate to a server that has another authority, and neither side learns why.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &set.certificate, nil },
		InsecureSkipVerify:   true, //nolint:gosec // VerifyConnection verifies the chain and the ID instead of the name of the host
		VerifyConnection: func(s tls.ConnectionState) error {
			if err := c.verify(set, s.PeerCertificates); err != nil {
				return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
			}
			return nil
		},
	}).ClientHandshake(ctx, "", raw)
	if err != nil {
		return nil, nil, c.explain(err)
	}
	return &clientConn{Conn: conn, to: c.to}, info, nil
}

// verify returns why a chain of certificates is not that of the callee.
func (c *clientCredentials) verify(own *set, chain []*x509.Certificate) error {
	id, err := own.verify(chain, x509.ExtKeyUsageServerAuth, c.source.Now())
	if err != nil {
		return err
	}
	if want := own.id.of(own.id.Namespace, c.source.accountOf(c.to.Service)); id.URI != want {
		return fmt.Errorf("it is %s, and %s is %s", id.URI, c.to.Service, want)
	}
	if name, uid := podOf(chain[0]); uid != "" && (c.to.Pod != "" && name != c.to.Pod || c.to.PodUID != "" && uid != c.to.PodUID) {
		return fmt.Errorf("it is pod %q with uid %q, and pod %q with uid %q has registered", name, uid, c.to.Pod, c.to.PodUID)
	}
	return nil
}

// explain returns the error of a handshake that has failed.
func (c *clientCredentials) explain(err error) error {
	var notTLS tls.RecordHeaderError
	var untrusted *tls.CertificateVerificationError
	switch {
	case errors.As(err, &untrusted):
		return fmt.Errorf("not calling %s at %s: %w", c.to.Service, c.to.Address, err)
	case errors.As(err, &notTLS):
		return fmt.Errorf("%s at %s speaks plaintext, and this process speaks TLS only: %w", c.to.Service, c.to.Address, err)
	}
	return fmt.Errorf("TLS handshake with %s at %s: %w", c.to.Service, c.to.Address, err)
}

// clientConn explains the error of the first read: with TLS 1.3, a client learns only then that the server does not accept its
// certificate.
type clientConn struct {
	net.Conn
	to       Callee
	accepted bool // only the goroutine that reads uses it
}

func (c *clientConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.accepted {
		return n, err
	}
	c.accepted = n > 0
	var alert *net.OpError
	if errors.As(err, &alert) && alert.Op == "remote error" {
		err = fmt.Errorf("%s at %s does not accept the certificate of this process: %w", c.to.Service, c.to.Address, err)
	}
	return n, err
}
