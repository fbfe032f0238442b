package rpc

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/callstats"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"google.golang.org/grpc"
)

// connections are the open connections of a client: one to each instance and each address
// that the client has called. It is safe for concurrent use.
type connections struct {
	forCalls sync.Map // of *connection, by *discovery.Instance or address

	mu       sync.Mutex
	settings *settings // of connections that are opened from now on
	open     map[*connection]bool
	closed   bool
	closing  sync.WaitGroup // connections that leave or are being closed
}

// connection is the connection to one instance or address, which grpc-go opens again whenever it
// breaks.
type connection struct {
	channel  *grpc.ClientConn
	target   any          // *discovery.Instance or address
	released atomic.Int64 // result of callstats.Clock at the end of the last call to an address

	calls   sync.RWMutex // read-locked by each call and stream in flight, and locked for ever to close the connection
	leaving bool         // the lock of connections guards it
	stop    func() bool  // makes the instance forget the connection
}

var errClosed = errors.New("the client is closed")

// acquire returns the connection for a call or stream to an instance, or to an address if the
// instance is nil. The caller releases it at the end of the call or stream.
func (c *connections) acquire(i *discovery.Instance, address string) (*connection, error) {
	var target any = i
	if i == nil {
		target = address
	} else {
		address = i.Address
	}
	for {
		if v, ok := c.forCalls.Load(target); ok {
			if conn := v.(*connection); conn.calls.TryRLock() {
				return conn, nil
			}
			c.forCalls.CompareAndDelete(target, v)
		}
		if conn, err := c.dial(i, target, address); conn != nil || err != nil {
			return conn, err
		}
	}
}

// dial opens the connection to a target for its first call, which releases it. It returns nil
// if another call has opened it.
func (c *connections) dial(i *discovery.Instance, target any, address string) (*connection, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if _, ok := c.forCalls.Load(target); ok {
		return nil, nil
	}
	channel, err := c.settings.dial(address, i != nil)
	if err != nil {
		return nil, err
	}
	conn := &connection{channel: channel, target: target, stop: func() bool { return false }}
	conn.calls.RLock()
	if i != nil {
		conn.stop = i.AfterLeave(func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.leave(conn)
		})
	} else {
		c.leaveUnused()
	}
	c.open[conn] = true
	c.forCalls.Store(target, conn)
	return conn, nil
}

// release ends a call or stream.
func (c *connection) release() {
	if _, isAddress := c.target.(string); isAddress {
		c.released.Store(callstats.Clock())
	}
	c.calls.RUnlock()
}

// leave closes a connection when its calls have ended. Calls that begin later open another one.
// leave does not wait. The caller holds the lock.
func (c *connections) leave(conn *connection) {
	if c.closed || conn.leaving {
		return
	}
	conn.leaving = true
	c.forCalls.CompareAndDelete(conn.target, conn)
	conn.stop()
	c.closing.Go(func() {
		conn.calls.Lock()
		_ = conn.channel.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.open, conn)
	})
}

// leaveUnused closes the connections to addresses that have not been used for client.PoolTTL. The
// registry does not say that an address has left. The caller holds the lock.
func (c *connections) leaveUnused() {
	before := callstats.Clock() - int64(c.settings.options.PoolTTL)
	for conn := range c.open {
		if last := conn.released.Load(); last != 0 && last < before && conn.calls.TryLock() { // no call is in flight
			conn.calls.Unlock()
			c.leave(conn)
		}
	}
}

// replace makes later calls open connections with other settings.
func (c *connections) replace(s *settings) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settings = s
	for conn := range c.open {
		c.leave(conn)
	}
}

// closeAll closes all connections, so that the calls in flight fail, and waits for them and for
// the goroutines of the connections.
func (c *connections) closeAll() {
	c.mu.Lock()
	c.closed = true
	c.forCalls.Clear()
	for conn := range c.open {
		conn.stop()
		c.closing.Go(func() { _ = conn.channel.Close() })
	}
	clear(c.open)
	c.mu.Unlock()
	c.closing.Wait()
}
