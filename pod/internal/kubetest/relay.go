package kubetest

import (
	"io"
	"net"
	"sync"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
)

// Relay forwards TCP connections to the API server. Cut and Restore interrupt it.
type Relay struct {
	listener net.Listener
	dial     func() (net.Conn, error)
	ended    sync.WaitGroup

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

// StartRelay starts a relay, which runs until the test ends.
func (s *Server) StartRelay(t testing.TB) *Relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return StartRelay(t, l, func() (net.Conn, error) { return net.Dial("tcp", s.Address()) })
}

// StartRelay forwards each connection that l accepts to a connection from dial, until
// the test ends.
func StartRelay(t testing.TB, l net.Listener, dial func() (net.Conn, error)) *Relay {
	r := &Relay{listener: l, dial: dial, conns: map[net.Conn]bool{}}
	r.ended.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.ended.Go(func() { r.carry(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.Cut()
		r.ended.Wait()
	})
	return r
}

func (r *Relay) carry(client net.Conn) {
	defer client.Close()
	server, err := r.dial()
	if err != nil {
		return
	}
	defer server.Close()
	r.mu.Lock()
	if r.cut {
		r.mu.Unlock()
		return
	}
	r.conns[client], r.conns[server] = true, true
	r.mu.Unlock()
	done := make(chan bool)
	go func() { _, _ = io.Copy(server, client); server.Close(); close(done) }()
	_, _ = io.Copy(client, server)
	client.Close()
	<-done
	r.mu.Lock()
	delete(r.conns, client)
	delete(r.conns, server)
	r.mu.Unlock()
}

// Cut closes all connections and accepts no new one until Restore.
func (r *Relay) Cut() {
	r.mu.Lock()
	r.cut = true
	r.mu.Unlock()
	r.CloseConnections()
}

// Restore lets the relay accept connections again after Cut.
func (r *Relay) Restore() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = false
}

// CloseConnections closes the current connections.
func (r *Relay) CloseConnections() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
	}
}

// Address returns the address on which the relay accepts connections.
func (r *Relay) Address() string { return r.listener.Addr().String() }

// Close stops listening, so that new connections are refused.
func (r *Relay) Close() { r.listener.Close() }

// Through returns an environment that reaches the API server through the relay.
func (r *Relay) Through(env apiserver.Environment) apiserver.Environment {
	_, port, _ := net.SplitHostPort(r.listener.Addr().String())
	return With(env, "KUBERNETES_SERVICE_PORT", port)
}
