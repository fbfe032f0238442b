package portforward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/test/process"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// echo sends back what it receives.
func echo(c net.Conn) {
	defer c.Close()
	_, _ = io.Copy(c, c)
}

// newPath returns a path through a fake API server with a pod "a".
func newPath(t *testing.T, cluster ...string) (*Path, *kubetest.PortForwards) {
	t.Helper()
	process.CheckNoLeak(t)
	f := kubetest.StartPortForwards(t)
	f.Put("a", kubetest.Accept(t, echo))
	p, err := New(f.Connect(t, cluster...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, f
}

func dial(t *testing.T, p *Path) net.Conn {
	t.Helper()
	c, err := p.DialContext(t.Context(), "a", "10.0.0.1:9100")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// expectEcho sends text and expects it back.
func expectEcho(t *testing.T, c net.Conn, text string) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, text)
		sent <- err
	}()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil || !bytes.Equal(got, []byte(text)) {
		t.Errorf("sent %d bytes: %v, equal %v", len(text), err, bytes.Equal(got, []byte(text)))
	}
}

func only(protocol string) func(*http.Request) kubetest.Refusal {
	return func(r *http.Request) kubetest.Refusal {
		if r.URL.Path != "/livez" && (r.Header.Get("Upgrade") == "websocket") != (protocol == kubetest.WebSocket) {
			return kubetest.Refusal{Code: http.StatusForbidden, Body: "the proxy forbids it"}
		}
		return kubetest.Refusal{}
	}
}

func TestBothProtocolsCarryData(t *testing.T) {
	for _, protocol := range []string{kubetest.WebSocket, kubetest.SPDY} {
		t.Run(protocol, func(t *testing.T) {
			p, f := newPath(t)
			f.Refuse(only(protocol))
			for range 2 {
				c := dial(t, p)
				for _, size := range []int{1, 100, maxPayload, 3*maxPayload + 7, 1 << 20} {
					expectEcho(t, c, strings.Repeat("x", size))
				}
				if got := c.RemoteAddr().String(); got != "10.0.0.1:9100" {
					t.Errorf("the remote address is %q", got)
				}
				if err := errors.Join(c.Close(), c.Close()); err != nil {
					t.Error(err)
				}
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Read after Close: %v", err)
				}
			}
			if n := f.Opened(protocol); n != 2 {
				t.Errorf("%d port-forwards over %s, want 2", n, protocol)
			}
			kubetest.Eventually(t, 10*time.Second, "the port-forwards are closed", func() error {
				if n := f.Open(); n != 0 {
					return fmt.Errorf("%d are open", n)
				}
				return nil
			})
		})
	}
}

// Once the server has refused WebSocket and accepted SPDY, the path no longer asks for WebSocket.
func TestSPDYIsRememberedWhereWebSocketIsRefused(t *testing.T) {
	p, f := newPath(t)
	var asked atomic.Int32
	f.Refuse(func(r *http.Request) kubetest.Refusal {
		if r.Header.Get("Upgrade") != "websocket" {
			return kubetest.Refusal{}
		}
		asked.Add(1)
		return kubetest.Refusal{Code: http.StatusBadRequest, Body: "unable to upgrade"}
	})
	for range 3 {
		expectEcho(t, dial(t, p), "x")
	}
	if n := asked.Load(); n != 1 || f.Opened(kubetest.SPDY) != 3 {
		t.Errorf("asked for WebSocket %d times, want 1; %d port-forwards over SPDY", n, f.Opened(kubetest.SPDY))
	}
	f.Refuse(only(kubetest.WebSocket))
	expectEcho(t, dial(t, p), "x")
	if f.Opened(kubetest.WebSocket) != 1 {
		t.Error("the path does not return to WebSocket")
	}
}

func forbidden(verb string) string {
	return fmt.Sprintf(`{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden",
		"message": "pods \"a\" is forbidden: User \"dev\" cannot %s resource \"pods/portforward\" in API group \"\" in the namespace \"test\""}`, verb)
}

func TestErrorsSayWhoseFaultAndWhatToDo(t *testing.T) {
	byVerb := func(r *http.Request) kubetest.Refusal {
		if r.Method == http.MethodPost {
			return kubetest.Refusal{Code: http.StatusForbidden, Body: forbidden("create")}
		}
		return kubetest.Refusal{Code: http.StatusForbidden, Body: forbidden("get")}
	}
	answer := func(code int, body string) func(*http.Request) kubetest.Refusal {
		return func(*http.Request) kubetest.Refusal { return kubetest.Refusal{Code: code, Body: body} }
	}
	for name, c := range map[string]struct {
		refuse func(*http.Request) kubetest.Refusal
		isPath bool
		want   []string
	}{
		"no right":        {byVerb, true, []string{`cannot create resource "pods/portforward"`, `the user of the kubeconfig lacks the verb "create" on pods/portforward (k8s/components/laptop/laptop-rbac.yaml grants it)`}},
		"no right to get": {answer(http.StatusForbidden, forbidden("get")), true, []string{`lacks the verb "get" on pods/portforward`, "laptop-rbac.yaml"}},
		"no login": {answer(http.StatusUnauthorized, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 401, "reason": "Unauthorized", "message": "Unauthorized"}`),
			true, []string{"log in again"}},
		"overloaded":                         {answer(http.StatusTooManyRequests, "slow down"), true, []string{"429", "slow down"}},
		"a load balancer without API server": {answer(http.StatusServiceUnavailable, "<html>no backend</html>"), true, []string{"503", "no backend"}},
		"the kubelet is away": {answer(http.StatusInternalServerError, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "message": "error dialing backend: dial tcp 10.0.0.9:10250: connect: connection refused"}`),
			false, []string{"error dialing backend"}},
		"a redirect": {func(*http.Request) kubetest.Refusal {
			return kubetest.Refusal{Code: http.StatusFound, Body: "elsewhere"}
		}, true, []string{"302"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, f := newPath(t)
			f.Refuse(c.refuse)
			_, err := p.DialContext(t.Context(), "a", "10.0.0.1:9100")
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range append(c.want, `port-forward to pod "a"`) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v: want %q", err, want)
				}
			}
			if isPath := strings.HasPrefix(err.Error(), ofPath+f.URL); isPath != c.isPath || (p.Trouble() != nil) != c.isPath {
				t.Errorf("%v: the fault of the path: %v, want %v; trouble: %v", err, isPath, c.isPath, p.Trouble())
			}
			f.Refuse(nil)
			expectEcho(t, dial(t, p), "x")
			if p.Trouble() != nil {
				t.Errorf("after a success: %v", p.Trouble())
			}
		})
	}
}

func TestPodThatIsGoneOrRefusesIsThePodsFault(t *testing.T) {
	p, f := newPath(t)
	f.Put("a", "")
	if _, err := p.DialContext(t.Context(), "a", "10.0.0.1:9100"); err == nil || !strings.HasPrefix(err.Error(), ofPod) || !strings.Contains(err.Error(), `pods "a" not found`) {
		t.Errorf("a pod that is gone: %v", err)
	}
	f.Put("a", "127.0.0.1:1")
	_, err := dial(t, p).Read(make([]byte, 1))
	if err == nil || !strings.HasPrefix(err.Error(), ofPod+`"a", port 9100: error forwarding port 9100 `) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a port that refuses: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f.Put("a", l.Addr().String())
	c := dial(t, p)
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(accepted, "last words")
	accepted.Close()
	if text, err := io.ReadAll(c); string(text) != "last words" || err != nil {
		t.Errorf("a connection that the pod closes: %q, %v", text, err)
	}
	if p.Trouble() != nil {
		t.Errorf("trouble: %v", p.Trouble())
	}
}

func TestBrokenTunnelIsThePathsFault(t *testing.T) {
	for _, protocol := range []string{kubetest.WebSocket, kubetest.SPDY} {
		t.Run(protocol, func(t *testing.T) {
			p, f := newPath(t)
			f.Refuse(only(protocol))
			c := dial(t, p)
			expectEcho(t, c, "x")
			f.Cut()
			if _, err := c.Read(make([]byte, 1)); err == nil || !strings.HasPrefix(err.Error(), ofPath+f.URL) {
				t.Errorf("Read: %v", err)
			}
			kubetest.Eventually(t, 10*time.Second, "Write fails", func() error {
				if _, err := c.Write([]byte("x")); err == nil || !strings.HasPrefix(err.Error(), ofPath+f.URL) {
					return fmt.Errorf("Write: %v", err)
				}
				return nil
			})
		})
	}
}

func TestAPIServerThatIsAway(t *testing.T) {
	p, f := newPath(t)
	f.Listener.Close()
	if _, err := p.DialContext(t.Context(), "a", "10.0.0.1:9100"); err == nil || !strings.HasPrefix(err.Error(), ofPath+f.URL) || !strings.Contains(err.Error(), "is the API server at "+f.URL+" up?") {
		t.Errorf("an API server that is down: %v", err)
	}
	if p.Trouble() == nil {
		t.Error("the path has no trouble")
	}
}

// A frozen API server causes one check. The path has no trouble while the server is only slow, and none afterwards.
func TestFrozenAPIServerIsNoticed(t *testing.T) {
	p, f := newPath(t)
	c := dial(t, p)
	expectEcho(t, c, "x")
	if f.Checks() != 0 {
		t.Errorf("%d checks of a server that answers", f.Checks())
	}
	f.Freeze()
	begin := time.Now() // before the write: the silence counts from then on
	if _, err := io.WriteString(c, "y"); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 10*time.Second, "the path has trouble", func() error {
		if p.Trouble() == nil {
			return errors.New("no trouble")
		}
		return nil
	})
	if took := time.Since(begin); took < maxSilence || !strings.Contains(p.Trouble().Error(), "no sign of life") || !strings.HasPrefix(p.Trouble().Error(), ofPath+f.URL) {
		t.Errorf("after %s: %v", took, p.Trouble())
	}
	f.Thaw()
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	kubetest.Eventually(t, 10*time.Second, "the path has no trouble", func() error { return p.Trouble() })
}

// A pod that does not answer causes checks, which the API server answers: the pod is to blame.
func TestFrozenPodIsNoTroubleOfThePath(t *testing.T) {
	p, f := newPath(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f.Put("a", l.Addr().String())
	c := dial(t, p)
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 10*time.Second, "the path asks for a sign of life", func() error {
		if p.Trouble() != nil {
			t.Fatal(p.Trouble())
		}
		if f.Checks() < 2 {
			return fmt.Errorf("%d checks", f.Checks())
		}
		return nil
	})
	if p.Trouble() != nil {
		t.Error(p.Trouble())
	}
}

func TestCredentialsRotate(t *testing.T) {
	p, f := newPath(t)
	dial(t, p)
	if err := os.WriteFile(os.Getenv("KUBECONFIG")+".token", []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	dial(t, p)
	if !f.SawToken("first") || !f.SawToken("second") {
		t.Errorf("the first token was sent %v, the second %v", f.SawToken("first"), f.SawToken("second"))
	}
}

// A credential plugin gives each connection the token and the client certificate of its last run.
func TestPluginOfTheKubeconfig(t *testing.T) {
	process.CheckNoLeak(t)
	f := kubetest.StartPortForwards(t)
	f.Put("a", kubetest.Accept(t, echo))
	path := f.Kubeconfig(t)
	login := func(name string) {
		t.Helper()
		pair := kubetest.ClientCertificate(t, name)
		answer := fmt.Sprintf(`{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": %q, "clientCertificateData": %q, "clientKeyData": %q, "expirationTimestamp": "2020-01-01T00:00:00Z"}}`,
			name, pair.Certificate, pair.Key)
		if err := os.WriteFile(path+".answer", []byte(answer), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	plugin := fmt.Sprintf(`{"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "cat", "args": [%q], "interactiveMode": "Never"}}`, path+".answer")
	config = regexp.MustCompile(`\{"tokenFile":[^}]*\}`).ReplaceAllLiteral(config, []byte(plugin))
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := apiserver.Connect(apiserver.Environment{Getenv: func(string) string { return "" }}, apiserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	p, err := New(server)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, name := range []string{"first", "second"} {
		login(name)
		expectEcho(t, dial(t, p), "x")
		if !f.SawToken(name) || !f.SawCertificate(name) {
			t.Errorf("%s login: token seen %v, certificate seen %v", name, f.SawToken(name), f.SawCertificate(name))
		}
	}
}

func TestProxyOfTheKubeconfig(t *testing.T) {
	var connects atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			(&httputil.ReverseProxy{}).ServeHTTP(w, r)
			return
		}
		connects.Add(1)
		target, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		client, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			_, _ = io.Copy(target, client)
			target.Close()
		}()
		_, _ = io.Copy(client, target)
		client.Close()
	}))
	t.Cleanup(proxy.Close)
	p, _ := newPath(t, fmt.Sprintf(`"proxy-url": %q, "tls-server-name": "example.com"`, proxy.URL))
	c := dial(t, p)
	expectEcho(t, c, "x")
	if connects.Load() != 1 {
		t.Errorf("%d connections through the proxy, want 1", connects.Load())
	}
	c.Close()
}

// A pod that frames cannot reach has no say in the memory of the client.
func TestMalformedFramesEndTheTunnel(t *testing.T) {
	for name, frames := range map[string]string{
		"a header block that is huge": "\x80\x03\x00\x02\x00\xff\xff\xff" + strings.Repeat("x", 100),
		"half a header":               "\x00\x00",
		"a text that is huge":         "\x00\x00\x00\x01\x00\xff\xff\xff" + strings.Repeat("x", 10<<10),
		"a reset":                     "\x80\x03\x00\x03\x00\x00\x00\x08\x00\x00\x00\x03\x00\x00\x00\x05",
		"noise":                       strings.Repeat("\xff", 1000),
	} {
		t.Run(name, func(t *testing.T) {
			client, server := net.Pipe()
			server2 := server
			go func() {
				_, _ = io.WriteString(server2, frames)
				server2.Close()
			}()
			p := &Path{server: &apiserver.Connection{Host: "https://x"}}
			p.checks.context, p.checks.cancel = context.WithCancel(t.Context())
			c := newTunnel(p, client, "a", "10.0.0.1:9100")
			defer c.Close()
			if n, err := c.Read(make([]byte, 100)); n != 0 || err == nil {
				t.Errorf("Read returned %d bytes, %v", n, err)
			}
		})
	}
}

func TestPingIsAnswered(t *testing.T) {
	client, server := net.Pipe()
	defer server.Close()
	p := &Path{server: &apiserver.Connection{Host: "https://x"}}
	c := newTunnel(p, client, "a", "10.0.0.1:9100")
	defer c.Close()
	go func() { _, _ = c.Read(make([]byte, 1)) }()
	const ping = "\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x02"
	if _, err := io.WriteString(server, ping); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(ping))
	if _, err := io.ReadFull(server, got); err != nil || string(got) != ping {
		t.Errorf("the answer is %q, %v", got, err)
	}
}

// client-go's packages for upgraded connections use a parser without the limits of CVE-2026-35469.
func TestDependencies(t *testing.T) {
	for _, folder := range []string{".", "../../../go-micro-client", "../../../go-micro-web", "../../../go-micro-config"} {
		cmd := exec.Command("go", "list", "-deps", ".")
		cmd.Dir = folder
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range strings.Fields(string(out)) {
			if strings.HasPrefix(path, "github.com/docker/spdystream") || path == "github.com/moby/spdystream" || strings.HasPrefix(path, "k8s.io/apimachinery/pkg/util/httpstream") ||
				path == "k8s.io/client-go/transport/spdy" || path == "k8s.io/client-go/tools/portforward" {
				t.Errorf("%s links %s", filepath.Base(folder), path)
			}
		}
	}
}
