// Package forwarder forwards connections: those of the host's loopback to the API server and to
// Services in the node, and those of further nodes to the image registry.
package forwarder

import (
	"errors"
	"io"
	"net"
	"time"
)

// maxForwarded limits the connections that one forwarder serves at a time.
const maxForwarded = 1000

// Log writes a line to a log, in the format of fmt.Printf.
type Log func(format string, args ...any)

// forwarder forwards the connections that a listener accepts to a TCP address, or to another address that dial knows.
type forwarder struct {
	address string
	dial    func(network, address string) (net.Conn, error)
	log     Log
	slots   chan struct{} // holds one element for each open connection
}

// Run forwards the connections that a listener accepts to a TCP address until the listener is
// closed. It serves 1000 at a time and closes others immediately.
func Run(l net.Listener, address string, dial func(network, address string) (net.Conn, error), log Log) {
	newForwarder(address, dial, log).run(l)
}

func newForwarder(address string, dial func(network, address string) (net.Conn, error), log Log) *forwarder {
	return &forwarder{address: address, dial: dial, log: log, slots: make(chan struct{}, maxForwarded)}
}

func (f *forwarder) run(l net.Listener) {
	Accept(l, f.address, f.log, func(client net.Conn) {
		select {
		case f.slots <- struct{}{}:
			go func() {
				defer func() { <-f.slots }()
				f.forward(client)
			}()
		default:
			client.Close()
		}
	})
}

// Accept calls serve for each connection until the listener is closed. It retries after every
// other error, such as too many open files: if it returned, nothing would answer any more. The
// description is for the log.
func Accept(l net.Listener, description string, log Log, serve func(net.Conn)) {
	failures := 0
	for {
		client, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if failures++; failures == 1 {
				log("accepting a connection to %q: %v; retrying", description, err)
			}
			time.Sleep(min(time.Duration(failures)*5*time.Millisecond, time.Second))
			continue
		}
		failures = 0
		serve(client)
	}
}

// forward dials the address and copies in both directions until both sides have closed.
func (f *forwarder) forward(client net.Conn) {
	defer client.Close()
	server, err := f.dial("tcp", f.address)
	if err != nil {
		f.log("forwarding a connection to %q: %v", f.address, err)
		return
	}
	defer server.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		copyBytes(server, client)
		if s, ok := server.(interface{ CloseWrite() error }); ok { // TCP or Unix
			_ = s.CloseWrite()
		}
	}()
	copyBytes(client, server)
	client.Close() // ends the copy from the client, which may never close its side
	<-sent
}

// copyBytes copies without the splice system call, which io.Copy would use between
// TCP connections: splice keeps a pipe for each direction open until garbage collection.
func copyBytes(to io.Writer, from io.Reader) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 16<<10))
}
