package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync/atomic"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
)

// Credentials returns the credentials of a connection to a service, nil for plaintext. The instance is nil for a fixed address.
type Credentials func(service, address string, i *discovery.Instance) credentials.TransportCredentials

// fixedAddress is the target of a connection to an address, as of client.WithAddress.
type fixedAddress struct {
	address string
	service string // that is expected there; "" without Credentials, so that services share a connection
}

// channel is a channel of grpc-go or one of its subchannels, and what its last handshake has shown.
type channel struct {
	conn
	*handshake // nil without Credentials
}

// conn is a *grpc.ClientConn or a *subchannel.Conn.
type conn interface {
	grpc.ClientConnInterface
	GetState() connectivity.State
	WaitForStateChange(ctx context.Context, last connectivity.State) bool
	Connect()
	Close() error
}

type handshake struct {
	certificate atomic.Pointer[x509.Certificate] // of the server
	isImpostor  atomic.Bool                      // the server has another certificate than that of the service
}

// recorded are credentials that keep what their last handshake has shown.
type recorded struct {
	credentials.TransportCredentials
	last *handshake
}

func (r recorded) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := r.TransportCredentials.ClientHandshake(ctx, authority, raw)
	var untrusted *tls.CertificateVerificationError
	r.last.isImpostor.Store(errors.As(err, &untrusted))
	if t, ok := info.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 {
		r.last.certificate.Store(t.State.PeerCertificates[0])
	}
	return conn, info, err
}

func (r recorded) Clone() credentials.TransportCredentials { return r }

// Reconnect makes calls that begin later open new connections. Calls in flight end on theirs.
func (c *Client) Reconnect() {
	c.connections.mu.Lock()
	defer c.connections.mu.Unlock()
	for conn := range c.connections.open {
		c.connections.leave(conn)
	}
}

// CertificateOf returns the certificate of an instance, nil if the connection to it is not secured by Credentials, or if there is none.
func (c *Client) CertificateOf(i *discovery.Instance) *x509.Certificate {
	if v, ok := c.connections.forCalls.Load(i); ok {
		if h := v.(*connection).channel.handshake; h != nil {
			return h.certificate.Load()
		}
	}
	return nil
}
