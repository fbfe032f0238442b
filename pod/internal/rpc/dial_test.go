package rpc

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
)

func TestTarget(t *testing.T) {
	for _, test := range []struct{ address, target, security, name string }{
		{"10.0.0.1:9100", "passthrough:///10.0.0.1:9100", "insecure", ""},
		{"10.0.0.1:443", "passthrough:///10.0.0.1:443", "tls", ""},
		{"[fd00::1]:9100", "passthrough:///[fd00::1]:9100", "insecure", ""},
		{"greeter", "passthrough:///greeter:443", "tls", ""},
		{"https://greeter", "passthrough:///greeter:443", "tls", ""},
		{"https://greeter:9100", "passthrough:///greeter:9100", "tls", ""},
		{"dns:///greeter:9100", "dns:///greeter:9100", "insecure", ""},
		{"unix:/run/greeter", "unix:/run/greeter", "insecure", ""},
		{"unknown://greeter", "unknown://greeter", "insecure", ""},
	} {
		for _, withTLS := range []bool{false, true} {
			var opts []client.Option
			want := test.security
			if withTLS {
				opts, want = append(opts, grpcc.AuthTLS(&tls.Config{ServerName: "other", MinVersion: tls.VersionTLS12})), "tls"
			}
			target, creds := newSettings(grpcc.NewClient(opts...).Options()).target(test.address)
			info := creds.Info()
			if target != test.target || info.SecurityProtocol != want || withTLS != (info.ServerName == "other") { //nolint:staticcheck // as grpc-go reads it
				t.Errorf("%q with grpcc.AuthTLS %v: %q, %q, name %q, want %q, %q", test.address, withTLS, target, info.SecurityProtocol, info.ServerName, test.target, want) //nolint:staticcheck // as grpc-go reads it
			}
		}
	}
}

func TestClientFixesWindowsUnlessDialOptionsDo(t *testing.T) {
	for name, test := range map[string]struct {
		options []client.Option
		window  uint32
	}{
		"no window of the user": {nil, gomicro.FlowControlWindow},
		"a window of the user":  {[]client.Option{dialOptions(grpc.WithInitialWindowSize(2 << 20))}, 2 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c, _ := newTestClient(t, []string{l.Addr().String()}, test.options...)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { defer close(ended); _ = callGreeter(ctx, c) }()
			defer func() { cancel(); <-ended }()
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
				t.Fatal(err)
			}
			if window, _ := kubetest.ReadSettings(t, conn); window != test.window {
				t.Errorf("the client permits %d bytes, want %d", window, test.window)
			}
		})
	}
}
