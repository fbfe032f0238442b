package rpc

import (
	"crypto/tls"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
)

var (
	// keepaliveParams are the client's: Time is the shortest that servers with the default
	// enforcement policy permit (5 min, gRFC A9 and keepalive.EnforcementPolicy); they end
	// the connections of clients that send pings more often. Timeout is the default of gRFC A8 and,
	// for data that is not acknowledged, of gRFC A18.
	keepaliveParams = keepalive.ClientParameters{Time: 5 * time.Minute, Timeout: 20 * time.Second}

	// reconnectBackoff is gRPC's (connection-backoff.md) except for its longest delay, which is
	// not longer than the ejection after a lost connection, so that the first call after an
	// ejection finds a connection.
	reconnectBackoff = backoff.Config{BaseDelay: time.Second, Multiplier: 1.6, Jitter: 0.2, MaxDelay: callstats.MaxLostConnectionEjection}
)

// dial returns a connection to an address, which connects with the first call. The connection to an
// instance stays open as long as the registry lists the instance; other connections close when they
// have not been used for client.PoolTTL.
func (s *settings) dial(address string, isInstance bool) (*grpc.ClientConn, error) {
	target, creds := s.target(address)
	idleTimeout := s.options.PoolTTL
	if isInstance {
		idleTimeout = 0
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnectBackoff, MinConnectTimeout: s.options.CallOptions.DialTimeout}),
		grpc.WithKeepaliveParams(s.keepalive),
		grpc.WithIdleTimeout(idleTimeout),
		grpc.WithStaticStreamWindowSize(gomicro.FlowControlWindow),
		grpc.WithStaticConnWindowSize(gomicro.FlowControlWindow),
	}
	if creds.Info().SecurityProtocol == "tls" {
		// grpc-go takes the read buffers of plain connections from a pool. Those of TLS connections
		// would stay with idle connections, 32 KiB each, and crypto/tls has a buffer of its own.
		options = append(options, grpc.WithReadBufferSize(0))
	}
	return grpc.NewClient(target, append(options, s.dialOptions...)...)
}

// target returns the gRPC target and the credentials for an address. As with go-micro's client
// an address without a port, with port 443, or with the prefix https:// is reached over TLS; only
// here has the prefix an effect.
func (s *settings) target(address string) (target string, creds credentials.TransportCredentials) {
	host, secure := strings.CutPrefix(address, "https://")
	_, port, err := net.SplitHostPort(host)
	withoutPort := err != nil && strings.Contains(err.Error(), "missing port in address")
	u, err := url.Parse(host)
	switch {
	case err == nil && resolver.Get(u.Scheme) != nil || strings.Contains(host, "://"): // such as dns:///greeter:9100
		target = host
	case withoutPort:
		target = "passthrough:///" + host + ":443"
	default:
		target = "passthrough:///" + host
	}
	switch {
	case s.tls != nil:
		return target, credentials.NewTLS(s.tls)
	case secure || port == "443" || withoutPort:
		return target, credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	return target, insecure.NewCredentials()
}
