package pod

import (
	"context"
	"encoding/binary"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// connectionPool is the connections of a client to one instance, or to one address. Usually
// it has one connection. It is closed when the instance has left and no call is in flight.
type connectionPool struct {
	settings *clientSettings
	key      any // in clientSettings.pools
	address  string
	calls    atomic.Int64 // calls in flight, plus leaving or ended
	released atomic.Int64 // time of the last release of a pool to an address, a result of clock

	connections atomic.Pointer[[]*clientConnection] // immutable
	closed      bool                                // the client's lock guards closed and changes of connections
}

// leaving is added to connectionPool.calls when the instance has left, and ended when the last
// call has ended then.
const leaving, ended = 1 << 60, math.MinInt64 / 2

// clientConnection is one connection, which grpc-go opens again whenever it breaks.
type clientConnection struct {
	channel    *grpc.ClientConn
	streams    atomic.Int64 // calls and streams in flight
	maxStreams atomic.Int64 // as the server permits
}

// assumedMaxStreams is the limit of a connection while its server has not sent one. RFC 9113
// (6.5.2) recommends that a server permits at least 100 streams.
const assumedMaxStreams = 100

// acquire returns a connection for a call or stream to an instance, or to an address if the
// instance is nil. The caller releases it at the end of the call or stream.
func (s *clientSettings) acquire(i *instance, address string) (*connectionPool, *clientConnection, error) {
	var key any = i
	if i == nil {
		key = address
	} else {
		address = i.Address
	}
	for {
		p, err := s.pool(i, key, address)
		if err != nil {
			return nil, nil, err
		}
		if p == nil { // it has just ended
			continue
		}
		for _, c := range *p.connections.Load() {
			if c.acquire() {
				return p, c, nil
			}
		}
		c, err := p.grow()
		if err != nil {
			p.endCall()
			return nil, nil, err
		}
		return p, c, nil
	}
}

// pool returns the pool of a key, and has added a call to it. It returns nil if the pool has
// ended.
func (s *clientSettings) pool(i *instance, key any, address string) (*connectionPool, error) {
	if v, ok := s.pools.Load(key); ok {
		p := v.(*connectionPool)
		if p.calls.Add(1) < 0 {
			s.pools.CompareAndDelete(key, p)
			return nil, nil
		}
		return p, nil
	}
	p := &connectionPool{settings: s, key: key, address: address}
	p.connections.Store(&[]*clientConnection{})
	p.calls.Store(1)
	c := s.client
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, errClientClosed
	}
	if _, loaded := s.pools.LoadOrStore(key, p); loaded {
		c.mu.Unlock()
		return nil, nil
	}
	c.pools[p] = true
	left := s.left
	c.mu.Unlock()
	switch {
	case left:
		p.leave()
	case i != nil:
		i.departure.then(p.leave)
	default:
		s.removeUnused()
	}
	return p, nil
}

// removeUnused closes connections to addresses, which never leave, when they have not been used
// for client.PoolTTL.
func (s *clientSettings) removeUnused() {
	before := clock() - int64(s.options.PoolTTL)
	s.pools.Range(func(_, value any) bool {
		p := value.(*connectionPool)
		if last := p.released.Load(); last != 0 && last < before && p.calls.Load() == 0 {
			p.leave()
		}
		return true
	})
}

// leave closes all connections, each when its calls have ended. Calls that still begin use
// connections of their own.
func (s *clientSettings) leave() {
	s.client.mu.Lock()
	s.left = true
	s.client.mu.Unlock()
	s.pools.Range(func(_, p any) bool {
		p.(*connectionPool).leave()
		return true
	})
}

// leave closes the connections as soon as no call is in flight. It does not wait.
func (p *connectionPool) leave() {
	p.settings.pools.CompareAndDelete(p.key, p)
	for {
		n := p.calls.Load()
		if n < 0 || n >= leaving {
			return
		}
		if p.calls.CompareAndSwap(n, n+leaving) {
			p.endIfUnused()
			return
		}
	}
}

func (p *connectionPool) endCall() {
	if p.calls.Add(-1) == leaving {
		p.endIfUnused()
	}
}

func (p *connectionPool) endIfUnused() {
	if p.calls.CompareAndSwap(leaving, ended) {
		c := p.settings.client
		c.mu.Lock()
		defer c.mu.Unlock()
		p.close()
	}
}

// close closes the connections in the background, because grpc-go's Close waits for the
// goroutines of the connection. The caller holds the client's lock.
func (p *connectionPool) close() {
	c := p.settings.client
	if p.closed {
		return
	}
	p.closed = true
	delete(c.pools, p)
	for _, connection := range *p.connections.Load() {
		c.closing.Go(func() { _ = connection.channel.Close() })
	}
}

func (c *clientConnection) acquire() bool {
	if c.streams.Add(1) <= c.maxStreams.Load() {
		return true
	}
	c.streams.Add(-1)
	return false
}

// release ends a call or stream.
func (p *connectionPool) release(c *clientConnection) {
	c.streams.Add(-1)
	if _, isAddress := p.key.(string); isAddress {
		p.released.Store(clock())
	}
	p.endCall()
}

// grow adds a connection. If there are client.PoolSize connections already, it returns the
// least busy of them, on which the call waits for a free stream.
func (p *connectionPool) grow() (*clientConnection, error) {
	s := p.settings
	s.client.mu.Lock()
	defer s.client.mu.Unlock()
	if p.closed {
		return nil, errClientClosed
	}
	all := *p.connections.Load()
	for _, c := range all { // opened while this call waited for the lock
		if c.acquire() {
			return c, nil
		}
	}
	if len(all) > 0 && len(all) >= s.options.PoolSize {
		c := slices.MinFunc(all, func(a, b *clientConnection) int { return int(a.streams.Load() - b.streams.Load()) })
		c.streams.Add(1)
		return c, nil
	}
	// The first connection to an instance stays open as long as the registry lists the instance.
	idleTimeout := s.options.PoolTTL
	if _, isInstance := p.key.(*instance); isInstance && len(all) == 0 {
		idleTimeout = 0
	}
	c := &clientConnection{}
	c.maxStreams.Store(assumedMaxStreams)
	c.streams.Store(1)
	channel, err := s.dial(p.address, c, idleTimeout)
	if err != nil {
		return nil, err
	}
	c.channel = channel
	added := append(slices.Clip(all), c)
	p.connections.Store(&added)
	return c, nil
}

// departure runs functions when an instance leaves the registry. Its zero value is ready for
// use. It is safe for concurrent use.
type departure struct {
	mu        sync.Mutex
	left      bool
	functions []func()
}

// then runs a function when the instance leaves, at once if it has left.
func (d *departure) then(f func()) {
	d.mu.Lock()
	left := d.left
	if !left {
		d.functions = append(d.functions, f)
	}
	d.mu.Unlock()
	if left {
		f()
	}
}

// happen records that the instance has left. The functions must not wait.
func (d *departure) happen() {
	d.mu.Lock()
	functions := d.functions
	d.left, d.functions = true, nil
	d.mu.Unlock()
	for _, f := range functions {
		f()
	}
}

// settingsCredentials are transport credentials that read how many streams the server permits.
// grpc-go makes a call wait when it has reached that number, and does not tell it.
type settingsCredentials struct {
	credentials.TransportCredentials
	connection *clientConnection
}

func (s *settingsCredentials) Clone() credentials.TransportCredentials {
	return &settingsCredentials{s.TransportCredentials.Clone(), s.connection}
}

func (s *settingsCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := s.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	return &settingsConn{Conn: conn, connection: s.connection}, info, nil
}

// settingsConn reads the SETTINGS frame with which a server begins an HTTP/2 connection. It also
// buffers what grpc-go reads, in place of grpc-go's own buffer: it holds a buffer only while a
// frame has begun and its rest has not been read, so that an idle connection has none.
type settingsConn struct {
	net.Conn
	connection *clientConnection
	frame      []byte // what has been read of the SETTINGS frame
	done       bool

	buffer *[]byte // of readBuffers; nil if there is nothing to read from it
	unread []byte  // part of buffer
}

const readBufferSize = 32 << 10 // as grpc-go's

var readBuffers = sync.Pool{New: func() any { b := make([]byte, readBufferSize); return &b }}

// Read reads up to len(b) bytes. grpc-go reads a frame in two steps, first its header. The header of
// the next frame may be long in coming, so Read waits for it without a buffer. The rest of a frame
// follows at once.
func (c *settingsConn) Read(b []byte) (int, error) {
	if c.buffer == nil && (len(b) == frameHeaderSize || len(b) >= readBufferSize) {
		n, err := c.Conn.Read(b)
		c.parse(b[:n])
		return n, err
	}
	if c.buffer == nil {
		buffer := readBuffers.Get().(*[]byte)
		n, err := c.Conn.Read(*buffer)
		if n == 0 {
			readBuffers.Put(buffer)
			return 0, err
		}
		c.buffer, c.unread = buffer, (*buffer)[:n] // an error comes again with the next read
	}
	n := copy(b, c.unread)
	c.parse(b[:n])
	if c.unread = c.unread[n:]; len(c.unread) == 0 {
		readBuffers.Put(c.buffer)
		c.buffer, c.unread = nil, nil
	}
	return n, nil
}

// The header of an HTTP/2 frame has 9 bytes: 3 of the length, the type, the flags, and 4 of the
// stream's number. A setting has 2 bytes of its number and 4 of its value (RFC 9113, 4.1 and 6.5).
const (
	frameHeaderSize             = 9
	settingsFrame               = 4
	settingMaxConcurrentStreams = 3
	maxSettingsFrame            = 16 << 10 // the largest frame that a server may send at first
)

func (c *settingsConn) parse(b []byte) {
	if c.done {
		return
	}
	c.frame = append(c.frame, b...)
	if len(c.frame) < frameHeaderSize {
		return
	}
	size := int(binary.BigEndian.Uint32(c.frame[:4]) >> 8)
	if c.frame[3] == settingsFrame && size <= maxSettingsFrame {
		if len(c.frame) < frameHeaderSize+size {
			return
		}
		limit := int64(math.MaxInt64) // a server that sends no limit has none
		for s := c.frame[frameHeaderSize : frameHeaderSize+size]; len(s) >= 6; s = s[6:] {
			if binary.BigEndian.Uint16(s) == settingMaxConcurrentStreams {
				limit = int64(binary.BigEndian.Uint32(s[2:]))
			}
		}
		c.connection.maxStreams.Store(limit)
	}
	c.done, c.frame = true, nil
}
