package shutdown

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/micro/go-micro/v2/logger"
	"google.golang.org/grpc/credentials"
)

const (
	recordHandshake = 0x16 // RFC 8446, 5.1: the first byte of a client that speaks TLS
	tlsLogPause     = time.Minute
)

// plaintext are the credentials of a server that has none. The log says that clients speak TLS, once a minute; grpc-go closes their
// connections without a word. Connections stay as they are, so that calls cost nothing more.
type plaintext struct {
	logf func(format string, args ...any)
	now  func() time.Time

	mu     sync.Mutex
	logged time.Time
}

func newPlaintext() *plaintext { return &plaintext{logf: logger.Warnf, now: time.Now} }

// ServerHandshake waits for the first byte, for which grpc-go would wait next. It also returns the connection of a client that speaks TLS:
// grpc-go sends its settings then, which tell the client that the server speaks plaintext.
func (p *plaintext) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if firstByte(conn) == recordHandshake {
		p.log(conn.RemoteAddr())
	}
	return conn, nil, nil
}

func (p *plaintext) log(client net.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.now(); now.Sub(p.logged) >= tlsLogPause {
		p.logged = now
		host, _, _ := net.SplitHostPort(client.String())
		p.logf("refusing connections of clients such as %s: they speak TLS, and this service speaks plaintext; set POD_IDENTITY here, or POD_IDENTITY_MODE=permissive there (docs/identity.md)", host)
	}
}

func (p *plaintext) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are the credentials of a server")
}

func (p *plaintext) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "insecure"}
}

func (p *plaintext) Clone() credentials.TransportCredentials { return p }

func (p *plaintext) OverrideServerName(string) error { return nil }
