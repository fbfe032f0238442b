package pod

import (
	"context"
	stderrors "errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/mtls"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/portforward"
	"github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/web"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"google.golang.org/grpc/credentials"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// newOutsideClient returns a client of a registry that knows greeters "p-0", "p-1", ... at addresses which only the cluster can reach, and
// the fake API server that leads to the servers with the handlers.
func newOutsideClient(t *testing.T, handlers []helloFunc, opts ...client.Option) (*Client, *kubetest.PortForwards) {
	t.Helper()
	f := kubetest.StartPortForwards(t)
	r, inf := newStaticRegistry(t, 0)
	path, err := portforward.New(f.Connect(t))
	if err != nil {
		t.Fatal(err)
	}
	r.path = path
	var addresses []string
	for i, h := range handlers {
		f.Put(fmt.Sprint("p-", i), startHello(t, h))
		addresses = append(addresses, fmt.Sprintf("192.0.2.%d:9100", i+1)) // TEST-NET-1
	}
	inf.Replace(readyPodsAt(t, addresses...))
	c := NewClient(r, grpcc.NewClient(opts...))
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		path.Close()
	})
	return c, f
}

func expectNoneEjected(t *testing.T, c *Client) {
	t.Helper()
	for _, i := range c.Instances("greeter") {
		if i.EjectedFor > 0 || i.Failures > 0 {
			t.Errorf("%+v is blamed", i)
		}
	}
}

func TestClientCallsThroughAPIServer(t *testing.T) {
	c, f := newOutsideClient(t, []helloFunc{answer, answer})
	for range 20 {
		if err := callHello(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.Opened(kubetest.WebSocket); n != 2 {
		t.Errorf("%d port-forwards, want one for each instance", n)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 10*time.Second, "the port-forwards are closed", func() error {
		if n := f.Open(); n > 0 {
			return fmt.Errorf("%d are open", n)
		}
		return nil
	})
}

// The end of an API server breaks all port-forwards while calls are in flight. Each of these calls fails once and names the cause. No
// instance is blamed, and later calls succeed at once, over new port-forwards.
func TestCutPortForwardsBlameNoInstance(t *testing.T) {
	held, release := make(chan struct{}, 100), make(chan struct{})
	hold := func(ctx context.Context, _ *proto.HelloRequest, _ *proto.HelloResponse) error {
		held <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return nil
	}
	c, f := newOutsideClient(t, []helloFunc{hold, hold}, client.Retries(0), client.RequestTimeout(20*time.Second))
	const calls = 10
	errs := make(chan error, calls)
	for range calls {
		go func() { errs <- callHello(t.Context(), c) }()
	}
	for range calls {
		<-held
	}
	f.Cut()
	for range calls {
		err := <-errs
		e := errors.FromError(err)
		if err == nil || e.Code != 500 || !strings.Contains(e.Detail, "calls from outside of the cluster go through the API server at "+f.URL) {
			t.Errorf("a call in flight: %v", err)
		}
	}
	expectNoneEjected(t, c)
	close(release)
	for range calls {
		if err := callHello(t.Context(), c); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
	expectNoneEjected(t, c)
}

// A retry, which go-micro makes by default, hides that the port-forwards were broken.
func TestRetryHidesCutPortForwards(t *testing.T) {
	held := make(chan struct{}, 100)
	var isCut atomic.Bool
	hold := func(ctx context.Context, req *proto.HelloRequest, rsp *proto.HelloResponse) error {
		if !isCut.Load() {
			held <- struct{}{}
			<-ctx.Done()
		}
		return answer(ctx, req, rsp)
	}
	c, f := newOutsideClient(t, []helloFunc{hold, hold, hold}, client.RequestTimeout(20*time.Second))
	var calls sync.WaitGroup
	for range 10 {
		calls.Go(func() {
			if err := callHello(t.Context(), c); err != nil {
				t.Error(err)
			}
		})
	}
	for range 10 {
		<-held
	}
	isCut.Store(true)
	f.Cut()
	calls.Wait()
	expectNoneEjected(t, c)
}

// A pod that is gone, or whose port refuses connections, is ejected as in the cluster.
func TestPodThatIsAwayIsEjected(t *testing.T) {
	c, f := newOutsideClient(t, []helloFunc{answer, answer})
	for range 4 {
		if err := callHello(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	for _, address := range []string{"", "127.0.0.1:1"} {
		f.Put("p-1", address)
		f.Cut()
		kubetest.Eventually(t, 20*time.Second, "the instance is ejected", func() error {
			_ = callHello(t.Context(), c) // may fail once: Cut has broken the connections to both
			for _, i := range c.Instances("greeter") {
				if i.Pod == "p-1" && i.EjectedFor > 0 {
					return nil
				}
			}
			return fmt.Errorf("%+v", c.Instances("greeter"))
		})
		if err := callHello(t.Context(), c); err != nil {
			t.Error(err)
		}
	}
}

// While the API server is frozen, calls end with their deadline and name the cause. No instance is blamed.
func TestFrozenAPIServerBlamesNoInstance(t *testing.T) {
	c, f := newOutsideClient(t, []helloFunc{answer, answer}, client.Retries(0), client.RequestTimeout(3*time.Second))
	kubetest.Eventually(t, 10*time.Second, "both instances were called", func() error {
		if err := callHello(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if n := f.Opened(kubetest.WebSocket); n < 2 {
			return fmt.Errorf("%d port-forwards", n)
		}
		return nil
	})
	f.Freeze()
	for range 2 {
		begin := time.Now()
		e := errors.FromError(callHello(t.Context(), c))
		if e == nil || e.Code != 408 || !strings.Contains(e.Detail, "go through the API server at "+f.URL) || time.Since(begin) > 6*time.Second {
			t.Errorf("after %s: %v", time.Since(begin), e)
		}
	}
	expectNoneEjected(t, c)
	f.Thaw()
	if err := callHello(t.Context(), c); err != nil {
		t.Errorf("after the thaw: %v", err)
	}
}

// The API server is a real one, of an old version in make compat; the kubelet is a stand-in. Kubernetes 1.30 has no WebSocket for port-forwards.
func TestClientCallsThroughRealAPIServer(t *testing.T) {
	n := kubetest.NewNamespace(t, "list", "watch")
	n.Grant("laptop", rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods/portforward"}, Verbs: []string{"get", "create"}})
	kubelet := n.StartKubelet()
	for _, name := range []string{"p-0", "p-1"} {
		kubelet.Put(name, startHello(t, answer))
		n.CreateReadyPod(name, func(p *corev1.Pod) { p.Spec.NodeName = n.Name })
		n.Register(name, "greeter", string(annotation(t, name, "greeter", "v1", "192.0.2.1:9100"))) // TEST-NET-1
	}
	version, err := n.Admin.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	for _, refused := range []string{"", "websocket"} {
		proxy := n.StartProxyWithoutCredentials()
		proxy.RefuseUpgrade(refused)
		r := newRegistry(proxy.Through(n.Environment("p-0")), kubernetes.NewRegistry, ThroughAPIServer())
		c := NewClient(r, grpcc.NewClient())
		for range 20 {
			if err := callHello(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		expectNoneEjected(t, c)
		webSocket, spdy := proxy.Count("websocket"), proxy.Count("SPDY/3.1")
		t.Logf("%s, %q is refused by a proxy: %d upgrades to WebSocket, %d to SPDY", version.GitVersion, refused, webSocket, spdy)
		// The first connections to both pods may learn at the same time that WebSocket is refused.
		if overWebSocket := refused == "" && version.Minor != "30"; overWebSocket && (webSocket != 2 || spdy != 0) || !overWebSocket && (webSocket > 2 || spdy != 2) {
			t.Errorf("%q is refused by a proxy: %d upgrades to WebSocket, %d to SPDY; want one for each instance, over WebSocket where it can be", refused, webSocket, spdy)
		}
		if err := stderrors.Join(c.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	}
}

func TestMissingRightIsNamedAndBlamesNoInstance(t *testing.T) {
	c, f := newOutsideClient(t, []helloFunc{answer, answer}, client.RequestTimeout(20*time.Second))
	f.Refuse(func(*http.Request) kubetest.Refusal {
		return kubetest.Refusal{Code: http.StatusForbidden, Body: `{"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "User \"dev\" cannot create resource \"pods/portforward\""}`}
	})
	if err := callHello(t.Context(), c); err == nil || !strings.Contains(err.Error(), ` on pods/portforward (k8s/components/laptop/laptop-rbac.yaml grants it)`) {
		t.Errorf("the call returned %v", err)
	}
	expectNoneEjected(t, c)
}

func TestOptionsForceThePath(t *testing.T) {
	f := kubetest.StartPortForwards(t)
	f.Kubeconfig(t)
	outside := apiserver.Environment{Getenv: func(string) string { return "" }}
	_, inside := kubetest.StartFake(t, http.NotFoundHandler())
	for name, c := range map[string]struct {
		env     apiserver.Environment
		options []registry.Option
		through bool
	}{
		"outside":              {outside, nil, true},
		"outside, direct":      {outside, []registry.Option{Direct()}, false},
		"inside":               {inside, nil, false},
		"inside, through":      {inside, []registry.Option{ThroughAPIServer()}, true},
		"the last option wins": {outside, []registry.Option{Direct(), ThroughAPIServer()}, true},
	} {
		r := newRegistry(c.env, kubernetes.NewRegistry, c.options...)
		if r.pathToInstances() != nil {
			t.Errorf("%s: a path without a connection", name)
		}
		if _, err := r.readable(); err != nil {
			t.Fatal(err)
		}
		if through := r.pathToInstances() != nil; through != c.through {
			t.Errorf("%s: through the API server %v, want %v", name, through, c.through)
		}
		if err := r.Close(); err != nil || r.pathToInstances() != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
	}
}

// Outside of the cluster services start, say once that they register nothing, and are ready.
func TestServicesOutsideOfTheClusterRegisterNothing(t *testing.T) {
	f := kubetest.StartPortForwards(t) // fails the test if it gets a request
	f.Kubeconfig(t)
	since := time.Now()
	outside := apiserver.Environment{Getenv: func(string) string { return "" }, ServiceAccountDir: t.TempDir()}
	svc := startGreeter(t, outside, 0)
	if got := svc.healthStatus(svc.dial(), ""); got != "SERVING" {
		t.Errorf("the health of a gRPC service is %s", got)
	}
	startWeb(t, outside, 0, web.Address("127.0.0.1:0")).expectRunning(200*time.Millisecond, "it serves outside of the cluster")
	lines := kubetest.LogLines(t, since, "registers nothing", `namespace "test"`, f.URL)
	if len(lines) != 2 { // one for each registry
		t.Errorf("the log has %q", lines)
	}
	r := newRegistry(outside, kubernetes.NewRegistry)
	defer r.Close()
	greeter := service("greeter", "v1", "a", "10.0.0.1:1")
	if err := stderrors.Join(r.Register(greeter), r.Register(greeter), r.Deregister(greeter)); err != nil || r.Registered() {
		t.Errorf("Register: %v, registered %v", err, r.Registered())
	}
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("HOME", t.TempDir())
	without := newRegistry(outside, kubernetes.NewRegistry)
	defer without.Close()
	if err := without.Register(greeter); err == nil || !strings.Contains(err.Error(), "not in a pod (KUBERNETES_SERVICE_HOST is not set): a service is registered on the pod that serves it") {
		t.Errorf("without a kubeconfig: %v", err)
	}
}

// files are Credentials as those of package pod/identity.
type files struct{ *mtls.Source }

func (f files) Client(to Callee) credentials.TransportCredentials {
	return f.Source.Client(mtls.Callee{Service: to.Service, Address: to.Address, Pod: to.Pod, PodUID: to.PodUID})
}

func openFiles(t *testing.T, a *kubetest.Authority, account, pod string) registry.Option {
	t.Helper()
	source, err := mtls.Open(mtls.Config{Dir: kubetest.NewVolume(t, a.Issue(t, kubetest.PodCertificate{ID: "spiffe://cluster.local/ns/shop/sa/" + account, Pod: pod, UID: pod}), a).Dir})
	if err != nil {
		t.Fatal(err)
	}
	source.Start()
	t.Cleanup(source.Stop)
	return WithCredentials(files{source})
}

// A program on a laptop calls services that speak only TLS: without files it learns why it is refused, with those of a pod it is answered. The
// port-forward leads to a pod by its name, and the certificate must name the same.
func TestOutsideWithCredentials(t *testing.T) {
	authority := kubetest.NewAuthority(t, "the authority")
	c, f := newOutsideClient(t, []helloFunc{answer}, client.RequestTimeout(20*time.Second))
	f.Put("p-0", startHello(t, answer, openFiles(t, authority, "greeter", "p-0")))
	begin := time.Now()
	err := callHello(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "greeter speaks TLS only: call it with a certificate of the trust domain cluster.local, which POD_IDENTITY mounts (docs/identity.md)") {
		t.Errorf("without files: %v", err)
	}
	t.Logf("refused after %s", time.Since(begin))
	expectNoneEjected(t, c)

	if err := c.registry.Init(openFiles(t, authority, "laptop", "its-pod")); err != nil {
		t.Fatal(err)
	}
	c.registry.Reconnect()
	for range 20 {
		if err := callHello(t.Context(), c); err != nil {
			t.Fatal("with files:", err)
		}
	}
	if all := c.Instances("greeter"); len(all) != 1 || all[0].Certificate == nil || all[0].Certificate.Subject.CommonName != "p-0" {
		t.Errorf("the instances are %+v", all)
	}

	f.Put("p-0", startHello(t, answer, openFiles(t, authority, "greeter", "p-1")))
	c.registry.Reconnect()
	if err := callHello(t.Context(), c, client.WithRetries(0)); err == nil || !strings.Contains(errors.FromError(err).Detail, `it is pod \"p-1\"`) {
		t.Errorf("with the certificate of another pod: %v", err)
	}
	f.Put("p-0", startHello(t, answer))
	c.registry.Reconnect()
	if err := callHello(t.Context(), c, client.WithRetries(0)); err == nil || !strings.Contains(err.Error(), "speaks plaintext, and this process speaks TLS only") {
		t.Errorf("a service in plaintext: %v", err)
	}
}
