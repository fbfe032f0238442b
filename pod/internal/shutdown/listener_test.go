package shutdown

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestListenerClosesWithoutTheUnderlyingOne(t *testing.T) {
	underlying, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(underlying)
	ended := make(chan struct{})
	go func() {
		l.accept()
		close(ended)
	}()
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	client := dial()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for range 2 { // http.Server closes a listener more than once
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept returned %v", err)
	}
	late := dial()
	_ = late.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := late.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a late connection: %v, want it to be closed", err)
	}
	if _, err := client.Write([]byte("x")); err != nil {
		t.Errorf("the accepted connection: %v", err)
	}
	if err := underlying.Close(); err != nil { // as go-micro does
		t.Error(err)
	}
	<-ended
}

// exhausted is a listener whose Accept fails as long as the process has no file descriptor left.
type exhausted struct {
	net.Listener
	errs chan error
}

func (l exhausted) Accept() (net.Conn, error) { return nil, <-l.errs }

func TestListenerAcceptsUntilTheUnderlyingOneIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		underlying := exhausted{errs: make(chan error)}
		l := newListener(underlying)
		var ended atomic.Bool
		go func() {
			l.accept()
			ended.Store(true)
		}()
		tooMany := &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
		underlying.errs <- tooMany
		if _, err := l.Accept(); !errors.Is(err, syscall.EMFILE) {
			t.Errorf("Accept returned %v", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for range 3 {
			underlying.errs <- tooMany
			if synctest.Wait(); ended.Load() {
				t.Fatal("too many open files end accept during the stop")
			}
		}
		underlying.errs <- net.ErrClosed
		if synctest.Wait(); !ended.Load() {
			t.Error("accept does not end with the underlying listener")
		}
	})
}
