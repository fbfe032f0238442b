package dashboard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/jiangjiancc/go_micro_k8s/test/process"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/registry"
)

// fakeCluster is a registry that the hub observes, and a Greeter.
type fakeCluster struct {
	mu              sync.Mutex
	instances       []pod.Instance
	err             error
	changed         chan struct{}
	observers       int
	observations    int       // since the start
	yields          int       // since the start
	lastContact     time.Time // now if zero
	calls           map[callTarget]targetCalls
	informerStarted bool // the informer of the Greeter has been started

	calledAddresses []string        // the tries of the next calls, in order
	nextTries       func() []string // replaces calledAddresses if it is set; called with mu held
	calledNames     []string
	callError       error
	delay           time.Duration // of the next calls
}

func (c *fakeCluster) set(instances []pod.Instance, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.instances, c.err = instances, err
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *fakeCluster) Observe(ctx context.Context) iter.Seq2[[]pod.Instance, error] {
	return func(yield func([]pod.Instance, error) bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.observers++
		c.observations++
		defer func() { c.observers-- }()
		for ctx.Err() == nil {
			instances, err, changed := c.instances, c.err, c.changed
			c.yields++
			c.mu.Unlock()
			more := yield(instances, err)
			if more {
				select {
				case <-changed:
				case <-ctx.Done():
				}
			}
			c.mu.Lock()
			if !more {
				return
			}
		}
	}
}

func (c *fakeCluster) LastContact() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lastContact.IsZero() {
		return time.Now()
	}
	return c.lastContact
}

func (c *fakeCluster) setLastContact(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastContact = t
}

func (c *fakeCluster) callsNow() map[callTarget]targetCalls {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.calls)
}

func (c *fakeCluster) setTries(next func() []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextTries = next
}

func (c *fakeCluster) countCalls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.calledNames)
}

func (c *fakeCluster) setCalls(byTarget map[callTarget]targetCalls) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = byTarget
}

func (c *fakeCluster) startInformer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.informerStarted = true
}

func (c *fakeCluster) count() (observers, observations int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.observers, c.observations
}

// yielded returns how many states the observations have begun to yield.
func (c *fakeCluster) yielded() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.yields
}

func (c *fakeCluster) Hello(ctx context.Context, in *proto.HelloRequest, opts ...client.CallOption) (*proto.HelloResponse, error) {
	var o client.CallOptions
	for _, opt := range opts {
		opt(&o)
	}
	c.mu.Lock()
	tries := c.calledAddresses
	if c.nextTries != nil {
		tries = c.nextTries()
	}
	callError := c.callError
	c.calledNames = append(c.calledNames, in.Name)
	c.mu.Unlock()
	for n, address := range tries { // the last try decides
		try := client.CallFunc(func(context.Context, *registry.Node, client.Request, any, client.CallOptions) error {
			if n < len(tries)-1 {
				return errors.New("connection refused")
			}
			return callError
		})
		for _, w := range o.CallWrappers {
			try = w(try)
		}
		_ = try(ctx, &registry.Node{Address: address}, nil, nil, o)
	}
	select {
	case <-time.After(c.delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return &proto.HelloResponse{Greeting: "Hello " + in.Name + "!"}, callError
}

var created = time.Now().Add(-90 * time.Second)

func greeterInstance(i int, state pod.State) pod.Instance {
	value := func(name, field string) *registry.Value {
		return &registry.Value{Name: name, Type: name, Values: []*registry.Value{ // as go-micro describes a generated message
			{Name: "MessageState", Type: "MessageState", Values: []*registry.Value{{Name: "DoNotCopy", Type: "DoNotCopy"}}},
			{Name: field, Type: "string"}, {Name: "unknownFields", Type: "[]uint8"}, {Name: "int32", Type: "int32"}}}
	}
	return pod.Instance{Service: "go-micro-srv", Version: "latest", Pod: fmt.Sprintf("go-micro-srv-%d", i), Address: fmt.Sprintf("10.244.0.%d:9100", i), Created: created, State: state,
		Endpoints: []*registry.Endpoint{{Name: "Greeter.Hello", Request: value("HelloRequest", "name"), Response: value("HelloResponse", "greeting")}}}
}

// serve serves the dashboard of a registry with these instances. It checks at the
// end of the test that no goroutine is left.
func serve(t *testing.T, instances ...pod.Instance) (*fakeCluster, *dashboard, *httptest.Server) {
	t.Helper()
	process.CheckNoLeak(t)
	c := &fakeCluster{instances: instances, changed: make(chan struct{})}
	d := newDashboard(c, c.callsNow, c.startInformer, c, "go-micro-web-1", "go-micro")
	d.hub.linger = 50 * time.Millisecond
	srv := httptest.NewServer(d.handler())
	t.Cleanup(srv.Close)
	return c, d, srv
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

// eventually waits until a condition holds.
func eventually(t *testing.T, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting for %s: not within %s", what, limit)
		}
	}
}

func TestOnlyOwnScriptsRun(t *testing.T) {
	evil := greeterInstance(1, "ready")
	evil.Service, evil.Pod, evil.Version = `<script>alert(1)</script>`, `" onmouseover="alert(2)`, `</td><img src=x onerror=alert(3)>`
	evil.Reason = `<script>alert(5)</script>`
	evil.Endpoints = []*registry.Endpoint{{Name: `<b>bold</b>`, Request: &registry.Value{Type: `</code><script>alert(4)</script>`}}, nil}
	c, _, srv := serve(t)
	s := openStream(t, srv)
	s.next()
	c.set([]pod.Instance{evil}, nil) // a change, which the page shows too
	s.next()
	if _, body := get(t, srv.URL+root+"changes.json"); !strings.Contains(body, `"change":"joined"`) {
		t.Errorf("changes.json is %s", body)
	}
	for _, path := range []string{"", "services.json", "changes.json", "calls.json", "page.css", "page.js", "changes.js", "calls.js", "stream.js", "nothing"} {
		rsp, body := get(t, srv.URL+root+path)
		csp := rsp.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'; script-src 'self';") || strings.Contains(csp, "unsafe") {
			t.Errorf("Content-Security-Policy of %q is %q", path, csp)
		}
		if rsp.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%q lacks X-Content-Type-Options: nosniff", path)
		}
		for _, raw := range []string{"<script>alert", `"" onmouseover=`, "<img src=x", "<b>bold"} {
			if strings.Contains(body, raw) {
				t.Errorf("%q contains the unescaped text %q", path, raw)
			}
		}
		if path == "" && (strings.Count(body, "<script") != strings.Count(body, `<script src="`) || strings.Count(body, "<script") != len(scripts) || strings.Contains(body, "style=") || strings.Contains(body, "http")) {
			t.Errorf("the page has a script, style or link that is not its own:\n%s", body)
		}
	}
}

func TestCrossSiteFormIsRefused(t *testing.T) {
	c, _, srv := serve(t, greeterInstance(1, pod.Ready))
	for _, path := range []string{"", "events"} {
		for _, h := range [][2]string{{"Sec-Fetch-Site", "cross-site"}, {"Origin", "http://elsewhere.example"}, {"Origin", "null"}} {
			req, err := http.NewRequest("POST", srv.URL+root+path, strings.NewReader("name=you&rate=10"))
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
				t.Errorf("%s%s with %q: %s", root, path, h, rsp.Status)
			}
		}
	}
	rsp, _ := get(t, srv.URL+root+"?name=you") // a GET sends no greeting
	if rsp.StatusCode != http.StatusOK {
		t.Error(rsp.Status)
	}
	if rsp, err := http.Get(srv.URL + root + "events?rate=50"); err != nil {
		t.Error(err)
	} else {
		time.Sleep(100 * time.Millisecond)
		rsp.Body.Close()
	}
	if n := c.countCalls(); n != 0 {
		t.Errorf("%d calls were made", n)
	}
}
