package pod

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/server"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

func TestWebServiceBoundsRequests(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	l := s.web(s.inside("a"), 0)
	for _, c := range []struct {
		name, head string
		body       int
		want       int // 0: cut off without an answer
	}{
		{"a header of 32 KiB", "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 32<<10) + "\r\n\r\n", 0, http.StatusRequestHeaderFieldsTooLarge},
		{"a body of 1 MiB", "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1048576\r\n\r\n", 1 << 20, http.StatusOK},
		{"a body of more", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n", 0, http.StatusRequestEntityTooLarge},
		{"a body that does not say its size", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n200000\r\n", 1<<20 + 1, http.StatusRequestEntityTooLarge},
		{"a header that does not end", "GET / HTTP/1.1\r\nHost: x\r\n", 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", l.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			begin := time.Now()
			if err := conn.SetDeadline(begin.Add(15 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := fmt.Fprint(conn, c.head, strings.Repeat("x", c.body)); err != nil {
				t.Fatal(err)
			}
			rsp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if c.want == 0 {
				if err != io.ErrUnexpectedEOF || time.Since(begin) < 4*time.Second {
					t.Errorf("after %s: %v, want the end of the connection after 5 s", time.Since(begin), err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer rsp.Body.Close()
			if _, err := io.Copy(io.Discard, rsp.Body); err != nil || rsp.StatusCode != c.want {
				t.Errorf("%s, %v, want %d", rsp.Status, err, c.want)
			}
			if c.want != http.StatusOK && !rsp.Close {
				t.Error("the connection is to be used again")
			}
		})
	}
	if got, err := page(fresh(t), l.address, "/"); err != nil || got != "200 first half, second half" {
		t.Errorf("afterwards: %q, %v", got, err)
	}
}

// Streams are handlers that answer with streams.
type Streams struct{}

func (*Streams) Panic(context.Context, server.Stream) error { panic("what only the log may say") }

func TestPanicsAreNotForCallers(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	s.pod("b")
	g := s.greeter(s.inside("a"), 0, func(o *micro.Options) {
		o.BeforeStart = append(o.BeforeStart, func() error { return o.Server.Handle(o.Server.NewHandler(new(Streams))) })
	})
	c := g.dial()
	_, unary := hello(within(t, 5*time.Second), c, "panic")
	stream, err := c.NewStream(within(t, 5*time.Second), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/Streams/Panic")
	if err == nil {
		err = stream.RecvMsg(new(emptypb.Empty))
	}
	for kind, err := range map[string]error{"call": unary, "stream": err} {
		if said := fmt.Sprint(status.Convert(err)); status.Code(err) != codes.Internal || !strings.Contains(said, "internal error") || strings.Contains(said, "log") {
			t.Errorf("%s: the caller is told %s", kind, said)
		}
	}
	if got, err := hello(within(t, 5*time.Second), c, "you"); got != "Hello you!" {
		t.Errorf("afterwards: %q, %v", got, err)
	}

	w := s.web(s.inside("b"), 0)
	if got, err := page(fresh(t), w.address, "/panic"); err == nil {
		t.Errorf("the page's caller is told %q, want the end of the connection", got)
	}
	if got, err := page(fresh(t), w.address, "/"); err != nil || got != "200 first half, second half" {
		t.Errorf("afterwards: %q, %v", got, err)
	}
}

func TestLargeMessageFailsAlone(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	c := s.greeter(s.inside("a"), 0).dial()
	if _, err := hello(within(t, 5*time.Second), c, strings.Repeat("x", 4<<20)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("more than 4 MiB: %v", err)
	}
	if got, err := hello(within(t, 5*time.Second), c, "you"); got != "Hello you!" {
		t.Errorf("afterwards: %q, %v", got, err)
	}
}
