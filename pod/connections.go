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

	// bodyTimeout is the time for a request body of at most maxRequestBody bytes.
	bodyTimeout = 30 * time.Second
)

// connections bounds the connections of a web server. When there are too many, it
// closes the one that has waited longest for its client: for the header or the body
// of a request, or for the next request. So a client that holds connections open
// loses them to clients that use theirs, and probes are answered. A connection
// whose request is being handled stays open; if all are, a new one is closed.
type connections struct {
	max int

	mu      sync.Mutex
	open    map[net.Conn]*list.Element // nil while the request is handled
	waiting list.List                  // of net.Conn; the one that has waited longest comes first
}

type connectionKey struct{}

// limitConnections bounds the connections of a server, which must not run yet.
func limitConnections(s *http.Server, max int) {
	c := &connections{max: max, open: map[net.Conn]*list.Element{}}
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
		c.open[conn] = c.waiting.PushBack(conn)
		if len(c.open) > c.max {
			longest := c.waiting.Front().Value.(net.Conn)
			c.remove(longest)
			_ = longest.Close()
		}
	case http.StateIdle:
		if e, ok := c.open[conn]; ok && e == nil {
			c.open[conn] = c.waiting.PushBack(conn)
		} else if ok {
			c.waiting.MoveToBack(e)
		}
	case http.StateClosed, http.StateHijacked:
		c.remove(conn)
	}
}

// handling notes that the whole request has been read.
func (c *connections) handling(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.open[conn]; e != nil {
		c.waiting.Remove(e)
		c.open[conn] = nil
	}
}

func (c *connections) remove(conn net.Conn) {
	if e := c.open[conn]; e != nil {
		c.waiting.Remove(e)
	}
	delete(c.open, conn)
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
