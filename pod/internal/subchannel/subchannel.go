// Package subchannel connects to the instances of a service over one channel of grpc-go, with a subchannel for
// each instance. Whoever makes a call says which subchannel it takes.
//
// A grpc.ClientConn for each instance does the same with a resolver, a balancer and three goroutines for each, which take
// about 20 kB (TestSubchannelsTakeLessMemory).
package subchannel

import (
	"context"
	"errors"
	"net"
	"net/url"
	"sync"
	"sync/atomic"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
	"google.golang.org/grpc"
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/resolver"
)

// ErrClosed says that the last connection of a channel has closed, and the channel with it.
var ErrClosed = errors.New("the channel is closed")

// Channel has subchannels to any number of addresses. It closes with the last of them. It is safe for concurrent use.
type Channel struct {
	conn      *grpc.ClientConn
	makeConns balancer.ClientConn // set by the balancer while New runs

	mu     sync.Mutex
	open   int
	closed bool
}

// New returns a channel to a service. The options apply to all its subchannels; the credentials among them must be
// those that Credentials returns.
func New(service string, options ...grpc.DialOption) (*Channel, error) {
	c := &Channel{}
	conn, err := grpc.NewClient(scheme+":///"+url.PathEscape(service), append(options, grpc.WithResolvers(resolverOf{c}), grpc.WithDefaultServiceConfig(serviceConfig))...)
	if err != nil {
		return nil, err
	}
	c.conn = conn
	conn.Connect() // builds the resolver and the balancer, before it returns
	if c.makeConns == nil {
		return nil, errors.Join(errors.New("grpc-go has built no balancer"), conn.Close())
	}
	return c, nil
}

// IsClosed reports whether the channel has closed or is closing.
func (c *Channel) IsClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Conn is a subchannel. It connects with its first call, and again whenever its connection has broken, as pick_first of
// grpc-go does: after a failure its state stays TRANSIENT_FAILURE until an attempt to connect succeeds (gRFC A62), and
// calls fail at once. It is safe for concurrent use.
type Conn struct {
	channel     *Channel
	credentials credentials.TransportCredentials
	sub         balancer.SubConn

	state   atomic.Int64 // of type connectivity.State
	changed broadcast.Broadcast

	mu      sync.Mutex
	raw     connectivity.State // as grpc-go reports it
	lastErr error              // of the last attempt to connect
}

var _ grpc.ClientConnInterface = (*Conn)(nil)

// connKey is the key of a Conn in the attributes of its address, and in the context of a call.
type connKey struct{}

// Dial returns a subchannel to an address, which is an IP address with a port. The name in the credentials, else the
// address, is the :authority of its calls and the expected name of the server. The error is ErrClosed if the channel has
// closed.
func (c *Channel) Dial(address string, creds credentials.TransportCredentials) (*Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	conn := &Conn{channel: c, credentials: creds}
	authority := creds.Info().ServerName //nolint:staticcheck // as grpc-go reads it
	if authority == "" {
		authority = address
	}
	sub, err := c.makeConns.NewSubConn([]resolver.Address{{Addr: address, ServerName: authority, Attributes: attributes.New(connKey{}, conn)}}, //nolint:staticcheck // deprecated for more than one address
		balancer.NewSubConnOptions{StateListener: conn.update})
	if err != nil {
		return nil, err
	}
	conn.sub = sub
	c.open++
	return conn, nil
}

// Close closes the connection when its calls have ended. The last connection closes the channel instead.
func (c *Conn) Close() error {
	if c.state.Swap(int64(connectivity.Shutdown)) == int64(connectivity.Shutdown) {
		return nil
	}
	c.changed.Notify()
	if c.channel.leave() {
		return c.channel.conn.Close()
	}
	c.sub.Shutdown()
	return nil
}

// CloseChannel closes the channel of the connection.
func (c *Conn) CloseChannel() error { return c.channel.Close() }

// leave counts a connection that closes, and reports whether the caller has to close the channel with it.
func (c *Channel) leave() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.open > 0 || c.closed {
		return false
	}
	c.closed = true // Dial refuses from now on
	return true
}

// Close closes the channel and all its connections. Calls in flight fail. Closing twice is no error.
func (c *Channel) Close() error {
	c.mu.Lock()
	wasClosed := c.closed
	c.closed = true
	c.mu.Unlock()
	if wasClosed {
		return nil
	}
	return c.conn.Close()
}

// Invoke makes a unary call.
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return c.channel.conn.Invoke(context.WithValue(ctx, connKey{}, c), method, args, reply, opts...)
}

// NewStream opens a stream.
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return c.channel.conn.NewStream(context.WithValue(ctx, connKey{}, c), desc, method, opts...)
}

// GetState returns the state of the connection.
func (c *Conn) GetState() connectivity.State { return connectivity.State(c.state.Load()) }

// WaitForStateChange waits until the state is another one than last, and returns false if ctx ends before.
func (c *Conn) WaitForStateChange(ctx context.Context, last connectivity.State) bool {
	for {
		changed := c.changed.Wait()
		if c.GetState() != last {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// Connect connects if the state is IDLE. It does not wait.
func (c *Conn) Connect() {
	if c.state.CompareAndSwap(int64(connectivity.Idle), int64(connectivity.Connecting)) {
		c.changed.Notify()
		c.sub.Connect()
	}
}

// update follows grpc-go, which calls it for one change after the other.
func (c *Conn) update(s balancer.SubConnState) {
	c.mu.Lock()
	was := c.raw
	c.raw = s.ConnectivityState
	if s.ConnectivityState == connectivity.TransientFailure {
		c.lastErr = s.ConnectionError
	}
	c.mu.Unlock()
	switch {
	case s.ConnectivityState == connectivity.Connecting: // Connect has said so, or the last attempt has failed
		return
	case s.ConnectivityState == connectivity.Idle && was == connectivity.TransientFailure: // the backoff is over
		c.sub.Connect()
		return
	}
	for state := c.state.Load(); state != int64(s.ConnectivityState); state = c.state.Load() {
		if state == int64(connectivity.Shutdown) {
			break
		}
		if c.state.CompareAndSwap(state, int64(s.ConnectivityState)) {
			c.changed.Notify()
			break
		}
	}
	c.channel.wake()
}

// wake makes the calls that wait for a connection look again.
func (c *Channel) wake() {
	c.makeConns.UpdateState(balancer.State{ConnectivityState: connectivity.Ready, Picker: picker{}})
}

// picker takes the subchannel that the caller has chosen.
type picker struct{}

// Pick is called for each call, and again after each wake while the call waits.
func (picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	c := info.Ctx.Value(connKey{}).(*Conn)
	switch c.GetState() {
	case connectivity.Ready:
		return balancer.PickResult{SubConn: c.sub}, nil
	case connectivity.TransientFailure:
		c.mu.Lock()
		defer c.mu.Unlock()
		return balancer.PickResult{}, c.lastErr
	case connectivity.Shutdown:
		return balancer.PickResult{}, grpc.ErrClientConnClosing //nolint:staticcheck // as of a call on a closed grpc.ClientConn
	}
	c.Connect()
	return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
}

// Credentials returns the credentials of a channel whose subchannels have the credentials that Dial is given. info is
// theirs, except for the name of the server.
func Credentials(info credentials.ProtocolInfo) credentials.TransportCredentials {
	info.ServerName = "" //nolint:staticcheck // each Conn has one of its own
	return dialed{info}
}

// dialed are credentials that use, for each subchannel, those that Dial was given.
type dialed struct{ info credentials.ProtocolInfo }

func (d dialed) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c := credentials.ClientHandshakeInfoFromContext(ctx).Attributes.Value(connKey{}).(*Conn)
	return c.credentials.ClientHandshake(ctx, authority, raw)
}

func (dialed) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for clients")
}

func (d dialed) Info() credentials.ProtocolInfo          { return d.info }
func (d dialed) Clone() credentials.TransportCredentials { return d }
func (dialed) OverrideServerName(string) error           { return nil }
