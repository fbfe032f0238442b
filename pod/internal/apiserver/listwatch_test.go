package apiserver_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ignoreAll is a handler that ignores everything.
type ignoreAll struct{}

func (ignoreAll) Replace([]*corev1.Pod) {}
func (ignoreAll) Update(*corev1.Pod)    {}
func (ignoreAll) Delete(*corev1.Pod)    {}
func (ignoreAll) StateChanged(error)    {}

// listWatch calls ListWatchPods in a goroutine. stop ends the goroutine and waits for it.
func listWatch(t *testing.T, env apiserver.Environment, h apiserver.Handler[*corev1.Pod]) (stop func()) {
	t.Helper()
	c, err := apiserver.Connect(env, apiserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.ListWatchPods(ctx, apiserver.Selector{}, func(p *corev1.Pod) *corev1.Pod { return p }, h)
	}()
	return func() {
		cancel()
		<-ended
		c.Close()
	}
}

const emptyList = `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}`

func TestListWatchBacksOffWhenWatchesEndAtOnce(t *testing.T) {
	for name, event := range map[string]string{
		"without an event": "",
		"after one event":  `{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","resourceVersion":"2"}}}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int64
			_, env := kubetest.StartFake(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				w.Header().Set("Content-Type", "application/json")
				if r.URL.Query().Get("watch") != "" {
					fmt.Fprint(w, event)
				} else {
					fmt.Fprint(w, emptyList)
				}
			}))
			stop := listWatch(t, env, ignoreAll{})
			time.Sleep(5 * time.Second)
			stop()
			// Delays are 0.1, 0.2, 0.4, 0.8 and then 1 s, less up to a half: at most 12 LIST and 12 WATCH requests.
			if n := requests.Load(); n < 4 || n > 24 {
				t.Errorf("%d requests in 5 s, want between 4 and 24", n)
			}
		})
	}
}

func TestRetryAfterDoesNotHoldUpCalls(t *testing.T) {
	_, env := kubetest.StartFake(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "32") // as API Priority and Fairness does
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	c, err := apiserver.Connect(env, apiserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begin := time.Now()
	if _, err := c.PatchPod(t.Context(), []byte("{}")); err == nil || time.Since(begin) > 10*time.Second {
		t.Errorf("PatchPod: %v after %s, want the API server's refusal at once", err, time.Since(begin))
	}
	stop := listWatch(t, env, ignoreAll{})
	time.Sleep(200 * time.Millisecond)
	begin = time.Now()
	if stop(); time.Since(begin) > 10*time.Second {
		t.Errorf("stopping took %s", time.Since(begin))
	}
}

// A sidecar that starts resets connections. client-go repeats a GET ten times within the call then, and logs nothing.
func TestResetConnectionFailsAtOnce(t *testing.T) {
	address := kubetest.Accept(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1))    // the client has begun its TLS handshake
		_ = c.(*net.TCPConn).SetLinger(0) // so that Close resets the connection
		c.Close()
	})
	_, env := kubetest.StartFake(t, http.NotFoundHandler()) // for the account's files
	host, port, _ := net.SplitHostPort(address)
	env = kubetest.With(kubetest.With(env, "KUBERNETES_SERVICE_HOST", host), "KUBERNETES_SERVICE_PORT", port)
	c, err := apiserver.Connect(env, apiserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begin := time.Now()
	if _, err := c.GetConfigMap(t.Context(), "config"); !errors.Is(err, syscall.ECONNRESET) || !apiserver.Unreachable(err) || time.Since(begin) > time.Second {
		t.Errorf("GetConfigMap: %v after %s, want the reset at once", err, time.Since(begin))
	}
}

// log is a handler that records what it is told, in one line each.
type log[T metav1.Object] struct{ lines chan string }

func (l log[T]) Replace(objects []T) { l.lines <- fmt.Sprint("replace ", len(objects)) }
func (l log[T]) Update(object T)     { l.lines <- "update " + object.GetName() }
func (l log[T]) Delete(object T)     { l.lines <- "delete " + object.GetName() }
func (l log[T]) StateChanged(err error) {
	if err != nil {
		l.lines <- "error " + err.Error()
		return
	}
	l.lines <- "no error"
}

// expect reads the next lines. Each begins with one of the wanted texts.
func (l log[T]) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-l.lines:
			if !strings.HasPrefix(got, w) {
				t.Fatalf("the handler received %q, want %q", got, w)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("the handler did not receive %q", w)
		}
	}
}

// The handler hears of an error once, however many attempts fail with it, and of the end of the errors when a watch has
// lasted for a second. The events of the watch follow the list.
func TestListWatchReportsChangesOnly(t *testing.T) {
	var phase, attempts atomic.Int64 // phases: 0 fails, 1 fails with another error, 2 works but the watch is refused, 3 works
	_, env := kubetest.StartFake(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		attempts.Add(1)
		w.Header().Set("Content-Type", "application/json")
		watching := r.URL.Query().Get("watch") != ""
		switch p := phase.Load(); {
		case p < 2 || p == 2 && watching:
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":%q,"code":500}`, []string{"broken", "broken in another way", "no watch"}[p])
		case !watching:
			fmt.Fprint(w, `{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"x","resourceVersion":"1"}}]}`)
		default:
			for _, event := range []string{"MODIFIED", "DELETED"} {
				fmt.Fprintf(w, `{"type":%q,"object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x","resourceVersion":"1"}}}`+"\n", event)
			}
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
		if got, want := r.URL.Query().Get("fieldSelector"), "metadata.name=x"; got != want {
			t.Errorf("%s has the field selector %q, want %q", r.URL, got, want)
		}
	}))
	c, err := apiserver.Connect(env, apiserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	h := log[*corev1.ConfigMap]{make(chan string, 100)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.ListWatchConfigMap(ctx, "x", h)
	}()
	repeated := func() { // waits until the same failure has come twice more
		t.Helper()
		for begin, n := time.Now(), attempts.Load(); attempts.Load() < n+2; time.Sleep(10 * time.Millisecond) {
			if time.Since(begin) > 20*time.Second {
				t.Fatalf("%d attempts", attempts.Load()-n)
			}
		}
	}
	h.expect(t, "error list configmaps")
	repeated()
	phase.Store(1)
	h.expect(t, "error list configmaps")
	repeated()
	phase.Store(2)
	h.expect(t, "replace 1", "error watch configmaps")
	phase.Store(3)
	for got := ""; got != "update x"; { // the lists until then
		if got = <-h.lines; got != "update x" && got != "replace 1" {
			t.Fatalf("the handler received %q", got)
		}
	}
	h.expect(t, "delete x", "no error")
	cancel()
	<-ended
	select {
	case got := <-h.lines:
		t.Errorf("after its end the handler received %q", got)
	default:
	}
}

// states is a handler that counts the states it is told.
type states struct {
	ignoreAll
	mu   sync.Mutex
	told []string
}

func (s *states) StateChanged(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, fmt.Sprint(err))
}

func (s *states) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.told)
}

// captureStderr redirects what the process writes to stderr during f, as client-go's log does.
func captureStderr(t *testing.T, f func()) string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	before := os.Stderr
	os.Stderr = file
	defer func() { os.Stderr = before; file.Close() }()
	f()
	text, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Whatever breaks an attempt, the handler hears of it once and not again for each attempt, although the errors
// hold the ports of the attempts' connections. client-go writes nothing to its own log.
func TestFailureIsReportedOnce(t *testing.T) {
	expired := `{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","message":"too old resource version","code":410}}` + "\n"
	internal := strings.ReplaceAll(strings.Replace(expired, "Expired", "InternalError", 1), "410", "500")
	tests := map[string]struct {
		list, watch string // the answers; "reset" resets the connection, and "break" breaks off the answer
		want        string
	}{
		"LIST resets":                       {"reset", "", "connection reset by peer"},
		"LIST breaks off":                   {"break", "", "unexpected EOF"},
		"WATCH resets":                      {emptyList, "reset", "connection reset by peer"},
		"WATCH is closed at once":           {emptyList, "", "ends the watch at once"},
		"WATCH has expired after each LIST": {emptyList, expired, "too old resource version"},
		"WATCH has another error":           {emptyList, internal, "too old resource version"},
		"WATCH sends nonsense":              {emptyList, "nonsense\n", "unable to decode"},
		"WATCH sends another object":        {emptyList, `{"type":"ADDED","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"}}}` + "\n", "ConfigMap"},
	}
	test := func(t *testing.T, list, watch, want string) {
		var attempts atomic.Int64
		var healthy atomic.Bool
		answer := func(w http.ResponseWriter, text string) {
			switch text {
			case "reset", "break":
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				if text == "break" {
					fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
				} else {
					_ = conn.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0)
					conn = conn.(*tls.Conn).NetConn()
				}
				conn.Close()
			default:
				fmt.Fprint(w, text)
			}
		}
		_, env := kubetest.StartFakeHTTP1(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			watching := r.URL.Query().Get("watch") != ""
			attempts.Add(1)
			switch {
			case healthy.Load() && watching:
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			case healthy.Load():
				fmt.Fprint(w, emptyList)
			case watching:
				answer(w, watch)
			default:
				answer(w, list)
			}
		}))
		h := &states{}
		stop := listWatch(t, env, h)
		defer stop()
		kubetest.Eventually(t, 20*time.Second, "eight requests", func() error {
			if n := attempts.Load(); n < 8 {
				return fmt.Errorf("%d requests", n)
			}
			return nil
		})
		if told := h.all(); len(told) != 1 || !strings.Contains(told[0], want) {
			t.Errorf("the handler was told %q, want one error with %q", told, want)
		}
		healthy.Store(true)
		kubetest.Eventually(t, 20*time.Second, "a watch that works", func() error {
			if told := h.all(); len(told) < 2 || told[len(told)-1] != "<nil>" {
				return fmt.Errorf("the handler was told %q", told)
			}
			return nil
		})
		if told := h.all(); len(told) != 2 {
			t.Errorf("the handler was told %q", told)
		}
	}
	stderr := captureStderr(t, func() {
		t.Run("when", func(t *testing.T) { // ends when its parallel tests have ended
			for name, tt := range tests {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					test(t, tt.list, tt.watch, tt.want)
				})
			}
		})
	})
	for line := range strings.Lines(stderr) {
		if !strings.Contains(line, "TLS handshake error") { // of the fake API server
			t.Errorf("on stderr is %q", line)
		}
	}
}
