package shutdown

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/micro/go-micro/v2/web"
)

func get(h http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

func TestProbesAreAnsweredBeforeTheUsersHandlers(t *testing.T) {
	c, f, _, _ := newConfig()
	s := &webService{lifecycle: newLifecycle(c)}
	h := s.handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "the user's "+r.URL.Path) }))
	check := func(path string, code int, body string) {
		t.Helper()
		w := get(h, path)
		if w.Code != code || strings.TrimSpace(w.Body.String()) != body {
			t.Errorf("%s answered %d %q, want %d %q", path, w.Code, w.Body, code, body)
		}
		if probe := path != "/"; probe && w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s has the headers %v", path, w.Header())
		}
		if closes := w.Header().Get("Connection") == "close"; closes != (s.draining() && path == "/") {
			t.Errorf("%s closes the connection: %v", path, closes)
		}
	}
	check("/healthz", 200, "ok")
	check("/readyz", 200, "ok")
	check("/", 200, "the user's /")
	f.registered = false
	check("/healthz", 200, "ok")
	check("/readyz", 503, "not registered yet")
	close(s.stopping)
	check("/healthz", 200, "ok")
	check("/readyz", 503, "shutting down")
	check("/", 200, "the user's /")
}

func TestBodyThatIsTooLargeIsRefused(t *testing.T) {
	for _, maxBody := range []int{int(DefaultLimits.Body), 10} {
		c, _, _, _ := newConfig()
		c.Limits.Body = int64(maxBody)
		testLargestBody(t, c, maxBody)
	}
}

func testLargestBody(t *testing.T, c Config, maxBody int) {
	t.Helper()
	s := &webService{lifecycle: newLifecycle(c), limited: true}
	server := httptest.NewUnstartedServer(s.handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			w.WriteHeader(http.StatusTeapot)
		}
	})))
	c.Limits.LimitConnections(server.Config)
	server.Start()
	defer server.Close()
	for size, want := range map[int]int{0: 200, maxBody: 200, maxBody + 1: 413} {
		rsp, err := server.Client().Post(server.URL, "text/plain", strings.NewReader(strings.Repeat("x", size)))
		if err != nil {
			t.Fatal(err)
		}
		rsp.Body.Close()
		if rsp.StatusCode != want {
			t.Errorf("a body of %d bytes is answered with %d, want %d", size, rsp.StatusCode, want)
		}
	}
	rsp, err := server.Client().Post(server.URL, "text/plain", io.MultiReader(strings.NewReader(strings.Repeat("x", maxBody+1)))) // without a declared length
	if err != nil {
		t.Fatal(err)
	}
	rsp.Body.Close()
	if rsp.StatusCode != http.StatusTeapot {
		t.Errorf("the handler has read a body of more than the limit: status %d", rsp.StatusCode)
	}
}

// startWeb runs a web service and returns its address, the function that begins its stop,
// and the channel that receives the error of Run.
func startWeb(t *testing.T, c Config, opts ...web.Option) (address string, stop func(), ended chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{})
	service := web.NewService(append([]web.Option{web.Name("page"), web.Address("127.0.0.1:0"), web.Registry(c.Registry), web.HandleSignal(false), web.Context(ctx),
		web.AfterStart(func() error { close(started); return nil })}, opts...)...)
	service.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		if running, ok := r.Context().Value(runningKey{}).(chan struct{}); ok {
			close(running)
		}
		<-Draining(r.Context())
		time.Sleep(200 * time.Millisecond) // until DrainWait is over
		_, _ = io.WriteString(w, "drained")
	})
	ended = make(chan error, 1)
	go func() { ended <- service.Run() }()
	select {
	case <-started:
	case err := <-ended:
		ended <- err
		return "", cancel, ended
	}
	return service.Options().Address, cancel, ended
}

// runningKey is the key of a channel that the handler of /slow closes when it runs.
type runningKey struct{}

// getBody returns the body of a page, or the text of an error.
func getBody(url string) string {
	rsp, err := http.Get(url)
	if err != nil {
		return err.Error()
	}
	defer rsp.Body.Close()
	b, _ := io.ReadAll(rsp.Body)
	return string(b)
}

func TestWebServiceDrainsRequests(t *testing.T) {
	for _, own := range []bool{false, true} { // a server of the user with a base context
		c, f, retained, released := newConfig()
		c.DrainWait = 50 * time.Millisecond
		running := make(chan struct{})
		var opts []web.Option
		if own {
			opts = append(opts, web.Server(&http.Server{ReadHeaderTimeout: time.Second, BaseContext: func(net.Listener) context.Context {
				return context.WithValue(context.Background(), runningKey{}, running)
			}}))
		}
		address, stop, ended := startWeb(t, c, append(opts, Web(c))...)
		if *retained != 1 || f.background != "page" {
			t.Errorf("the registry is retained %d times, service %q registers in the background", *retained, f.background)
		}
		answer := make(chan string, 1)
		go func() { answer <- getBody("http://" + address + "/slow") }()
		if own {
			<-running
		} else {
			time.Sleep(50 * time.Millisecond) // usually the request arrives; if not, it is answered during DrainWait
		}
		stop()
		if got := <-answer; got != "drained" {
			t.Errorf("the request in flight got %q", got)
		}
		if err := <-ended; !errors.Is(err, errRelease) || *released != 1 {
			t.Errorf("Run returned %v, the registry is released %d times", err, *released)
		}
		http.DefaultClient.CloseIdleConnections()
	}
}

func TestServerAfterLifecycleIsRefused(t *testing.T) {
	c, _, retained, _ := newConfig()
	_, stop, ended := startWeb(t, c, Web(c), web.Server(&http.Server{ReadHeaderTimeout: time.Second}))
	defer stop()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "pod.WebLifecycle must come after web.Server") || *retained != 0 {
		t.Errorf("Run returned %v", err)
	}
}

func TestLimitsOfTheUsersServerAreRefused(t *testing.T) {
	c, _, retained, _ := newConfig()
	c.Limits.Body++
	_, stop, ended := startWeb(t, c, web.Server(&http.Server{ReadHeaderTimeout: time.Second}), Web(c))
	defer stop()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "do not apply to the server of web.Server") || *retained != 0 {
		t.Errorf("Run returned %v", err)
	}
}

func TestWebServiceThatCanNeverRegisterDoesNotStart(t *testing.T) {
	c, f, retained, _ := newConfig()
	f.backgroundErr = errors.New("not in a pod")
	_, stop, ended := startWeb(t, c, Web(c))
	defer stop()
	if err := <-ended; !errors.Is(err, f.backgroundErr) || *retained != 0 {
		t.Errorf("Run returned %v, the registry is retained %d times", err, *retained)
	}
}

func TestWebServiceWithOtherRegistry(t *testing.T) {
	c, f, _, _ := newConfig()
	s := &webService{lifecycle: newLifecycle(c)}
	service := web.NewService(web.Registry(otherRegistry))
	o := service.Options()
	if err := s.setUp(&o); err != nil || !s.usesOtherRegistry || f.other != nil {
		t.Errorf("setUp returned %v, other registry: %v, registers with %v", err, s.usesOtherRegistry, f.other)
	}
}

// failingListener returns an error from Accept.
type failingListener struct{ net.Listener }

func (failingListener) Accept() (net.Conn, error) { return nil, errors.New("no more files") }

func TestErrorOfServingStopsTheService(t *testing.T) {
	c, _, _, released := newConfig()
	s := newWebService(c, &http.Server{ReadHeaderTimeout: time.Second})
	stopped := false
	s.stopService = func() { stopped = true }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.serve(failingListener{l}, http.NotFoundHandler())
	<-s.served
	if err := s.beforeStop(); !stopped || err == nil || !strings.Contains(err.Error(), "no more files") || !errors.Is(err, errRelease) || *released != 1 || s.draining() {
		t.Errorf("beforeStop returned %v, stopped %v, released %d times", err, stopped, *released)
	}
}

func TestWebServiceIsCutOffAtTheDeadline(t *testing.T) {
	c, f, _, _ := newConfig()
	c.DrainWait, f.gracePeriod = 0, stopMargin+200*time.Millisecond
	hold := make(chan struct{})
	s := newWebService(c, &http.Server{ReadHeaderTimeout: time.Second})
	running := make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.serve(l, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(running); <-hold }))
	answered := make(chan error, 1)
	go func() {
		rsp, err := http.Get("http://" + l.Addr().String())
		if err == nil {
			rsp.Body.Close()
		}
		answered <- err
	}()
	<-running
	if err := s.beforeStop(); err != nil {
		t.Error(err)
	}
	l.Close() // as go-micro does
	if err := s.afterStop(); err == nil || !strings.Contains(err.Error(), "waiting for requests in flight: cut off: the pod's grace period ends") {
		t.Errorf("afterStop returned %v", err)
	}
	close(hold)
	if err := <-answered; err == nil {
		t.Error("the request was answered")
	}
	http.DefaultClient.CloseIdleConnections()
}

// On a busy cluster kube-proxy sends requests over new connections for longer than DrainWait.
func TestWebServiceAnswersLateRequests(t *testing.T) {
	for name, test := range map[string]struct{ requestsUntil, min, max time.Duration }{
		"none":                {0, 3 * time.Second, 3 * time.Second},
		"none after 1 s":      {time.Second, 3 * time.Second, 3 * time.Second},
		"until after 7 s":     {7 * time.Second, 7900 * time.Millisecond, 8 * time.Second},
		"they never end":      {time.Minute, 12 * time.Second, 12 * time.Second},
		"short grace period":  {time.Minute, 5 * time.Second, 5 * time.Second},
		"until a second stop": {time.Minute, 4 * time.Second, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, f, _, _ := newConfig()
				if name == "short grace period" {
					f.gracePeriod = 10*time.Second + stopMargin
				}
				s := newWebService(c, nil)
				h := s.handler(http.NotFoundHandler())
				begin := time.Now()
				if name == "until a second stop" {
					time.AfterFunc(4*time.Second, func() { s.interrupt(errors.New("a second signal")) })
				}
				var callers sync.WaitGroup
				callers.Go(func() {
					for s.interrupted.Err() == nil {
						if time.Since(begin) < test.requestsUntil {
							get(h, "/")
						}
						get(h, "/readyz") // the kubelet's probes do not count
						time.Sleep(100 * time.Millisecond)
					}
				})
				s.leave()
				s.awaitQuiet()
				if took := time.Since(begin); took < test.min || took > test.max {
					t.Errorf("late requests are awaited for %s, want %s to %s", took, test.min, test.max)
				}
				_ = s.end()
				callers.Wait()
			})
		})
	}
}

// A user's function of BeforeStop may close what handlers need, and its error ends go-micro's stop.
func TestUsersBeforeStopRunsAfterTheRequests(t *testing.T) {
	for name, before := range map[string]bool{"before WebLifecycle": true, "after WebLifecycle": false} {
		t.Run(name, func(t *testing.T) {
			c, _, _, _ := newConfig()
			c.DrainWait = 50 * time.Millisecond
			running := make(chan struct{})
			opts := []web.Option{web.Server(&http.Server{ReadHeaderTimeout: time.Second, BaseContext: func(net.Listener) context.Context {
				return context.WithValue(context.Background(), runningKey{}, running)
			}})}
			answer := make(chan string, 1)
			called := false
			user := web.BeforeStop(func() error {
				called = true
				select {
				case got := <-answer:
					answer <- got
				case <-time.After(10 * time.Second):
					t.Error("the user's function is called before the request in flight is answered")
				}
				return nil
			})
			if before {
				opts = append(opts, user, Web(c))
			} else {
				opts = append(opts, Web(c), user)
			}
			address, stop, ended := startWeb(t, c, opts...)
			go func() { answer <- getBody("http://" + address + "/slow") }()
			<-running
			stop()
			if err := <-ended; !errors.Is(err, errRelease) || !called {
				t.Errorf("Run returned %v, the user's function was called: %v", err, called)
			}
			if got := <-answer; got != "drained" {
				t.Errorf("the request in flight got %q", got)
			}
			http.DefaultClient.CloseIdleConnections()
		})
	}
}

// web.Service.Init(web.Server(…)) replaces the server that WebLifecycle knows.
func TestServerOfWebServiceInitIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, _, _ := newConfig()
		err := newWebService(c, nil).awaitServing()
		if err == nil || !strings.Contains(err.Error(), "give web.Server to web.NewService, before pod.WebLifecycle, not to service.Init") {
			t.Errorf("the error is %v", err)
		}
	})
}

// Load balancers keep idle connections for up to 600 s and send the next request on them.
func TestIdleConnectionIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, _, _ := newConfig()
		o := web.Options{Context: t.Context()}
		Web(c)(&o)
		l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		l.close = sync.OnceFunc(func() { close(l.closed) })
		o.Server.Handler = http.NotFoundHandler()
		serving := make(chan error)
		go func() { serving <- o.Server.Serve(l) }()
		if err := o.AfterStart[0](); err != nil {
			t.Fatal(err)
		}
		client, conn := net.Pipe()
		l.conns <- conn
		answers := bufio.NewReader(client)
		for _, idle := range []time.Duration{0, 610 * time.Second} {
			time.Sleep(idle)
			if _, err := io.WriteString(client, "GET /healthz HTTP/1.1\r\nHost: page\r\n\r\n"); err != nil {
				t.Fatalf("after %s: %v", idle, err)
			}
			rsp, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatalf("after %s: %v", idle, err)
			}
			if body, err := io.ReadAll(rsp.Body); err != nil || string(body) != "ok\n" {
				t.Errorf("after %s the answer is %q, %v", idle, body, err)
			}
		}
		time.Sleep(630 * time.Second)
		if _, err := answers.ReadByte(); err == nil {
			t.Error("the connection is still open after 630 s")
		}
		client.Close()
		if err := o.BeforeStop[0](); err != nil {
			t.Error(err)
		}
		l.Close() // as go-micro does
		if err := <-serving; !errors.Is(err, net.ErrClosed) {
			t.Errorf("serving ended with %v", err)
		}
		_ = o.AfterStop[0]()
	})
}

// pipeListener accepts the connections that a test makes.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { l.close(); return nil }

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }
