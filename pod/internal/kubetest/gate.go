package kubetest

import (
	"net"
	"sync"
	"sync/atomic"
)

// gate lets bytes pass while it is open. New gates are closed until open is set.
type gate struct {
	open   atomic.Bool
	mu     sync.Mutex
	opened chan struct{} // closed by reopen; nil while open
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open.Swap(false) {
		g.opened = make(chan struct{})
	}
}

func (g *gate) reopen() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.open.Swap(true) && g.opened != nil {
		close(g.opened)
	}
}

func (g *gate) wait() {
	if g.open.Load() {
		return
	}
	g.mu.Lock()
	opened := g.opened
	g.mu.Unlock()
	<-opened
}

// gatedListener accepts connections behind a gate.
type gatedListener struct {
	net.Listener
	gate *gate
}

func (l gatedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &gatedConn{c, l.gate}, nil
}

type gatedConn struct {
	net.Conn
	gate *gate
}

func (c *gatedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.gate.wait()
	return n, err
}

func (c *gatedConn) Write(b []byte) (int, error) {
	c.gate.wait()
	return c.Conn.Write(b)
}
