// Package flood keeps connections open, as an attacker does.
package flood

import (
	"io"
	"net"
	"time"
)

// Hold keeps one connection open until stop is closed: it dials, sends the request, and reads
// what the server sends. After a pause it replaces a connection that the server has closed or
// refused. Opened, which may be nil, is called for each connection.
func Hold(dial func() (net.Conn, error), request string, pause time.Duration, stop <-chan struct{}, opened func()) {
	for {
		if conn, err := dial(); err == nil {
			if opened != nil {
				opened()
			}
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				_, _ = io.WriteString(conn, request)
				_, _ = io.Copy(io.Discard, conn)
			}()
			select {
			case <-closed:
			case <-stop:
			}
			conn.Close()
			<-closed
		}
		select {
		case <-stop:
			return
		case <-time.After(pause):
		}
	}
}
