package main

import (
	"errors"
	"io"
	"net"
	"time"
)

// maxForwarded limits the connections that one forwarder serves at a time.
const maxForwarded = 1000

// forwarder forwards the connections that a listener accepts to a TCP address.
type forwarder struct {
	address string
	dial    func(network, address string) (net.Conn, error)
	slots   chan struct{} // holds one element for each open connection
}

func newForwarder(address string) *forwarder {
	return &forwarder{address: address, dial: nodeDialer.Dial, slots: make(chan struct{}, maxForwarded)}
}

// run accepts connections until the listener is closed. It retries after every other
// error, such as too many open files: if it returned, the Service would seem not to
// answer. It immediately closes connections beyond maxForwarded.
func (f *forwarder) run(l net.Listener) {
	failures := 0
	for {
		client, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if failures++; failures == 1 {
				logLine("accepting a connection to %q: %v; retrying", f.address, err)
			}
			time.Sleep(min(time.Duration(failures)*5*time.Millisecond, time.Second))
			continue
		}
		failures = 0
		select {
		case f.slots <- struct{}{}:
			go func() {
				defer func() { <-f.slots }()
				f.forward(client)
			}()
		default:
			client.Close()
		}
	}
}

// forward dials the address and copies in both directions until both sides have closed.
func (f *forwarder) forward(client net.Conn) {
	defer client.Close()
	server, err := f.dial("tcp", f.address)
	if err != nil {
		logLine("forwarding a connection to %q: %v", f.address, err)
		return
	}
	defer server.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		copyBytes(server, client)
		_ = server.(*net.TCPConn).CloseWrite()
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
