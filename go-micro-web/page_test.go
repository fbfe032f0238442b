package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
	"go.uber.org/goleak"
)

// cluster is a registry as Observe shows it, and a Greeter.
type cluster struct {
	mu        sync.Mutex
	nodes     []pod.Node
	err       error
	changed   chan struct{}
	observers int
	began     int // observations, ever

	tries []string // addresses that the next calls go to
	fails error
}

func (c *cluster) set(nodes []pod.Node, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes, c.err = nodes, err
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *cluster) observe(ctx context.Context) iter.Seq2[[]pod.Node, error] {
	return func(yield func([]pod.Node, error) bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.observers++
		c.began++
		defer func() { c.observers-- }()
		for ctx.Err() == nil {
			nodes, err, changed := c.nodes, c.err, c.changed
			c.mu.Unlock()
			goes := yield(nodes, err)
			if goes {
				select {
				case <-changed:
				case <-ctx.Done():
				}
			}
			c.mu.Lock()
			if !goes {
				return
			}
		}
	}
}

func (c *cluster) count() (observers, began int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.observers, c.began
}

func (c *cluster) Hello(ctx context.Context, in *proto.HelloRequest, opts ...client.CallOption) (*proto.HelloResponse, error) {
	var o client.CallOptions
	for _, opt := range opts {
		opt(&o)
	}
	for _, address := range c.tries {
		try := client.CallFunc(func(context.Context, *registry.Node, client.Request, any, client.CallOptions) error { return nil })
		for _, w := range o.CallWrappers {
			try = w(try)
		}
		if err := try(ctx, &registry.Node{Address: address}, nil, nil, o); err != nil {
			return nil, err
		}
	}
	return &proto.HelloResponse{Greeting: "Hello " + in.Name + "!"}, c.fails
}

var born = time.Now().Add(-90 * time.Second)

func greeter(i int, state pod.State) pod.Node {
	value := func(name, field string) *registry.Value {
		return &registry.Value{Name: name, Type: name, Values: []*registry.Value{ // as go-micro finds it in generated code
			{Name: "MessageState", Type: "MessageState", Values: []*registry.Value{{Name: "DoNotCopy", Type: "DoNotCopy"}}},
			{Name: field, Type: "string"}, {Name: "unknownFields", Type: "[]uint8"}, {Name: "int32", Type: "int32"}}}
	}
	return pod.Node{Service: "go-micro-srv", Version: "latest", Pod: fmt.Sprintf("go-micro-srv-%d", i), Address: fmt.Sprintf("10.244.0.%d:9100", i), Created: born, State: state,
		Endpoints: []*registry.Endpoint{{Name: "Greeter.Hello", Request: value("HelloRequest", "name"), Response: value("HelloResponse", "greeting")}}}
}

// serve serves a page of a cluster with these nodes; nothing is left of it after the test.
func serve(t *testing.T, nodes ...pod.Node) (*cluster, *page, *httptest.Server) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	c := &cluster{nodes: nodes, changed: make(chan struct{})}
	p := &page{observe: c.observe, greeter: c, host: "go-micro-web-1", linger: 50 * time.Millisecond}
	srv := httptest.NewServer(p.handler())
	t.Cleanup(srv.Close)
	return c, p, srv
}

func get(t *testing.T, address string) (*http.Response, string) {
	t.Helper()
	rsp, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer rsp.Body.Close()
	body, err := io.ReadAll(rsp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return rsp, string(body)
}

func soon(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}

func TestThePageIsWholeWithoutAScript(t *testing.T) {
	down := greeter(2, pod.NotReady)
	down.Created = time.Now().Add(-50 * time.Hour)
	_, _, srv := serve(t, greeter(1, pod.Ready), down, greeter(3, pod.Stopping), pod.Node{Service: "go-micro-web", Pod: "go-micro-web-1", Address: "10.244.0.9:9200", State: pod.Unheard})
	rsp, body := get(t, srv.URL+pagePath)
	text := regexp.MustCompile(`\s+`).ReplaceAllString(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(body, " "), " ")
	for _, want := range []string{
		"2 services, 4 nodes: 1 ready, 1 not ready, 1 stopping, 1 unheard of", "go-micro-srv 1 ready, 1 not ready, 1 stopping",
		"Greeter.Hello(HelloRequest{name string}) → HelloResponse{greeting string}",
		"go-micro-srv-1 ready 10.244.0.1:9100 latest 90s", "go-micro-srv-2 not ready 10.244.0.2:9100 latest 2d", "go-micro-srv-3 stopping", "Seen from go-micro-web-1"} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not show %q:\n%s", want, text)
		}
	}
	if got := rsp.Header.Get("Content-Type"); got != "text/html; charset=utf-8" {
		t.Errorf("it is %q", got)
	}
}

func TestNothingRunsButThePagesOwnFiles(t *testing.T) {
	evil := greeter(1, "ready")
	evil.Service, evil.Pod, evil.Version = `<script>alert(1)</script>`, `" onmouseover="alert(2)`, `</td><img src=x onerror=alert(3)>`
	evil.Endpoints = []*registry.Endpoint{{Name: `<b>bold</b>`, Request: &registry.Value{Type: `</code><script>alert(4)</script>`}}, nil}
	_, _, srv := serve(t, evil)
	for _, path := range []string{"", "services.json", "page.css", "page.js", "nothing"} {
		rsp, body := get(t, srv.URL+pagePath+path)
		csp := rsp.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'; script-src 'self';") || strings.Contains(csp, "unsafe") {
			t.Errorf("%q has the policy %q", path, csp)
		}
		if rsp.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%q may be sniffed", path)
		}
		for _, raw := range []string{"<script>alert", `"" onmouseover=`, "<img src=x", "<b>bold"} {
			if strings.Contains(body, raw) {
				t.Errorf("%q holds %q", path, raw)
			}
		}
		if path == "" && (strings.Count(body, "<script") != 1 || strings.Contains(body, "style=") || strings.Contains(body, "http")) {
			t.Errorf("it has a script, style or asset that is not its own:\n%s", body)
		}
	}
}

func TestWhatOthersWroteIsBounded(t *testing.T) {
	deep := &registry.Value{Type: "T"}
	for range 1000 {
		deep = &registry.Value{Type: "T", Values: []*registry.Value{deep, nil}}
	}
	big := greeter(1, pod.Ready)
	big.Version, big.Endpoints = strings.Repeat("v", 1<<20), nil
	for i := range 10000 {
		big.Endpoints = append(big.Endpoints, &registry.Endpoint{Name: fmt.Sprint(i), Request: deep})
	}
	_, _, srv := serve(t, big)
	if _, body := get(t, srv.URL+pagePath+"services.json"); len(body) > 64<<10 {
		t.Errorf("it is %d bytes", len(body))
	}
}

func TestJSONForScripts(t *testing.T) {
	_, _, srv := serve(t, greeter(1, pod.Ready), greeter(2, pod.Stopping))
	_, body := get(t, srv.URL+pagePath+"services.json")
	_, body, _ = strings.Cut(body, `"services":`)
	at := born.UTC().Format(time.RFC3339Nano)
	want := `[{"name":"go-micro-srv","endpoints":[{"name":"Greeter.Hello","request":"HelloRequest{name string}","response":"HelloResponse{greeting string}"}],"nodes":[` +
		`{"pod":"go-micro-srv-1","address":"10.244.0.1:9100","version":"latest","state":"ready","created":"` + at + `"},` +
		`{"pod":"go-micro-srv-2","address":"10.244.0.2:9100","version":"latest","state":"stopping","created":"` + at + `"}]}]}` + "\n"
	if body != want {
		t.Errorf("it says\n%s\nwant\n%s", body, want)
	}
}

// reader reads events.
type reader struct {
	t     *testing.T
	rsp   *http.Response
	lines *bufio.Scanner
}

func read(t *testing.T, srv *httptest.Server) *reader {
	t.Helper()
	rsp, err := http.Get(srv.URL + pagePath + "events")
	if err != nil {
		t.Fatal(err)
	}
	if rsp.StatusCode != http.StatusOK || rsp.Header.Get("Content-Type") != "text/event-stream" || !rsp.Close {
		t.Fatalf("%s, %q, its connection ends with it: %v", rsp.Status, rsp.Header, rsp.Close)
	}
	t.Cleanup(func() { rsp.Body.Close() })
	lines := bufio.NewScanner(rsp.Body)
	lines.Buffer(nil, 16<<20)
	return &reader{t, rsp, lines}
}

// next is the view of the next event.
func (r *reader) next() (v view) {
	r.t.Helper()
	for r.lines.Scan() {
		if data, ok := strings.CutPrefix(r.lines.Text(), "data: "); ok {
			if err := json.Unmarshal([]byte(data), &v); err != nil {
				r.t.Fatal(err)
			}
			return v
		}
	}
	r.t.Fatal("the stream has ended")
	return v
}

func TestEventsAreWhatIsAndWhatChanges(t *testing.T) {
	c, _, srv := serve(t, greeter(1, pod.Ready))
	r := read(t, srv)
	if v := r.next(); v.Summary() != "1 service, 1 node: 1 ready" {
		t.Errorf("at first: %s", v.Summary())
	}
	begin := time.Now()
	c.set([]pod.Node{greeter(1, pod.NotReady)}, nil)
	if v := r.next(); v.Summary() != "1 service, 1 node: 1 not ready" || time.Since(begin) > time.Second {
		t.Errorf("after %s: %s", time.Since(begin), v.Summary())
	}
	for i := range 1000 { // within one rest
		c.set([]pod.Node{greeter(1, pod.NotReady), greeter(i, pod.Ready)}, nil)
	}
	events := 1
	for v := r.next(); v.Services[0].Nodes[1].Pod != "go-micro-srv-999"; v = r.next() {
		events++
	}
	if events > 10 {
		t.Errorf("1000 changes at once are %d events", events)
	}
	c.set(nil, errors.New("list pods: the API server at https://10.96.0.1 does not answer"))
	if v := r.next(); v.Summary() != "0 services, 0 nodes: none" || !strings.Contains(v.Problem, "cannot be followed") || strings.Contains(v.Problem, "10.96") {
		t.Errorf("without the API server: %s, %q", v.Summary(), v.Problem)
	}
}

func TestNobodyLooksNothingRuns(t *testing.T) {
	c, p, srv := serve(t, greeter(1, pod.Ready))
	if _, began := c.count(); began != 0 {
		t.Error("it observes before anybody looks")
	}
	var all []*reader
	for range 20 {
		r := read(t, srv)
		r.next()
		all = append(all, r)
	}
	get(t, srv.URL+pagePath)
	if observers, began := c.count(); observers != 1 || began != 1 {
		t.Errorf("for 20 readers and a page there are %d observations", began)
	}
	for _, r := range all {
		r.rsp.Body.Close()
	}
	soon(t, 5*time.Second, "the observation ending", func() bool { n, _ := c.count(); return n == 0 && p.live.Load() == 0 })
	if v, _ := p.now(); v != nil {
		t.Error("it keeps what it saw")
	}
	if v := read(t, srv).next(); v.Summary() != "1 service, 1 node: 1 ready" {
		t.Errorf("to the next reader it shows %s", v.Summary())
	}
}

func TestWhoTakesNothingIsDropped(t *testing.T) {
	var many []pod.Node
	for i := range 2000 { // more than a socket holds, soon
		many = append(many, greeter(i, pod.Ready))
	}
	c, p, srv := serve(t, many...)
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %sevents HTTP/1.1\r\nHost: x\r\n\r\n", pagePath) // and reads nothing
	r := read(t, srv)
	r.next()
	begin := time.Now()
	for changes := 0; p.live.Load() == 2; changes++ {
		c.set(many, nil)
		r.next() // the other one is served as before
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("it is there still after %d changes", changes)
		}
	}
	t.Logf("dropped after %s", time.Since(begin))
	r.rsp.Body.Close()
}

func TestTooManyReadersAreToldSo(t *testing.T) {
	_, p, srv := serve(t, greeter(1, pod.Ready))
	p.live.Store(mostLive)
	rsp, _ := get(t, srv.URL+pagePath+"events")
	if rsp.StatusCode != http.StatusServiceUnavailable || rsp.Header.Get("Retry-After") == "" || p.live.Load() != mostLive {
		t.Errorf("%s, Retry-After %q, %d live", rsp.Status, rsp.Header.Get("Retry-After"), p.live.Load())
	}
}

func TestTheFormGreets(t *testing.T) {
	busy := microerrors.New("go.micro.client", "service go-micro-srv: not found", 500)
	for _, try := range []struct {
		what, name string
		tries      []string
		fails      error
		code       int
		says, who  string
	}{
		{"answered", " you ", []string{"10.244.0.1:9100"}, nil, 200, "Hello you!", "go-micro-srv-1"},
		{"answered by the second that was tried", "you", []string{"10.244.0.1:9100", "10.244.0.2:9100"}, nil, 200, "Hello you!", "go-micro-srv-2"},
		{"by somebody the view does not know", "you", []string{"10.244.0.7:9100"}, nil, 200, "Hello you!", "10.244.0.7:9100"},
		{"a name that is HTML", "<b>you</b>", []string{"10.244.0.1:9100"}, nil, 200, "Hello <b>you</b>!", "go-micro-srv-1"},
		{"no name", "  ", nil, nil, 400, "Write a name of 1 to 64 characters.", ""},
		{"64 characters", strings.Repeat("ж", 64), []string{"10.244.0.1:9100"}, nil, 200, "Hello " + strings.Repeat("ж", 64) + "!", "go-micro-srv-1"},
		{"65 characters", strings.Repeat("x", 65), nil, nil, 400, "Write a name of 1 to 64 characters.", ""},
		{"no UTF-8", "\xff", nil, nil, 400, "Write a name of 1 to 64 characters.", ""},
		{"a novel", strings.Repeat("x", 5000), nil, nil, 400, "This form cannot be read.", ""},
		{"nobody there", "you", nil, busy, 503, "No pod of go-micro-srv can answer now.", ""},
		{"no answer", "you", []string{"10.244.0.1:9100"}, microerrors.New("go.micro.client", "context deadline exceeded", 408), 504, "No answer within 5s.", "go-micro-srv-1"},
		{"broken off", "you", []string{"10.244.0.1:9100"}, errors.New("secret 10.0.0.1"), 502, "The call failed; the log of go-micro-web-1 says why.", "go-micro-srv-1"},
	} {
		t.Run(try.what, func(t *testing.T) {
			c, _, srv := serve(t, greeter(1, pod.Ready), greeter(2, pod.Ready))
			c.tries, c.fails = try.tries, try.fails
			for _, accept := range []string{"application/json", "text/html"} {
				req, err := http.NewRequest("POST", srv.URL+pagePath, strings.NewReader(url.Values{"name": {try.name}}.Encode()))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				req.Header.Set("Accept", accept)
				rsp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(rsp.Body)
				rsp.Body.Close()
				if err != nil || rsp.StatusCode != try.code {
					t.Errorf("%s: %s, %v, want %d", accept, rsp.Status, err, try.code)
				}
				if accept == "application/json" {
					var a answer
					if err := json.Unmarshal(body, &a); err != nil || a.Greeting+a.Problem != try.says || a.Pod != try.who && a.Address != try.who {
						t.Errorf("it answers %s, %v", body, err)
					}
					continue
				}
				says := strings.NewReplacer("<", "&lt;", ">", "&gt;").Replace(try.says)
				if !strings.Contains(string(body), `<b class="says">`+says+`</b> <code class="pod">`+try.who+`</code>`) || strings.Contains(string(body), "secret") {
					t.Errorf("the page does not show %q by %q:\n%s", says, try.who, body)
				}
			}
		})
	}
}

func TestAnotherSiteGreetsNobody(t *testing.T) {
	_, _, srv := serve(t, greeter(1, pod.Ready))
	for _, h := range [][2]string{{"Sec-Fetch-Site", "cross-site"}, {"Origin", "http://elsewhere.example"}, {"Origin", "null"}} {
		req, err := http.NewRequest("POST", srv.URL+pagePath, strings.NewReader("name=you"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set(h[0], h[1])
		rsp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		rsp.Body.Close()
		if rsp.StatusCode != http.StatusForbidden {
			t.Errorf("%q: %s", h, rsp.Status)
		}
	}
	rsp, _ := get(t, srv.URL+pagePath+"?name=you") // and a GET greets nobody either
	if rsp.StatusCode != http.StatusOK {
		t.Error(rsp.Status)
	}
}
