package subchannel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// server answers calls with its address and the :authority of the call.
type server struct {
	grpc_health_v1.UnimplementedHealthServer
	address string
	grpc    *grpc.Server
}

func (s *server) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	_ = grpc.SetHeader(ctx, metadata.Pairs("answered-by", s.address, "authority", strings.Join(md[":authority"], ",")))
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

// Watch sends nothing until the client leaves.
func (s *server) Watch(_ *grpc_health_v1.HealthCheckRequest, stream grpc_health_v1.Health_WatchServer) error {
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// serve starts a server at an address until the test ends.
func serve(t testing.TB, address string, options ...grpc.ServerOption) *server {
	t.Helper()
	var l net.Listener
	kubetest.Eventually(t, 10*time.Second, "the address is free", func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	s := &server{address: l.Addr().String(), grpc: grpc.NewServer(options...)}
	grpc_health_v1.RegisterHealthServer(s.grpc, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.grpc.Serve(l)
	}()
	t.Cleanup(func() {
		s.grpc.Stop()
		<-done
	})
	return s
}

const anyAddress = "127.0.0.1:0"

// retryDelay is between attempts to connect.
const retryDelay = 200 * time.Millisecond

func connectOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: retryDelay, Multiplier: 1, MaxDelay: retryDelay}, MinConnectTimeout: time.Second}), grpc.WithIdleTimeout(0)}
}

func newChannel(t testing.TB) *Channel {
	t.Helper()
	c, err := New("greeter", append(connectOptions(), grpc.WithTransportCredentials(Credentials(insecure.NewCredentials().Info())))...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func dial(t testing.TB, c *Channel, address string, creds credentials.TransportCredentials) *Conn {
	t.Helper()
	conn, err := c.Dial(address, creds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// connection is a Conn or a grpc.ClientConn.
type connection interface {
	grpc.ClientConnInterface
	GetState() connectivity.State
	WaitForStateChange(context.Context, connectivity.State) bool
	Connect()
	Close() error
}

// check makes a call and returns what the server has said about it.
func check(t testing.TB, c connection, limit time.Duration, options ...grpc.CallOption) (answeredBy, authority string, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var header metadata.MD
	_, err = grpc_health_v1.NewHealthClient(c).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, append(options, grpc.Header(&header))...)
	return strings.Join(header["answered-by"], ","), strings.Join(header["authority"], ","), err
}

func await(t testing.TB, c connection, want connectivity.State) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for state := c.GetState(); state != want; state = c.GetState() {
		if !c.WaitForStateChange(ctx, state) {
			t.Fatalf("the state is still %s, want %s", state, want)
		}
	}
}

func TestCallsTakeTheChosenSubchannel(t *testing.T) {
	kubetest.CheckNoLeak(t)
	channel := newChannel(t)
	var addresses []string
	var conns []*Conn
	for i := range 6 {
		address := ""
		if i == 5 { // a second subchannel to the same server
			address = addresses[0]
		} else {
			address = serve(t, anyAddress).address
		}
		addresses, conns = append(addresses, address), append(conns, dial(t, channel, address, insecure.NewCredentials()))
	}
	var calls sync.WaitGroup
	for range 20 {
		for i, c := range conns {
			calls.Go(func() {
				by, authority, err := check(t, c, 10*time.Second)
				if err != nil || by != addresses[i] || authority != addresses[i] {
					t.Errorf("a call to %s: answered by %q, authority %q, error %v", addresses[i], by, authority, err)
				}
			})
		}
	}
	calls.Wait()
	if a, b := localAddress(t, conns[0]), localAddress(t, conns[5]); a == b {
		t.Errorf("two subchannels share the connection from %s", a)
	}
}

// localAddress returns the address of this end of a connection.
func localAddress(t testing.TB, c connection) string {
	t.Helper()
	var p peer.Peer
	if _, _, err := check(t, c, 10*time.Second, grpc.Peer(&p)); err != nil {
		t.Fatal(err)
	}
	return p.LocalAddr.String()
}

// A Conn goes through the same states as a grpc.ClientConn of pick_first, and its calls fail with the same errors.
func TestConnIsLikePickFirst(t *testing.T) {
	for name, dial := range map[string]func(t *testing.T, address string) connection{
		"grpc.ClientConn": func(t *testing.T, address string) connection {
			c, err := grpc.NewClient("passthrough:///"+address, append(connectOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			return c
		},
		"Conn": func(t *testing.T, address string) connection {
			return dial(t, newChannel(t), address, insecure.NewCredentials())
		},
	} {
		t.Run(name, func(t *testing.T) {
			kubetest.CheckNoLeak(t)
			s := serve(t, anyAddress)
			c := dial(t, s.address)
			if state := c.GetState(); state != connectivity.Idle {
				t.Errorf("before the first call the state is %s", state)
			}
			if by, authority, err := check(t, c, 10*time.Second); err != nil || by != s.address || authority != s.address {
				t.Fatalf("the first call: answered by %q, authority %q, error %v", by, authority, err)
			}
			s.grpc.Stop()
			await(t, c, connectivity.Idle) // it connects again with the next call
			time.Sleep(2 * retryDelay)
			if state := c.GetState(); state != connectivity.Idle {
				t.Errorf("without a call the state becomes %s", state)
			}

			_, _, err := check(t, c, 10*time.Second)
			if want := "connection refused"; status.Code(err) != codes.Unavailable || !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("a call to a server that has stopped: %v, want %s, %q", err, codes.Unavailable, want)
			}
			for end := time.Now().Add(5 * retryDelay); time.Now().Before(end); time.Sleep(retryDelay / 20) {
				if state := c.GetState(); state != connectivity.TransientFailure {
					t.Fatalf("while the server is away the state becomes %s", state)
				}
			}
			begin := time.Now()
			if _, _, err := check(t, c, 10*time.Second); status.Code(err) != codes.Unavailable || time.Since(begin) > 5*time.Second {
				t.Errorf("a later call: %v after %s", err, time.Since(begin))
			}
			waiting := make(chan error, 1)
			go func() {
				_, _, err := check(t, c, 20*time.Second, grpc.WaitForReady(true))
				waiting <- err
			}()
			time.Sleep(retryDelay)
			serve(t, s.address)
			if err := <-waiting; err != nil {
				t.Errorf("a call that waits until the server is back: %v", err)
			}
			await(t, c, connectivity.Ready) // without another call

			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if c.WaitForStateChange(ctx, connectivity.Ready) {
				t.Errorf("the state has changed to %s", c.GetState())
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if _, _, err := check(t, c, 10*time.Second); status.Code(err) != codes.Canceled || c.GetState() != connectivity.Shutdown {
				t.Errorf("a call on a closed connection: %v; the state is %s", err, c.GetState())
			}
		})
	}
}

// A service may have any name, also one that has no place in a URL, such as the target of a grpc.ClientConn.
func TestAnyServiceName(t *testing.T) {
	s := serve(t, anyAddress)
	for _, name := range []string{"100%", "a\nb", "a?b#c", ""} {
		channel, err := New(name, append(connectOptions(), grpc.WithTransportCredentials(Credentials(insecure.NewCredentials().Info())))...)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if _, _, err := check(t, dial(t, channel, s.address, insecure.NewCredentials()), 10*time.Second); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A server that accepts the connection and says nothing, as a process that is frozen.
func TestCallWaitsForSilentServer(t *testing.T) {
	kubetest.CheckNoLeak(t)
	l, err := net.Listen("tcp", anyAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	channel := newChannel(t)
	silent, other := dial(t, channel, l.Addr().String(), insecure.NewCredentials()), dial(t, channel, serve(t, anyAddress).address, insecure.NewCredentials())
	if _, _, err := check(t, silent, 200*time.Millisecond); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a call to a server that is silent: %v", err)
	}
	if _, _, err := check(t, other, 10*time.Second); err != nil {
		t.Errorf("a call to another server: %v", err)
	}
	silent.Connect() // it connects already
	waiting := make(chan error, 1)
	go func() {
		_, _, err := check(t, silent, 20*time.Second, grpc.WaitForReady(true))
		waiting <- err
	}()
	time.Sleep(50 * time.Millisecond)
	begin := time.Now()
	if err := silent.Close(); err != nil {
		t.Error(err)
	}
	if err := <-waiting; status.Code(err) != codes.Canceled || time.Since(begin) > 5*time.Second {
		t.Errorf("a call that waits when its connection is closed: %v after %s", err, time.Since(begin))
	}
	if _, _, err := check(t, other, 10*time.Second); err != nil {
		t.Errorf("a call to another server after that: %v", err)
	}
}

func TestChannelClosesWithItsLastConn(t *testing.T) {
	kubetest.CheckNoLeak(t)
	channel, s := newChannel(t), serve(t, anyAddress)
	first, last := dial(t, channel, s.address, insecure.NewCredentials()), dial(t, channel, s.address, insecure.NewCredentials())
	stream, err := grpc_health_v1.NewHealthClient(first).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // closing twice is no error
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := check(t, last, 10*time.Second); err != nil {
		t.Errorf("after another connection was closed: %v", err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := stream.Recv()
		ended <- err
	}()
	select {
	case err := <-ended:
		t.Errorf("the stream of a connection that was closed while others are open ends: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	open, err := grpc_health_v1.NewHealthClient(last).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err == nil {
		_, err = open.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := last.Close(); err != nil {
		t.Error(err)
	}
	if _, err := open.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("the stream of the last connection ends with %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the stream of the other connection goes on when the channel is closed")
	}
	if _, err := channel.Dial(s.address, insecure.NewCredentials()); !errors.Is(err, ErrClosed) {
		t.Errorf("Dial of a closed channel: %v", err)
	}
}

// Each subchannel expects the certificate of its own server, under the name in its own credentials.
func TestConnsHaveTheirOwnCredentials(t *testing.T) {
	kubetest.CheckNoLeak(t)
	var servers []*server
	var creds []credentials.TransportCredentials
	for i := range 2 {
		name := fmt.Sprint("greeter-", i)
		authority := kubetest.NewAuthority(t, name)
		bundle := authority.Issue(t, kubetest.PodCertificate{Change: func(c *x509.Certificate) { c.DNSNames = []string{name} }})
		certificate, err := tls.X509KeyPair(bundle, bundle)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(authority.Bundle)
		servers = append(servers, serve(t, anyAddress, grpc.Creds(credentials.NewServerTLSFromCert(&certificate))))
		creds = append(creds, credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS13}))
	}
	channel, err := New("greeter", append(connectOptions(), grpc.WithTransportCredentials(Credentials(creds[0].Info())))...)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range servers {
		by, authority, err := check(t, dial(t, channel, s.address, creds[i]), 10*time.Second)
		if want := fmt.Sprint("greeter-", i); err != nil || by != s.address || authority != want {
			t.Errorf("with its own credentials: answered by %q, want %q, authority %q, want %q, error %v", by, s.address, authority, want, err)
		}
		if _, _, err := check(t, dial(t, channel, s.address, creds[1-i]), 10*time.Second); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "x509") {
			t.Errorf("with the credentials of another server: %v", err)
		}
	}
}

// A channel with many subchannels takes less memory than a grpc.ClientConn for each. It measures both ends, of which the
// servers' is the same.
func TestSubchannelsTakeLessMemory(t *testing.T) {
	s := serve(t, anyAddress)
	const n = 200
	measure := func(dial func() connection) (bytes int) {
		var before, after runtime.MemStats
		read := func(m *runtime.MemStats) {
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(m)
		}
		read(&before)
		var conns []connection
		for range n {
			c := dial()
			if _, _, err := check(t, c, 10*time.Second); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		read(&after)
		for _, c := range conns {
			_ = c.Close()
		}
		return (int(after.HeapAlloc+after.StackInuse) - int(before.HeapAlloc+before.StackInuse)) / n
	}
	own := measure(func() connection {
		c, err := grpc.NewClient("passthrough:///"+s.address, append(connectOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
		if err != nil {
			t.Fatal(err)
		}
		return c
	})
	channel := newChannel(t)
	shared := measure(func() connection {
		c, err := channel.Dial(s.address, insecure.NewCredentials())
		if err != nil {
			t.Fatal(err)
		}
		return c
	})
	if t.Logf("both ends of a connection take %d bytes, with a grpc.ClientConn each %d", shared, own); shared > own-10_000 {
		t.Errorf("a subchannel saves %d bytes, want 10,000", own-shared)
	}
}

// Connections are made while the last one closes: they belong to an open channel, or Dial refuses.
func TestDialWhileLastConnCloses(t *testing.T) {
	kubetest.CheckNoLeak(t)
	for range 1000 {
		channel := newChannel(t)
		var users sync.WaitGroup
		for range 8 {
			users.Go(func() {
				for range 20 {
					conn, err := channel.Dial("127.0.0.1:1", insecure.NewCredentials())
					if errors.Is(err, ErrClosed) {
						return
					} else if err != nil {
						t.Error(err)
						return
					}
					runtime.Gosched() // the others make theirs
					channel.mu.Lock()
					if channel.closed {
						t.Error("the channel has closed before its last connection")
					}
					channel.mu.Unlock()
					if err := conn.Close(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		users.Wait()
	}
}
