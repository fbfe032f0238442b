package identity

import (
	"context"
	"net"

	"google.golang.org/grpc/credentials"
)

// broken are the credentials of a process whose files are missing: its calls fail with the reason, and do not go out in plaintext.
type broken struct{ err error }

func (b broken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, b.err
}

func (b broken) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, b.err
}

func (b broken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (b broken) Clone() credentials.TransportCredentials { return b }

func (b broken) OverrideServerName(string) error { return nil }
