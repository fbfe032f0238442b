package weblimit

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// startLimited starts a server with limits. GET /stream is handled until its client
// closes the connection; every other request is answered with the length of its body.
func startLimited(t *testing.T, max int) *httptest.Server {
	t.Helper()
	return startLimitedTo(t, Limits{Connections: max, ClientConnections: max})
}

func startLimitedTo(t *testing.T, limits Limits) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			fmt.Fprint(w, "ok")
			return
		}
		if !Default.LimitBody(w, r) {
			return
		}
		if r.URL.Path == "/stream" {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		}
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d bytes, %v", len(b), err)
	}))
	limits.LimitConnections(srv.Config)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv
}

func dialServer(t *testing.T, srv *httptest.Server, request string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	return conn
}

// staysOpen reports whether the server keeps a connection open for 50 ms. It discards
// what the server sends.
func staysOpen(conn net.Conn) bool { return staysOpenFor(conn, 50*time.Millisecond) }

// isClosed waits up to 10 s until the server closes a connection.
func isClosed(conn net.Conn) bool { return !staysOpenFor(conn, 10*time.Second) }

func staysOpenFor(conn net.Conn, d time.Duration) bool {
	_ = conn.SetReadDeadline(time.Now().Add(d))
	_, err := io.Copy(io.Discard, conn)
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

func TestConnectionThatWaitsLongestIsClosed(t *testing.T) {
	const max = 10
	for name, request := range map[string]string{ // the part of a request that the client sends
		"for the body of a request":   "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nn",
		"for the header of a request": "GET / HTTP/1.1\r\n",
		"for a request":               "",
	} {
		t.Run(name, func(t *testing.T) {
			srv := startLimited(t, max)
			stream := dialServer(t, srv, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
			if line, err := bufio.NewReader(stream).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
				t.Fatalf("the stream begins with %q, %v", line, err)
			}
			var all []net.Conn
			for range 3 * max {
				all = append(all, dialServer(t, srv, request))
				// This complete request needs one more connection besides the held ones.
				rsp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}).Get(srv.URL)
				if err != nil {
					t.Fatalf("a complete request while %d connections are held: %v", len(all), err)
				}
				rsp.Body.Close()
			}
			for i, conn := range all[:2*max] {
				if !isClosed(conn) {
					t.Fatalf("held connection %d of %d is open", i, len(all))
				}
			}
			open := 0
			for _, conn := range all[2*max:] {
				if staysOpen(conn) {
					open++
				}
			}
			if open == 0 {
				t.Error("all held connections were closed")
			}
			if !staysOpen(stream) {
				t.Error("the connection whose request is handled was closed")
			}
		})
	}
}

// A service all of whose connections have a request in progress must answer probes, which
// are answered before LimitBody, and must refuse other requests.
func TestProbesAreAnsweredIfAllConnectionsAreInUse(t *testing.T) {
	const max = 3
	srv := startLimited(t, max)
	var streams []net.Conn
	for range max {
		s := dialServer(t, srv, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := bufio.NewReader(s).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	ask := func(request string) string {
		t.Helper()
		conn := dialServer(t, srv, "")
		return answer(t, conn, bufio.NewReader(conn), request)
	}
	var idle []net.Conn
	for range 3 * reserve {
		idle = append(idle, dialServer(t, srv, ""))
		if got := ask("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); got != "200 ok" {
			t.Fatalf("the probe gets %q with %d idle connections", got, len(idle))
		}
	}
	for i, conn := range idle[:reserve] {
		if !isClosed(conn) {
			t.Errorf("idle connection %d is open", i)
		}
	}
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nyou"} {
		conn := dialServer(t, srv, "")
		r := bufio.NewReader(conn)
		if got := answer(t, conn, r, request); got != "503 too many requests are in progress\n" {
			t.Errorf("a request gets %q", got)
		}
		_, err := r.ReadByte()
		if e, ok := err.(net.Error); err == nil || ok && e.Timeout() {
			t.Errorf("the connection of a refused request is open: %v", err)
		}
	}
	for i, s := range streams {
		if !staysOpen(s) {
			t.Errorf("stream %d was closed", i)
		}
	}
	streams[0].Close()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got := ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if got == "200 0 bytes, <nil>" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after a stream has ended: %s", got)
		}
	}
}

// The limit of one client address refuses no request of another one.
func TestRequestsOfOneClientAreRefused(t *testing.T) {
	srv := startLimitedTo(t, Limits{Connections: 20, ClientConnections: 1})
	stream := dialServer(t, srv, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := bufio.NewReader(stream).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	for local, want := range map[string]string{"127.0.0.1": "503 too many requests are in progress\n", "127.0.0.2": "200 0 bytes, <nil>"} {
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}).Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got := answer(t, conn, bufio.NewReader(conn), "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); got != want {
			t.Errorf("a request from %s gets %q, want %q", local, got, want)
		}
	}
}

// A read deadline and a place in the waiting list end with their request: they affect
// neither the next request on the connection nor a request after a body.
func TestLimitsEndWithTheirRequest(t *testing.T) {
	srv := startLimited(t, 2)
	conn := dialServer(t, srv, "")
	r := bufio.NewReader(conn)
	for range 3 {
		if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nyou"); err != nil {
			t.Fatal(err)
		}
		rsp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(rsp.Body)
		if err != nil || string(body) != "3 bytes, <nil>" {
			t.Errorf("the answer is %q, %v", body, err)
		}
	}
	if _, err := io.WriteString(conn, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := r.ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Fatalf("the stream begins with %q, %v", line, err)
	}
	for range 5 {
		dialServer(t, srv, "")
	}
	if !staysOpen(conn) {
		t.Error("the connection whose request is handled was closed")
	}
}

// A client with too many connections loses its own connections, not those of others.
func TestConnectionsOfOneClientAreLimited(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	Limits{Connections: 20, ClientConnections: 5}.LimitConnections(srv.Config)
	srv.Start()
	t.Cleanup(srv.Close)
	dial := func(local string) net.Conn {
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}).Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	other := dial("127.0.0.2") // of all connections this one waits longest
	var own []net.Conn
	for range 50 {
		own = append(own, dial("127.0.0.1"))
	}
	for i, conn := range own[:45] {
		if !isClosed(conn) {
			t.Fatalf("connection %d of 50 is open", i)
		}
	}
	for i, conn := range own[45:] {
		if !staysOpen(conn) {
			t.Errorf("connection %d of 50 was closed", 45+i)
		}
	}
	if !staysOpen(other) {
		t.Error("another client lost its connection")
	}
}

func TestSlowBodyIsCutOff(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		Limits{Body: 1 << 20, BodyTimeout: 100 * time.Millisecond}.LimitBody(w, r)
		_, err := io.ReadAll(r.Body)
		fmt.Fprint(w, err)
	}))
	Limits{Connections: 10, ClientConnections: 10}.LimitConnections(srv.Config)
	srv.Start()
	t.Cleanup(srv.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	body, end := io.Pipe()
	defer end.Close()
	req, err := http.NewRequestWithContext(ctx, "POST", srv.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	rsp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer rsp.Body.Close()
	if b, err := io.ReadAll(rsp.Body); !strings.Contains(string(b), "i/o timeout") {
		t.Errorf("the handler gets %q, %v; want a timeout", b, err)
	}
}

// answer sends a request over a connection and returns the answer.
func answer(t *testing.T, conn net.Conn, r *bufio.Reader, request string) string {
	t.Helper()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	rsp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer rsp.Body.Close()
	body, err := io.ReadAll(rsp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(rsp.StatusCode, " ", string(body))
}

// A connection whose request was answered waits for its client again.
func TestIdleConnectionMakesRoom(t *testing.T) {
	srv := startLimited(t, 2)
	idle := dialServer(t, srv, "")
	if got := answer(t, idle, bufio.NewReader(idle), "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); got != "200 0 bytes, <nil>" {
		t.Fatal(got)
	}
	for end := time.Now().Add(10 * time.Second); staysOpen(idle); dialServer(t, srv, "") { // it is idle soon after its answer
		if time.Now().After(end) {
			t.Fatal("the idle connection is open although there are newer ones")
		}
	}
}

func TestLargestBody(t *testing.T) {
	maxBody := int(Default.Body)
	srv := startLimited(t, 2)
	for n, want := range map[int]string{maxBody: "200 1048576 bytes, <nil>", maxBody + 1: "413 the body is larger than 1048576 bytes\n"} {
		conn := dialServer(t, srv, "")
		body := strings.Repeat("x", n)
		if n > maxBody {
			body = "" // the server does not wait for it
		}
		if got := answer(t, conn, bufio.NewReader(conn), fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", n, body)); got != want {
			t.Errorf("a body of %d bytes: %q, want %q", n, got, want)
		}
	}
}

// The time limit of the body ends with the body, and a connection whose request has a body
// that was read is not closed to make room.
func TestResponseAfterABodyHasNoLimit(t *testing.T) {
	const limit = 50 * time.Millisecond
	body, handle := make(chan struct{}, 1), make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		Limits{BodyTimeout: limit}.LimitBody(w, r)
		if _, err := io.ReadAll(r.Body); err != nil {
			t.Error(err)
		}
		body <- struct{}{}
		<-handle
		fmt.Fprint(w, r.Context().Err())
	}))
	Limits{Connections: 2, ClientConnections: 2}.LimitConnections(srv.Config)
	srv.Start()
	t.Cleanup(srv.Close)
	conn := dialServer(t, srv, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nyou")
	<-body
	for range 3 {
		dialServer(t, srv, "")
	}
	time.Sleep(4 * limit)
	close(handle)
	if got := answer(t, conn, bufio.NewReader(conn), ""); got != "200 <nil>" {
		t.Errorf("the answer is %q", got)
	}
}

func TestConnectionsThatEndAreForgotten(t *testing.T) {
	c := &connections{max: 10, maxClient: 10, open: map[net.Conn]*connection{}, clients: map[string]*connectionClient{}}
	client, server := net.Pipe()
	defer client.Close()
	for _, end := range []http.ConnState{http.StateClosed, http.StateHijacked} {
		for _, handled := range []bool{false, true} {
			c.changed(server, http.StateNew)
			if handled {
				request{c, server}.inProgress()
			}
			c.changed(server, end)
			c.changed(server, http.StateIdle) // too late
			if len(c.open) != 0 || len(c.clients) != 0 || c.waiting.Len() != 0 {
				t.Errorf("after %s, handled %v: %d connections of %d clients, %d wait", end, handled, len(c.open), len(c.clients), c.waiting.Len())
			}
		}
	}
}

func TestNoLimits(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !(Limits{}).LimitBody(w, r) {
			t.Error("a body is refused")
		}
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d bytes, %v", n, err)
	}))
	Limits{}.LimitConnections(srv.Config)
	srv.Start()
	t.Cleanup(srv.Close)
	var open []net.Conn
	for range 10 {
		open = append(open, dialServer(t, srv, ""))
	}
	for i, conn := range open {
		body := strings.Repeat("x", int(Default.Body)+1)
		if got := answer(t, conn, bufio.NewReader(conn), fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)); got != "200 1048577 bytes, <nil>" {
			t.Errorf("connection %d: the answer is %q", i, got)
		}
	}
}
