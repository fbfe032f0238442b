package apiserver_test

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
)

// TestMain makes the test binary a credential plugin if the variable PLUGIN_DIR is set. The plugin appends how it was called
// to the file "calls" in that directory and prints the file "answer", with the number of the call instead of COUNT.
func TestMain(m *testing.M) {
	dir, set := os.LookupEnv("PLUGIN_DIR")
	if !set {
		os.Exit(m.Run())
	}
	call := pluginCall{append([]string{filepath.Base(os.Args[0])}, os.Args[1:]...), os.Getenv("AWS_PROFILE"), json.RawMessage(os.Getenv("KUBERNETES_EXEC_INFO"))}
	line, _ := json.Marshal(call)
	calls, _ := os.ReadFile(filepath.Join(dir, "calls"))
	calls = append(append(calls, line...), '\n')
	answer, _ := os.ReadFile(filepath.Join(dir, "answer"))
	if err := os.WriteFile(filepath.Join(dir, "calls"), calls, 0o600); err != nil || string(answer) == "fail" {
		fmt.Fprintln(os.Stderr, "no session:\nlog in first")
		os.Exit(3)
	}
	if string(answer) == "hang" {
		time.Sleep(time.Hour)
	}
	for string(answer) == "endless" {
		if _, err := os.Stdout.Write(make([]byte, 1<<20)); err != nil {
			os.Exit(4)
		}
	}
	fmt.Print(strings.ReplaceAll(string(answer), "COUNT", fmt.Sprint(strings.Count(string(calls), "\n"))))
}

type pluginCall struct {
	Args    []string
	Profile string
	Info    json.RawMessage
}

// plugin is a directory with a kubeconfig and credential plugins.
type plugin struct {
	t   *testing.T
	dir string
}

// newPlugin makes the commands plugins, and the only programs in PATH.
func newPlugin(t *testing.T, commands ...string) plugin {
	t.Helper()
	p := plugin{t, t.TempDir()}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range commands {
		if err := os.Symlink(program, filepath.Join(p.dir, command)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", p.dir)
	t.Setenv("PLUGIN_DIR", p.dir)
	return p
}

func (p plugin) write(file, text string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, file), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// answer sets what the plugins return.
func (p plugin) answer(version, status string) {
	p.write("answer", fmt.Sprintf(`{"apiVersion": "client.authentication.k8s.io/%s", "kind": "ExecCredential", "status": %s}`, version, status))
}

// use makes a kubeconfig that of the process.
func (p plugin) use(kubeconfig string) {
	p.write("config", kubeconfig)
	p.t.Setenv("KUBECONFIG", filepath.Join(p.dir, "config"))
}

func (p plugin) calls() (all []pluginCall) {
	p.t.Helper()
	text, _ := os.ReadFile(filepath.Join(p.dir, "calls"))
	for line := range strings.Lines(string(text)) {
		var c pluginCall
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			p.t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// connectOutside connects through the kubeconfig of the process.
func connectOutside(t *testing.T) *apiserver.Connection {
	t.Helper()
	c, err := apiserver.Connect(outside, apiserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// tokenServer is an API server that accepts one token.
type tokenServer struct {
	recorder
	accepted atomic.Value
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if want := s.accepted.Load(); want != nil && r.Header.Get("Authorization") != want {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.recorder.ServeHTTP(w, r)
}

func testdata(t *testing.T, name string, replacements ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer(replacements...).Replace(string(text))
}

// The kubeconfigs that the clouds write run their plugin once for all requests, and again when the API server refuses the token.
func TestKubeconfigsOfClouds(t *testing.T) {
	for _, tt := range []struct {
		file, command, profile string
		args                   []string
		clusterInfo            bool
	}{
		{"eks.yaml", "aws", "prod", []string{"--region", "eu-west-1", "eks", "get-token", "--cluster-name", "demo", "--output", "json"}, false},
		{"gke.yaml", "gke-gcloud-auth-plugin", "", nil, true},
		{"aks.yaml", "kubelogin", "", []string{"get-token", "--environment", "AzurePublicCloud", "--server-id", "00000000-0000-0000-0000-000000000001", "--client-id",
			"00000000-0000-0000-0000-000000000002", "--tenant-id", "00000000-0000-0000-0000-000000000003", "--login", "devicecode"}, false},
	} {
		t.Run(tt.file, func(t *testing.T) {
			var api tokenServer
			server, _ := kubetest.StartFake(t, &api)
			ca := base64.StdEncoding.EncodeToString(kubetest.Certificate(server))
			p := newPlugin(t, tt.command)
			p.answer("v1beta1", fmt.Sprintf(`{"token": "token-COUNT", "expirationTimestamp": %q}`, time.Now().Add(time.Hour).Format(time.RFC3339)))
			p.use(testdata(t, tt.file, "SERVER", server.URL, "CA_DATA", ca))
			c := connectOutside(t)
			var all sync.WaitGroup
			for range 5 {
				all.Go(func() {
					if _, err := c.GetConfigMap(t.Context(), "x"); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if got, want := api.seen(), strings.TrimSpace(strings.Repeat("Bearer token-1 ", 5)); got != want {
				t.Errorf("the API server received %q, want %q", got, want)
			}
			calls := p.calls()
			if len(calls) != 1 || !slices.Equal(calls[0].Args, append([]string{tt.command}, tt.args...)) || calls[0].Profile != tt.profile {
				t.Fatalf("the plugin was called as %+v", calls)
			}
			want := `{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential","spec":{"interactive":false}}`
			if tt.clusterInfo {
				want = fmt.Sprintf(`{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential","spec":{"cluster":{"server":%q,"certificate-authority-data":%q},"interactive":false}}`, server.URL, ca)
			}
			if got := string(calls[0].Info); got != want {
				t.Errorf("the plugin received %s, want %s", got, want)
			}
			api.accepted.Store("Bearer token-2")
			if _, err := c.GetConfigMap(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "does not accept the credentials of the kubeconfig") {
				t.Errorf("with the refused token: %v", err)
			}
			kubetest.Eventually(t, 20*time.Second, "an answer after the refusal", func() error {
				_, err := c.GetConfigMap(t.Context(), "x")
				return err
			})
			if n := len(p.calls()); n != 2 {
				t.Errorf("after the refusal the plugin was called %d times, want 2", n)
			}
		})
	}
}

// kubelogin's kubeconfig has version 1 of the protocol, here also a proxy and another name in the API server's certificate.
func TestKubeconfigWithProxyAndServerName(t *testing.T) {
	var api tokenServer
	server, _ := kubetest.StartFake(t, &api)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var tunnels atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != "localhost:"+port {
			t.Errorf("the proxy receives %s %s", r.Method, r.Host)
			return
		}
		tunnels.Add(1)
		target, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprint(conn, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(target, conn); target.Close() }()
		_, _ = io.Copy(conn, target)
		conn.Close()
	}))
	defer proxy.Close()
	p := newPlugin(t, "kubectl")
	p.answer("v1", `{"token": "token-COUNT", "expirationTimestamp": "2020-01-01T00:00:00Z"}`) // has expired at once
	p.write("ca.crt", string(kubetest.Certificate(server)))
	p.use(testdata(t, "oidc.yaml", "PROXY", proxy.URL, "PORT", port))
	c := connectOutside(t)
	if c.Namespace != "shop" {
		t.Errorf("the namespace is %q", c.Namespace)
	}
	for range 2 {
		if _, err := c.GetConfigMap(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if got := api.seen(); got != "Bearer token-1 Bearer token-2" || tunnels.Load() != 1 {
		t.Errorf("the API server received %q through %d connections of the proxy", got, tunnels.Load())
	}
	want := fmt.Sprintf(`{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","spec":{"cluster":{"server":"https://localhost:%s","tls-server-name":"example.com","certificate-authority-data":%q,`+
		`"proxy-url":%q,"config":{"audience":"demo"}},"interactive":false}}`, port, base64.StdEncoding.EncodeToString(kubetest.Certificate(server)), proxy.URL)
	if got := string(p.calls()[0].Info); got != want {
		t.Errorf("the plugin received %s, want %s", got, want)
	}
	p.write("ca.crt", string(kubetest.ClientCertificate(t, "another authority").Certificate))
	c2 := connectOutside(t)
	if _, err := c2.GetConfigMap(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("with another authority: %v", err)
	}
}

// certificateServer is an API server that wants a client certificate with a certain name.
func certificateServer(t *testing.T, wanted *atomic.Value) (server *httptest.Server, kubeconfig func(user string) string) {
	t.Helper()
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) != 1 || r.TLS.PeerCertificates[0].DNSNames[0] != wanted.Load() {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		(&recorder{}).ServeHTTP(w, r)
	}))
	server.EnableHTTP2, server.TLS = true, &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	return server, func(user string) string {
		return fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: a, cluster: {server: %q, certificate-authority-data: %s}}],
			users: [{name: u, user: %s}], contexts: [{name: a, context: {cluster: a, user: u}}]}`, server.URL, base64.StdEncoding.EncodeToString(kubetest.Certificate(server)), user)
	}
}

func TestCertificatesOfKubeconfig(t *testing.T) {
	var wanted atomic.Value
	_, kubeconfig := certificateServer(t, &wanted)
	first, second := kubetest.ClientCertificate(t, "first"), kubetest.ClientCertificate(t, "second")
	p := newPlugin(t, "login")
	t.Run("files", func(t *testing.T) { // read again for each connection
		p.t = t
		p.use(kubeconfig(`{client-certificate: client.crt, client-key: client.key}`))
		for name, pair := range map[string]kubetest.KeyPair{"first": first, "second": second} {
			wanted.Store(name)
			p.write("client.crt", string(pair.Certificate))
			p.write("client.key", string(pair.Key))
			if _, err := connectOutside(t).GetConfigMap(t.Context(), "x"); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("plugin", func(t *testing.T) { // a new certificate needs a new connection
		p.t = t
		p.use(kubeconfig(`{exec: {apiVersion: client.authentication.k8s.io/v1, command: login, interactiveMode: IfAvailable}}`))
		c := connectOutside(t)
		for name, pair := range map[string]kubetest.KeyPair{"first": first, "second": second} {
			p.answer("v1", fmt.Sprintf(`{"clientCertificateData": %q, "clientKeyData": %q}`, pair.Certificate, pair.Key))
			wanted.Store(name)
			kubetest.Eventually(t, 20*time.Second, "the certificate is accepted", func() error {
				_, err := c.GetConfigMap(t.Context(), "x")
				return err
			})
		}
		if n := len(p.calls()); n != 2 {
			t.Errorf("the plugin was called %d times, want 2", n)
		}
	})
}

// A plugin that fails, or whose tokens are refused, runs again after growing delays, however many requests want a token.
func TestPluginsRunWithGrowingDelays(t *testing.T) {
	var api tokenServer
	api.accepted.Store("Bearer another")
	server, _ := kubetest.StartFake(t, &api)
	p := newPlugin(t, "login")
	p.use(fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: a, cluster: {server: %q, insecure-skip-tls-verify: true}}],
		users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: login, interactiveMode: Never}}}], contexts: [{name: a, context: {cluster: a, user: u}}]}`, server.URL))
	for name, answer := range map[string]string{"fail": "fail", "refused": `{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "token"}}`} {
		p.write("answer", answer)
		p.write("calls", "")
		c := connectOutside(t)
		var requests atomic.Int32
		var callers sync.WaitGroup
		for begin := time.Now(); time.Since(begin) < 4*time.Second; {
			for range 5 {
				callers.Go(func() {
					if _, err := c.GetConfigMap(t.Context(), "x"); err == nil {
						t.Error("the request has succeeded")
					}
					requests.Add(1)
				})
			}
			callers.Wait()
			time.Sleep(20 * time.Millisecond)
		}
		if n := len(p.calls()); n < 2 || n > 3 || int(requests.Load()) < 2*n { // after 1 and 3 s, unless a run takes long
			t.Errorf("%s: %d runs for %d requests in 4 s", name, n, requests.Load())
		}
	}
}

func TestTokenFileOfKubeconfig(t *testing.T) {
	var api tokenServer
	server, _ := kubetest.StartFake(t, &api)
	p := newPlugin(t)
	p.use(fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: a, cluster: {server: %q, insecure-skip-tls-verify: true}}],
		users: [{name: u, user: {tokenFile: token}}], contexts: [{name: a, context: {cluster: a, user: u}}]}`, server.URL))
	p.write("token", "old\n")
	c := connectOutside(t)
	for _, token := range []string{"old", "new"} {
		p.write("token", token+"\n")
		if _, err := c.GetConfigMap(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if got := api.seen(); got != "Bearer old Bearer new" {
		t.Errorf("the API server received %q", got)
	}
}

// What cannot be used is refused by its name, and with a remedy, instead of being ignored.
func TestKubeconfigIsRefusedByName(t *testing.T) {
	p := newPlugin(t)
	const plugin = `{exec: {apiVersion: client.authentication.k8s.io/v1, command: x, `
	for _, tt := range []struct {
		cluster, user string
		want          []string
	}{
		{"", `{auth-provider: {name: gcp}}`, []string{`user "u"`, `"auth-provider"`, "gke-gcloud-auth-plugin"}},
		{"", `{username: a, password: b}`, []string{`user "u"`, "removed passwords"}},
		{"", `{as: a, as-uid: b}`, []string{`"as-uid" is not supported`}},
		{"", `{new-field: a}`, []string{`"new-field" is not supported`}},
		{", future: 1", `{token: a}`, []string{`cluster "a"`, `"future" is not supported`}},
		{`, proxy-url: "ftp://x"`, `{token: a}`, []string{"proxy-url", "ftp://x", "socks5"}},
		{`, proxy-url: "ftp://a:secret@x"`, `{token: a}`, []string{"proxy-url", "ftp://a:xxxxx@x", "socks5"}},
		{`, proxy-url: "http://a:secret@x:port"`, `{token: a}`, []string{"proxy-url must be a URL"}},
		{"", plugin + `interactiveMode: Always}}`, []string{"interactiveMode", "no terminal"}},
		{"", plugin + `newer: 1}}`, []string{`unknown field "newer"`}},
		{"", `{exec: {apiVersion: client.authentication.k8s.io/v2, command: x}}`, []string{"exec.apiVersion", "v2", "client.authentication.k8s.io/v1beta1"}},
	} {
		p.use(fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: a, cluster: {server: "https://127.0.0.1:1"%s}}],
			users: [{name: u, user: %s}], contexts: [{name: a, context: {cluster: a, user: u}}]}`, tt.cluster, tt.user))
		c, err := apiserver.Connect(outside, apiserver.Options{})
		if err == nil {
			c.Close()
		}
		for _, want := range append(tt.want, "reading kubeconfig", "config") {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %s: %v does not name %q", tt.cluster, tt.user, err, want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: the error shows the password of the proxy: %v", tt.cluster, err)
			}
		}
	}
}

func TestPluginThatFails(t *testing.T) {
	var api recorder
	server, _ := kubetest.StartFake(t, &api)
	p := newPlugin(t, "login")
	for _, tt := range []struct {
		command, answer string
		want            []string
	}{
		{"login", "fail", []string{`running credential plugin "login"`, "exit status 3", "no session: log in first"}},
		{"missing", "", []string{`running credential plugin "missing"`, "not found", "install it from example.com"}},
		{"login", "nonsense", []string{"reading the answer of credential plugin"}},
		{"login", `{"apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential", "status": {"token": "a"}}`, []string{"asks for an ExecCredential of version"}},
		{"login", `{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {}}`, []string{"neither a token nor a certificate"}},
		{"login", "endless", []string{`running credential plugin "login"`, "its answer has more than 1 MiB"}},
		{"login", "hang", []string{`credential plugin "login" has not answered yet`}},
	} {
		p.write("answer", tt.answer)
		p.use(fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: a, cluster: {server: %q, insecure-skip-tls-verify: true}}],
			users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: %s, installHint: install it from example.com, interactiveMode: Never}}}],
			contexts: [{name: a, context: {cluster: a, user: u}}]}`, server.URL, tt.command))
		c, err := apiserver.Connect(outside, apiserver.Options{})
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		_, err = c.GetConfigMap(t.Context(), "x")
		for _, want := range tt.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s, %s: %v does not say %q", tt.command, tt.answer, err, want)
			}
		}
		if retried := apiserver.Unreachable(err); retried != (tt.answer == "hang") {
			t.Errorf("%s, %s: %v may be retried: %v", tt.command, tt.answer, err, retried)
		}
		c.Close() // ends the plugin
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("%s, %s: the call and Close took %s", tt.command, tt.answer, took)
		}
	}
	if api.seen() != "" {
		t.Errorf("the API server received %q", api.seen())
	}
}

// A kubeconfig's connection that has become silent is given up after 15 s, as a pod's.
func TestSilentAPIServerOfKubeconfig(t *testing.T) {
	server, _ := kubetest.StartFake(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Query().Get("watch") == "" {
			fmt.Fprint(w, emptyList)
			return
		}
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var silent sync.RWMutex // locked: nothing passes
	var accepted atomic.Int64
	var carrying sync.WaitGroup
	carry := func(to, from net.Conn) {
		defer to.Close()
		for b := make([]byte, 32<<10); ; {
			n, err := from.Read(b)
			silent.RLock()
			_, writeErr := to.Write(b[:n])
			silent.RUnlock()
			if err != nil || writeErr != nil {
				return
			}
		}
	}
	carrying.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			target, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			accepted.Add(1)
			carrying.Go(func() { carry(target, client) })
			carrying.Go(func() { carry(client, target) })
		}
	})
	p := newPlugin(t)
	p.use(fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: a, cluster: {server: "https://%s", insecure-skip-tls-verify: true}}],
		users: [{name: u, user: {token: secret}}], contexts: [{name: a, context: {cluster: a, user: u}}]}`, l.Addr()))
	stop := listWatch(t, outside, ignoreAll{})
	kubetest.Eventually(t, 20*time.Second, "a connection", func() error {
		if n := accepted.Load(); n != 1 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	time.Sleep(500 * time.Millisecond) // for the watch
	silent.Lock()
	begin := time.Now()
	kubetest.Eventually(t, 40*time.Second, "a new connection", func() error {
		if n := accepted.Load(); n < 2 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	t.Logf("the silent connection was given up after %s", time.Since(begin))
	silent.Unlock()
	stop()
	l.Close()
	carrying.Wait()
}
