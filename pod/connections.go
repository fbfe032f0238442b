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
	// 25 KiB, and the garbage collector lets the heap grow to twice of what is in
	// use, so that 1,200 connections take up to 60 MiB.
	maxConnections = 1200

	// maxClientWaiting bounds the connections of one client address that wait for
	// their client. Behind a proxy many clients share an address.
	maxClientWaiting = 300

	// bodyTimeout is the time for a request body of at most maxBody bytes.
	bodyTimeout = 30 * time.Second
)

// connections bounds the connections of a web server. A connection waits for its
// client until the client has sent the header and the body of a request. When there
// are too many connections, the one that has waited longest is closed; when too many
// of one client address wait, the one of that address. So a client that holds
// connections open loses them to clients that use theirs, and probes are answered. A
// connection whose request is being handled stays open; if all are, a new one is
// closed.
type connections struct {
	max, maxClientWaiting int

	mu      sync.Mutex
	open    map[net.Conn]*connection
	waiting list.List             // of *connection, as are the next; the one that has waited longest comes first
	clients map[string]*list.List // those that wait, by client address
}

type connection struct {
	net.Conn
	client   string        // address without port
	inAll    *list.Element // of connections.waiting; nil while the request is handled
	inClient *list.Element
}

type connectionKey struct{}

// limitConnections bounds the connections of a server, which must not run yet.
func limitConnections(s *http.Server, max, maxClientWaiting int) {
	c := &connections{max: max, maxClientWaiting: maxClientWaiting, open: map[net.Conn]*connection{}, clients: map[string]*list.List{}}
	s.ConnState = c.changed
	s.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connectionKey{}, func() { c.handling(conn) })
	}
}

// changed is the ConnState of the server.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		client, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		opened := &connection{Conn: conn, client: client}
		c.open[conn] = opened
		c.wait(opened)
		if own := c.clients[client]; own.Len() > c.maxClientWaiting {
			c.close(own.Front())
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

// handling notes that the whole request has been read.
func (c *connections) handling(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if handled := c.open[conn]; handled != nil {
		c.stopWaiting(handled)
	}
}

func (c *connections) close(e *list.Element) {
	conn := e.Value.(*connection).Conn
	c.remove(conn)
	_ = conn.Close()
}

func (c *connections) remove(conn net.Conn) {
	if removed := c.open[conn]; removed != nil {
		c.stopWaiting(removed)
		delete(c.open, conn)
	}
}

func (c *connections) wait(conn *connection) {
	own := c.clients[conn.client]
	if own == nil {
		own = list.New()
		c.clients[conn.client] = own
	}
	conn.inAll, conn.inClient = c.waiting.PushBack(conn), own.PushBack(conn)
}

func (c *connections) stopWaiting(conn *connection) {
	if conn.inAll == nil {
		return
	}
	own := c.clients[conn.client]
	c.waiting.Remove(conn.inAll)
	own.Remove(conn.inClient)
	if own.Len() == 0 {
		delete(c.clients, conn.client)
	}
	conn.inAll, conn.inClient = nil, nil
}

// limitBody bounds the size of a request's body and the time for it. The time for
// the response has no limit.
func limitBody(w http.ResponseWriter, r *http.Request, timeout time.Duration) {
	handling, _ := r.Context().Value(connectionKey{}).(func())
	if r.Body == http.NoBody {
		handling()
		return
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(timeout))
	r.Body = &limitedBody{http.MaxBytesReader(w, r.Body, maxBody), func() {
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
