package pod

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/codec"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/micro/go-micro/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/keepalive"
	grpcmetadata "google.golang.org/grpc/metadata"
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

// clientSettings holds the evaluated options of a client. It is immutable.
type clientSettings struct {
	options     client.Options
	selector    *balancer.Selector      // nil if the client uses a selector of another package
	codecs      map[string]*clientCodec // by content type
	timeout     string                  // the header of client.RequestTimeout
	tls         *tls.Config             // nil if not set
	dialOptions []grpc.DialOption
	keepalive   keepalive.ClientParameters
	err         error // why the client cannot be used; nil if it can
}

// clientCodec is the codec of a content type, and what each call with it has in common.
type clientCodec struct {
	encoding.CodecV2
	contentType []string // value of the header x-content-type
	callOptions []grpc.CallOption
}

func newClientSettings(o client.Options) *clientSettings {
	// Calls append to these slices, and must not write to one that they share.
	o.CallOptions.CallWrappers = slices.Clip(o.CallOptions.CallWrappers)
	o.CallOptions.SelectOptions = slices.Clip(o.CallOptions.SelectOptions)
	s := &clientSettings{options: o, codecs: map[string]*clientCodec{}, timeout: timeoutHeader(o.CallOptions.RequestTimeout), keepalive: keepaliveParams}
	s.selector, _ = o.Selector.(*balancer.Selector)
	if s.err = gomicro.Check(); s.err != nil {
		return s
	}
	s.tls, s.dialOptions = gomicro.TLS(o), gomicro.DialOptions(o.CallOptions)
	sizes := []grpc.CallOption{grpc.MaxCallRecvMsgSize(gomicro.MaxReceived(o)), grpc.MaxCallSendMsgSize(gomicro.MaxSent(o))}
	if len(s.dialOptions) > 0 { // which may contain other sizes
		s.dialOptions = append([]grpc.DialOption{grpc.WithDefaultCallOptions(sizes...)}, s.dialOptions...)
		sizes = nil
	}
	for contentType, c := range codec.ByContentType(gomicro.Codecs(o)) {
		s.codecs[contentType] = &clientCodec{c, []string{contentType},
			append([]grpc.CallOption{grpc.ForceCodecV2(c), grpc.CallContentSubtype(c.Name())}, sizes...)}
	}
	return s
}

func (s *clientSettings) codec(contentType string) (*clientCodec, error) {
	if c := s.codecs[contentType]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("Unsupported Content-Type: %s", contentType)
}

// outgoing returns a context with the headers that go-micro's client sends: go-micro's metadata
// with lower-case keys, the timeout in nanoseconds unless it is 0, and the content type.
func (s *clientSettings) outgoing(ctx context.Context, codec *clientCodec, timeout time.Duration) context.Context {
	md := gomicro.Metadata(ctx)
	headers := make(grpcmetadata.MD, len(md)+2)
	values := make([]string, 0, len(md)+1)
	add := func(key, value string) {
		values = append(values, value)
		headers[key] = values[len(values)-1 : len(values) : len(values)]
	}
	for key, value := range md {
		add(gomicro.LowerCase(key), value)
	}
	switch timeout {
	case 0:
	case s.options.CallOptions.RequestTimeout:
		add("timeout", s.timeout)
	default:
		add("timeout", timeoutHeader(timeout))
	}
	headers["x-content-type"] = codec.contentType
	return grpcmetadata.NewOutgoingContext(ctx, headers)
}

// dial returns a connection to an address, which connects with the first call. The connection to an
// instance stays open as long as the registry lists the instance; other connections close when they
// have not been used for client.PoolTTL.
func (s *clientSettings) dial(address string, isInstance bool) (*grpc.ClientConn, error) {
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
func (s *clientSettings) target(address string) (target string, creds credentials.TransportCredentials) {
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
