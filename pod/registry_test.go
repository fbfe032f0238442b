package pod

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/debug/trace"
	"github.com/micro/go-micro/v2/debug/trace/memory"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/cache"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestGetServiceSeesChangesInAnyOrder(t *testing.T) {
	ns := newNamespace(t)
	r := ns.openRegistry("reader")
	if got, err := addresses(r, "greeter"); err != nil || got != nil {
		t.Fatal(got, err)
	}
	const limit = 10 * time.Second // generous: only the benchmark measures the time
	ns.CreateReadyPod("a")
	ns.register("a", "greeter", "v1", "10.0.0.1:1")
	kubetest.Eventually(t, limit, "a pod that was Ready before its registration", has(r, "greeter", "10.0.0.1:1"))

	ns.CreatePod("b")
	ns.register("b", "greeter", "v1", "10.0.0.2:1")
	ns.SetStatus("b", corev1.PodRunning, corev1.ConditionTrue)
	kubetest.Eventually(t, limit, "a pod that becomes Ready after its registration", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))

	ns.SetStatus("b", corev1.PodRunning, corev1.ConditionFalse)
	kubetest.Eventually(t, limit, "the pod is not Ready any more", has(r, "greeter", "10.0.0.1:1"))
	ns.SetStatus("b", corev1.PodRunning, corev1.ConditionTrue)
	kubetest.Eventually(t, limit, "the pod is Ready again", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))

	ns.register("b", "greeter", "v2", "10.0.0.2:1")
	kubetest.Eventually(t, limit, "both versions are found", func() error {
		all, err := r.GetService("greeter")
		if err != nil || len(all) != 2 {
			return fmt.Errorf("%v %v", err, all)
		}
		return nil
	})
	ns.register("b", "greeter", "v2", "10.0.0.2:2")
	kubetest.Eventually(t, limit, "a new process in the same pod replaces the old one", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:2"))

	ns.TerminatePod("a")
	if ns.GetPod("a").DeletionTimestamp == nil {
		t.Fatal("the pod is removed, not terminating")
	}
	kubetest.Eventually(t, limit, "the terminating pod is not routable", has(r, "greeter", "10.0.0.2:2"))
	ns.SetStatus("b", corev1.PodFailed, corev1.ConditionFalse)
	kubetest.Eventually(t, limit, "the failed pod is not routable", has(r, "greeter"))
	if _, err := r.GetService("greeter"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("GetService: %v, want registry.ErrNotFound", err)
	}
}

func TestRegistrySurvivesAPIServerRestart(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	r, own := ns.openRegistry("reader"), ns.openRegistry("a")
	if err := own.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 10*time.Second, "the instance is found", has(r, "greeter", "10.0.0.1:1"))
	ns.KillAndWait(t, func() {
		if err := has(r, "greeter", "10.0.0.1:1")(); err != nil {
			t.Fatalf("without the API server: %v", err)
		}
	})
	ns.CreateReadyPod("b")
	ns.register("b", "greeter", "v1", "10.0.0.2:1")
	took := kubetest.Eventually(t, 10*time.Second, "the change is seen after the restart", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))
	t.Logf("seen %s after the write", took)
	ns.PatchPod("a", `{"metadata":{"labels":{"micro.mu/type":null}}}`)
	kubetest.Eventually(t, 10*time.Second, "the registry watches its own pod again", func() error {
		if ns.GetPod("a").Labels[podmeta.TypeLabel] != podmeta.TypeValue {
			return errors.New("the label is missing")
		}
		return nil
	})
}

func TestCallsContinueWhileAPIServerIsFrozen(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	ns.register("a", "greeter", "v1", "10.0.0.1:1")
	const timeout = 5 * time.Second
	r := ns.openRegistry("reader", registry.Timeout(timeout))
	own := ns.openRegistry("a", registry.Timeout(time.Second))
	ours := balancer.NewSelector(r, choosersOf)
	kubetest.Eventually(t, 10*time.Second, "the instance is found", has(r, "greeter", "10.0.0.1:1"))
	thaw := ns.Freeze(t)
	slowest := time.Duration(0)
	for end := time.Now().Add(18 * time.Second); time.Now().Before(end); { // longer than the 15 s until a silent connection is closed
		begin := time.Now()
		choose, err := ours.Chooser(t.Context(), "greeter", nil)
		if err == nil {
			var c balancer.Choice
			if c, err = choose(balancer.Attempt{}); err == nil {
				c.Done(outcome.Answered, nil)
				err = has(r, "greeter", "10.0.0.1:1")()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(begin))
		time.Sleep(time.Millisecond)
	}
	if slowest >= timeout-time.Second { // a choice that waits for the API server waits that long; a busy machine may stall
		t.Errorf("the slowest choice took %s", slowest)
	}
	begin := time.Now()
	_, err := r.GetService("never-looked-up-before")
	if err == nil || errors.Is(err, registry.ErrNotFound) || time.Since(begin) > 10*time.Second {
		t.Errorf("first GetService of a name: %v after %s, want an error within its timeout", err, time.Since(begin))
	}
	begin = time.Now()
	if err := own.Register(service("late", "v1", "a", "10.0.0.1:1")); err == nil || time.Since(begin) > 10*time.Second || !strings.Contains(err.Error(), "not answer") {
		t.Errorf("Register: %v after %s", err, time.Since(begin))
	}
	thaw()
	kubetest.Eventually(t, 20*time.Second, "the registration is written after the thaw", func() error {
		if !own.Registered() || ns.GetPod("a").Annotations[podmeta.AnnotationPrefix+"late"] == "" {
			return errors.New("not registered")
		}
		return nil
	})
	ns.CreateReadyPod("b")
	ns.register("b", "greeter", "v1", "10.0.0.2:1")
	kubetest.Eventually(t, 10*time.Second, "the change is seen after the thaw", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))
}

func TestTokenRotation(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	secret, err := ns.Admin.CoreV1().Secrets(ns.Name).Create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bound"}})
	if err != nil {
		t.Fatal(err)
	}
	env := ns.Environment("a")
	kubetest.WriteVolumeFile(t, env.ServiceAccountDir, "token", []byte(ns.Token(&authenticationv1.BoundObjectReference{Kind: "Secret", APIVersion: "v1", Name: secret.Name, UID: secret.UID})))
	relay := ns.StartRelay(t)
	r := ns.openRegistryIn(relay.Through(env))
	if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 10*time.Second, "the instance is found", has(r, "greeter", "10.0.0.1:1"))
	if err := ns.Admin.CoreV1().Secrets(ns.Name).Delete("bound", &metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 30*time.Second, "the API server refuses the token", func() error { // the API server caches tokens for some seconds
		err := r.Register(service("greeter", "v1", "a", fmt.Sprint("10.0.0.1:", time.Now().Nanosecond())))
		if err == nil || !strings.Contains(err.Error(), "does not accept the token") {
			return fmt.Errorf("Register: %v", err)
		}
		return nil
	})
	relay.Cut()
	relay.Restore()
	kubetest.WriteVolumeFile(t, env.ServiceAccountDir, "token", []byte(ns.Token(nil)))
	kubetest.Eventually(t, 10*time.Second, "Register with the new token", func() error { return r.Register(service("greeter", "v2", "a", "10.0.0.1:2")) })
	ns.CreateReadyPod("b")
	ns.register("b", "greeter", "v2", "10.0.0.2:1")
	kubetest.Eventually(t, 10*time.Second, "the registry reads with the new token", has(r, "greeter", "10.0.0.1:2", "10.0.0.2:1"))
}

func TestCertificateAuthorityRotation(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	first, second := newAuthority(t), newAuthority(t)
	var serving atomic.Pointer[tls.Certificate]
	serving.Store(&first.cert)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return serving.Load(), nil }})
	if err != nil {
		t.Fatal(err)
	}
	relay := kubetest.StartRelay(t, l, func() (net.Conn, error) {
		return tls.Dial("tcp", ns.Address(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	})
	env := relay.Through(ns.Environment("a"))
	kubetest.WriteVolumeFile(t, env.ServiceAccountDir, "ca.crt", first.pem)
	r := ns.openRegistryIn(env)
	if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 10*time.Second, "the instance is found", has(r, "greeter", "10.0.0.1:1"))
	serving.Store(&second.cert)
	relay.CloseConnections()
	if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:2")); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("Register with a certificate of another authority: %v", err)
	}
	kubetest.WriteVolumeFile(t, env.ServiceAccountDir, "ca.crt", second.pem)
	kubetest.Eventually(t, 10*time.Second, "Register with the new authority", func() error { return r.Register(service("greeter", "v1", "a", "10.0.0.1:3")) })
	kubetest.Eventually(t, 10*time.Second, "the registry reads with the new authority", has(r, "greeter", "10.0.0.1:3"))
}

type authority struct {
	pem  []byte
	cert tls.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	root, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root}), tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}
}

func TestErrorsNameMissingVerb(t *testing.T) {
	for missing, call := range map[string]func(r *Registry) error{
		"patch": func(r *Registry) error { return r.Register(service("greeter", "v1", "a", "10.0.0.1:1")) },
		"list":  func(r *Registry) error { _, err := r.GetService("greeter"); return err },
	} {
		t.Run(missing, func(t *testing.T) {
			ns := newNamespace(t, slices.DeleteFunc([]string{"list", "patch", "watch"}, func(v string) bool { return v == missing })...)
			ns.CreateReadyPod("a")
			r := ns.openRegistry("a")
			err := call(r)
			for _, want := range []string{"forbidden", `verb "` + missing + `" on pods`, "k8s/pod-rbac.yaml", ns.Name} {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not name %q", err, want)
				}
			}
			if r.Registered() {
				t.Error("Registered is true")
			}
		})
	}
	t.Run("watch", func(t *testing.T) { // without the verb watch the informer only lists, so changes arrive late
		ns := newNamespace(t, "list", "patch")
		ns.CreateReadyPod("a")
		r := ns.openRegistry("a")
		if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err != nil {
			t.Fatal(err)
		}
		kubetest.Eventually(t, 10*time.Second, "the instance is found", has(r, "greeter", "10.0.0.1:1"))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var last error
		for _, last = range r.Observe(ctx) {
			if last != nil && strings.Contains(last.Error(), `verb "watch" on pods`) {
				return
			}
		}
		t.Errorf("within 10 s no error names the verb; the last one is %v", last)
	})
}

func TestInitAndCloseTwice(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	proxy := ns.StartProxyWithoutCredentials()
	r := ns.openRegistryIn(proxy.Trust(ns.Environment("a")))
	for range 2 {
		if err := r.Init(registry.Timeout(3 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if r.Options().Timeout != 3*time.Second || r.String() != "kubernetes" {
		t.Errorf("%v %s", r.Options(), r)
	}
	if r.conn != nil {
		t.Error("the registry has started something before its first use")
	}
	for _, address := range []string{"", proxy.URL, proxy.URL} { // first use, changed address, same address again
		if address != "" {
			if err := r.Init(registry.Addrs(address)); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err != nil {
			t.Fatal(err)
		}
		kubetest.Eventually(t, 10*time.Second, "the instance is found", has(r, "greeter", "10.0.0.1:1"))
	}
	if proxy.Count("PATCH") != 1 {
		t.Errorf("%d PATCH through the new address, want 1", proxy.Count("PATCH"))
	}
	w, err := r.Watch()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.Next(); !errors.Is(err, registry.ErrWatcherStopped) {
		t.Errorf("Next after Close: %v", err)
	}
	if _, err := r.GetService("greeter"); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("GetService after Close: %v", err)
	}
	if ns.GetPod("a").Annotations[podmeta.AnnotationPrefix+"greeter"] == "" {
		t.Error("Close has removed the registration")
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	greeter := service("greeter", "v1", "a", "10.0.0.1:1")
	without := func(name string) apiserver.Environment { return kubetest.With(ns.Environment("a"), name, "") }
	empty := ns.Environment("a")
	empty.ServiceAccountDir = t.TempDir()
	elsewhere := ns.Environment("node-7")
	for _, c := range []struct {
		name       string
		env        apiserver.Environment
		kubeconfig string
		want       string
	}{
		{"outside a pod, no kubeconfig", without("KUBERNETES_SERVICE_HOST"), filepath.Join(t.TempDir(), "none"), "not in a pod"},
		{"outside a pod, with a kubeconfig", without("KUBERNETES_SERVICE_HOST"), ns.Kubeconfig, ""},
		{"no service account", empty, "", "serviceAccountName"},
		{"no pod name", without("POD_NAME"), "", "set POD_NAME"},
		{"the name of the Kubernetes node, as under hostNetwork", elsewhere, "", "set POD_NAME"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", c.kubeconfig)
			t.Setenv("HOME", t.TempDir())
			r := newRegistry(c.env, kubernetes.NewRegistry)
			defer r.Close()
			err := r.Register(greeter)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("Register: %v, want %q", err, c.want)
			}
			if err == nil { // it has registered nothing
				if r.Registered() || ns.Registered("a", "greeter") {
					t.Error("the pod has a registration")
				}
				if _, err := r.ListServices(); err != nil {
					t.Errorf("ListServices: %v", err)
				}
			}
		})
	}
	r := ns.openRegistry("a")
	if err := r.Register(&registry.Service{Name: "x"}); err == nil {
		t.Error("registered a service without a node")
	}
	if err := r.Register(service(strings.Repeat("long", 30), "v1", "a", "10.0.0.1:1")); err == nil || !strings.Contains(err.Error(), "63") {
		t.Errorf("a name too long for a label: %v", err)
	}
	if err := r.Register(greeter); err != nil || !r.Registered() {
		t.Errorf("a valid registration afterwards: %v", err)
	}
}

func TestOnlyNewRegistrySetsTheTracer(t *testing.T) {
	if _, ok := importedTracer.(*memory.Tracer); !ok {
		t.Errorf("importing the package has set the tracer %T", importedTracer)
	}
	var clients sync.WaitGroup
	for range 10 { // clients of one program, with their registries
		clients.Go(func() {
			r := newRegistry(apiserver.ProcessEnvironment, nil)
			NewClient(r, grpcc.NewClient())
			if trace.DefaultTracer == importedTracer { // as micro.NewService and the start of a service read it
				t.Errorf("a service gets the tracer %T", trace.DefaultTracer)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
}

func TestPodReplacedUnderSameName(t *testing.T) {
	ns := newNamespace(t)
	r, own := ns.openRegistry("reader"), ns.openRegistry("web-0")
	ns.CreateReadyPod("web-0")
	if err := own.Register(service("web", "v1", "a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 10*time.Second, "the first pod is found", has(r, "web", "10.0.0.1:1"))
	ns.RemovePod("web-0")
	ns.CreateReadyPod("web-0")
	ns.register("web-0", "web", "v1", "10.0.0.2:1")
	kubetest.Eventually(t, 10*time.Second, "the second pod is found", has(r, "web", "10.0.0.2:1"))
	// The first pod's process runs on for a while and must not remove the second pod's registration.
	err := own.Deregister(service("web", "v1", "a", "10.0.0.1:1"))
	if err == nil || !strings.Contains(err.Error(), "another pod has this name now") {
		t.Errorf("Deregister by the first pod's process: %v", err)
	}
	if err := has(r, "web", "10.0.0.2:1")(); err != nil {
		t.Error(err)
	}
}

func TestRemovedMetadataIsRestoredAndNothingElseIsPatched(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	proxy := ns.StartProxyWithoutCredentials()
	r := ns.openRegistryIn(proxy.Through(ns.Environment("a")))
	one, two := service("one", "v1", "a", "10.0.0.1:1"), service("two", "v1", "b", "10.0.0.1:2")
	if err := errors.Join(r.Register(one), r.Register(two)); err != nil {
		t.Fatal(err)
	}
	before := ns.GetPod("a")
	if len(before.Annotations) != 2 || !r.Registered() {
		t.Fatalf("annotations %q, registered %v", before.Annotations, r.Registered())
	}
	kubetest.Eventually(t, 10*time.Second, "the registry watches its own pod", func() error {
		if proxy.Count("WATCH") == 0 {
			return errors.New("no watch")
		}
		return nil
	})
	patches := proxy.Count("PATCH")
	for range 20 { // go-micro registers again every 30 s
		if err := errors.Join(r.Register(one), r.Register(two)); err != nil {
			t.Fatal(err)
		}
	}
	if n := proxy.Count("PATCH"); n != patches || n != 2 {
		t.Errorf("%d PATCH for two services, %d after 40 repetitions, want 2 and 2", patches, n)
	}
	ns.PatchPod("a", fmt.Sprintf(`{"metadata":{"labels":{%q:null,%q:null},"annotations":{%q:null,%q:"{}"}}}`,
		podmeta.TypeLabel, podmeta.SelectorPrefix+"one", podmeta.AnnotationPrefix+"one", podmeta.AnnotationPrefix+"two"))
	took := kubetest.Eventually(t, 10*time.Second, "the removed metadata is restored", func() error {
		if p := ns.GetPod("a"); !maps.Equal(p.Labels, before.Labels) || !maps.Equal(p.Annotations, before.Annotations) {
			return fmt.Errorf("%q %q", p.Labels, p.Annotations)
		}
		return nil
	})
	t.Logf("restored after %s", took)
	if err := r.Deregister(one); err != nil {
		t.Fatal(err)
	}
	if p := ns.GetPod("a"); len(p.Annotations) != 1 || p.Labels[podmeta.SelectorPrefix+"one"] != "" || p.Labels[podmeta.SelectorPrefix+"two"] != podmeta.TypeValue {
		t.Errorf("after Deregister of one of two: %q %q", p.Labels, p.Annotations)
	}
	// A deregistered service stays deregistered, and the registrar leaves what another process writes under its name.
	ns.register("a", "one", "v9", "10.0.0.9:9")
	if err := has(r, "two", "10.0.0.1:2")(); err != nil {
		t.Error(err)
	}
	if p := ns.GetPod("a"); !strings.Contains(p.Annotations[podmeta.AnnotationPrefix+"one"], "v9") {
		t.Errorf("another process's registration was removed: %q", p.Annotations)
	}
}

func TestNewProcessInSamePodReplacesRegistration(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	reader := ns.openRegistry("reader")
	first := ns.openRegistry("a")
	if err := first.Register(service("greeter", "v1", "before", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 10*time.Second, "the instance of the first process is found", has(reader, "greeter", "10.0.0.1:1"))
	if err := first.Close(); err != nil { // a killed process does not deregister
		t.Fatal(err)
	}
	second := ns.openRegistry("a")
	if err := second.Register(service("greeter", "v2", "after", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, 10*time.Second, "only the second process is registered", func() error {
		all, err := reader.GetService("greeter")
		if err != nil || len(all) != 1 || all[0].Version != "v2" || len(all[0].Nodes) != 1 || all[0].Nodes[0].Id != "after" {
			return fmt.Errorf("%v %v", err, all)
		}
		return nil
	})
}

// A Job calls services with the rights to list and to watch, and nothing appears on its pod.
func TestJobRegistersNothing(t *testing.T) {
	ns := newNamespace(t, "list", "watch")
	ns.CreateReadyPod("server-0")
	ns.CreatePod("job-0")
	before := ns.GetPod("job-0")
	address := startHello(t, answer)
	ns.register("server-0", "greeter", "v1", address)
	c := NewClient(ns.openRegistry("job-0", AnyAddress()), grpcc.NewClient())
	if err := callHello(contextWithTimeout(t, 20*time.Second), c); err != nil {
		t.Error(err)
	}
	if after := ns.GetPod("job-0"); after.ResourceVersion != before.ResourceVersion {
		t.Errorf("the pod of the Job has changed: %v, %v", after.Labels, after.Annotations)
	}
}

func TestRegistrationIsRetriedUntilRightsAreGranted(t *testing.T) {
	ns := newNamespace(t, "list", "watch")
	ns.CreateReadyPod("a")
	r := ns.openRegistry("a", registry.Timeout(4*time.Second))
	if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err == nil {
		t.Fatal("Register returned nil without the verb patch")
	}
	ns.GrantVerb("patch")
	kubetest.Eventually(t, 15*time.Second, "the registration is written", func() error {
		if !r.Registered() {
			return errors.New("not registered")
		}
		return nil
	})
}

func TestRegistryWritesSameMetadataAsPlugin(t *testing.T) {
	ns := newNamespace(t)
	for _, name := range []string{"greeter", "go.micro.srv.x/y", "with space, ü and name"} {
		ns.CreateReadyPod("ours")
		ns.CreateReadyPod("theirs")
		t.Setenv("HOSTNAME", "theirs")
		plugin := kubernetes.NewRegistry(registry.Addrs(ns.StartProxy().URL))
		greeter := service(name, "v1", "greeter-1", "10.0.0.1:9100")
		ours := ns.openRegistry("ours")
		compare := func(step string) {
			t.Helper()
			a, b := ns.GetPod("ours"), ns.GetPod("theirs")
			if !maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Annotations, b.Annotations) {
				t.Errorf("%s %q: ours %q %q, theirs %q %q", step, name, a.Labels, a.Annotations, b.Labels, b.Annotations)
			}
		}
		if err := errors.Join(ours.Register(greeter), plugin.Register(greeter)); err != nil {
			t.Fatal(err)
		}
		if len(ns.GetPod("ours").Annotations) != 1 {
			t.Errorf("annotations %q, want one", ns.GetPod("ours").Annotations)
		}
		compare("Register")
		if err := errors.Join(ours.Deregister(greeter), plugin.Deregister(greeter)); err != nil {
			t.Fatal(err)
		}
		compare("Deregister")
		for _, p := range []string{"ours", "theirs"} {
			ns.RemovePod(p)
		}
	}
}

func TestRegistryAndPluginFindEachOther(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("ours")
	ns.CreateReadyPod("theirs")
	t.Setenv("HOSTNAME", "theirs")
	plugin := kubernetes.NewRegistry(registry.Addrs(ns.StartProxy().URL))
	ours := ns.openRegistry("ours")
	if err := errors.Join(ours.Register(service("greeter", "v1", "a", "10.0.0.1:1")), plugin.Register(service("greeter", "v1", "b", "10.0.0.2:1"))); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]registry.Registry{"ours": ours, "theirs": plugin} {
		kubetest.Eventually(t, 10*time.Second, name, has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))
		all, err := r.GetService("greeter")
		if err != nil || len(all) != 1 || all[0].Version != "v1" || len(all[0].Endpoints) != 1 || all[0].Endpoints[0].Request.Values[0].Name != "name" {
			t.Errorf("%s: GetService: %v %+v", name, err, all)
		}
		names, err := r.ListServices()
		if err != nil || len(names) != 1 || names[0].Name != "greeter" {
			t.Errorf("%s: ListServices: %v %v", name, err, names)
		}
	}
	c := cache.New(ours) // go-micro's own cache and selector work with this registry
	defer c.Stop()
	if all, err := c.GetService("greeter"); err != nil || len(all) != 1 || len(all[0].Nodes) != 2 {
		t.Errorf("go-micro's cache: %v %v", err, all)
	}
	theirs := selector.NewSelector(selector.Registry(ours))
	defer theirs.Close()
	if next, err := theirs.Select("greeter"); err != nil {
		t.Errorf("go-micro's selector: %v", err)
	} else if n, err := next(); err != nil || !strings.HasPrefix(n.Address, "10.0.0.") {
		t.Errorf("go-micro's selector: %v %v", err, n)
	}
}

// A server in a pod with an IPv6 address registers that address, answers its probe there,
// and receives the calls of a client that finds it. The machine's only IPv6 address is the
// loopback, so the client's dialer connects to the loopback instead of the pod's address.
func TestIPv6(t *testing.T) {
	const podIP = "2001:db8::7"
	ns := newNamespace(t)
	for _, name := range []string{"greeter-0", "client-0"} {
		ns.CreateReadyPod(name)
	}
	ns.PatchPod("greeter-0", `{"status": {"podIP": "`+podIP+`", "podIPs": [{"ip": "`+podIP+`"}, {"ip": "10.244.0.7"}]}}`, "status")
	env := kubetest.With(ns.Environment("greeter-0"), "POD_IP", podIP)
	svc := startGreeter(t, env, 0, micro.Address(":0")) // on all addresses, as with the ":9100" of go-micro-srv
	_, port, err := net.SplitHostPort(svc.address)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(podIP, port)
	kubetest.Eventually(t, 10*time.Second, "the pod carries its IPv6 address", func() error {
		if a := ns.GetPod("greeter-0").Annotations[podmeta.AnnotationPrefix+"greeter"]; !strings.Contains(a, `"address":"`+address+`"`) {
			return fmt.Errorf("the annotation is %q", a)
		}
		return nil
	})
	r := ns.openRegistry("client-0")
	kubetest.Eventually(t, 10*time.Second, "the client finds the server", has(r, "greeter", address))

	var dialed atomic.Int32
	dialer := grpc.WithContextDialer(func(ctx context.Context, got string) (net.Conn, error) {
		if got != address {
			return nil, fmt.Errorf("dialing %q, want %q", got, address)
		}
		dialed.Add(1)
		return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("::1", port))
	})
	c := NewClient(r, grpcc.NewClient(dialOptions(dialer)))
	rsp, err := proto.NewGreeterService("greeter", c).Hello(contextWithTimeout(t, 10*time.Second), &proto.HelloRequest{Name: "IPv6"})
	if err != nil || rsp.Greeting != "Hello IPv6!" || dialed.Load() == 0 {
		t.Errorf("the call returned %v, %v after %d dials", rsp, err, dialed.Load())
	}

	svc.address = net.JoinHostPort("::1", port)
	for _, service := range []string{"", "liveness"} { // as the manifests' probes ask
		status, err := healthv1.NewHealthClient(svc.dial()).Check(contextWithTimeout(t, 5*time.Second), &healthv1.HealthCheckRequest{Service: service})
		if err != nil || status.Status != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("probe of %q: %v, %v", service, status, err)
		}
	}
	svc.stop()
	if err, _ := svc.waitForRun(10 * time.Second); err != nil {
		t.Error(err)
	}
	kubetest.Eventually(t, 10*time.Second, "the pod is deregistered", func() error {
		if ns.Registered("greeter-0", "greeter") {
			return errors.New("it still carries the label")
		}
		return nil
	})
	kubetest.Eventually(t, 10*time.Second, "the client forgets the server", has(r, "greeter"))
}

// A service with 40 methods of realistic messages has an annotation of 130 kB. It registers and is found,
// with what the plugin writes and what a registry of the plugin alone returns.
func TestServiceWithManyMethods(t *testing.T) {
	ns := newNamespace(t)
	ns.CreateReadyPod("a")
	w, r := ns.openRegistry("a"), ns.openRegistry("reader")
	want := service("greeter", "v1", "a-1", "10.244.0.9:1")
	fields := func(name string, nested ...*registry.Value) *registry.Value {
		v := &registry.Value{Name: name, Type: name, Values: nested}
		for i := range 12 {
			v.Values = append(v.Values, &registry.Value{Name: fmt.Sprint("some_realistic_field_", i), Type: "string"})
		}
		return v
	}
	for i := range 40 {
		want.Endpoints = append(want.Endpoints, &registry.Endpoint{Name: fmt.Sprint("Greeter.Method", i), Request: fields("Request", fields("Money")), Response: fields("Response", fields("Money")), Metadata: map[string]string{}})
	}
	if err := w.Register(want); err != nil {
		t.Fatal(err)
	}
	if n := len(ns.GetPod("a").Annotations["micro.mu/service-greeter"]); n < 100<<10 || n > 200<<10 {
		t.Errorf("the annotation has %d bytes", n)
	}
	var all []*registry.Service
	kubetest.Eventually(t, 10*time.Second, "the service is found", func() (err error) {
		all, err = r.GetService("greeter")
		return err
	})
	got, _ := json.Marshal(all)
	if text, _ := json.Marshal([]*registry.Service{want}); string(got) != string(text) {
		t.Errorf("GetService returns %.300s, want %.300s", got, text)
	}
	for i := range 100 { // 1000 methods are too many
		want.Endpoints = append(want.Endpoints, want.Endpoints[i:i+10]...)
	}
	if err := w.Register(want); err == nil || !strings.Contains(err.Error(), "server.InternalHandler(true)") {
		t.Errorf("Register of 1000 methods: %v", err)
	}
}
