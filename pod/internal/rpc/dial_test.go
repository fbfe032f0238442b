package rpc

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/subchannel"
	"github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
)

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

// Instances have subchannels of one channel, unless something about their connections is their own.
func TestInstancesShareAChannel(t *testing.T) {
	checkNoLeak(t)
	address, _ := startServer(t, answer)
	for name, test := range map[string]struct {
		options  []client.Option
		path     Path
		target   func(*discovery.Instance) any
		isShared bool
	}{
		"an instance":              {isShared: true},
		"grpcc.AuthTLS":            {options: []client.Option{grpcc.AuthTLS(&tls.Config{MinVersion: tls.VersionTLS12})}, isShared: true},
		"a fixed address":          {target: func(i *discovery.Instance) any { return i.Address }},
		"grpcc.DialOptions":        {options: []client.Option{dialOptions(grpc.WithUserAgent("test"))}},
		"through the API server":   {path: brokenPath{}},
		"a host name in its place": {target: func(*discovery.Instance) any { i, _ := newInstance("greeter.example:9100"); return i }},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConnections(t, test.options...)
			c.path = func() Path { return test.path }
			i, leave := newInstance(address)
			var target any = i
			if test.target != nil {
				target = test.target(i)
			}
			conn := c.mustAcquire(t, target)
			defer conn.release()
			if _, isShared := conn.channel.conn.(*subchannel.Conn); isShared != test.isShared || isShared != (len(c.shared) == 1) {
				t.Errorf("the connection is a %T, and there are %d shared channels", conn.channel.conn, len(c.shared))
			}
			leave()
		})
	}
	t.Run("after all have left", func(t *testing.T) {
		c := newConnections(t)
		for range 3 {
			i, leave := newInstance(address)
			conn := c.mustAcquire(t, i)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if _, err := conn.checkHealth(ctx, conn.channel); err != nil {
				t.Error(err)
			}
			cancel()
			conn.release()
			leave()
			kubetest.Eventually(t, 10*time.Second, "the connection is closed, and its channel forgotten", func() error {
				c.mu.Lock()
				defer c.mu.Unlock()
				if !isClosed(conn) || len(c.shared) > 0 {
					return fmt.Errorf("closed: %v; there are %d shared channels", isClosed(conn), len(c.shared))
				}
				return nil
			})
		}
	})
}

// brokenPath leads nowhere.
type brokenPath struct{}

func (brokenPath) DialOption(string) grpc.DialOption {
	return grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return nil, errors.New("no way") })
}
func (brokenPath) Judge(o outcome.Outcome, err error) (outcome.Outcome, error) { return o, err }
func (brokenPath) Trouble() error                                              { return nil }

// With HTTPS_PROXY in the environment, as for calls to the internet, calls to IP addresses, such as those
// of pods, are direct. Go reads the environment once, so that the calls are made in a process of their own.
func TestNoProxyForIPAddresses(t *testing.T) {
	const pod, name = "192.0.2.1:9100", "greeter.example:9100" // RFC 5737: nobody answers
	if os.Getenv("BEHIND_PROXY") == "" {
		proxied := proxiedBy(t, "TestNoProxyForIPAddresses")
		if len(proxied) == 0 || slices.ContainsFunc(proxied, func(target string) bool { return target != name }) {
			t.Errorf("the proxy was asked for %v, want only %s", proxied, name)
		}
		return
	}
	instance, _ := newTestClient(t, []string{pod}, client.RequestTimeout(200*time.Millisecond))
	overTLS, _ := newTestClient(t, []string{pod}, client.RequestTimeout(200*time.Millisecond), grpcc.AuthTLS(&tls.Config{MinVersion: tls.VersionTLS12}))
	dialed := make(chan string, 10)
	own, _ := newTestClient(t, []string{pod}, client.RequestTimeout(200*time.Millisecond), dialOptions(grpc.WithContextDialer(func(_ context.Context, address string) (net.Conn, error) {
		dialed <- address
		return nil, errors.New("refused")
	})))
	hello(t.Context(), instance)
	hello(t.Context(), overTLS)
	for _, address := range []string{pod, "[2001:db8::1]:9100", "192.0.2.1", name} {
		hello(t.Context(), instance, client.WithAddress(address))
	}
	hello(t.Context(), own)
	if address := <-dialed; address != pod {
		t.Errorf("the user's dialer got %q", address)
	}
}

// The client dials the addresses of pods, which certificates seldom name. tls.Config.ServerName is the name that the client expects
// instead, of every service that it calls.
func TestServerNameOfCertificate(t *testing.T) {
	const name = "greeter.shop.svc"
	serverTLS, clientTLS := testCertificate(t, name)
	address, _ := startServer(t, answer, grpcs.AuthTLS(serverTLS))
	c, _ := newTestClient(t, []string{address}, client.Retries(0), grpcc.AuthTLS(clientTLS))
	if got := hello(t.Context(), c); !strings.Contains(got, "x509: cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs") {
		t.Errorf("without ServerName: %s", got)
	}
	named := clientTLS.Clone()
	named.ServerName = name
	c, _ = newTestClient(t, []string{address}, client.Retries(0), grpcc.AuthTLS(named))
	if got := hello(t.Context(), c); got != "Hello" {
		t.Errorf("with ServerName: %s", got)
	}
}

// proxiedBy runs a test in a process whose HTTPS_PROXY is a proxy that refuses, and returns the addresses
// that the proxy was asked for.
func proxiedBy(t *testing.T, test string) (targets []string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var proxy sync.WaitGroup
	proxy.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				targets = append(targets, r.Host)
			}
			_ = conn.Close()
		}
	})
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+test+"$")
	cmd.Env = append(os.Environ(), "HTTPS_PROXY=http://"+l.Addr().String(), "BEHIND_PROXY=1", "NO_PROXY=", "https_proxy=", "no_proxy=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	_ = l.Close()
	proxy.Wait()
	return targets
}

// A call to an empty address, such as that of a setting that is missing, must not go to whatever instance
// the registry finds.
func TestEmptyAddressIsRefused(t *testing.T) {
	address, _ := startGRPC(t, greet)
	c, _ := newTestClient(t, []string{address})
	const want = "calling service greeter: the address given to client.WithAddress is empty"
	if got := hello(t.Context(), c, client.WithAddress("")); !strings.Contains(got, want) {
		t.Errorf("a call: %s", got)
	}
	if got := openHello(t.Context(), c, client.WithAddress("")); !strings.Contains(got, want) {
		t.Errorf("a stream: %s", got)
	}
}

// Each stream may have as many unread bytes as the window permits, whatever the others of its connection have.
func TestUnreadBytesOfEachStream(t *testing.T) {
	const streams, size = 4, 64 << 10
	var sent [streams]atomic.Int64
	var opened atomic.Int64
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		n := &sent[opened.Add(1)-1]
		message := &proto.HelloResponse{Greeting: strings.Repeat("x", size)}
		for stream.SendMsg(message) == nil {
			n.Add(size)
		}
		return nil
	}))
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	defer serving.Wait()
	defer s.Stop()
	c, _ := newTestClient(t, []string{l.Addr().String()})
	for range streams {
		stream, err := c.Stream(t.Context(), c.NewRequest("greeter", "Orders.Watch", nil, client.StreamingRequest()))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = stream.Close() }()
		if err := stream.Send(&proto.HelloRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	kubetest.Eventually(t, 10*time.Second, "each stream has a full window", func() error {
		for i := range sent {
			if n := sent[i].Load(); n < gomicro.FlowControlWindow-2*size {
				return fmt.Errorf("stream %d: %d bytes were sent", i, n)
			}
		}
		return nil
	})
	for i := range sent {
		if n := sent[i].Load(); n > gomicro.FlowControlWindow+4*size { // the server holds some messages
			t.Errorf("stream %d: %d bytes were sent", i, n)
		}
	}
}
