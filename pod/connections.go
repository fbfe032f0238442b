package pod

import (
	"container/list"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// maxConnections bounds the memory of a web service. A connection takes about
	// 25 KiB, and the garbage collector lets the heap grow to twice the memory in
	// use, so that 1,200 connections take up to 60 MiB.
	maxConnections = 1200

	// maxClientConnections bounds the connections of one client address, so that a
	// single client leaves half of maxConnections to other clients. It is not smaller,
	// because behind a proxy many clients share an address.
	maxClientConnections = 600

	// bodyTimeout is the time limit for reading a request's body.
	bodyTimeout = 30 * time.Second
)

// connections bounds the connections of a web server. A connection waits for its
// client until the client has sent the header and the body of a request. When there
// are too many connections, in total or of one client address, the connection among
// them that has waited longest is closed. So idle connections of one client make room
// for connections that other clients use, and probes are answered. A connection whose
// request is being handled stays open. If all requests are being handled, the new
// connection is the one that waits, and is closed.
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

// limitConnections bounds the connections of a server that does not run yet.
func limitConnections(s *http.Server, max, maxClient int) {
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

// limitBody bounds the size of a request's body and the time to read it. The time for
// the response has no limit.
func limitBody(w http.ResponseWriter, r *http.Request, timeout time.Duration) {
	handling, _ := r.Context().Value(connectionKey{}).(func())
	if r.Body == http.NoBody {
		handling()
		return
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(timeout))
	r.Body = &limitedBody{http.MaxBytesReader(w, r.Body, maxRequestBody), func() {
		// Without a deadline the server notices when the client closes the connection.
		_ = rc.SetReadDeadline(time.Time{})
		handling()
	}}
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
