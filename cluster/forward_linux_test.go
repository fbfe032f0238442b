package main

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
)

// failsOnce is a listener whose first Accept fails.
type failsOnce struct {
	net.Listener
	failed bool
}

func (l *failsOnce) Accept() (net.Conn, error) {
	if !l.failed {
		l.failed = true
		return nil, errors.New("too many open files")
	}
	return l.Listener.Accept()
}

// The command forward works after its listener in the node has failed.
func TestReceiveForwardsRetriesAccept(t *testing.T) {
	path := &net.UnixAddr{Net: "unix", Name: filepath.Join(t.TempDir(), "s")}
	socket, err := net.ListenUnix("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { receiveForwards(&failsOnce{Listener: socket}); close(ended) }()
	defer func() { socket.Close(); <-ended }()
	l, f, err := listen("0")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := l.Addr().String()
	l.Close() // the file is another reference
	for range 2 {
		conn, err := net.DialUnix("unix", nil, path)
		if err != nil {
			t.Fatal(err)
		}
		if address, err := sendListener(conn, "default/api:1", f); err != nil || address != want {
			t.Errorf("forwarded to %q, %v, want %q", address, err, want)
		}
	}
}
