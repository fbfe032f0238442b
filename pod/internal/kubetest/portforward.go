package kubetest

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/moby/spdystream"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The protocols of a port-forward.
const (
	WebSocket = "WebSocket"
	SPDY      = "SPDY"
)

// PortForwards is a fake API server, with its kubelets, that forwards ports of pods in the namespace "test" to servers on loopback. It
// speaks both protocols, with the library that Kubernetes uses. It needs no Kubernetes.
type PortForwards struct {
	*httptest.Server
	t       testing.TB
	gate    gate
	prefix  string // of the path of a port-forward, before the pod
	kubelet bool   // behind a real API server

	mu     sync.Mutex
	pods   map[string]string           // address, by pod
	refuse func(*http.Request) Refusal // nil: nothing is refused
	opened map[string]int              // port-forwards, by protocol
	checks int                         // requests of /livez
	open   map[net.Conn]bool
	tokens map[string]bool // that were sent
	names  map[string]bool // in the client certificates that were sent
}

// Refusal is an answer to a request; no answer if the code is 0.
type Refusal struct {
	Code int
	Body string
}

// StartPortForwards starts a fake API server, which runs until the test ends.
func StartPortForwards(t testing.TB) *PortForwards {
	t.Helper()
	f := newPortForwards(t)
	f.prefix = "/api/v1/namespaces/test/pods/"
	f.StartTLS()
	return f
}

// StartKubelet starts the stand-in for the kubelet of a node that has the name of the namespace. It forwards the ports of pods as containerd
// does, over SPDY only: the API server translates WebSocket. It runs until the test ends.
func (n *Namespace) StartKubelet() *PortForwards {
	n.t.Helper()
	f := newPortForwards(n.t)
	f.prefix, f.kubelet = "/portForward/"+n.Name+"/", true
	// The API server verifies kubelets. Its own certificate is for 127.0.0.1, too.
	pki := filepath.Join(n.stateDir(), "pki", "apiserver.")
	certificate, err := tls.LoadX509KeyPair(pki+"crt", pki+"key")
	if err != nil {
		n.t.Fatal(err)
	}
	f.TLS.Certificates = []tls.Certificate{certificate}
	f.StartTLS()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name}, Status: corev1.NodeStatus{
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(f.Listener.Addr().(*net.TCPAddr).Port)}}}}
	if _, err := n.Admin.CoreV1().Nodes().Create(node); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := n.Admin.CoreV1().Nodes().Delete(n.Name, nil); err != nil {
			n.t.Error(err)
		}
	})
	return f
}

func newPortForwards(t testing.TB) *PortForwards {
	f := &PortForwards{t: t, pods: map[string]string{}, opened: map[string]int{}, open: map[net.Conn]bool{}, tokens: map[string]bool{}, names: map[string]bool{}}
	f.gate.open.Store(true)
	f.Server = httptest.NewUnstartedServer(f)
	f.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	f.Listener = gatedListener{f.Listener, &f.gate}
	t.Cleanup(func() {
		f.Thaw()
		f.Cut()
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

// Kubeconfig writes a kubeconfig with a token, makes it the kubeconfig of the process, and returns its path.
func (f *PortForwards) Kubeconfig(t *testing.T, cluster ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x", "namespace": "test"}}],
		"clusters": [{"name": "x", "cluster": {"server": %q, "certificate-authority-data": %q%s}}], "users": [{"name": "x", "user": {"tokenFile": %q}}]}`,
		f.URL, base64.StdEncoding.EncodeToString(Certificate(f.Server)), strings.Join(append([]string{""}, cluster...), ", "), path+".token")
	for name, content := range map[string]string{path: text, path + ".token": "first"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("KUBECONFIG", path)
	return path
}

// Connect connects through a kubeconfig of the fake API server.
func (f *PortForwards) Connect(t *testing.T, cluster ...string) *apiserver.Connection {
	t.Helper()
	f.Kubeconfig(t, cluster...)
	conn, err := apiserver.Connect(apiserver.Environment{Getenv: func(string) string { return "" }}, apiserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// Put makes a pod forward to an address, whatever the port. An empty address removes the pod.
func (f *PortForwards) Put(pod, address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pods[pod] = address; address == "" {
		delete(f.pods, pod)
	}
}

// Refuse makes the server answer requests by what refuse returns; with nil it refuses none.
func (f *PortForwards) Refuse(refuse func(*http.Request) Refusal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = refuse
}

// Opened returns the number of port-forwards that were opened over a protocol.
func (f *PortForwards) Opened(protocol string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opened[protocol]
}

// Open returns the number of port-forwards that are open.
func (f *PortForwards) Open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.open)
}

// Checks returns the number of requests of /livez.
func (f *PortForwards) Checks() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.checks
}

// SawToken reports whether a request has carried a token.
func (f *PortForwards) SawToken(token string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tokens["Bearer "+token]
}

// SawCertificate reports whether a request came over a connection with a client certificate for a name.
func (f *PortForwards) SawCertificate(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.names[name]
}

// Cut breaks all open port-forwards, as the end of the API server does.
func (f *PortForwards) Cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.open {
		c.Close()
	}
}

// Freeze makes the server accept connections and neither read nor write, until Thaw.
func (f *PortForwards) Freeze() { f.gate.close() }

// Thaw ends Freeze.
func (f *PortForwards) Thaw() { f.gate.reopen() }

func (f *PortForwards) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	pod, isPortForward := strings.CutPrefix(r.URL.Path, f.prefix)
	pod, _ = strings.CutSuffix(pod, "/portforward")
	f.mu.Lock()
	f.tokens[r.Header.Get("Authorization")] = true
	for _, c := range r.TLS.PeerCertificates {
		for _, name := range c.DNSNames {
			f.names[name] = true
		}
	}
	refuse, address := f.refuse, f.pods[pod]
	if r.URL.Path == "/livez" {
		f.checks++
	}
	f.mu.Unlock()
	var refusal Refusal
	if refuse != nil {
		refusal = refuse(r)
	}
	switch {
	case refusal.Code != 0:
		w.WriteHeader(refusal.Code)
		_, _ = io.WriteString(w, refusal.Body)
	case r.URL.Path == "/livez":
		_, _ = io.WriteString(w, "ok")
	case !isPortForward:
		f.t.Errorf("unexpected request %s %s", r.Method, r.URL)
	case address == "":
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": "pods \"%s\" not found"}`, pod)
	case f.kubelet && r.Header.Get("Upgrade") == "websocket": // from an API server that does not translate; containerd answers so
		http.Error(w, `query parameter "port" is required`, http.StatusBadRequest)
	case r.Header.Get("Upgrade") == "websocket":
		f.serveWebSocket(w, r, address)
	default:
		f.serveSPDY(w, r, address)
	}
}

func (f *PortForwards) serveWebSocket(w http.ResponseWriter, r *http.Request, address string) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"SPDY/3.1+portforward.k8s.io"}, InsecureSkipVerify: true})
	if err != nil {
		return
	}
	f.serve(abruptly{websocket.NetConn(context.Background(), c, websocket.MessageBinary), c}, WebSocket, address)
}

// abruptly closes a WebSocket without the answer of the client.
type abruptly struct {
	net.Conn
	c *websocket.Conn
}

func (a abruptly) Close() error { return a.c.CloseNow() }

func (f *PortForwards) serveSPDY(w http.ResponseWriter, r *http.Request, address string) {
	if r.Method != http.MethodPost || r.Header.Get("Upgrade") != "SPDY/3.1" || r.Header.Get("X-Stream-Protocol-Version") != "portforward.k8s.io" {
		f.t.Errorf("unexpected request %s %v", r.Method, r.Header)
	}
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		f.t.Error(err)
		return
	}
	_ = c.SetDeadline(time.Time{})
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n")
	f.serve(c, SPDY, address)
}

// serve forwards the streams of a connection to an address, as a kubelet does.
func (f *PortForwards) serve(c net.Conn, protocol, address string) {
	defer c.Close()
	f.mu.Lock()
	f.opened[protocol]++
	f.open[c] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.open, c)
	}()
	session, err := spdystream.NewConnection(c, true)
	if err != nil {
		f.t.Error(err)
		return
	}
	var failing *spdystream.Stream
	ready := make(chan struct{}) // closed when failing is set
	session.Serve(func(s *spdystream.Stream) {
		if s.SendReply(http.Header{}, false) != nil {
			return // otherwise Close of the stream would never return
		}
		if s.Headers().Get("Streamtype") == "error" {
			failing = s
			close(ready)
			return
		}
		go func() {
			select {
			case <-ready:
			case <-session.CloseChan():
				return
			}
			defer failing.Close()
			defer s.Close()
			target, err := net.Dial("tcp", address)
			if err != nil {
				fmt.Fprintf(failing, "error forwarding port %s to pod x, uid : %v", s.Headers().Get("Port"), err)
				return
			}
			defer target.Close()
			go func() {
				_, _ = io.Copy(target, s)
				target.Close()
			}()
			_, _ = io.Copy(s, target)
		}()
	})
}
