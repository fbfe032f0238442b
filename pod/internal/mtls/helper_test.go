package mtls

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

const (
	ofServer = "spiffe://cluster.local/ns/shop/sa/greeter"
	ofClient = "spiffe://cluster.local/ns/shop/sa/page"
	hello    = "/greeter.Greeter/Hello"
	endless  = "/greeter.Greeter/Endless"
)

// logged are the lines of a log.
type logged struct {
	mu    sync.Mutex
	lines []string
}

func (l *logged) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

// with returns the lines that contain all texts.
func (l *logged) with(texts ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		matches := true
		for _, text := range texts {
			matches = matches && strings.Contains(line, text)
		}
		if matches {
			found = append(found, line)
		}
	}
	return found
}

// clock is a clock that a test sets.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

// process is a process with credentials.
type process struct {
	*Source
	*kubetest.Volume
	log   *logged
	clock *clock
}

// newProcess opens and starts the credentials of a volume.
func newProcess(t testing.TB, v *kubetest.Volume, change ...func(*Config)) *process {
	t.Helper()
	p := &process{Volume: v, log: &logged{}, clock: &clock{}}
	c := Config{Dir: v.Dir, Logf: p.log.printf, Now: p.clock.now}
	for _, f := range change {
		f(&c)
	}
	var err error
	if p.Source, err = Open(c); err != nil {
		t.Fatal(err)
	}
	p.Start()
	t.Cleanup(p.Stop)
	return p
}

func permissive(c *Config) { c.Permissive = true }

// newPod returns the process of an account whose certificate an authority has signed.
func newPod(t testing.TB, a *kubetest.Authority, id string, change ...func(*Config)) *process {
	t.Helper()
	return newProcess(t, kubetest.NewVolume(t, a.Issue(t, kubetest.PodCertificate{ID: id}), a), change...)
}

// serve serves a greeter until the test ends, and returns its address.
func serve(t testing.TB, opts ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(append(opts, grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		var name wrapperspb.StringValue
		if err := stream.RecvMsg(&name); err != nil {
			return err
		}
		if err := stream.SendMsg(wrapperspb.String("Hello " + name.Value + "!")); err != nil || method != endless {
			return err
		}
		<-stream.Context().Done()
		return stream.Context().Err()
	}))...)
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		s.Stop()
		serving.Wait()
	})
	return l.Addr().String()
}

// dial returns a connection with credentials, nil for plaintext.
func dial(t testing.TB, address string, c credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	if c == nil {
		c = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// greet calls the greeter.
func greet(t testing.TB, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var greeting wrapperspb.StringValue
	if err := conn.Invoke(ctx, hello, wrapperspb.String("Ada"), &greeting); err != nil {
		return err
	}
	if greeting.Value != "Hello Ada!" {
		return fmt.Errorf("the greeting is %q", greeting.Value)
	}
	return nil
}

// checkRefused checks that a call fails with an error that contains the texts, closes the connection, and returns after what time.
func checkRefused(t testing.TB, conn *grpc.ClientConn, texts ...string) time.Duration {
	t.Helper()
	defer conn.Close()
	begin := time.Now()
	err := greet(t, conn)
	took := time.Since(begin)
	if err == nil {
		t.Fatal("the call was answered")
	}
	for _, text := range texts {
		if !strings.Contains(strings.ReplaceAll(err.Error(), `\"`, `"`), text) {
			t.Fatalf("the error is %q, want %q", err, text)
		}
	}
	return took
}
