package pod

import (
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
	settings *clientSettings // of connections that are opened from now on
	open     map[*connection]bool
	closed   bool
	closing  sync.WaitGroup // connections that are being closed
}

// connection is the connection to one instance or address, which grpc-go opens again whenever it
// breaks.
type connection struct {
	channel  *grpc.ClientConn
	target   any          // *discovery.Instance or address
	released atomic.Int64 // result of callstats.Clock at the end of the last call to an address

	calls   sync.RWMutex // read-locked by each call and stream in flight, and locked for ever to close the connection
	leaving sync.Once
}

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
		conn, err := c.dial(target, address)
		switch {
		case err != nil:
			return nil, err
		case conn == nil: // another call has opened it
			continue
		case i != nil:
			i.AfterLeave(func() { c.leave(conn) })
		default:
			c.leaveUnused()
		}
		return conn, nil
	}
}

// dial opens the connection to a target for its first call, which releases it. It returns nil if there is one already.
func (c *connections) dial(target any, address string) (*connection, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClientClosed
	}
	if _, ok := c.forCalls.Load(target); ok {
		return nil, nil
	}
	_, isInstance := target.(*discovery.Instance)
	channel, err := c.settings.dial(address, isInstance)
	if err != nil {
		return nil, err
	}
	conn := &connection{channel: channel, target: target}
	conn.calls.RLock()
	c.forCalls.Store(target, conn)
	c.open[conn] = true
	return conn, nil
}

// release ends a call or stream.
func (c *connection) release() {
	if _, isAddress := c.target.(string); isAddress {
		c.released.Store(callstats.Clock())
	}
	c.calls.RUnlock()
}

// leave closes a connection as soon as its calls have ended. Calls that still begin open
// another one. leave does not wait; a goroutine does, which ends with the last call.
func (c *connections) leave(conn *connection) {
	conn.leaving.Do(func() {
		c.forCalls.CompareAndDelete(conn.target, conn)
		if conn.calls.TryLock() {
			c.close(conn)
			return
		}
		go func() {
			conn.calls.Lock()
			c.close(conn)
		}()
	})
}

// leaveUnused closes connections to addresses, which never leave the registry, when they have
// not been used for client.PoolTTL.
func (c *connections) leaveUnused() {
	c.mu.Lock()
	before := callstats.Clock() - int64(c.settings.options.PoolTTL)
	c.mu.Unlock()
	c.forCalls.Range(func(_, value any) bool {
		conn := value.(*connection)
		if last := conn.released.Load(); last != 0 && last < before && conn.calls.TryLock() { // no call is in flight
			conn.calls.Unlock()
			c.leave(conn)
		}
		return true
	})
}

// replace makes later calls open connections with other settings. It closes the connections, each when its calls have ended.
func (c *connections) replace(s *clientSettings) {
	c.mu.Lock()
	c.settings = s
	var replaced []*connection
	for conn := range c.open {
		replaced = append(replaced, conn)
	}
	c.mu.Unlock()
	for _, conn := range replaced {
		c.leave(conn)
	}
}

// close closes a connection in the background, because grpc-go's Close waits for the goroutines
// of the connection.
func (c *connections) close(conn *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[conn] {
		delete(c.open, conn)
		c.closing.Go(func() { _ = conn.channel.Close() })
	}
}

// closeAll closes all connections at once, so that the calls in flight fail, and waits for their goroutines.
func (c *connections) closeAll() {
	c.mu.Lock()
	c.closed = true
	for conn := range c.open {
		c.closing.Go(func() { _ = conn.channel.Close() })
	}
	clear(c.open)
	c.mu.Unlock()
	c.forCalls.Clear()
	c.closing.Wait()
}
