package pod

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
)

// readSettings reads the first frame that a peer sends.
func readSettings(t *testing.T, conn net.Conn) (window, streams uint32) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	frame, err := http2.NewFramer(conn, conn).ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	settings, ok := frame.(*http2.SettingsFrame)
	if !ok {
		t.Fatalf("the first frame is %v", frame)
	}
	window, _ = settings.Value(http2.SettingInitialWindowSize)
	streams, _ = settings.Value(http2.SettingMaxConcurrentStreams)
	return window, streams
}

func TestLifecycleFixesWindowsAndKeepsServerOptions(t *testing.T) {
	for name, test := range map[string]struct {
		options []grpc.ServerOption
		window  uint32
	}{
		"no window of the user": {nil, gomicro.FlowControlWindow},
		"a window of the user":  {[]grpc.ServerOption{grpc.InitialWindowSize(2 << 20)}, 2 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			s := grpcs.NewServer(server.Name("greeter"), server.Address("127.0.0.1:0"), server.Registry(memory.NewRegistry()),
				grpcs.Options(append(test.options, grpc.MaxConcurrentStreams(7))...))
			o := micro.Options{Server: s}
			Lifecycle(newEmptyRegistry(t))(&o)
			for _, prepare := range o.BeforeStart {
				if err := prepare(); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Stop() }()
			conn, err := net.Dial("tcp", s.Options().Address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
				t.Fatal(err)
			}
			if window, streams := readSettings(t, conn); window != test.window || streams != 7 {
				t.Errorf("the server permits %d bytes and %d streams, want %d and 7", window, streams, test.window)
			}
		})
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
			if window, _ := readSettings(t, conn); window != test.window {
				t.Errorf("the client permits %d bytes, want %d", window, test.window)
			}
		})
	}
}

// count returns the number of connections that are not closed.
func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}
