package mtls

import (
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
)

const (
	maxRefused  = 32              // plaintext connections that get an answer at the same time; others are closed
	refusedTime = 2 * time.Second // that such a connection lasts
)

// refuser is a gRPC server without handlers, for clients that speak plaintext to a server of TLS: each of their calls gets an error
// that says so. Otherwise they would see only that the connection breaks. It is a net.Listener for that server.
type refuser struct {
	server  *grpc.Server
	waiting chan net.Conn
	slots   chan struct{}
	stopped chan struct{}
	close   func()
}

func newRefuser(s *Source) *refuser {
	r := &refuser{waiting: make(chan net.Conn, maxRefused), slots: make(chan struct{}, maxRefused), stopped: make(chan struct{})}
	r.close = sync.OnceFunc(func() { close(r.stopped) })
	r.server = grpc.NewServer(grpc.MaxConcurrentStreams(100), grpc.ConnectionTimeout(refusedTime), grpc.MaxHeaderListSize(16<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: refusedTime / 2}), // GOAWAY: no call is in flight when the connection is cut
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
			return s.Refusal(codes.Unauthenticated, s.server.onlyTLS())
		}))
	return r
}

func (r *refuser) start(running *sync.WaitGroup) {
	running.Go(func() { _ = r.server.Serve(r) })
}

func (r *refuser) stop() { r.server.Stop() }

// refuse answers the calls of a connection.
func (r *refuser) refuse(conn net.Conn) {
	select {
	case r.slots <- struct{}{}:
	default:
		_ = conn.Close()
		return
	}
	refused := &refusedConn{Conn: conn, release: sync.OnceFunc(func() { <-r.slots })}
	time.AfterFunc(refusedTime, func() { _ = refused.Close() })
	select {
	case <-r.stopped:
		_ = refused.Close()
	case r.waiting <- refused: // has room for all slots
	}
}

// refusedConn is a connection that has a slot until it is closed.
type refusedConn struct {
	net.Conn
	release func()
}

func (c *refusedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// Accept returns the next connection to refuse.
func (r *refuser) Accept() (net.Conn, error) {
	select {
	case conn := <-r.waiting:
		return conn, nil
	case <-r.stopped:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (r *refuser) Close() error {
	r.close()
	return nil
}

// Addr returns an address that nobody uses.
func (r *refuser) Addr() net.Addr { return &net.TCPAddr{} }
