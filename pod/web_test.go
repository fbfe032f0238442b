package pod

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/auth"
	"github.com/micro/go-micro/v2/web"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

func startWeb(t *testing.T, env apiserver.Environment, wait time.Duration, opts ...web.Option) *testService {
	return startWebOn(t, newRegistry(env, kubernetes.NewRegistry), wait, opts...)
}

func startWebOn(t *testing.T, registry *Registry, wait time.Duration, opts ...web.Option) *testService {
	svc, ctx := newTestServiceOn(t, registry)
	started := make(chan struct{})
	service := web.NewService(append([]web.Option{
		web.Name("page"), web.HandleSignal(false), web.Context(ctx), web.Address("127.0.0.1:0"),
		web.MicroService(micro.NewService(micro.Auth(auth.NewAuth()))), // not the default service, because web.Service.Run changes the service's options
		web.Registry(svc.registry), web.RegisterInterval(50 * time.Millisecond),
		WebLifecycle(svc.registry, DrainWait(wait)),
		web.AfterStart(func() error { close(started); return nil }),
	}, opts...)...)
	service.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		if r.URL.Path == "/panic" {
			panic("only for the log")
		}
		_, _ = io.WriteString(w, "first half, ")
		switch r.URL.Path {
		case "/slow":
			w.(http.Flusher).Flush()
			svc.slow()
		case "/endless":
			w.(http.Flusher).Flush()
			<-Draining(r.Context())
		}
		_, _ = io.WriteString(w, "second half")
	})
	svc.start(service.Run, started)
	svc.address = service.Options().Address
	return svc
}

// getPage gets a path of a web service and returns the status and the body.
func getPage(c *http.Client, address, path string) (string, error) {
	rsp, err := c.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer rsp.Body.Close()
	body, err := io.ReadAll(rsp.Body)
	return fmt.Sprintf("%d %s", rsp.StatusCode, body), err
}

// newHTTPClient returns a client that opens a connection for each request.
func newHTTPClient(t *testing.T) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
}

func TestWebServiceWithoutPermissionRunsAndShowsReason(t *testing.T) {
	n := kubetest.NewNamespace(t, "list", "watch")
	n.CreateReadyPod("a")
	svc := startWeb(t, n.Environment("a"), 0)
	c := newHTTPClient(t)
	get := func(path string) func() string {
		return func() string { body, err := getPage(c, svc.address, path); return fmt.Sprint(body, err) }
	}
	kubetest.Eventually(t, 10*time.Second, "the reason on /readyz", func() error {
		got := get("/readyz")()
		if !strings.HasPrefix(got, "503 not registered: patch pod") || !strings.Contains(got, "k8s/pod-rbac.yaml grants it") {
			return errors.New(got)
		}
		return nil
	})
	if got := get("/healthz")(); got != "200 ok\n<nil>" {
		t.Errorf("/healthz answers %s", got)
	}
	n.GrantVerb("patch")
	kubetest.Eventually(t, 15*time.Second, "ready", equals(get("/readyz"), "200 ok\n<nil>"))
	if got := get("/")(); got != "200 first half, second half<nil>" {
		t.Errorf("/ answers %s", got)
	}
	if a := n.GetPod("a").Annotations[podmeta.AnnotationPrefix+"page"]; a == "" || strings.Contains(a, "readyz") {
		t.Errorf("the annotation advertises %s", a)
	}
}

func TestDrainEndsEndlessResponse(t *testing.T) {
	if Draining(context.Background()) != nil {
		t.Error("Draining of a context without a request is not nil")
	}
	n := kubetest.NewNamespace(t)
	n.CreateReadyPod("a")
	const wait = 3 * time.Second
	svc := startWeb(t, n.Environment("a"), wait)
	rsp, err := newHTTPClient(t).Get("http://" + svc.address + "/endless")
	if err != nil {
		t.Fatal(err)
	}
	defer rsp.Body.Close()
	begin := time.Now()
	svc.stop()
	if body, err := io.ReadAll(rsp.Body); err != nil || string(body) != "first half, second half" || time.Since(begin) > wait-time.Second {
		t.Errorf("the response ends after %s with %q, %v", time.Since(begin), body, err)
	}
	if err, took := svc.waitForRun(10 * time.Second); err != nil || took > 2*wait {
		t.Errorf("Run returned %v after %s", err, took)
	}
}

func TestDrainClosesKeepAliveConnections(t *testing.T) {
	n := kubetest.NewNamespace(t)
	n.CreateReadyPod("a")
	svc := startWeb(t, n.Environment("a"), 4*time.Second)
	conn, err := net.Dial("tcp", svc.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	ask := func() *http.Response {
		t.Helper()
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		rsp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, rsp.Body)
		return rsp
	}
	if rsp := ask(); rsp.Close {
		t.Error("Connection: close before the stop")
	}
	svc.stop()
	kubetest.Eventually(t, 3*time.Second, "not ready", func() error {
		if got, err := getPage(newHTTPClient(t), svc.address, "/readyz"); got != "503 shutting down\n" {
			return fmt.Errorf("%q, %v", got, err)
		}
		return nil
	})
	if rsp := ask(); rsp.StatusCode != http.StatusOK || !rsp.Close {
		t.Errorf("status %d, Connection: close %v", rsp.StatusCode, rsp.Close)
	}
}

func TestRunReturnsErrorOfServing(t *testing.T) {
	n := kubetest.NewNamespace(t)
	n.CreateReadyPod("a")
	svc := startWeb(t, n.Environment("a"), 0, func(o *web.Options) { // closes the listener before the server uses it
		serve := o.Server.BaseContext
		o.Server.BaseContext = func(l net.Listener) context.Context {
			l.Close()
			return serve(l)
		}
	})
	if err, _ := svc.waitForRun(10 * time.Second); err == nil || !strings.Contains(err.Error(), "serving on 127.0.0.1:") || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run returned %v", err)
	}
}

func TestWebServiceLimitsRequests(t *testing.T) {
	n := kubetest.NewNamespace(t)
	n.CreateReadyPod("a")
	svc := startWeb(t, n.Environment("a"), 0)
	for _, c := range []struct {
		name, head string
		body       int
		want       int // status; 0: the connection is closed without a response
	}{
		{"a header of 32 KiB", "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 32<<10) + "\r\n\r\n", 0, http.StatusRequestHeaderFieldsTooLarge},
		{"a body of 1 MiB", "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1048576\r\n\r\n", 1 << 20, http.StatusOK},
		{"a body of more than 1 MiB", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n", 0, http.StatusRequestEntityTooLarge},
		{"a body of undeclared length", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n200000\r\n", 1<<20 + 1, http.StatusRequestEntityTooLarge},
		{"a header without an end", "GET / HTTP/1.1\r\nHost: x\r\n", 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", svc.address)
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
					t.Errorf("after %s: %v, want a closed connection after 5 s", time.Since(begin), err)
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
				t.Error("the connection stays open")
			}
		})
	}
	if got, err := getPage(newHTTPClient(t), svc.address, "/"); err != nil || got != "200 first half, second half" {
		t.Errorf("afterwards: %q, %v", got, err)
	}
}
