package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// The tests run against a real kube-apiserver and etcd, started here and ended
// with this process. There is no kubelet: the tests write pods' status.

var (
	admin  clientset.Interface
	config *rest.Config
	state  string // the cluster's directory
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// space is a namespace of its own for one test, with a service account that has
// what k8s/pod-rbac.yaml grants.
type space struct {
	t    *testing.T
	name string
}

func newSpace(t *testing.T, verbs ...string) *space {
	t.Helper()
	server := kubetest.Start(t)
	admin, config, state = server.Admin, server.Config, filepath.Dir(server.Kubeconfig)
	before := goleak.IgnoreCurrent() // what go-micro itself starts at its initialization
	t.Cleanup(func() {
		if !t.Failed() {
			goleak.VerifyNone(t, before, // what go-micro leaves behind:
				goleak.IgnoreAnyFunction("github.com/patrickmn/go-cache.(*janitor).Run"),            // a client, until it is collected
				goleak.IgnoreAnyFunction("github.com/micro/go-micro/v2/util/auth.Generate.func1"),   // a web service that ran
				goleak.IgnoreAnyFunction("github.com/micro/go-micro/v2/web.(*service).start.func2"), // and one whose stop returned an error
			)
		}
	})
	if len(verbs) == 0 {
		verbs = []string{"list", "patch", "watch"}
	}
	ns, err := admin.CoreV1().Namespaces().Create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}})
	if err != nil {
		t.Fatal(err)
	}
	s := &space{t, ns.Name}
	_, err = admin.CoreV1().ServiceAccounts(s.name).Create(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "micro-services"}})
	if err == nil {
		_, err = admin.RbacV1().Roles(s.name).Create(&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "micro-registry"},
			Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: verbs}}})
	}
	if err == nil {
		_, err = admin.RbacV1().RoleBindings(s.name).Create(&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "micro-registry"},
			RoleRef:  rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "Role", Name: "micro-registry"},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "micro-services", Namespace: s.name}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pod creates a pod that runs and is ready, as a kubelet would report it.
func (s *space) pod(name string) *corev1.Pod { return s.podWith(name, func(*corev1.Pod) {}) }

func (s *space) podWith(name string, change func(*corev1.Pod)) *corev1.Pod {
	s.t.Helper()
	p := s.create(name, change)
	s.status(name, corev1.PodRunning, corev1.ConditionTrue)
	return p
}

func (s *space) create(name string, changes ...func(*corev1.Pod)) *corev1.Pod {
	s.t.Helper()
	no := false
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		NodeName: "none", ServiceAccountName: "micro-services", AutomountServiceAccountToken: &no,
		Containers: []corev1.Container{{Name: "main", Image: "none"}}}}
	for _, change := range changes {
		change(p)
	}
	p, err := admin.CoreV1().Pods(s.name).Create(p)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (s *space) status(name string, phase corev1.PodPhase, ready corev1.ConditionStatus) {
	s.t.Helper()
	body := fmt.Sprintf(`{"status":{"phase":%q,"conditions":[{"type":"Ready","status":%q}]}}`, phase, ready)
	if _, err := admin.CoreV1().Pods(s.name).Patch(name, types.StrategicMergePatchType, []byte(body), "status"); err != nil {
		s.t.Fatal(err)
	}
}

// register writes a service onto a pod as the plugin would, with an address of its own.
func (s *space) register(pod, service, version, address string) {
	s.t.Helper()
	s.write(pod, service, string(annotation(s.t, pod, service, version, address)))
}

func annotation(t testing.TB, pod, service, version, address string) []byte {
	t.Helper()
	b, err := json.Marshal(&registry.Service{Name: service, Version: version, Endpoints: []*registry.Endpoint{},
		Nodes: []*registry.Node{{Id: service + "-" + pod + "-" + address, Address: address, Metadata: map[string]string{"protocol": "grpc"}}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *space) write(pod, service, text string) {
	s.t.Helper()
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"labels":      map[string]string{typeLabel: typeValue, selectorPrefix + labelName(service): typeValue},
		"annotations": map[string]string{annotationPrefix + labelName(service): text}}})
	if err == nil {
		_, err = admin.CoreV1().Pods(s.name).Patch(pod, types.StrategicMergePatchType, body)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) get(name string) *corev1.Pod {
	s.t.Helper()
	p, err := admin.CoreV1().Pods(s.name).Get(name, metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// inside is what a process in a pod finds: variables and a service account volume.
func (s *space) inside(pod string) apiserver.Environment {
	s.t.Helper()
	dir := s.t.TempDir()
	u, err := url.Parse(config.Host)
	if err != nil {
		s.t.Fatal(err)
	}
	vars := map[string]string{"POD_NAME": pod, "KUBERNETES_SERVICE_HOST": u.Hostname(), "KUBERNETES_SERVICE_PORT": u.Port()}
	put(s.t, dir, "namespace", []byte(s.name))
	put(s.t, dir, "ca.crt", config.CAData)
	put(s.t, dir, "token", []byte(s.token(nil)))
	return apiserver.Environment{Getenv: func(k string) string { return vars[k] }, ServiceAccountDir: dir}
}

// put replaces a file of a volume as the kubelet does: whole.
func put(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	part := filepath.Join(dir, name+".part")
	if err := errors.Join(os.WriteFile(part, b, 0o600), os.Rename(part, filepath.Join(dir, name))); err != nil {
		t.Fatal(err)
	}
}

func (s *space) token(bound *authenticationv1.BoundObjectReference) string {
	s.t.Helper()
	r, err := admin.CoreV1().ServiceAccounts(s.name).CreateToken("micro-services", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"https://kubernetes.default.svc.cluster.local"}, BoundObjectRef: bound}})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Status.Token
}

// open is a registry as a process in the pod would have it, closed after the test.
func (s *space) open(pod string, opts ...registry.Option) *Registry {
	s.t.Helper()
	return s.openIn(s.inside(pod), opts...)
}

func (s *space) openIn(env apiserver.Environment, opts ...registry.Option) *Registry {
	r := newRegistry(env, kubernetes.NewRegistry, opts...)
	s.t.Cleanup(func() {
		if err := r.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return r
}

// front is a plain HTTP way to the API server that counts, for upstream's plugin
// (which needs its namespace rewritten) and for us.
type front struct {
	*httptest.Server
	counts sync.Map    // method and kind of request -> *atomic.Int64
	expire atomic.Bool // the next watch asks for a version long gone
}

func (s *space) front(asAdmin bool) *front {
	s.t.Helper()
	target, err := url.Parse(config.Host)
	if err != nil {
		s.t.Fatal(err)
	}
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		s.t.Fatal(err)
	}
	if !asAdmin {
		tlsConfig.GetClientCertificate, tlsConfig.Certificates = nil, nil
	}
	f := &front{}
	transport := &http.Transport{TLSClientConfig: tlsConfig}
	proxy := &httputil.ReverseProxy{Transport: transport, FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.URL.Path = strings.Replace(r.Out.URL.Path, "/namespaces/default/", "/namespaces/"+s.name+"/", 1)
		r.Out.URL.Path = strings.TrimSuffix(r.Out.URL.Path, "/")
	}}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind := r.Method
		if q := r.URL.Query(); q.Get("watch") != "" {
			kind = "WATCH"
			if f.expire.CompareAndSwap(true, false) {
				q.Set("resourceVersion", "1")
				r.URL.RawQuery = q.Encode()
				kind = "EXPIRED"
			}
		}
		n, _ := f.counts.LoadOrStore(kind, new(atomic.Int64))
		n.(*atomic.Int64).Add(1)
		proxy.ServeHTTP(w, r)
	}))
	s.t.Cleanup(func() {
		f.CloseClientConnections()
		f.Close()
		transport.CloseIdleConnections()
	})
	return f
}

func (f *front) count(kind string) int64 {
	if n, ok := f.counts.Load(kind); ok {
		return n.(*atomic.Int64).Load()
	}
	return 0
}

// wire carries bytes between a registry and the API server and can be cut.
type wire struct {
	l     net.Listener
	mu    sync.Mutex
	down  bool
	conns map[net.Conn]bool
	wait  sync.WaitGroup
}

func newWire(t *testing.T, target string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{l: l, conns: map[net.Conn]bool{}}
	w.wait.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.wait.Go(func() { w.carry(c, target) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		w.cut()
		w.wait.Wait()
	})
	return w
}

func (w *wire) carry(c net.Conn, target string) {
	defer c.Close()
	s, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer s.Close()
	w.mu.Lock()
	if w.down {
		w.mu.Unlock()
		return
	}
	w.conns[c], w.conns[s] = true, true
	w.mu.Unlock()
	done := make(chan bool)
	go func() { _, _ = io.Copy(s, c); s.Close(); close(done) }()
	_, _ = io.Copy(c, s)
	c.Close()
	<-done
	w.mu.Lock()
	delete(w.conns, c)
	delete(w.conns, s)
	w.mu.Unlock()
}

// cut breaks what is connected and refuses what comes, until mend.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = true
	for c := range w.conns {
		c.Close()
	}
}

func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = false
}

func (w *wire) port() string { return strconv.Itoa(w.l.Addr().(*net.TCPAddr).Port) }

// through makes an environment reach the API server by the wire.
func through(e apiserver.Environment, w *wire) apiserver.Environment {
	before := e.Getenv
	e.Getenv = func(k string) string {
		if k == "KUBERNETES_SERVICE_PORT" {
			return w.port()
		}
		return before(k)
	}
	return e
}

// apiServer is the process id of kube-apiserver.
func apiServer(t *testing.T) int {
	t.Helper()
	out, err := exec.Command("pgrep", "-f", "kube-apiserver .*"+state+"/pki").Output()
	pid, err2 := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || err2 != nil {
		t.Fatalf("looking for kube-apiserver: %v %v %q", err, err2, out)
	}
	return pid
}

func kill(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

// soon tries until ok returns nil, for limit at most, and returns how long it took.
func soon(t *testing.T, limit time.Duration, what string, ok func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	for {
		err := ok()
		took := time.Since(begin)
		if err == nil {
			return took
		}
		if took > limit {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// addresses are the nodes GetService returns.
func addresses(r registry.Registry, service string) ([]string, error) {
	all, err := r.GetService(service)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return nil, err
	}
	var a []string
	for _, s := range all {
		for _, n := range s.Nodes {
			a = append(a, n.Address)
		}
	}
	return a, nil
}

// has returns a condition for soon: the service has exactly these nodes.
func has(r registry.Registry, service string, want ...string) func() error {
	return func() error {
		got, err := addresses(r, service)
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, a := range got {
			seen[a] = true
		}
		for _, a := range want {
			if !seen[a] {
				return fmt.Errorf("service %q has %q, want %q", service, got, want)
			}
		}
		if len(got) != len(want) {
			return fmt.Errorf("service %q has %q, want %q", service, got, want)
		}
		return nil
	}
}
