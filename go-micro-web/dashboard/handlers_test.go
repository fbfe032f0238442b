package dashboard

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
)

// stream is the viewer's end of an event stream.
type stream struct {
	t     *testing.T
	rsp   *http.Response
	lines *bufio.Scanner
}

func openStream(t *testing.T, srv *httptest.Server) *stream {
	t.Helper()
	rsp, err := http.Get(srv.URL + root + "events")
	if err != nil {
		t.Fatal(err)
	}
	if rsp.StatusCode != http.StatusOK || rsp.Header.Get("Content-Type") != "text/event-stream" || !rsp.Close {
		t.Fatalf("opening a stream: %s, header %q, Connection: close %v", rsp.Status, rsp.Header, rsp.Close)
	}
	t.Cleanup(func() { rsp.Body.Close() })
	return newStream(t, rsp)
}

func newStream(t *testing.T, rsp *http.Response) *stream {
	lines := bufio.NewScanner(rsp.Body)
	lines.Buffer(nil, 16<<20)
	return &stream{t, rsp, lines}
}

// next returns the view of the next event that has one.
func (s *stream) next() (v view) {
	s.t.Helper()
	s.decode("message", &v)
	return v
}

// decode decodes the data of the next event of a type.
func (s *stream) decode(event string, v any) {
	s.t.Helper()
	for current := "message"; s.lines.Scan(); {
		line := s.lines.Text()
		if name, ok := strings.CutPrefix(line, "event: "); ok {
			current = name
		}
		data, ok := strings.CutPrefix(line, "data: ")
		switch {
		case ok && current == event:
			if err := json.Unmarshal([]byte(data), v); err != nil {
				s.t.Fatal(err)
			}
			return
		case line == "":
			current = "message"
		}
	}
	s.t.Fatal("the stream ended")
}

func TestPageIsCompleteWithoutScript(t *testing.T) {
	notReady := greeterInstance(2, pod.NotReady)
	notReady.Created = time.Now().Add(-50 * time.Hour)
	ready := greeterInstance(1, pod.Ready)
	ready.Created = time.Now().Add(-10*time.Minute - 30*time.Second) // time for the request
	_, _, srv := serve(t, ready, notReady, greeterInstance(3, pod.Terminating), pod.Instance{Service: "go-micro-web", Pod: "go-micro-web-1", Address: "10.244.0.9:9200", State: pod.NodeUnreachable})
	rsp, body := get(t, srv.URL+root)
	text := regexp.MustCompile(`\s+`).ReplaceAllString(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(body, " "), " ")
	for _, want := range []string{
		"2 services, 4 instances: 1 ready, 1 not ready, 1 terminating, 1 node unreachable", "go-micro-srv 1 ready, 1 not ready, 1 terminating",
		"Greeter.Hello(HelloRequest{name string}) → HelloResponse{greeting string}",
		"go-micro-srv-1 ready 10.244.0.1:9100 latest 10m", "go-micro-srv-2 not ready 10.244.0.2:9100 latest 2d", "go-micro-srv-3 terminating", "Served by go-micro-web-1"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not show %q:\n%s", want, text)
		}
	}
	if got := rsp.Header.Get("Content-Type"); got != "text/html; charset=utf-8" {
		t.Errorf("Content-Type is %q", got)
	}
}

func TestServicesJSON(t *testing.T) {
	_, _, srv := serve(t, greeterInstance(1, pod.Ready), greeterInstance(2, pod.Terminating))
	_, body := get(t, srv.URL+root+"services.json")
	before, body, _ := strings.Cut(body, `"services":`)
	if !strings.HasPrefix(before, `{"pod":"go-micro-web-1","namespace":"go-micro",`) {
		t.Errorf("services.json begins with %s", before)
	}
	createdAt := created.UTC().Format(time.RFC3339Nano)
	want := `[{"name":"go-micro-srv","states":{"ready":1,"terminating":1},"versions":{"latest":2},"endpoints":[{"name":"Greeter.Hello","request":"HelloRequest{name string}","response":"HelloResponse{greeting string}"}],"instances":[` +
		`{"pod":"go-micro-srv-1","address":"10.244.0.1:9100","version":"latest","state":"ready","created":"` + createdAt + `"},` +
		`{"pod":"go-micro-srv-2","address":"10.244.0.2:9100","version":"latest","state":"terminating","created":"` + createdAt + `"}]}]}` + "\n"
	if body != want {
		t.Errorf("services.json is\n%s\nwant\n%s", body, want)
	}
}

// Nothing changes between the answers, so they have the same view.
func TestTimesAreThoseOfTheAnswer(t *testing.T) {
	c, _, srv := serve(t, greeterInstance(1, pod.Ready))
	openStream(t, srv).next() // holds the view
	for i := range 3 {
		contact := time.Date(2026, 11, 28, 10+i, 0, 0, 0, time.UTC)
		c.setLastContact(contact)
		begin := time.Now().Truncate(time.Millisecond)
		var answer, event times
		_, body := get(t, srv.URL+root+"services.json")
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			t.Fatal(err)
		}
		openStream(t, srv).decode("message", &event)
		for name, got := range map[string]times{"services.json": answer, "the first event": event} {
			if got.Time.Before(begin) || got.LastContact == nil || !got.LastContact.Equal(contact) {
				t.Errorf("%s of a request at %s has the time %s and the last contact %s, want %s", name, begin.UTC(), got.Time, got.LastContact, contact)
			}
		}
		if _, body := get(t, srv.URL+root); !strings.Contains(body, "heard from at 2026-11-28 "+contact.Format(time.TimeOnly)) && !strings.Contains(body, "heard from at "+contact.Format(time.TimeOnly)) {
			t.Errorf("the page does not show the last contact %s", contact)
		}
	}
}

func TestAgeIsThatOfTheAnswer(t *testing.T) {
	v := newView("web", "go-micro", []pod.Instance{greeterInstance(1, pod.Ready)}, nil, nil)
	for minutes, want := range map[time.Duration]string{10: "10m", 20: "20m"} {
		if got := (page{view: v, times: times{Time: created.Add(minutes * time.Minute)}}).Sorted()[0].Instances[0].Age; got != want {
			t.Errorf("%d minutes after its creation the age is %s", minutes, got)
		}
	}
}

// A change of another day than today has a date.
func TestOldChangesHaveADate(t *testing.T) {
	_, d, srv := serve(t, greeterInstance(1, pod.Ready))
	before, today := now().Add(-49*time.Hour), now()
	d.hub.changes.mu.Lock()
	d.hub.changes.add(before, left, instanceKey{"go-micro-srv", "old", "10.0.0.1:1"}, "")
	d.hub.changes.add(today, joined, instanceKey{"go-micro-srv", "new", "10.0.0.2:1"}, "")
	d.hub.changes.mu.Unlock()
	_, body := get(t, srv.URL+root)
	if !strings.Contains(body, "<time>"+before.Format(time.DateTime)+"</time>") {
		t.Errorf("the page does not show %s:\n%s", before, body)
	}
	if now().Day() == today.Day() && !strings.Contains(body, "<time>"+today.Format(time.TimeOnly)+"</time>") {
		t.Errorf("the page does not show %s without its date:\n%s", today, body)
	}
}

// Under hostNetwork the host's name is that of the Kubernetes node.
func TestServedByThePod(t *testing.T) {
	t.Setenv("HOSTNAME", "node-1")
	for podName, want := range map[string]string{"go-micro-web-1": "go-micro-web-1", "": "node-1"} {
		t.Setenv("POD_NAME", podName)
		if got := ownPodName(); got != want {
			t.Errorf("POD_NAME=%s: served by %q, want %q", podName, got, want)
		}
	}
}

func TestViewerThatDoesNotReadIsDisconnected(t *testing.T) {
	var instances []pod.Instance
	for i := range 2000 { // a few views fill the buffers of a socket
		instances = append(instances, greeterInstance(i, pod.Ready))
	}
	c, d, srv := serve(t, instances...)
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %sevents HTTP/1.1\r\nHost: localhost\r\n\r\n", root) // reads nothing
	s := openStream(t, srv)
	s.next()
	eventually(t, 10*time.Second, "both viewers", func() bool { return d.hub.streams.count() == 2 })
	begin := time.Now()
	for changes := 0; d.hub.streams.count() == 2; changes++ {
		c.set(instances, nil)
		s.next() // the other viewer gets every view
		if time.Since(begin) > time.Minute {
			t.Fatalf("the viewer is still connected after %d changes", changes)
		}
	}
	t.Logf("disconnected after %s", time.Since(begin))
	s.rsp.Body.Close()
}

func TestTooManyViewersAreRefused(t *testing.T) {
	_, d, srv := serve(t, greeterInstance(1, pod.Ready))
	for i := range maxStreams {
		if _, status, _ := d.hub.streams.open(fmt.Sprintf("10.0.%d.1:80", i/10)); status != http.StatusOK {
			t.Fatalf("stream %d is refused", i)
		}
	}
	rsp, _ := get(t, srv.URL+root+"events")
	if rsp.StatusCode != http.StatusServiceUnavailable || rsp.Header.Get("Retry-After") == "" || d.hub.streams.count() != maxStreams {
		t.Errorf("%s, Retry-After %q, %d open streams", rsp.Status, rsp.Header.Get("Retry-After"), d.hub.streams.count())
	}
}

// openStreamFrom opens an event stream from a local address. The status is not checked.
func openStreamFrom(t *testing.T, srv *httptest.Server, local string) *http.Response {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	transport := &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}
	req, err := http.NewRequest("GET", srv.URL+root+"events", nil)
	if err != nil {
		t.Fatal(err)
	}
	rsp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rsp.Body.Close() })
	return rsp
}

func TestOneAddressCannotHoldAllStreams(t *testing.T) {
	_, _, srv := serve(t, greeterInstance(1, pod.Ready))
	var open []*http.Response
	for range 300 {
		rsp := openStreamFrom(t, srv, "127.0.0.1")
		if rsp.StatusCode != http.StatusOK {
			if rsp.StatusCode != http.StatusTooManyRequests || rsp.Header.Get("Retry-After") == "" {
				t.Errorf("the refusal is %s, Retry-After %q", rsp.Status, rsp.Header.Get("Retry-After"))
			}
			break
		}
		open = append(open, rsp)
	}
	if len(open) != 100 {
		t.Fatalf("one address holds %d streams, want 100", len(open))
	}
	if rsp := openStreamFrom(t, srv, "127.0.0.2"); rsp.StatusCode != http.StatusOK {
		t.Errorf("a stream for another address: %s", rsp.Status)
	}
	if rsp, _ := get(t, srv.URL+root+"services.json"); rsp.StatusCode != http.StatusOK {
		t.Errorf("services.json for the address that has too many streams: %s", rsp.Status)
	}
	open[0].Body.Close()
	eventually(t, 10*time.Second, "a stream in place of one that ended", func() bool {
		rsp := openStreamFrom(t, srv, "127.0.0.1")
		return rsp.StatusCode == http.StatusOK
	})
}

func TestSlowViewerOfPageIsDisconnected(t *testing.T) {
	var instances []pod.Instance
	for i := range 5000 { // more than the buffers of a socket hold
		i := greeterInstance(i, pod.Ready)
		i.Version, i.Address = strings.Repeat("\u754c", maxText), fmt.Sprint(len(instances), strings.Repeat("\u754c", maxText))
		i.Service = fmt.Sprint("service-", len(instances)/1000)
		instances = append(instances, i)
	}
	for _, path := range []string{"", "services.json"} {
		_, d, srv := serve(t, instances...)
		d.pageTimeout = 3 * time.Second
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		fmt.Fprintf(conn, "GET %s%s HTTP/1.1\r\nHost: localhost\r\n\r\n", root, path)
		viewers := func() int { d.hub.mu.Lock(); defer d.hub.mu.Unlock(); return d.hub.viewers }
		eventually(t, time.Minute, "the request", func() bool { return viewers() == 1 })
		time.Sleep(200 * time.Millisecond)
		if viewers() != 1 {
			t.Fatal("the response fits into the buffers of the socket: the test needs more instances")
		}
		eventually(t, time.Minute, "the end of the response to "+root+path, func() bool { return viewers() == 0 })
	}
}

func TestConnectionIsUsableAfterPageTimeout(t *testing.T) {
	_, d, srv := serve(t, greeterInstance(1, pod.Ready))
	d.pageTimeout = 1500 * time.Millisecond
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	for i, path := range []string{"", "services.json", "page.css", "services.json"} {
		fmt.Fprintf(conn, "GET %s%s HTTP/1.1\r\nHost: localhost\r\n\r\n", root, path)
		rsp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("%s%s: %v", root, path, err)
		}
		if _, err := io.Copy(io.Discard, rsp.Body); err != nil {
			t.Fatalf("%s%s: %v", root, path, err)
		}
		if i < 2 { // only these responses have a deadline
			time.Sleep(d.pageTimeout + 100*time.Millisecond)
		}
	}
}
