package rpc

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
)

// startStreams starts a go-micro server with the handler TestStreams.
func startStreams(t testing.TB) (address string) {
	t.Helper()
	s := grpcs.NewServer(server.Name("greeter"), server.Address("127.0.0.1:0"), server.Registry(memory.NewRegistry()))
	if err := s.Handle(s.NewHandler(new(TestStreams))); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	return s.Options().Address
}

func TestClientStreamCountsAsInFlightUntilItEnds(t *testing.T) {
	c, _ := newTestClient(t, []string{startStreams(t)})
	for name, end := range map[string]func(client.Stream, context.CancelFunc){
		"Recv returns EOF": func(s client.Stream, _ context.CancelFunc) {
			_ = s.Send(&proto.HelloRequest{Name: "end"})
			if err := s.Recv(new(proto.HelloResponse)); err != io.EOF || s.Error() != nil {
				t.Error(err, s.Error())
			}
		},
		"Recv returns an error": func(s client.Stream, _ context.CancelFunc) {
			_ = s.Send(&proto.HelloRequest{Name: "fail"})
			if err := s.Recv(new(proto.HelloResponse)); status.Code(err) != codes.NotFound || s.Error() != err {
				t.Error(err, s.Error())
			}
		},
		"Close": func(s client.Stream, _ context.CancelFunc) {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err := s.Recv(new(proto.HelloResponse)); status.Code(err) != codes.Canceled {
				t.Error("Recv after Close returns", err)
			}
		},
		"the end of the context":    func(_ client.Stream, cancel context.CancelFunc) { cancel() },
		"Close and the context":     func(s client.Stream, cancel context.CancelFunc) { cancel(); _ = s.Close() },
		"a message that is invalid": func(s client.Stream, _ context.CancelFunc) { _ = s.Send("not a message"); _ = s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var streams []client.Stream
			for range 3 {
				s, text := openEcho(ctx, c, []string{"a"})
				if text != " a" {
					t.Fatal(text)
				}
				streams = append(streams, s)
			}
			if n := inFlightCalls(c); n != 3 {
				t.Errorf("%d in flight, want 3", n)
			}
			for _, s := range streams {
				end(s, cancel)
			}
			eventually(t, "none is in flight", func() bool { return inFlightCalls(c) == 0 })
			if i := instancesOf(c)[0]; i.Failures != 0 || i.EjectedFor != 0 {
				t.Errorf("%+v", i)
			}
		})
	}
}

func TestClientStreamAndFailuresOfInstances(t *testing.T) {
	for name, try := range map[string]struct {
		address func(t *testing.T) string
		opts    []client.Option
		want    string // the error of opening
		within  time.Duration
	}{
		"refused": {refusingAddress, nil, "connection refused", 4 * time.Second},
		"frozen":  {startFrozen, []client.Option{client.DialTimeout(100 * time.Millisecond)}, "Error creating stream: ", 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			dead, works := try.address(t), startStreams(t)
			c, inf := newTestClient(t, []string{dead, works}, append(try.opts, client.Retries(0), client.Backoff(noBackoff))...)
			failed := 0
			for range 20 {
				begin := time.Now()
				s, text := openEcho(t.Context(), c, []string{"a"})
				if s == nil {
					failed++
					if took := time.Since(begin); !strings.Contains(text, try.want) || took > try.within {
						t.Errorf("after %s: %s", took, text)
					}
					continue
				}
				defer s.Close()
			}
			if failed > 1 {
				t.Errorf("%d of 20 streams failed to open, want at most 1", failed)
			}
			for _, i := range instancesOf(c) {
				if i.Address == dead && i.InFlight != 0 || i.Address == works && i.InFlight != 20-failed {
					t.Errorf("%+v", i)
				}
			}
			if got := isOut(instanceAt(t, inf, dead)); got != (failed > 0) {
				t.Errorf("%d streams failed, and the dead instance is out of rotation: %v", failed, got)
			}
			for range 20 {
				s, text := openEcho(t.Context(), c, []string{"a"}, client.WithRetries(1))
				if s == nil {
					t.Fatalf("with one retry a stream does not open: %s", text)
				}
				defer s.Close()
			}
		})
	}
}

// The connection breaks while a stream is open.
func TestClientStreamEjectsInstanceWhoseConnectionBreaks(t *testing.T) {
	checkNoLeak(t)
	a := startStreams(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	relay := kubetest.StartRelay(t, l, func() (net.Conn, error) { return net.Dial("tcp", a) })
	c, _ := newTestClient(t, []string{l.Addr().String(), "127.0.0.1:1"}, client.Backoff(noBackoff))
	s, text := openEcho(t.Context(), c, []string{"a"})
	if s == nil {
		t.Fatal(text)
	}
	relay.Cut()
	if err := s.Recv(new(proto.HelloResponse)); status.Code(err) != codes.Unavailable {
		t.Errorf("%v", err)
	}
	for _, i := range instancesOf(c) {
		if i.InFlight != 0 || i.Address == l.Addr().String() && i.Failures != 1 {
			t.Errorf("%+v", i)
		}
	}
}

func TestClientStreamSendsAndReceivesConcurrently(t *testing.T) {
	checkNoLeak(t)
	c, _ := newTestClient(t, []string{startStreams(t)})
	var streams sync.WaitGroup
	for i := range 20 {
		streams.Go(func() {
			s, text := openEcho(t.Context(), c, nil)
			if s == nil {
				t.Error(text)
				return
			}
			var sender sync.WaitGroup
			sender.Go(func() {
				for n := range 200 {
					if err := s.Send(&proto.HelloRequest{Name: fmt.Sprint(i, n)}); err != nil {
						t.Error(err)
					}
				}
				_ = s.Send(&proto.HelloRequest{Name: "end"})
			})
			for n := range 200 {
				var rsp proto.HelloResponse
				if err := s.Recv(&rsp); err != nil || rsp.Greeting != fmt.Sprint(i, n) {
					t.Errorf("%q, %v", rsp.Greeting, err)
				}
			}
			if err := s.Recv(new(proto.HelloResponse)); err != io.EOF {
				t.Error(err)
			}
			sender.Wait()
		})
	}
	streams.Wait()
	if n := inFlightCalls(c); n != 0 {
		t.Errorf("%d in flight", n)
	}
}

// A stream is open, or its opening took too long. The interceptor opens the stream and then lets the time pass.
func TestClientStreamOpenedTooLate(t *testing.T) {
	address := startStreams(t)
	c, _ := newTestClient(t, []string{address}, dialOptions(grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := open(ctx, desc, cc, method, opts...)
			if err == nil {
				<-ctx.Done() // the limit of the opening
			}
			return s, err
		})))
	_, err := c.Stream(t.Context(), c.NewRequest("greeter", "TestStreams.Echo", nil), client.WithDialTimeout(200*time.Millisecond))
	if err == nil || !strings.Contains(err.Error(), errOpeningTooLong.Error()) {
		t.Errorf("opening a stream too late returns %v", err)
	}
	eventually(t, "none is in flight", func() bool { return inFlightCalls(c) == 0 })
}

// grpc-go may end a stream before the attempt that has opened it reports its choice, or after.
func TestStreamEndIsReportedOnce(t *testing.T) {
	for _, first := range []string{"finish", "report"} {
		conns := newConnections(t)
		conn := conns.mustAcquire(t, "127.0.0.1:1")
		c, _ := newTestClient(t, []string{"127.0.0.1:1"})
		choose, err := c.settings.Load().selector.Chooser(t.Context(), "greeter", nil)
		if err != nil {
			t.Fatal(err)
		}
		choice, err := choose(balancer.Attempt{})
		if err != nil {
			t.Fatal(err)
		}
		end := &streamEnd{connection: conn, ended: func(error) {}}
		if first == "finish" {
			end.finish(outcome.LostConnection, io.ErrUnexpectedEOF)
		}
		if n := inFlightCalls(c); n != 1 {
			t.Errorf("%s first: %d in flight, want 1", first, n)
		}
		end.report(choice.AsStream())
		end.finish(outcome.LostConnection, io.ErrUnexpectedEOF)
		end.finish(outcome.Answered, nil)
		if i := instancesOf(c)[0]; i.InFlight != 0 || i.Failures != 1 {
			t.Errorf("%s first: %+v, want one failure", first, i)
		}
		if !conn.calls.TryLock() {
			t.Errorf("%s first: the connection is not released", first)
		}
		conn.calls.Unlock()
	}
}

func TestStreamWithoutTimeLimitOfItsOpening(t *testing.T) {
	c, _ := newTestClient(t, []string{startStreams(t)})
	s, text := openEcho(t.Context(), c, []string{"a"}, client.WithDialTimeout(0))
	if s == nil {
		t.Fatal(text)
	}
	_ = s.Close()
}

func TestStreamWithoutRequest(t *testing.T) {
	c, _ := newTestClient(t, nil)
	if _, err := c.Stream(t.Context(), nil); codeOf(err) != 500 || !strings.Contains(err.Error(), "req is nil") {
		t.Errorf("%v", err)
	}
}

// A server has refused an open stream with GOAWAY, grpc-go sends it again, and the next connection
// breaks in its handshake. The instance comes back.
func TestClientStreamSentAgainWhoseHandshakeFails(t *testing.T) {
	t.Parallel()
	works := startStreams(t)
	refusing, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer refusing.Close()
	go func() { // ends with the test
		conn, err := refusing.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.ReadFull(conn, make([]byte, len(http2.ClientPreface)))
		framer := http2.NewFramer(conn, conn)
		_ = framer.WriteSettings()
		for {
			switch frame, err := framer.ReadFrame(); {
			case err != nil:
				return
			case frame.Header().Type == http2.FrameSettings && !frame.Header().Flags.Has(http2.FlagSettingsAck):
				_ = framer.WriteSettingsAck()
			case frame.Header().Type == http2.FrameHeaders:
				_ = framer.WriteGoAway(0, http2.ErrCodeNo, nil) // and reads on: closing would be a write error of the client
			}
		}
	}()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var connections atomic.Int64
	var isBack atomic.Bool
	kubetest.StartRelay(t, l, func() (net.Conn, error) {
		switch {
		case isBack.Load():
			return net.Dial("tcp", works)
		case connections.Add(1) == 1:
			return net.Dial("tcp", refusing.Addr().String())
		}
		client, server := net.Pipe() // closes after the client's settings, so that the client reads and does not write then
		go func() {
			_, _ = io.ReadFull(server, make([]byte, len(http2.ClientPreface)))
			_, _ = http2.NewFramer(server, server).ReadFrame()
			server.Close()
		}()
		return client, nil
	})
	c, inf := newTestClient(t, []string{l.Addr().String()}, client.Retries(0))
	s, text := openEcho(t.Context(), c, nil)
	if s == nil {
		t.Fatal(text)
	}
	if err := s.Recv(new(proto.HelloResponse)); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "server preface") {
		t.Fatalf("the stream ends with %v", err)
	}
	isBack.Store(true)
	bad := instanceAt(t, inf, l.Addr().String())
	inf.Replace([]*corev1.Pod{greeterPod(t, 0, l.Addr().String()), greeterPod(t, 1, startStreams(t))})
	if instanceAt(t, inf, l.Addr().String()) != bad {
		t.Fatal("another instance")
	}
	eventually(t, "the instance is back", func() bool {
		if s, _ := openEcho(t.Context(), c, []string{"a"}); s != nil {
			_ = s.Close()
		}
		return !isOut(bad)
	})
}
