package rpc

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/netanswer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/subchannel"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
)

var (
	// keepaliveParams are the client's: Time is the shortest that servers with the default
	// enforcement policy permit (5 min, gRFC A9 and keepalive.EnforcementPolicy); they end
	// the connections of clients that send pings more often. Timeout is the default of gRFC A8 and,
	// for data that is not acknowledged, of gRFC A18.
	keepaliveParams = keepalive.ClientParameters{Time: 5 * time.Minute, Timeout: 20 * time.Second}

	// reconnectBackoff is shorter than gRPC's (connection-backoff.md), whose delay grows to 120 s:
	// an instance or an address that is back is connected within a second. Without jitter
	// the delay is never shorter than a second.
	reconnectBackoff = backoff.Config{BaseDelay: reconnectDelay, Multiplier: 1, Jitter: 0, MaxDelay: reconnectDelay}
)

const (
	// reconnectDelay is gRPC's INITIAL_BACKOFF.
	reconnectDelay = time.Second

	// maxWaited is how long a call waits for the next attempt to connect, which is reconnectDelay
	// after the last one and then has to be answered.
	maxWaited = reconnectDelay + 50*time.Millisecond
)

// Path leads to instances that this process cannot reach over the network.
type Path interface {
	DialOption(pod string) grpc.DialOption                 // connects to a pod
	Judge(outcome.Outcome, error) (outcome.Outcome, error) // what the end of a call says about the instance, and its error
	Trouble() error                                        // why the path is broken now; nil if it is not
}

// channelTo returns a channel to an instance or an address. The caller holds the lock.
func (c *connections) channelTo(target any) (channel, error) {
	to, _ := target.(fixedAddress)
	i, ok := target.(*discovery.Instance)
	if !ok {
		return c.settings.dial(to, nil, c.credentials(), nil)
	}
	to = fixedAddress{i.Address, i.Service.Name}
	if path := c.path(); path != nil {
		return c.settings.dial(to, i, c.credentials(), nil, path.DialOption(i.Pod))
	}
	return c.settings.dial(to, i, c.credentials(), c.shared)
}

// sharedKey is what connections have in common that share a channel of grpc-go.
type sharedKey struct {
	service string
	secure  bool
}

// dial returns a channel to an address, which connects with the first call. Instances share a channel of grpc-go in
// shared, which is nil for one of its own. With grpcc.DialOptions all have one of their own: interceptors see
// its target, and a service config replaces that of the shared one.
func (s *settings) dial(to fixedAddress, i *discovery.Instance, secure Credentials, shared map[sharedKey]*subchannel.Channel, extra ...grpc.DialOption) (ch channel, err error) {
	target, creds := gomicro.Target(to.address, s.tls)
	if secure != nil && creds.Info().SecurityProtocol != "tls" {
		if secured := secure(to.service, to.address, i); secured != nil {
			ch.handshake = &handshake{}
			creds = recorded{secured, ch.handshake}
		}
	}
	isSecure, isIP := creds.Info().SecurityProtocol == "tls", gomicro.IsIP(target)
	options := []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnectBackoff, MinConnectTimeout: s.options.CallOptions.DialTimeout}),
		grpc.WithKeepaliveParams(keepaliveParams),
		grpc.WithIdleTimeout(0), // connections.closeIdle also frees what an idle ClientConn takes
		grpc.WithStaticStreamWindowSize(gomicro.FlowControlWindow),
		grpc.WithStaticConnWindowSize(gomicro.FlowControlWindow),
	}
	if isSecure {
		// grpc-go takes the read buffers of plain connections from a pool. Those of TLS connections
		// would stay with idle connections, 32 KiB each, and crypto/tls has a buffer of its own.
		options = append(options, grpc.WithReadBufferSize(0))
	}
	if isIP {
		options = append(options, grpc.WithNoProxy()) // HTTPS_PROXY is for the internet, and NO_PROXY seldom names the pods' network
	}
	options = append(slices.Concat(options, extra, s.dialOptions), grpc.WithChainUnaryInterceptor(netanswer.Interceptor))
	if shared == nil || !isIP || len(s.dialOptions) > 0 {
		ch.conn, err = grpc.NewClient(target, append([]grpc.DialOption{grpc.WithTransportCredentials(creds)}, options...)...)
		return ch, err
	}
	key, address := sharedKey{to.service, isSecure}, strings.TrimPrefix(target, gomicro.Passthrough)
	if c := shared[key]; c != nil {
		if ch.conn, err = c.Dial(address, creds); !errors.Is(err, subchannel.ErrClosed) {
			return ch, err
		}
	}
	c, err := subchannel.New(to.service, append(options, grpc.WithTransportCredentials(subchannel.Credentials(creds.Info())))...)
	if err != nil {
		return ch, err
	}
	if ch.conn, err = c.Dial(address, creds); err != nil {
		return ch, errors.Join(err, c.Close())
	}
	shared[key] = c
	return ch, nil
}
