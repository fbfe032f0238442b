package shutdown

import (
	"errors"
	"net"
	"sync"
	"time"
)

// listener is a listener that can be closed without closing the one it accepts from.
// http.Server.Shutdown closes its listeners first, and go-micro's web service returns an error
// if its own listener is closed already.
type listener struct {
	net.Listener
	accepted chan accepted
	closing  chan struct{}
	close    func()
}

type accepted struct {
	conn net.Conn
	err  error
}

func newListener(l net.Listener) *listener {
	closing := make(chan struct{})
	return &listener{Listener: l, accepted: make(chan accepted), closing: closing, close: sync.OnceFunc(func() { close(closing) })}
}

// accept accepts connections until the underlying listener is closed. After Close it closes
// them at once.
func (l *listener) accept() {
	for {
		conn, err := l.Listener.Accept()
		select {
		case l.accepted <- accepted{conn, err}: // http.Server pauses after a temporary error
		case <-l.closing:
			var e interface{ Temporary() bool }
			switch {
			case err == nil:
				_ = conn.Close()
			case errors.As(err, &e) && e.Temporary(): // such as too many open files; the caller would serve the next connections itself
				time.Sleep(acceptPause)
			default:
				return
			}
		}
	}
}

// acceptPause is http.Server's longest pause after a temporary error of Accept.
const acceptPause = time.Second

func (l *listener) Accept() (net.Conn, error) {
	select {
	case a := <-l.accepted:
		return a.conn, a.err
	case <-l.closing:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.close()
	return nil
}
