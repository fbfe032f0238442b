// Package weblimit bounds what the clients of an HTTP server can make it hold: connections, and
// the size and the duration of request bodies.
//
// Limits.LimitConnections counts the connections of a server that does not run yet. When there are too
// many, it closes the one whose client has kept the server waiting longest. Limits.LimitBody limits the
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

// Limits are the limits of a web server. 0 means no limit.
type Limits struct {
	Connections       int           // of all clients
	ClientConnections int           // of one client address
	Body              int64         // size of the largest body of a request, in bytes
	BodyTimeout       time.Duration // for reading a request's body
}

// Default are the limits that bound the memory of a web service in a small pod. A connection
// takes about 25 KiB, and the garbage collector lets the heap grow to twice the memory in use,
// so that 1,200 connections take up to 60 MiB. A single client leaves half of the connections to
// others; not more than half, because behind a proxy many clients share an address.
var Default = Limits{Connections: 1200, ClientConnections: 600, Body: 1 << 20, BodyTimeout: 30 * time.Second}

// reserve is how many connections beyond a limit may wait when all others have a request in
// progress. Without them a service with many long responses would refuse probes, and the kubelet
// would restart it.
const reserve = 8

// connections bounds the connections of a web server. A connection waits for its
// client until the client has sent the header and the body of a request. When there
// are too many connections, in total or of one client address, the connection among
// them that has waited longest is closed. So idle connections of one client make room
// for connections that other clients use, and probes are answered. A connection whose
// request is in progress stays open. If every other connection has a request in progress, a
// new connection may wait, but LimitBody refuses its request.
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

// request is the value of connectionKey: the connection on which a request arrives.
type request struct {
	connections *connections
	conn        net.Conn
}

// LimitConnections bounds the connections of a server that does not run yet.
func (l Limits) LimitConnections(s *http.Server) {
	c := &connections{max: l.Connections, maxClient: l.ClientConnections, open: map[net.Conn]*connection{}, clients: map[string]*connectionClient{}}
	s.ConnState = c.changed
	s.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connectionKey{}, request{c, conn})
	}
}

// changed is the server's ConnState callback.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		client := c.add(conn)
		if exceeds(client.open, client.waiting.Len(), c.maxClient) {
			c.close(client.waiting.Front())
		} else if exceeds(len(c.open), c.waiting.Len(), c.max) {
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

// exceeds reports whether a waiting connection must be closed.
func exceeds(open, waiting, max int) bool {
	if isBusy(open, waiting, max) {
		max += reserve
	}
	return max > 0 && open > max
}

// isBusy reports whether as many connections as permitted have a request in progress.
func isBusy(open, waiting, max int) bool { return max > 0 && open-waiting >= max }

// refused reports whether too many requests are in progress for another one.
func (r request) refused() bool {
	c := r.connections
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := c.open[r.conn]
	if conn == nil || conn.inAll == nil { // closed, or in progress
		return false
	}
	client := c.clients[conn.client]
	return isBusy(len(c.open), c.waiting.Len(), c.max) || isBusy(client.open, client.waiting.Len(), c.maxClient)
}

// inProgress records that the whole request has been read.
func (r request) inProgress() {
	c := r.connections
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.open[r.conn]; conn != nil {
		c.stopWaiting(conn)
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
// the response has no limit. LimitBody answers a request that declares a larger body, or that
// arrives while too many others are in progress, itself and returns false: the handler must not
// see it. The handler of a body without a declared length reads as much as the limit and then
// gets an error.
func (l Limits) LimitBody(w http.ResponseWriter, r *http.Request) bool {
	if l.Body > 0 && r.ContentLength > l.Body {
		http.Error(w, fmt.Sprintf("the body is larger than %d bytes", l.Body), http.StatusRequestEntityTooLarge)
		return false
	}
	on, _ := r.Context().Value(connectionKey{}).(request)
	if on.refused() {
		w.Header().Set("Connection", "close")
		http.Error(w, "too many requests are in progress", http.StatusServiceUnavailable)
		return false
	}
	if r.Body == http.NoBody {
		on.inProgress()
		return true
	}
	if l.BodyTimeout > 0 { // net/http removes the deadline at the end of the body
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(l.BodyTimeout))
	}
	body := r.Body
	if l.Body > 0 {
		body = http.MaxBytesReader(w, body, l.Body)
	}
	r.Body = &limitedBody{body, on.inProgress}
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
