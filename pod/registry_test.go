package pod

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/cache"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	clientv3 "go.etcd.io/etcd/client/v3"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func service(name, version, id, address string) *registry.Service {
	return &registry.Service{Name: name, Version: version, Metadata: map[string]string{"a": "b"},
		Endpoints: []*registry.Endpoint{{Name: "Greeter.Hello", Request: &registry.Value{Name: "HelloRequest", Type: "HelloRequest",
			Values: []*registry.Value{{Name: "name", Type: "string"}}}, Metadata: map[string]string{}}},
		Nodes: []*registry.Node{{Id: id, Address: address, Metadata: map[string]string{"protocol": "grpc"}}}}
}

func TestWhatStandsOnThePodIsThePluginsToTheByte(t *testing.T) {
	s := newSpace(t)
	for _, name := range []string{"greeter", "go.micro.srv.x/y", "with space, ü and name"} {
		s.pod("ours")
		s.pod("theirs")
		t.Setenv("HOSTNAME", "theirs")
		plugin := kubernetes.NewRegistry(registry.Addrs(s.front(true).URL))
		what := service(name, "v1", "greeter-1", "10.0.0.1:9100")
		ours := s.open("ours")
		compare := func(step string) {
			t.Helper()
			a, b := s.get("ours"), s.get("theirs")
			if !maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Annotations, b.Annotations) {
				t.Errorf("%s %q: ours %q %q, theirs %q %q", step, name, a.Labels, a.Annotations, b.Labels, b.Annotations)
			}
		}
		if err := errors.Join(ours.Register(what), plugin.Register(what)); err != nil {
			t.Fatal(err)
		}
		if len(s.get("ours").Annotations) != 1 {
			t.Errorf("annotations %q, want one", s.get("ours").Annotations)
		}
		compare("Register")
		if err := errors.Join(ours.Deregister(what), plugin.Deregister(what)); err != nil {
			t.Fatal(err)
		}
		compare("Deregister")
		for _, p := range []string{"ours", "theirs"} {
			s.remove(p)
		}
	}
}

func (s *space) remove(pod string) {
	s.t.Helper()
	var now int64
	if err := admin.CoreV1().Pods(s.name).Delete(pod, &metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil && !apierrors.IsNotFound(err) {
		s.t.Fatal(err)
	}
}

func TestServicesWithAndWithoutThisPackageFindEachOther(t *testing.T) {
	s := newSpace(t)
	s.pod("ours")
	s.pod("theirs")
	t.Setenv("HOSTNAME", "theirs")
	plugin := kubernetes.NewRegistry(registry.Addrs(s.front(true).URL))
	ours := s.open("ours")
	if err := errors.Join(ours.Register(service("greeter", "v1", "a", "10.0.0.1:1")), plugin.Register(service("greeter", "v1", "b", "10.0.0.2:1"))); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]registry.Registry{"ours": ours, "theirs": plugin} {
		soon(t, 5*time.Second, name, has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))
		all, err := r.GetService("greeter")
		if err != nil || len(all) != 1 || all[0].Version != "v1" || len(all[0].Endpoints) != 1 || all[0].Endpoints[0].Request.Values[0].Name != "name" {
			t.Errorf("%s: GetService: %v %+v", name, err, all)
		}
		names, err := r.ListServices()
		if err != nil || len(names) != 1 || names[0].Name != "greeter" {
			t.Errorf("%s: ListServices: %v %v", name, err, names)
		}
	}
	c := cache.New(ours) // go-micro's own cache and selector work on top of it
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

// A label patch makes a pod match the selector: the API server sends ADDED, which upstream ignores.
func TestChangesAreSeenInWhateverOrderTheyCome(t *testing.T) {
	s := newSpace(t)
	r := s.open("reader")
	if got, err := addresses(r, "greeter"); err != nil || got != nil {
		t.Fatal(got, err)
	}
	const limit = 2 * time.Second // generous; the benchmark measures
	s.pod("a")
	s.register("a", "greeter", "v1", "10.0.0.1:1")
	soon(t, limit, "registration after the last status change", has(r, "greeter", "10.0.0.1:1"))

	s.create("b")
	s.register("b", "greeter", "v1", "10.0.0.2:1")
	s.status("b", corev1.PodRunning, corev1.ConditionTrue)
	soon(t, limit, "registration before it is Ready", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))

	s.status("b", corev1.PodRunning, corev1.ConditionFalse)
	soon(t, limit, "not Ready any more", has(r, "greeter", "10.0.0.1:1"))
	s.status("b", corev1.PodRunning, corev1.ConditionTrue)
	soon(t, limit, "Ready again", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))

	s.register("b", "greeter", "v2", "10.0.0.2:1")
	soon(t, limit, "another version", func() error {
		all, err := r.GetService("greeter")
		if err != nil || len(all) != 2 {
			return fmt.Errorf("%v %v", err, all)
		}
		return nil
	})
	s.register("b", "greeter", "v2", "10.0.0.2:2")
	soon(t, limit, "a new process in the same pod: no ghost", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:2"))

	if err := admin.CoreV1().Pods(s.name).Delete("a", &metav1.DeleteOptions{}); err != nil { // gracefully: no kubelet confirms
		t.Fatal(err)
	}
	if s.get("a").DeletionTimestamp == nil {
		t.Fatal("the pod is gone at once: this test proves nothing")
	}
	soon(t, limit, "being deleted", has(r, "greeter", "10.0.0.2:2"))
	s.status("b", corev1.PodFailed, corev1.ConditionFalse)
	soon(t, limit, "failed", has(r, "greeter"))
	if _, err := r.GetService("greeter"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("GetService: %v, want registry.ErrNotFound", err)
	}
}

func TestMalformedAnnotationHarmsNobodyElse(t *testing.T) {
	s := newSpace(t)
	r := s.open("reader")
	for i, text := range []string{"", "{", "null", "[]", `{"name":7}`, `{"name":"greeter","nodes":[null,{}]}`, `{"name":"other","nodes":[{"id":"x","address":"y"}]}`, strings.Repeat("[", 10000)} {
		name := fmt.Sprint("bad-", i)
		s.pod(name)
		s.write(name, "greeter", text)
	}
	s.pod("good")
	s.register("good", "greeter", "v1", "10.0.0.1:1")
	soon(t, 2*time.Second, "the good one", has(r, "greeter", "10.0.0.1:1"))
	s.register("bad-1", "greeter", "v1", "10.0.0.2:1")
	soon(t, 2*time.Second, "a bad one mended", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))
	if _, err := r.ListServices(); err != nil {
		t.Error(err)
	}
}

func TestPodReplacedUnderTheSameName(t *testing.T) {
	s := newSpace(t)
	r, own := s.open("reader"), s.open("web-0")
	s.pod("web-0")
	if err := own.Register(service("web", "v1", "a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	soon(t, 2*time.Second, "the first", has(r, "web", "10.0.0.1:1"))
	s.remove("web-0")
	s.pod("web-0")
	s.register("web-0", "web", "v1", "10.0.0.2:1")
	soon(t, 2*time.Second, "the second", has(r, "web", "10.0.0.2:1"))
	// The first's process lives on for a while, and must not take the second's registration away.
	err := own.Deregister(service("web", "v1", "a", "10.0.0.1:1"))
	if err == nil || !strings.Contains(err.Error(), "another pod has this name now") {
		t.Errorf("Deregister by the first's process: %v", err)
	}
	if err := has(r, "web", "10.0.0.2:1")(); err != nil {
		t.Error(err)
	}
}

func TestStrippedMarksComeBackAndNothingIsPatchedOtherwise(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	f := s.front(false)
	r := s.open("a", registry.Addrs(f.URL))
	one, two := service("one", "v1", "a", "10.0.0.1:1"), service("two", "v1", "b", "10.0.0.1:2")
	if err := errors.Join(r.Register(one), r.Register(two)); err != nil {
		t.Fatal(err)
	}
	marks := s.get("a")
	if len(marks.Annotations) != 2 || !r.Registered() {
		t.Fatalf("annotations %q, registered %v", marks.Annotations, r.Registered())
	}
	soon(t, 5*time.Second, "the own pod being watched", func() error {
		if f.count("WATCH") == 0 {
			return errors.New("no watch")
		}
		return nil
	})
	patches := f.count("PATCH")
	for range 20 { // go-micro repeats it every 30 s
		if err := errors.Join(r.Register(one), r.Register(two)); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.count("PATCH"); n != patches || n != 2 {
		t.Errorf("%d PATCH for two services, %d after 40 repetitions, want 2 and 2", patches, n)
	}
	if _, err := admin.CoreV1().Pods(s.name).Patch("a", types.StrategicMergePatchType, []byte(fmt.Sprintf(
		`{"metadata":{"labels":{%q:null,%q:null},"annotations":{%q:null,%q:"{}"}}}`, typeLabel, selectorPrefix+"one", annotationPrefix+"one", annotationPrefix+"two"))); err != nil {
		t.Fatal(err)
	}
	took := soon(t, 5*time.Second, "stripped marks coming back", func() error {
		if p := s.get("a"); !maps.Equal(p.Labels, marks.Labels) || !maps.Equal(p.Annotations, marks.Annotations) {
			return fmt.Errorf("%q %q", p.Labels, p.Annotations)
		}
		return nil
	})
	t.Logf("back after %s", took)
	if err := r.Deregister(one); err != nil {
		t.Fatal(err)
	}
	if p := s.get("a"); len(p.Annotations) != 1 || p.Labels[selectorPrefix+"one"] != "" || p.Labels[selectorPrefix+"two"] != typeValue {
		t.Errorf("after Deregister of one of two: %q %q", p.Labels, p.Annotations)
	}
	// A service that is gone must not come back when somebody else touches the pod.
	s.register("a", "one", "v9", "10.0.0.9:9")
	if err := has(r, "two", "10.0.0.1:2")(); err != nil {
		t.Error(err)
	}
	if p := s.get("a"); !strings.Contains(p.Annotations[annotationPrefix+"one"], "v9") {
		t.Errorf("somebody else's registration was taken away: %q", p.Annotations)
	}
}

func TestAnotherProcessInTheSamePodTakesOver(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	reader := s.open("reader")
	first := s.open("a")
	if err := first.Register(service("greeter", "v1", "before", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	soon(t, 2*time.Second, "the first process", has(reader, "greeter", "10.0.0.1:1"))
	if err := first.Close(); err != nil { // killed: nothing is deregistered
		t.Fatal(err)
	}
	second := s.open("a")
	if err := second.Register(service("greeter", "v2", "after", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	soon(t, 2*time.Second, "the second process alone", func() error {
		all, err := reader.GetService("greeter")
		if err != nil || len(all) != 1 || all[0].Version != "v2" || len(all[0].Nodes) != 1 || all[0].Nodes[0].Id != "after" {
			return fmt.Errorf("%v %v", err, all)
		}
		return nil
	})
}

func TestWatchCutIsTakenUpAgain(t *testing.T) {
	s := newSpace(t)
	u, _ := url.Parse(config.Host)
	w := newWire(t, u.Host)
	r := s.openIn(through(s.inside("reader"), w))
	s.pod("a")
	s.register("a", "greeter", "v1", "10.0.0.1:1")
	soon(t, 2*time.Second, "before", has(r, "greeter", "10.0.0.1:1"))
	for i := range 3 {
		w.cut()
		if err := has(r, "greeter", fmt.Sprint("10.0.0.1:", i+1))(); err != nil {
			t.Errorf("while cut: %v", err)
		}
		s.register("a", "greeter", "v1", fmt.Sprint("10.0.0.1:", i+2))
		compact(t) // where the watch was is gone: 410
		w.mend()
		took := soon(t, 3*time.Second, "after", has(r, "greeter", fmt.Sprint("10.0.0.1:", i+2)))
		t.Logf("seen %s after the mend", took)
		w.mu.Lock()
		for c := range w.conns { // closed once more while it is up
			c.Close()
		}
		w.mu.Unlock()
	}
}

// The API server answers 410 to a watch from a version it no longer has.
func TestExpiredWatchStartsOver(t *testing.T) {
	s := newSpace(t)
	compact(t)
	kill(t, apiServer(t), syscall.SIGKILL) // or its cache answers from memory
	soon(t, 30*time.Second, "the API server coming back", func() error {
		_, err := admin.CoreV1().Pods(s.name).List(metav1.ListOptions{})
		return err
	})
	f := s.front(false)
	r := s.openIn(s.inside("reader"), registry.Addrs(f.URL))
	s.pod("a")
	s.register("a", "greeter", "v1", "10.0.0.1:1")
	f.expire.Store(true)
	soon(t, 2*time.Second, "the first LIST", has(r, "greeter", "10.0.0.1:1"))
	soon(t, 2*time.Second, "the expired watch and another after it", func() error {
		if f.count("EXPIRED") != 1 || f.count("WATCH") == 0 {
			return fmt.Errorf("%d expired, %d others", f.count("EXPIRED"), f.count("WATCH"))
		}
		return nil
	})
	s.register("a", "greeter", "v1", "10.0.0.1:2")
	soon(t, 2*time.Second, "a change afterwards", has(r, "greeter", "10.0.0.1:2"))
	if f.count("GET") < 2 {
		t.Errorf("%d LIST: the watch cannot have been refused", f.count("GET"))
	}
}

// compact makes etcd forget every version but the present one.
func compact(t *testing.T) {
	t.Helper()
	pki := filepath.Join(state, "pki")
	out, err := exec.Command("pgrep", "-af", "kube etcd .*"+state+"/pki").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(out), "--listen-client-url=")
	endpoint, _, _ := strings.Cut(rest, " ")
	pair, err := tls.LoadX509KeyPair(filepath.Join(pki, "apiserver-etcd.crt"), filepath.Join(pki, "apiserver-etcd.key"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second,
		TLS: &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true}}) // loopback, and only a test's tool
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	got, err := c.Get(ctx, "x")
	if err == nil {
		_, err = c.Compact(ctx, got.Header.Revision)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestAPIServerKilledAndBack(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	r, own := s.open("reader"), s.open("a")
	if err := own.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	soon(t, 2*time.Second, "before", has(r, "greeter", "10.0.0.1:1"))
	kill(t, apiServer(t), syscall.SIGKILL)
	soon(t, 30*time.Second, "the API server coming back", func() error {
		if err := has(r, "greeter", "10.0.0.1:1")(); err != nil {
			t.Fatalf("while it was away: %v", err)
		}
		_, err := admin.CoreV1().Pods(s.name).Get("a", metav1.GetOptions{})
		return err
	})
	s.pod("b")
	s.register("b", "greeter", "v1", "10.0.0.2:1")
	took := soon(t, 5*time.Second, "a change after its return", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))
	t.Logf("seen %s after the write", took)
	if _, err := admin.CoreV1().Pods(s.name).Patch("a", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"micro.mu/type":null}}}`)); err != nil {
		t.Fatal(err)
	}
	soon(t, 5*time.Second, "the own pod being watched again", func() error {
		if s.get("a").Labels[typeLabel] != typeValue {
			return errors.New("the label is gone")
		}
		return nil
	})
}

func TestAPIServerFrozenCostsCallersNothing(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	s.register("a", "greeter", "v1", "10.0.0.1:1")
	r := s.open("reader", registry.Timeout(2*time.Second))
	own := s.open("a", registry.Timeout(time.Second))
	ours := NewSelector(r)
	soon(t, 2*time.Second, "before", has(r, "greeter", "10.0.0.1:1"))
	pid := apiServer(t)
	kill(t, pid, syscall.SIGSTOP)
	thaw := sync.OnceFunc(func() { kill(t, pid, syscall.SIGCONT) })
	defer thaw()
	slowest := time.Duration(0)
	for end := time.Now().Add(18 * time.Second); time.Now().Before(end); { // past the connection's sign of life
		begin := time.Now()
		next, err := ours.Select("greeter")
		if err == nil {
			var n *registry.Node
			if n, err = next(); err == nil {
				ours.Mark("greeter", n, nil)
			}
		}
		if err == nil {
			err = has(r, "greeter", "10.0.0.1:1")()
		}
		if err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(begin))
		time.Sleep(time.Millisecond)
	}
	if slowest > 500*time.Millisecond {
		t.Errorf("the slowest choice took %s", slowest)
	}
	begin := time.Now()
	_, err := r.GetService("never asked for")
	if err == nil || errors.Is(err, registry.ErrNotFound) || time.Since(begin) > 10*time.Second {
		t.Errorf("first GetService of a name: %v after %s, want an error within its timeout", err, time.Since(begin))
	}
	begin = time.Now()
	if err := own.Register(service("late", "v1", "a", "10.0.0.1:1")); err == nil || time.Since(begin) > 10*time.Second || !strings.Contains(err.Error(), "not answer") {
		t.Errorf("Register: %v after %s", err, time.Since(begin))
	}
	thaw()
	soon(t, 20*time.Second, "what was declared in vain", func() error {
		if !own.Registered() || s.get("a").Annotations[annotationPrefix+"late"] == "" {
			return errors.New("not registered")
		}
		return nil
	})
	s.pod("b")
	s.register("b", "greeter", "v1", "10.0.0.2:1")
	soon(t, 10*time.Second, "a change after the thaw", has(r, "greeter", "10.0.0.1:1", "10.0.0.2:1"))
}

func TestTokenInvalidatedAndReplacedOnDisk(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	secret, err := admin.CoreV1().Secrets(s.name).Create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bound"}})
	if err != nil {
		t.Fatal(err)
	}
	env := s.inside("a")
	put(t, env.ServiceAccountDir, "token", []byte(s.token(&authenticationv1.BoundObjectReference{Kind: "Secret", APIVersion: "v1", Name: secret.Name, UID: secret.UID})))
	u, _ := url.Parse(config.Host)
	w := newWire(t, u.Host)
	r := s.openIn(through(env, w), registry.Timeout(2*time.Second))
	if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	soon(t, 2*time.Second, "before", has(r, "greeter", "10.0.0.1:1"))
	if err := admin.CoreV1().Secrets(s.name).Delete("bound", &metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	soon(t, 30*time.Second, "the API server refusing the token", func() error { // it remembers tokens for some seconds
		err := r.Register(service("greeter", "v1", "a", fmt.Sprint("10.0.0.1:", time.Now().Nanosecond())))
		if err == nil || !strings.Contains(err.Error(), "does not accept the token") {
			return fmt.Errorf("Register: %v", err)
		}
		return nil
	})
	w.cut()
	w.mend()
	put(t, env.ServiceAccountDir, "token", []byte(s.token(nil)))
	soon(t, 10*time.Second, "the new token", func() error { return r.Register(service("greeter", "v2", "a", "10.0.0.1:2")) })
	s.pod("b")
	s.register("b", "greeter", "v2", "10.0.0.2:1")
	soon(t, 10*time.Second, "reads with the new token", has(r, "greeter", "10.0.0.1:2", "10.0.0.2:1"))
}

func TestAuthorityReplaced(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	u, _ := url.Parse(config.Host)
	first, second := newAuthority(t), newAuthority(t)
	f := newTLSFront(t, u.Host)
	f.use(first)
	env := s.inside("a")
	before := env.Getenv
	env.Getenv = func(k string) string {
		if k == "KUBERNETES_SERVICE_PORT" {
			return f.port()
		}
		return before(k)
	}
	put(t, env.ServiceAccountDir, "ca.crt", first.pem)
	r := s.openIn(env, registry.Timeout(2*time.Second))
	if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	soon(t, 2*time.Second, "before", has(r, "greeter", "10.0.0.1:1"))
	f.use(second)
	f.drop()
	if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:2")); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("Register with a stranger's certificate: %v", err)
	}
	put(t, env.ServiceAccountDir, "ca.crt", second.pem)
	soon(t, 10*time.Second, "the new authority", func() error { return r.Register(service("greeter", "v1", "a", "10.0.0.1:3")) })
	soon(t, 10*time.Second, "reads", has(r, "greeter", "10.0.0.1:3"))
}

// authority signs one server certificate.
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

// tlsFront ends TLS with a certificate that can change and passes HTTP/1.1 on.
type tlsFront struct {
	l      net.Listener
	mu     sync.Mutex
	cert   *tls.Certificate
	conns  []net.Conn
	closed sync.WaitGroup
}

func newTLSFront(t *testing.T, target string) *tlsFront {
	t.Helper()
	f := &tlsFront{}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{NextProtos: []string{"http/1.1"}, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.cert, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	f.l = l
	f.closed.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.closed.Go(func() {
				defer c.Close()
				s, err := tls.Dial("tcp", target, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
				if err != nil {
					return
				}
				defer s.Close()
				f.mu.Lock()
				f.conns = append(f.conns, c, s)
				f.mu.Unlock()
				done := make(chan bool)
				go func() { _, _ = io.Copy(s, c); s.Close(); close(done) }()
				_, _ = io.Copy(c, s)
				c.Close()
				<-done
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		f.drop()
		f.closed.Wait()
	})
	return f
}

func (f *tlsFront) port() string {
	_, port, _ := net.SplitHostPort(f.l.Addr().String())
	return port
}

func (f *tlsFront) use(a *authority) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cert = &a.cert
}

func (f *tlsFront) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.Close()
	}
	f.conns = nil
}

func TestEachMissingVerbIsNamed(t *testing.T) {
	for missing, call := range map[string]func(r *Registry) error{
		"patch": func(r *Registry) error { return r.Register(service("greeter", "v1", "a", "10.0.0.1:1")) },
		"list":  func(r *Registry) error { _, err := r.GetService("greeter"); return err },
	} {
		t.Run(missing, func(t *testing.T) {
			s := newSpace(t, slices.DeleteFunc([]string{"list", "patch", "watch"}, func(v string) bool { return v == missing })...)
			s.pod("a")
			r := s.open("a", registry.Timeout(3*time.Second))
			err := call(r)
			for _, want := range []string{"forbidden", `verb "` + missing + `" on pods`, "k8s/pod-rbac.yaml", s.name} {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not name %q", err, want)
				}
			}
			if r.Registered() {
				t.Error("registered all the same")
			}
		})
	}
	t.Run("watch", func(t *testing.T) { // reads by LIST alone: late, but right
		s := newSpace(t, "list", "patch")
		s.pod("a")
		r := s.open("a")
		if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err != nil {
			t.Fatal(err)
		}
		soon(t, 5*time.Second, "reading", has(r, "greeter", "10.0.0.1:1"))
		f := r.informers["greeter"]
		soon(t, 5*time.Second, "the verb being named", func() error {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.err == nil || !strings.Contains(f.err.Error(), `verb "watch" on pods`) {
				return fmt.Errorf("%v", f.err)
			}
			return nil
		})
	})
}

func TestRightsGrantedLaterAreUsed(t *testing.T) {
	s := newSpace(t, "list", "watch")
	s.pod("a")
	r := s.open("a", registry.Timeout(time.Second))
	if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err == nil {
		t.Fatal("registered without the right to")
	}
	role, err := admin.RbacV1().Roles(s.name).Get("micro-registry", metav1.GetOptions{})
	if err == nil {
		role.Rules[0].Verbs = append(role.Rules[0].Verbs, "patch")
		_, err = admin.RbacV1().Roles(s.name).Update(role)
	}
	if err != nil {
		t.Fatal(err)
	}
	soon(t, 15*time.Second, "the declaration being carried out", func() error {
		if !r.Registered() {
			return errors.New("not registered")
		}
		return nil
	})
}

func TestWatchReportsChanges(t *testing.T) {
	s := newSpace(t)
	r := s.open("reader")
	s.pod("a")
	s.register("a", "greeter", "v1", "10.0.0.1:1")
	soon(t, 2*time.Second, "before", has(r, "greeter", "10.0.0.1:1"))
	for _, opts := range [][]registry.WatchOption{nil, {registry.WatchService("greeter")}} {
		w, err := r.Watch(opts...)
		if err != nil {
			t.Fatal(err)
		}
		step := func(action, address string) {
			t.Helper()
			got, err := w.Next()
			if err != nil || got.Action != action || got.Service.Name != "greeter" || len(got.Service.Nodes) != 1 || got.Service.Nodes[0].Address != address {
				t.Errorf("Next: %v %+v, want %s %s", err, got, action, address)
			}
		}
		s.pod("b")
		s.register("b", "greeter", "v1", "10.0.0.2:1")
		step("create", "10.0.0.2:1")
		s.register("b", "greeter", "v2", "10.0.0.2:1")
		step("update", "10.0.0.2:1")
		s.status("b", corev1.PodRunning, corev1.ConditionFalse)
		step("delete", "10.0.0.2:1")
		s.remove("b")
		ended := make(chan error)
		go func() { _, err := w.Next(); ended <- err }()
		w.Stop()
		w.Stop()
		if err := <-ended; !errors.Is(err, registry.ErrWatcherStopped) {
			t.Errorf("Next after Stop: %v", err)
		}
	}
}

func TestReaderThatNeverDrainsHoldsNobodyUp(t *testing.T) {
	s := newSpace(t)
	r := s.open("reader")
	w, err := r.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	s.pod("a")
	for i := range 300 {
		s.register("a", "greeter", "v1", fmt.Sprint("10.0.0.1:", i+1))
	}
	soon(t, 5*time.Second, "the last of 300 changes", has(r, "greeter", "10.0.0.1:300"))
	soon(t, 5*time.Second, "the last of 300 changes, among all services", func() error {
		v, err := r.view("")
		if err != nil || len(v.instances) != 1 || v.instances[0].Address != "10.0.0.1:300" {
			return fmt.Errorf("%v %v", err, v)
		}
		return nil
	})
	got, err := w.Next()
	if err != nil || got.Action != "create" || got.Service.Nodes[0].Address != "10.0.0.1:300" {
		t.Errorf("it reads %v %+v, want what is now", err, got)
	}
}

func TestTwoThousandPodsChurning(t *testing.T) {
	s := newSpace(t)
	const pods, workers = 2000, 16
	r := s.open("reader")
	w, err := r.Watch(registry.WatchService("greeter"))
	if err != nil {
		t.Fatal(err)
	}
	each := func(f func(i int)) {
		var wait sync.WaitGroup
		for k := range workers {
			wait.Go(func() {
				for i := k; i < pods; i += workers {
					f(i)
				}
			})
		}
		wait.Wait()
	}
	name := func(i int) string { return fmt.Sprint("p-", i) }
	each(func(i int) {
		s.pod(name(i))
		s.register(name(i), "greeter", "v1", fmt.Sprintf("10.1.%d.%d:1", i/250, i%250))
	})
	count := func(want int) func() error {
		return func() error {
			v, err := r.view("greeter")
			if err != nil || len(v.instances) != want {
				return fmt.Errorf("%d nodes, want %d, %v", len(v.instances), want, err)
			}
			return nil
		}
	}
	soon(t, 20*time.Second, "all of them", count(pods))
	each(func(i int) {
		switch i % 4 {
		case 0:
			s.remove(name(i))
		case 1:
			s.status(name(i), corev1.PodRunning, corev1.ConditionFalse)
		case 2:
			s.register(name(i), "greeter", "v2", fmt.Sprintf("10.1.%d.%d:2", i/250, i%250))
		}
	})
	soon(t, 20*time.Second, "half of them", count(pods/2))
	seen := map[string]bool{} // what a reader makes of the changes is what is
	for len(seen) != pods/2 {
		got, err := w.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range got.Service.Nodes {
			if got.Action == "delete" {
				delete(seen, n.Id)
			} else {
				seen[n.Id] = true
			}
		}
	}
	w.Stop()
	f := r.informers["greeter"]
	f.mu.Lock()
	defer f.mu.Unlock()
	if given := length(f.given); given > 2*pods || len(f.shapes) > 2 {
		t.Errorf("%d nodes and %d shapes are remembered for %d pods", given, len(f.shapes), len(f.pods))
	}
}

func length(m *sync.Map) (n int) {
	m.Range(func(any, any) bool { n++; return true })
	return n
}

func TestClosedAndInitTwice(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	r := s.open("a")
	for range 2 {
		if err := r.Init(registry.Timeout(3 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if r.Options().Timeout != 3*time.Second || r.String() != "kubernetes" {
		t.Errorf("%v %s", r.Options(), r)
	}
	if r.api != nil || r.writer != nil || len(r.informers) > 0 {
		t.Error("something runs before it is used")
	}
	f := s.front(false)
	for _, address := range []string{"", f.URL, f.URL} { // used, moved, used again
		if address != "" {
			if err := r.Init(registry.Addrs(address)); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Register(service("greeter", "v1", "a", "10.0.0.1:1")); err != nil {
			t.Fatal(err)
		}
		soon(t, 2*time.Second, "reading", has(r, "greeter", "10.0.0.1:1"))
	}
	if f.count("PATCH") != 1 {
		t.Errorf("%d PATCH through the new address, want 1", f.count("PATCH"))
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
	if s.get("a").Annotations[annotationPrefix+"greeter"] == "" {
		t.Error("Close took the registration away")
	}
}

func TestWhereItCannotWorkItSaysWhatToDo(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	what := service("greeter", "v1", "a", "10.0.0.1:1")
	without := func(k string) apiserver.Environment {
		env := s.inside("a")
		before := env.Getenv
		env.Getenv = func(key string) string {
			if key == k {
				return ""
			}
			return before(key)
		}
		return env
	}
	empty := s.inside("a")
	empty.ServiceAccountDir = t.TempDir()
	elsewhere := s.inside("node-7")
	for _, c := range []struct {
		name       string
		env        apiserver.Environment
		kubeconfig string
		want       string
	}{
		{"outside a pod, no kubeconfig", without("KUBERNETES_SERVICE_HOST"), filepath.Join(t.TempDir(), "none"), "not in a pod"},
		{"outside a pod, with a kubeconfig", without("KUBERNETES_SERVICE_HOST"), filepath.Join(state, "kubeconfig"), "can be read, not written"},
		{"no service account", empty, "", "serviceAccountName"},
		{"no name", without("POD_NAME"), "", "set POD_NAME"},
		{"another's name, as under hostNetwork", elsewhere, "", "set POD_NAME"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", c.kubeconfig)
			t.Setenv("HOME", t.TempDir())
			r := newRegistry(c.env, kubernetes.NewRegistry, registry.Timeout(3*time.Second))
			defer r.Close()
			if err := r.Register(what); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Register: %v, want %q", err, c.want)
			}
			if strings.Contains(c.name, "with a kubeconfig") {
				if _, err := r.ListServices(); err != nil {
					t.Errorf("ListServices: %v", err)
				}
			}
		})
	}
	r := s.open("a")
	if err := r.Register(&registry.Service{Name: "x"}); err == nil {
		t.Error("registered a service without a node")
	}
	if err := r.Register(service(strings.Repeat("long", 30), "v1", "a", "10.0.0.1:1")); err == nil || !strings.Contains(err.Error(), "63") {
		t.Errorf("a name too long for a label: %v", err)
	}
	if err := r.Register(what); err != nil || !r.Registered() {
		t.Errorf("a good one after it: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"name":"greeter","version":"v1","endpoints":[{"name":"x","request":{"values":[null]}},null],"nodes":[{"id":"a","address":"b"},null]}`))
	f.Add([]byte(`null`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := decode(b); err != nil {
			return
		}
		fo := newInformer(&apiserver.Connection{}, apiserver.Selector{}, "")
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: map[string]string{annotationPrefix + "x": string(b)}}}
		p.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
		_ = fo.Update(p)
		for _, n := range fo.current.Load().instances {
			if n.Address == "" {
				t.Errorf("a node without an address from %q", b)
			}
		}
		_ = fo.current.Load().services()
		_ = fo.Delete(p)
		if len(fo.shapes) != 0 || length(fo.given) != 0 {
			t.Errorf("left after %q: %d shapes", b, len(fo.shapes))
		}
	})
}
