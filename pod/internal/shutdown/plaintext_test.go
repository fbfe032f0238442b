package shutdown

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/emptypb"
)

// TestTLSToPlaintext connects to a server without credentials with TLS, in plaintext, and without sending anything.
func TestTLSToPlaintext(t *testing.T) {
	var mu sync.Mutex
	var lines []string
	now := time.Now()
	p := newPlaintext()
	p.logf = func(format string, args ...any) { // with p.mu
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, fmt.Sprintf(format, args...))
	}
	p.now = func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	logged := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return lines
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(p), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if client, ok := peer.FromContext(stream.Context()); !ok || client.AuthInfo != nil {
			t.Errorf("the caller is %+v, want one without credentials", client)
		}
		return stream.SendMsg(&emptypb.Empty{})
	}))
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	defer serving.Wait()
	defer s.Stop()

	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	silent.Close()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := conn.Invoke(ctx, "/a/B", &emptypb.Empty{}, &emptypb.Empty{}); err != nil {
		t.Error("a call in plaintext:", err)
	}
	if got := logged(); len(got) > 0 {
		t.Errorf("plaintext is logged: %q", got)
	}

	refuse := func() {
		t.Helper()
		begin := time.Now()
		secured, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			secured.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "first record does not look like a TLS handshake") {
			t.Errorf("after %s the error of the client is %v", time.Since(begin), err)
		}
	}
	for range 100 {
		refuse()
	}
	if got := logged(); len(got) != 1 || !strings.Contains(got[0], "clients such as 127.0.0.1: they speak TLS, and this service speaks plaintext") {
		t.Errorf("100 connections with TLS log %q, want one line", got)
	}
	mu.Lock()
	now = now.Add(tlsLogPause)
	mu.Unlock()
	refuse()
	if got := logged(); len(got) != 2 {
		t.Errorf("a minute later the log has %q, want two lines", got)
	}
}

// The connection is the listener's own: grpc-go takes read buffers from a pool for these only.
func TestPlaintextConnectionStays(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if _, err := client.Write([]byte("PRI")); err != nil {
		t.Fatal(err)
	}
	conn, info, err := newPlaintext().ServerHandshake(accepted)
	if conn != accepted || info != nil || err != nil {
		t.Fatalf("the connection is %v with %v, %v, want the same without credentials", conn, info, err)
	}
	b := make([]byte, 4)
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "PRI" {
		t.Errorf("the server reads %q, %v, want everything that the client has sent", b[:n], err)
	}
}
