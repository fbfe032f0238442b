package forwarder

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// startForwarder starts a forwarder of at most limit connections to an echo server, and
// returns the address to connect to. wrap may change the forwarder's listener.
func startForwarder(t *testing.T, limit int, wrap func(net.Listener) net.Listener) (address string) {
	t.Helper()
	var listeners [2]net.Listener
	for i := range listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners[i] = l
	}
	go func() {
		for {
			conn, err := listeners[0].Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				copyBytes(conn, conn)
			}()
		}
	}()
	f := newForwarder(listeners[0].Addr().String(), net.Dial, func(string, ...any) {})
	f.slots = make(chan struct{}, limit)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.run(wrap(listeners[1]))
	}()
	t.Cleanup(func() {
		for _, l := range listeners {
			l.Close()
		}
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("the forwarder does not end with its listener")
		}
	})
	return listeners[1].Addr().String()
}

func unwrapped(l net.Listener) net.Listener { return l }

// echo opens a connection and sends five bytes. It returns the connection, and an error
// unless the bytes come back.
func echo(t *testing.T, address string) (net.Conn, error) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return conn, err
	}
	_, err = io.ReadFull(conn, make([]byte, 5))
	return conn, err
}

// failingListener returns a number of errors before it accepts connections, like a
// process with too many open files.
type failingListener struct {
	net.Listener
	failures atomic.Int32
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.failures.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

func TestForwarderRetriesAccept(t *testing.T) {
	address := startForwarder(t, 10, func(l net.Listener) net.Listener {
		f := &failingListener{Listener: l}
		f.failures.Store(5)
		return f
	})
	if _, err := echo(t, address); err != nil {
		t.Errorf("after 5 failures of Accept: %v", err)
	}
}

func TestForwarderLimitsConnections(t *testing.T) {
	const limit = 5
	address := startForwarder(t, limit, unwrapped)
	var open []net.Conn
	for range limit {
		conn, err := echo(t, address)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	if _, err := echo(t, address); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("connection %d: %v, want it closed", limit+1, err)
	}
	for _, c := range open {
		c.Close()
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := echo(t, address)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after the other connections were closed: %v", err)
		}
	}
}

// TestForwarderKeepsNoPipes counts the pipes that 200 connections leave open.
func TestForwarderKeepsNoPipes(t *testing.T) {
	pipes := func() (n int) {
		all, _ := filepath.Glob("/proc/self/fd/*")
		for _, f := range all {
			if to, _ := os.Readlink(f); strings.HasPrefix(to, "pipe:") {
				n++
			}
		}
		return n
	}
	address, before := startForwarder(t, 200, unwrapped), pipes()
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			if conn, err := echo(t, address); err != nil {
				t.Error(err)
			} else {
				conn.Close()
			}
		})
	}
	all.Wait()
	if left := pipes() - before; left > 0 {
		t.Errorf("%d pipes are open after 200 connections", left)
	}
}
