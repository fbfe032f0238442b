package rpc

import (
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/subchannel"
)

// connections are the open connections of a client: one to each instance and each address
// that the client calls. A connection closes when no call has used it for client.PoolTTL. It is safe
// for concurrent use.
type connections struct {
	forCalls sync.Map    // of *connection, by *discovery.Instance or address
	path     func() Path // that leads to instances

	credentials func() Credentials // nil for plaintext

	mu       sync.Mutex
	settings *settings // of connections that are opened from now on
	open     map[*connection]bool
	shared   map[sharedKey]*subchannel.Channel // with the same settings
	idle     *time.Timer                       // calls closeIdle; nil before its first use
	waiting  bool                              // whether the timer runs
	closed   bool
	closing  sync.WaitGroup // connections that leave or are being closed, and the goroutines that report events
	events   *events.Hub
}

// connection is the connection to one instance or address, which grpc-go opens again whenever it
// breaks.
type connection struct {
	channel  channel
	target   any           // *discovery.Instance or fixedAddress
	path     Path          // nil for the network
	used     atomic.Bool   // since the last closeIdle
	answered atomic.Bool   // whether a call was ever answered
	losses   atomic.Uint32 // how often the connection broke while it carried calls

	probed atomic.Pointer[time.Time] // start of the last probe of an address

	calls   sync.RWMutex // read-locked by each call and stream in flight, and locked for ever to close the connection
	leaving bool         // the lock of connections guards it
	stop    func() bool  // makes the instance forget the connection
}

var errClosed = errors.New("the client is closed")

// acquire returns the connection for a call or stream to an instance, or to an address of a service if the
// instance is nil. The caller releases it at the end of the call or stream.
func (c *connections) acquire(i *discovery.Instance, address, service string) (*connection, error) {
	var target any = i
	if i == nil {
		if c.credentials() == nil {
			service = ""
		}
		target = fixedAddress{address, service}
	}
	for {
		if v, ok := c.forCalls.Load(target); ok {
			if conn := v.(*connection); conn.calls.TryRLock() {
				if !conn.used.Load() { // a store would slow down concurrent calls
					conn.used.Store(true)
				}
				return conn, nil
			}
			c.forCalls.CompareAndDelete(target, v)
		}
		if conn, err := c.dial(i, target); conn != nil || err != nil {
			return conn, err
		}
	}
}

// dial opens the connection to a target for its first call, which releases it. It returns nil
// if another call has opened it.
func (c *connections) dial(i *discovery.Instance, target any) (*connection, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if _, ok := c.forCalls.Load(target); ok {
		return nil, nil
	}
	channel, err := c.channelTo(target)
	if err != nil {
		return nil, err
	}
	conn := c.add(channel, i, target)
	conn.calls.RLock()
	return conn, nil
}

// add makes a channel the connection for the calls to a target. The caller holds the lock.
func (c *connections) add(channel channel, i *discovery.Instance, target any) *connection {
	conn := &connection{channel: channel, target: target, stop: func() bool { return false }}
	conn.used.Store(true)
	if i != nil {
		c.events.WatchConnection(&c.closing, channel, events.Instance{Service: i.Service.Name, Pod: i.Pod, Address: i.Address})
		conn.path = c.path()
		conn.stop = i.AfterLeave(func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.leave(conn)
		})
	}
	c.open[conn] = true
	c.forCalls.Store(target, conn)
	c.startIdle()
	return conn
}

// dialAgain opens another channel to an instance or an address.
func (c *connections) dialAgain(target any) (channel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.channelTo(target)
}

// renew makes later calls use a channel of dialAgain instead of a connection, unless the connection is
// already leaving.
func (c *connections) renew(old *connection, channel channel) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old.leaving {
		c.closing.Go(func() { _ = channel.Close() })
		return
	}
	c.leave(old)
	i, _ := old.target.(*discovery.Instance)
	c.add(channel, i, old.target).answered.Store(true)
}

// startIdle starts the timer for closeIdle, unless it runs. The caller holds the lock.
func (c *connections) startIdle() {
	ttl := c.settings.options.PoolTTL
	switch {
	case c.waiting || ttl <= 0:
		return
	case c.idle == nil:
		c.idle = time.AfterFunc(ttl, c.closeIdle)
	default:
		c.idle.Reset(ttl)
	}
	c.waiting = true
}

// release ends a call or stream.
func (c *connection) release() { c.calls.RUnlock() }

// leave closes a connection when its calls have ended. Calls that begin later open another one.
// leave does not wait. The caller holds the lock.
func (c *connections) leave(conn *connection) {
	if c.closed || conn.leaving {
		return
	}
	c.forget(conn)
	c.closing.Go(func() {
		conn.calls.Lock()
		c.close(conn)
	})
}

// forget makes later calls open another connection. The caller holds the lock.
func (c *connections) forget(conn *connection) {
	conn.leaving = true
	c.forCalls.CompareAndDelete(conn.target, conn)
	conn.stop()
}

// close closes a connection that no call can use.
func (c *connections) close(conn *connection) {
	_ = conn.channel.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
	maps.DeleteFunc(c.shared, func(_ sharedKey, s *subchannel.Channel) bool { return s.IsClosed() }) // with its last connection
}

// closeIdle closes the connections that no call has used since the timer was started, and starts it
// again.
func (c *connections) closeIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = false
	if c.closed {
		return
	}
	for conn := range c.open {
		switch {
		case conn.leaving, conn.used.Swap(false):
		case conn.calls.TryLock(): // for ever
			c.forget(conn)
			c.closing.Go(func() { c.close(conn) })
		default: // a call is in flight
			conn.used.Store(true)
		}
	}
	if len(c.open) > 0 {
		c.startIdle()
	}
}

// replace makes later calls open connections with other settings.
func (c *connections) replace(s *settings) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settings, c.waiting = s, false // the next connection starts the timer with the new client.PoolTTL
	c.shared = map[sharedKey]*subchannel.Channel{}
	for conn := range c.open {
		c.leave(conn)
	}
}

// closeAll closes all connections, so that the calls in flight fail, and waits for them and for
// the goroutines of the connections.
func (c *connections) closeAll() {
	c.mu.Lock()
	c.closed = true
	if c.idle != nil {
		c.idle.Stop()
	}
	c.forCalls.Clear()
	var shared sync.WaitGroup
	for conn := range c.open { // also of the settings before
		if s, ok := conn.channel.conn.(*subchannel.Conn); ok {
			shared.Go(func() { _ = s.CloseChannel() })
		}
	}
	c.mu.Unlock()
	shared.Wait() // first, because a subchannel that closes alone lets its calls end

	c.mu.Lock()
	for conn := range c.open {
		conn.stop()
		c.closing.Go(func() { _ = conn.channel.Close() })
	}
	clear(c.open)
	c.mu.Unlock()
	c.closing.Wait()
}

// judge returns what the outcome of a call says about the instance. A handshake that fails although
// an earlier one did not is the instance's fault, and so is one in which it is not who it should be. Otherwise the settings of this client may be
// wrong, such as its TLS certificate; then the calls to all instances fail, which only the
// comparison of server errors shows.
//
// An instance is not to blame for the faults of the path to it, which the error then names.
func (c *connection) judge(o outcome.Outcome, err error) (outcome.Outcome, error) {
	if c.path != nil {
		o, err = c.path.Judge(o, err)
	}
	switch {
	case o == outcome.FailedHandshake && (c.answered.Load() || c.channel.handshake != nil && c.channel.isImpostor.Load()):
		return outcome.LostConnection, err
	case o == outcome.FailedHandshake:
		return outcome.ServerError, err
	case o.IsAnswer() && !c.answered.Load():
		c.answered.Store(true)
	}
	return o, err
}
