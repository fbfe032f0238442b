package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
)

// server is an API server without a network, so that tests with it run in a bubble of synctest.
type server struct {
	mu       sync.Mutex
	version  int  // of the list
	oldest   int  // the watch cache has the versions from here on
	code     int  // with which it refuses all requests; 0 for none
	unlisted bool // it refuses LISTs, but no watches
	down     bool // it does not listen
	silent   bool // it sends no bookmarks
	requests []string
	watches  []*io.PipeWriter
}

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := r.URL.Query()
	request := "LIST"
	switch {
	case q.Get("watch") != "":
		request = "WATCH " + q.Get("resourceVersion")
	case q.Get("limit") == "1":
		request = "CHECK"
	}
	s.requests = append(s.requests, request)
	answer := func(code int, body io.ReadCloser) (*http.Response, error) {
		return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: body, Request: r}, nil
	}
	whole := func(code int, object any) (*http.Response, error) {
		b, _ := json.Marshal(object)
		return answer(code, io.NopCloser(bytes.NewReader(b)))
	}
	var from int
	_, _ = fmt.Sscan(q.Get("resourceVersion"), &from)
	switch {
	case s.down:
		return nil, &url.Error{Op: "Get", URL: r.URL.String(), Err: &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}}
	case s.code != 0:
		return whole(s.code, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(s.code)})
	case q.Get("watch") == "" && s.unlisted:
		return whole(http.StatusForbidden, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: http.StatusForbidden})
	case q.Get("watch") == "":
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: fmt.Sprint(s.version)}}
		return whole(http.StatusOK, list)
	case from < s.oldest:
		return whole(http.StatusOK, map[string]any{"type": "ERROR", "object": metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonExpired, Code: http.StatusGone}})
	}
	body, w := io.Pipe()
	s.watches = append(s.watches, w)
	var seconds int
	_, _ = fmt.Sscan(q.Get("timeoutSeconds"), &seconds)
	end := time.AfterFunc(time.Duration(seconds)*time.Second, func() { w.Close() })
	context.AfterFunc(r.Context(), func() { end.Stop(); w.CloseWithError(r.Context().Err()) })
	return answer(http.StatusOK, body)
}

// event sends an event to all watches and raises the version, unless a bookmark has another one.
func (s *server) event(kind string, version int) {
	s.mu.Lock()
	watches := slices.Clone(s.watches)
	if kind != "BOOKMARK" {
		s.version = version
	}
	s.mu.Unlock()
	for _, w := range watches {
		fmt.Fprintf(w, `{"type":%q,"object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","resourceVersion":"%d"}}}`+"\n", kind, version)
	}
	synctest.Wait()
}

// bookmarks sends a bookmark a minute, as the API server does.
func (s *server) bookmarks(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Minute):
		}
		s.mu.Lock()
		silent, version := s.silent, s.version
		s.mu.Unlock()
		if !silent {
			s.event("BOOKMARK", version)
		}
	}
}

// breakWatches ends all watches with an error.
func (s *server) breakWatches(err error) {
	s.mu.Lock()
	watches := s.watches
	s.watches = nil
	s.mu.Unlock()
	for _, w := range watches {
		w.CloseWithError(err)
	}
}

func (s *server) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// take returns the requests since the last call, without what repeats the one before.
func (s *server) take() string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	all := strings.Join(slices.Compact(s.requests), ", ")
	s.requests = nil
	return all
}

// told is a handler that counts the results of LISTs and records errors.
type told struct {
	replaced int
	errs     []string
}

func (h *told) Replace([]*corev1.Pod) { h.replaced++ }
func (h *told) Update(*corev1.Pod)    {}
func (h *told) Delete(*corev1.Pod)    {}
func (h *told) StateChanged(err error) {
	h.errs = append(h.errs, fmt.Sprint(err))
}

// resume runs a test with a list and watch of a server, which has version 100 and whose watch works.
func resume(t *testing.T, f func(t *testing.T, s *server, h *told)) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &server{version: 100}, &told{}
		c := &Connection{Host: "https://api", Namespace: "test"}
		var err error
		config := &rest.Config{Host: c.Host, Transport: s, APIPath: "/api", RateLimiter: flowcontrol.NewFakeAlwaysRateLimiter(),
			WrapTransport: func(base http.RoundTripper) http.RoundTripper { return &clientGoTransport{base, &c.retryAt} },
			ContentConfig: rest.ContentConfig{GroupVersion: &corev1.SchemeGroupVersion, NegotiatedSerializer: codecs.WithoutConversion()}}
		if c.client, err = rest.RESTClientFor(config); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var ended sync.WaitGroup
		ended.Go(func() {
			c.ListWatchPods(ctx, Selector{Labels: "a=b"}, func(p *corev1.Pod) *corev1.Pod { return p }, h)
		})
		ended.Go(func() { s.bookmarks(ctx) })
		time.Sleep(10 * time.Second)
		if got := s.take(); got != "LIST, WATCH 100" || h.replaced != 1 {
			t.Fatalf("the requests are %q, with %d LISTs", got, h.replaced)
		}
		f(t, s, h)
		cancel()
		ended.Wait()
	})
}

func TestWatchResumesFromItsLastVersion(t *testing.T) {
	for name, broken := range map[string]error{"the connection is lost": io.ErrUnexpectedEOF, "the server closes it": io.EOF, "HTTP/2 is broken": fmt.Errorf("http2: client connection lost")} {
		t.Run(name, func(t *testing.T) {
			resume(t, func(t *testing.T, s *server, h *told) {
				s.set(func() { s.down, s.version = true, 105 })
				s.breakWatches(broken) // the API server restarts
				time.Sleep(time.Minute)
				s.set(func() { s.down = false })
				time.Sleep(10 * time.Second)
				if got := s.take(); got != "WATCH 100, CHECK" || h.replaced != 1 {
					t.Errorf("the requests are %q, with %d LISTs, want the watch to continue from version 100", got, h.replaced)
				}
				if len(h.errs) != 2 || !strings.Contains(h.errs[0], "refused") || h.errs[1] != "<nil>" {
					t.Errorf("the handler was told %q", h.errs)
				}
				s.event("MODIFIED", 107)
				s.breakWatches(broken)
				time.Sleep(10 * time.Second)
				if got := s.take(); got != "WATCH 107, CHECK" || h.replaced != 1 {
					t.Errorf("after an event the requests are %q, with %d LISTs", got, h.replaced)
				}
				s.set(func() { s.oldest, s.version = 300, 400 })
				s.breakWatches(broken)
				time.Sleep(10 * time.Second)
				if got := s.take(); got != "WATCH 107, LIST, WATCH 400" || h.replaced != 2 {
					t.Errorf("after the version has expired the requests are %q, with %d LISTs", got, h.replaced)
				}
				if len(h.errs) != 2 {
					t.Errorf("the handler was told %q", h.errs)
				}
			})
		})
	}
}

// After etcd was restored from a backup, the API server sends nothing to a watch from a version that lies
// in its future.
func TestRestoredBackupIsNoticed(t *testing.T) {
	for name, c := range map[string]struct {
		restore func(s *server)
		within  time.Duration
	}{
		"with a restart of the API server": {func(s *server) {
			s.version = 50
			go s.breakWatches(io.ErrUnexpectedEOF)
		}, 2 * time.Second},
		"bookmarks go back": {func(s *server) { s.version = 50 }, 2 * time.Minute},
		"no bookmarks come": {func(s *server) { s.version, s.silent = 50, true }, 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			resume(t, func(t *testing.T, s *server, h *told) {
				for range 30 {
					time.Sleep(time.Minute)
					s.set(func() { s.version++ })
				}
				if got := s.take(); h.replaced != 1 {
					t.Fatalf("%d LISTs in half an hour: %q", h.replaced, got)
				}
				s.set(func() { c.restore(s) })
				time.Sleep(c.within + time.Second)
				if got := s.take(); h.replaced != 2 || !strings.HasSuffix(got, "LIST, WATCH 50") {
					t.Errorf("after %s: %d LISTs, the requests are %q", c.within, h.replaced, got)
				}
				if len(h.errs) != 0 {
					t.Errorf("the handler was told %q", h.errs)
				}
			})
		})
	}
}

// A watch whose version cannot be checked may miss changes, so that the handler must know of it.
func TestCheckThatFailsIsReported(t *testing.T) {
	resume(t, func(t *testing.T, s *server, h *told) {
		s.set(func() { s.unlisted = true })
		s.breakWatches(io.ErrUnexpectedEOF)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		s.mu.Lock()
		requests := len(s.requests)
		s.mu.Unlock()
		if len(h.errs) != 1 || !strings.Contains(h.errs[0], "list pods") || requests > 100 {
			t.Errorf("after %d requests the handler was told %q", requests, h.errs)
		}
		s.set(func() { s.unlisted = false })
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(h.errs) != 2 || h.errs[1] != "<nil>" {
			t.Errorf("the handler was told %q", h.errs)
		}
	})
}

// The API server sends no bookmark as long as nothing is written to etcd, or, without etcd's progress
// notifications, as long as no pod changes.
func TestIdleEtcdCostsNoLIST(t *testing.T) {
	resume(t, func(t *testing.T, s *server, h *told) {
		s.set(func() { s.silent = true })
		for range 60 {
			time.Sleep(time.Minute)
			s.set(func() { s.version++ })
		}
		if got := strings.Count(s.take(), "CHECK"); h.replaced != 1 || got > 30 {
			t.Errorf("%d LISTs and %d checks in an hour", h.replaced, got)
		}
	})
}

func TestDelayDependsOnTheKindOfError(t *testing.T) {
	for code, limits := range map[int][2]int{http.StatusForbidden: {15, 50}, http.StatusUnauthorized: {15, 50}, http.StatusServiceUnavailable: {600, 1300}, http.StatusTooManyRequests: {600, 1300}} {
		resume(t, func(t *testing.T, s *server, h *told) {
			s.set(func() { s.code = code })
			s.breakWatches(io.EOF)
			time.Sleep(10 * time.Minute)
			s.mu.Lock()
			n := len(s.requests)
			s.mu.Unlock()
			if n < limits[0] || n > limits[1] {
				t.Errorf("%d: %d requests in 10 minutes, want %d to %d", code, n, limits[0], limits[1])
			}
			s.set(func() { s.code = 0 })
			time.Sleep(32 * time.Second)
			synctest.Wait()
			if n := len(h.errs); n > 3 || h.errs[n-1] != "<nil>" {
				t.Errorf("%d: after 30 s the handler was told %q", code, h.errs)
			}
		})
	}
}
