//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// laptop is this machine, outside of the cluster.
type laptop struct {
	probe string // the program test/e2e/probe
	token string // of an account with the rights of k8s/components/laptop
}

// kubeconfig returns the path of a kubeconfig with the token, for a namespace.
func (l *laptop) kubeconfig(t *testing.T, namespace string) string {
	t.Helper()
	config, err := clientcmd.LoadFromFile(os.Getenv("KUBECONFIG"))
	fatal(t, err)
	config.AuthInfos = map[string]*clientcmdapi.AuthInfo{"laptop": {Token: l.token}}
	current := config.Contexts[config.CurrentContext]
	current.AuthInfo, current.Namespace = "laptop", namespace
	path := filepath.Join(t.TempDir(), "kubeconfig")
	fatal(t, clientcmd.WriteToFile(*config, path))
	return path
}

// laptopProcess is a program on this machine, with its output.
type laptopProcess struct {
	*exec.Cmd
	mu     sync.Mutex
	output bytes.Buffer
}

func (p *laptopProcess) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.Write(b)
}

func (p *laptopProcess) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// await waits until the output matches a pattern and returns its last group.
func (p *laptopProcess) await(t *testing.T, pattern string) (group string) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprintf("%q in the output of %s", pattern, filepath.Base(p.Path)), func() error {
		m := regexp.MustCompile(pattern).FindStringSubmatch(p.text())
		if m == nil {
			return fmt.Errorf("the output is %q", p.text())
		}
		group = m[len(m)-1]
		return nil
	})
	return group
}

// command returns a command in the environment of a developer: it has no variables of a pod.
func (l *laptop) command(t *testing.T, kubeconfig, program string, args ...string) *laptopProcess {
	p := &laptopProcess{Cmd: exec.Command(program, args...)}
	p.Env = []string{"PATH=/usr/bin", "HOME=" + filepath.Dir(kubeconfig), "KUBECONFIG=" + kubeconfig}
	p.Stdout, p.Stderr = p, p
	return p
}

// start starts a program that make build has built, and ends it with SIGINT, as Ctrl-C does.
func (l *laptop) start(t *testing.T, program string, args ...string) *laptopProcess {
	t.Helper()
	p := l.command(t, l.kubeconfig(t, namespace), filepath.Join(root, program), args...)
	fatal(t, p.Start())
	t.Cleanup(func() {
		_ = p.Process.Signal(os.Interrupt)
		killed := time.AfterFunc(20*time.Second, func() { _ = p.Process.Kill() })
		if err := p.Wait(); err != nil || !killed.Stop() {
			t.Errorf("%s ended with %v after SIGINT, want status 0; its output:\n%s", program, err, p.text())
		}
	})
	return p
}

// laptopPrograms are the programs that run while the load generators do.
type laptopPrograms struct{ client, web, srv, config, follow *laptopProcess }

func (l *laptop) startPrograms(t *testing.T) laptopPrograms {
	t.Helper()
	anyPort := "--server_address=127.0.0.1:0"
	config := l.command(t, l.kubeconfig(t, namespace), filepath.Join(root, "go-micro-config/config"))
	config.Env = append(config.Env, "DB_PASSWORD=laptop")
	fatal(t, config.Start())
	return laptopPrograms{
		client: l.start(t, "go-micro-client/client"),
		web:    l.start(t, "go-micro-web/web", anyPort),
		srv:    l.start(t, "go-micro-srv/server", anyPort),
		config: config,
		follow: l.start(t, "go-micro-config/config", "-follow"),
	}
}

const registersNothing = "This process registers nothing, because outside of the cluster there is no pod to register on"

func checkPrograms(t *testing.T, p laptopPrograms) {
	for _, program := range []struct {
		name  string
		check func(*testing.T)
	}{
		{"go-micro-client prints the greeting", func(t *testing.T) {
			p.client.await(t, `(?m)^Server Hello XXX!$`)
		}},
		{"go-micro-web serves the live page and calls pods", func(t *testing.T) { laptopPage(t, p.web) }},
		{"go-micro-srv serves on localhost", func(t *testing.T) { laptopServer(t, p.srv) }},
		{"go-micro-config prints environment and ConfigMap", func(t *testing.T) {
			if err := p.config.Wait(); err != nil || !regexp.MustCompile(`^map\[DB_HOST:map\[192.168.0.1:\] DB_NAME:map\[MICRO:\] db:map\[password:laptop\] home:.*\n$`).MatchString(p.config.text()) {
				t.Errorf("go-micro-config ended with %v and printed\n%s", err, p.config.text())
			}
		}},
		{"go-micro-config -follow follows", func(t *testing.T) {
			p.follow.await(t, `map\[DB_HOST:192.168.0.1 `)
			patch := func(host string) {
				kubectl(t, "patch", "configmap", "go-micro-config", "-n", namespace, "--type=merge", "-p", `{"data":{"DB_HOST":"`+host+`"}}`)
			}
			defer patch("192.168.0.1")
			patch("192.168.0.7")
			p.follow.await(t, `map\[DB_HOST:192.168.0.7 `)
		}},
		{"what is not registered is said once", func(t *testing.T) {
			for _, program := range []*laptopProcess{p.client, p.web, p.srv} {
				if n := strings.Count(program.text(), registersNothing); n != 1 {
					t.Errorf("%s says %d times that it registers nothing, want once:\n%s", program.Path, n, program.text())
				}
			}
		}},
	} {
		t.Run(program.name, program.check)
	}
}

// laptopPage reads the live page and sends its form.
func laptopPage(t *testing.T, web *laptopProcess) {
	page := "http://" + web.await(t, `Listening on (127\.0\.0\.1:\d+)`) + "/registry/"
	running := map[string]bool{}
	for _, p := range pods(t, "go-micro-srv") {
		running[p.Name] = true
	}
	get := func(path string) (body string) {
		rsp, err := http.Get(page + path)
		fatal(t, err)
		defer rsp.Body.Close()
		var b bytes.Buffer
		if _, err := b.ReadFrom(rsp.Body); err != nil || rsp.StatusCode != http.StatusOK {
			t.Fatalf("GET %s%s: %s, %v", page, path, rsp.Status, err)
		}
		return b.String()
	}
	services := get("") + get("services.json")
	for pod := range running {
		if strings.Count(services, pod) < 2 {
			t.Errorf("the page does not show pod %q:\n%s", pod, services)
		}
	}
	answeredBy := map[string]bool{}
	eventually(t, 30*time.Second, "answers of both pods", func() error {
		request, err := http.NewRequest(http.MethodPost, page, strings.NewReader(url.Values{"name": {"laptop"}}.Encode()))
		fatal(t, err)
		request.Header = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Accept": {"application/json"}}
		rsp, err := http.DefaultClient.Do(request)
		fatal(t, err)
		defer rsp.Body.Close()
		var answer struct{ Greeting, Pod, Problem string }
		if err := json.NewDecoder(rsp.Body).Decode(&answer); err != nil || answer.Greeting != "Hello laptop!" || !running[answer.Pod] {
			t.Fatalf("the form answers %s %+v, %v, want a greeting of one of the pods %v", rsp.Status, answer, err, running)
		}
		if answeredBy[answer.Pod] = true; len(answeredBy) < len(running) {
			return fmt.Errorf("answers of %v", answeredBy)
		}
		return nil
	})
}

// laptopServer calls the Greeter on this machine and its health check, as grpcurl does.
func laptopServer(t *testing.T, srv *laptopProcess) {
	conn, err := grpc.NewClient(srv.await(t, `Listening on (127\.0\.0\.1:\d+)`), grpc.WithTransportCredentials(insecure.NewCredentials()))
	fatal(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var rsp proto.HelloResponse
	if err := conn.Invoke(ctx, "/Greeter/Hello", &proto.HelloRequest{Name: "laptop"}, &rsp); err != nil || rsp.Greeting != "Hello laptop!" {
		t.Errorf("the Greeter answers %q, %v", rsp.Greeting, err)
	}
	if health, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, new(grpc_health_v1.HealthCheckRequest)); err != nil || health.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("the health check answers %v, %v, want SERVING", health, err)
	}
}

// apiProxy is a proxy in front of the API server, which adds the token. It can refuse WebSocket, as some proxies do.
type apiProxy struct {
	*httptest.Server
	mu  sync.Mutex
	all []string // method, path, and the protocol of an upgrade
}

func (l *laptop) proxy(t *testing.T, refuseWebSocket bool) *apiProxy {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", l.kubeconfig(t, namespace))
	fatal(t, err)
	tlsConfig, err := rest.TLSConfigFor(config)
	fatal(t, err)
	server := must(url.Parse(config.Host))
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(server)
			r.Out.Header.Set("Authorization", "Bearer "+l.token)
		},
		Transport:     &http.Transport{TLSClientConfig: tlsConfig}, // not HTTP/2, in which a connection cannot be upgraded
		FlushInterval: -1,
	}
	p := &apiProxy{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		upgrade := r.Header.Get("Upgrade")
		p.mu.Lock()
		p.all = append(p.all, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+upgrade))
		p.mu.Unlock()
		if refuseWebSocket && upgrade == "websocket" {
			http.Error(w, "no WebSocket here", http.StatusForbidden)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		p.CloseClientConnections()
		p.Close()
	})
	return p
}

// kubeconfig returns the path of a kubeconfig that names the proxy.
func (p *apiProxy) kubeconfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	fatal(t, os.WriteFile(path, fmt.Appendf(nil, `{"current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "x", "namespace": %q}}],
		"clusters": [{"name": "x", "cluster": {"server": %q}}]}`, namespace, p.URL), 0o600))
	return path
}

func (p *apiProxy) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.all)
}

// usedOnly checks that connections to pods were upgraded to a protocol, and that the other was not tried again after its refusal.
func (p *apiProxy) usedOnly(t *testing.T, protocol string) {
	t.Helper()
	count := map[string]int{}
	for _, r := range p.requests() {
		if method, rest, _ := strings.Cut(r, " "); strings.Contains(rest, "/portforward ") {
			count[method+" "+rest[strings.LastIndex(rest, " ")+1:]]++
		}
	}
	t.Logf("upgrades: %v", count)
	webSocket, spdy := count["GET websocket"], count["POST SPDY/3.1"]
	if protocol == "websocket" && (webSocket == 0 || spdy > 0) || protocol != "websocket" && (spdy == 0 || webSocket > 2) {
		t.Errorf("connections were upgraded to %v, want %s", count, protocol)
	}
}
