// Package weblimit bounds what the clients of an HTTP server can make it hold: connections, and
// the size and the duration of request bodies.
//
// LimitConnections counts the connections of a server that does not run yet. When there are too
// many, it closes the one whose client has kept the server waiting longest. LimitBody limits the
// body of one request; a handler calls it for each request before it reads the body. The two
// belong together: a connection waits for its client until LimitBody has seen the end of the body.
//
// Headers are limited by http.Server itself.
package weblimit

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// MaxConnections bounds the memory of a web service. A connection takes about
	// 25 KiB, and the garbage collector lets the heap grow to twice the memory in
	// use, so that 1,200 connections take up to 60 MiB.
	MaxConnections = 1200

	// MaxClientConnections bounds the connections of one client address, so that a
	// single client leaves half of MaxConnections to other clients. It is not smaller,
	// because behind a proxy many clients share an address.
	MaxClientConnections = 600

	// MaxBody is the size of the largest body of a request, in bytes.
	MaxBody = 1 << 20

	// BodyTimeout is the time limit for reading a request's body.
	BodyTimeout = 30 * time.Second
)

// connections bounds the connections of a web server. A connection waits for its
// client until the client has sent the header and the body of a request. When there
// are too many connections, in total or of one client address, the connection among
// them that has waited longest is closed. So idle connections of one client make room
// for connections that other clients use, and probes are answered. A connection whose
// request is being handled stays open. If every open connection has a request in progress, the new
// connection is closed.
type connections struct {
	max, maxClient int

	mu      sync.Mutex
	open    map[net.Conn]*connection
	waiting list.List                    // of *connection; the connection that has waited longest comes first
	clients map[string]*connectionClient // by address without port
}

type connectionClient struct {
	open    int
	waiting list.List // of *connection, in the order of connections.waiting
}

type connection struct {
	net.Conn
	client   string
	inAll    *list.Element // in connections.waiting; nil while the request is handled
	inClient *list.Element // in connectionClient.waiting; nil as inAll
}

type connectionKey struct{}

// LimitConnections bounds the connections of a server that does not run yet.
func LimitConnections(s *http.Server, max, maxClient int) {
	c := &connections{max: max, maxClient: maxClient, open: map[net.Conn]*connection{}, clients: map[string]*connectionClient{}}
	s.ConnState = c.changed
	s.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connectionKey{}, func() { c.handling(conn) })
	}
}

// changed is the server's ConnState callback.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		client := c.add(conn)
		if client.open > c.maxClient {
			c.close(client.waiting.Front())
		} else if len(c.open) > c.max {
			c.close(c.waiting.Front())
		}
	case http.StateIdle:
		if idle := c.open[conn]; idle != nil {
			c.stopWaiting(idle)
			c.wait(idle)
		}
	case http.StateClosed, http.StateHijacked:
		c.remove(conn)
	}
}

// handling records that the whole request has been read.
func (c *connections) handling(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if handled := c.open[conn]; handled != nil {
		c.stopWaiting(handled)
	}
}

func (c *connections) add(conn net.Conn) *connectionClient {
	address, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	client := c.clients[address]
	if client == nil {
		client = &connectionClient{}
		c.clients[address] = client
	}
	client.open++
	added := &connection{Conn: conn, client: address}
	c.open[conn] = added
	c.wait(added)
	return client
}

func (c *connections) remove(conn net.Conn) {
	removed := c.open[conn]
	if removed == nil {
		return
	}
	c.stopWaiting(removed)
	delete(c.open, conn)
	client := c.clients[removed.client]
	if client.open--; client.open == 0 {
		delete(c.clients, removed.client)
	}
}

func (c *connections) close(e *list.Element) {
	conn := e.Value.(*connection).Conn
	c.remove(conn)
	_ = conn.Close()
}

func (c *connections) wait(conn *connection) {
	conn.inAll, conn.inClient = c.waiting.PushBack(conn), c.clients[conn.client].waiting.PushBack(conn)
}

func (c *connections) stopWaiting(conn *connection) {
	if conn.inAll == nil {
		return
	}
	c.waiting.Remove(conn.inAll)
	c.clients[conn.client].waiting.Remove(conn.inClient)
	conn.inAll, conn.inClient = nil, nil
}

// LimitBody bounds the size of a request's body and the time to read it. The time for
// the response has no limit. LimitBody answers a request that declares a larger body itself
// and returns false: the handler must not see it. The handler of a body without a declared
// length reads the first MiB and then gets an error.
func LimitBody(w http.ResponseWriter, r *http.Request, timeout time.Duration) bool {
	if r.ContentLength > MaxBody {
		http.Error(w, fmt.Sprintf("the body is larger than %d bytes", MaxBody), http.StatusRequestEntityTooLarge)
		return false
	}
	handling, _ := r.Context().Value(connectionKey{}).(func())
	if r.Body == http.NoBody {
		handling()
		return true
	}
	// net/http removes the deadline at the end of the body.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(timeout))
	r.Body = &limitedBody{http.MaxBytesReader(w, r.Body, MaxBody), handling}
	return true
}

// limitedBody calls a function once when the body has been read to its end.
type limitedBody struct {
	io.ReadCloser
	ended func()
}

func (b *limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) && b.ended != nil {
		b.ended()
		b.ended = nil
	}
	return n, err
}
