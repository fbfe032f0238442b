package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/auth"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-micro/v2/web"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// TestRolloutUnderLoad goes from plaintext to permissive to strict and back, with three replicas and two callers that are replaced one after another.
func TestRolloutUnderLoad(t *testing.T) {
	s := newShop(t)
	modes := []string{"", Permissive, Strict, Permissive, ""}
	var replicas []*replica
	for range 3 {
		replicas = append(replicas, s.start("greeter", modes[0]))
	}
	if _, marked := replicas[0].metadata[metadataKey]; marked {
		t.Errorf("the registration without identity is %s", replicas[0].registered)
	}
	callers := []*caller{s.newCaller("page", modes[0]), s.newCaller("page", modes[0])}
	var loads []*load
	for _, c := range callers {
		kubetest.Eventually(t, 20*time.Second, "the caller knows all replicas", c.instances(3))
		loads = append(loads, c.load(t))
	}
	for step, mode := range modes[1:] {
		what := fmt.Sprintf("from %q to %q", modes[step], mode)
		replaceServers := func() {
			for i, old := range replicas {
				replicas[i] = s.start("greeter", mode)
				if marked := replicas[i].metadata[metadataKey] == metadataValue; marked != (mode != "") {
					t.Errorf("%s: the registration is %s", what, replicas[i].registered)
				}
				time.Sleep(300 * time.Millisecond)
				old.stop()
			}
		}
		replaceCallers := func() {
			for i, old := range callers {
				callers[i] = s.newCaller("page", mode)
				next := callers[i].load(t)
				loads[i].check(t, what)
				old.stop()
				loads[i] = next
			}
		}
		if step%2 == 0 {
			replaceServers()
			replaceCallers()
		} else {
			replaceCallers()
			replaceServers()
		}
		time.Sleep(time.Second)
		encrypted := 0
		for _, i := range callers[0].client.Instances("greeter") {
			if i.Certificate != nil {
				encrypted++
			}
		}
		if want := map[string]int{"": 0, Permissive: 3, Strict: 3}[mode]; encrypted != want {
			t.Errorf("%s: the connections to %d instances are encrypted, want %d", what, encrypted, want)
		}
	}
	for _, l := range loads {
		l.check(t, "at the end")
	}
}

// TestFilesReplacedUnderLoad replaces the files of all processes every second, and then the authority, with an overlap.
func TestFilesReplacedUnderLoad(t *testing.T) {
	s := newShop(t)
	var replicas []*replica
	for range 3 {
		replicas = append(replicas, s.start("greeter", Strict))
	}
	c := s.newCaller("page", Strict)
	kubetest.Eventually(t, 20*time.Second, "the caller knows all replicas", c.instances(3))
	l := c.load(t)
	write := func(a *kubetest.Authority, trusted ...*kubetest.Authority) {
		for _, r := range replicas {
			r.Files["credentialbundle.pem"] = a.Issue(t, r.certificate)
			r.Trust(trusted...)
			r.Write(t)
		}
		c.Files["credentialbundle.pem"] = a.Issue(t, c.certificate)
		c.Trust(trusted...)
		c.Write(t)
	}
	seen := map[string]bool{}
	const seconds = 20
	for range seconds {
		write(s.authority, s.authority)
		time.Sleep(time.Second)
		for _, i := range c.client.Instances("greeter") {
			if i.Certificate != nil {
				seen[i.Certificate.SerialNumber.String()] = true
			}
		}
	}
	t.Logf("in %d s, the client has seen %d certificates of 3 instances", seconds, len(seen))
	if len(seen) < seconds {
		t.Errorf("in %d s, the client has seen %d certificates of 3 instances, want at least %d", seconds, len(seen), seconds)
	}
	next := kubetest.NewAuthority(t, "the next authority")
	const overlap = 5 * time.Second
	for _, step := range [][]*kubetest.Authority{{s.authority, s.authority, next}, {next, s.authority, next}, {next, next}} {
		write(step[0], step[1:]...)
		time.Sleep(overlap)
	}
	l.check(t, "with files that change")
	for _, i := range c.client.Instances("greeter") {
		if i.Certificate == nil || i.Certificate.Issuer.CommonName != "the next authority" {
			t.Errorf("the certificate of %s is %v", i.Pod, i.Certificate)
		}
	}
}

// TestImpostors has pods that register under the name of the greeter with the certificate of another account, with that of another pod, and without TLS.
func TestImpostors(t *testing.T) {
	s := newShop(t)
	honest := s.start("greeter", Strict)
	thief := s.start("thief", Strict)
	plain := s.start("thief", "")
	relay := s.CreateReadyPod("relay") // leads to an honest greeter, of whose certificate it has no key, under a name of its own
	s.register(nil, relay.Name, honest.address, honest.metadata)
	honestAgain := s.start("greeter", Strict)
	begin := time.Now()
	c := s.newCaller("page", Strict, client.Retries(3)) // so many retries find a greeter: most instances are impostors
	kubetest.Eventually(t, 20*time.Second, "the caller knows all instances", c.instances(5))
	for range 200 {
		if err := c.hello(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if thief.calls.Load() != 0 || plain.calls.Load() != 0 {
		t.Errorf("impostors served %d and %d calls", thief.calls.Load(), plain.calls.Load())
	}
	if honest.calls.Load() == 0 || honestAgain.calls.Load() == 0 {
		t.Errorf("the greeters served %d and %d calls", honest.calls.Load(), honestAgain.calls.Load())
	}
	for _, i := range c.client.Instances("greeter") {
		if isHonest := i.Pod == honest.pod || i.Pod == honestAgain.pod; isHonest != (i.Certificate != nil) {
			t.Errorf("instance %+v", i)
		}
	}
	if lines := kubetest.LogLines(t, begin, "not calling greeter at "+thief.address, "it is "+s.id("thief")+", and greeter is "+s.id("greeter")); len(lines) == 0 {
		t.Error("the log does not say why the impostor is ejected")
	}
	id, _ := honest.callers.Load("Ada")
	if want := (ID{s.id("page"), "cluster.local", s.Name, "page"}); id != want {
		t.Errorf("the caller is %+v, want %+v", id, want)
	}
}

// TestReadableErrors calls a strict service without files, and as an account that is not permitted.
func TestReadableErrors(t *testing.T) {
	s := newShop(t)
	r := s.start("greeter", Strict)
	r.Files["callers"] = []byte("page")
	r.Write(t)
	laptop, thief, page := s.newCaller("laptop", ""), s.newCaller("thief", Strict), s.newCaller("page", Strict)
	for _, test := range []struct {
		caller *caller
		code   int32
		detail string
	}{
		{laptop, http.StatusUnauthorized, "greeter speaks TLS only: call it with a certificate of the trust domain cluster.local, which POD_IDENTITY mounts"},
		{thief, http.StatusForbidden, "greeter refuses calls of " + s.id("thief") + ": it is not in the list of callers"},
	} {
		var took time.Duration
		kubetest.Eventually(t, 20*time.Second, "the call is refused with "+test.detail, func() error {
			begin := time.Now()
			err := test.caller.hello(t.Context())
			took = time.Since(begin)
			var e *microerrors.Error
			if !errors.As(err, &e) || e.Code != test.code || !strings.Contains(e.Detail, test.detail) {
				return fmt.Errorf("the error is %w", err)
			}
			return nil
		})
		t.Logf("refused after %v", took)
		if retries := test.caller.client.Retries("greeter").Made; retries > 1 {
			t.Errorf("a refused call was retried %d times", retries)
		}
	}
	kubetest.Eventually(t, 20*time.Second, "the permitted caller is answered", func() error { return page.hello(t.Context()) })
	if err := page.hello(t.Context(), client.WithAddress(r.address)); err != nil {
		t.Error("with the address:", err)
	}
	if err := page.client.Call(t.Context(), page.client.NewRequest("another", "Greeter.Hello", &proto.HelloRequest{}), &proto.HelloResponse{}, client.WithAddress(r.address)); err == nil || !strings.Contains(err.Error(), "and another is "+s.id("another")) {
		t.Error("calling another service at the address of the greeter:", err)
	}

	plain := s.start("greeter", "")
	begin := time.Now()
	if err := page.hello(t.Context(), client.WithAddress(plain.address), client.WithRetries(0)); err == nil || !strings.Contains(err.Error(), "greeter at "+plain.address+" speaks plaintext, and this process speaks TLS only") {
		t.Error("TLS to a service in plaintext:", err)
	}
	t.Logf("refused after %v", time.Since(begin))
	if lines := kubetest.LogLines(t, begin, "127.0.0.1: they speak TLS, and this service speaks plaintext; set POD_IDENTITY here"); len(lines) != 1 {
		t.Errorf("the log of the service in plaintext says %d times that a client speaks TLS, want once", len(lines))
	}
}

// TestOtherClientsAndServers uses the same files with go-micro's client and server and with grpc-go alone.
func TestOtherClientsAndServers(t *testing.T) {
	s := newShop(t)
	r := s.start("greeter", Strict)
	_, volume, _ := s.volume("page")
	files := configuration(t, volume, s.id("greeter"))

	microClient := grpcc.NewClient(grpcc.AuthTLS(files), client.PoolSize(0), client.RequestTimeout(10*time.Second)) // without a pool, which would leave connections open
	if _, err := proto.NewGreeterService("greeter", microClient).Hello(t.Context(), &proto.HelloRequest{Name: "Ada"}, client.WithAddress(r.address)); err != nil {
		t.Error("go-micro's client:", err)
	}
	conn, err := grpc.NewClient(r.address, grpc.WithTransportCredentials(credentials.NewTLS(files)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var rsp proto.HelloResponse
	if err := conn.Invoke(t.Context(), "/greeter.Greeter/Hello", &proto.HelloRequest{Name: "Ada"}, &rsp); err != nil || rsp.Greeting != "Hello Ada!" {
		t.Error("grpc-go's client:", err)
	}
	id, _ := r.callers.Load("Ada")
	if id != (ID{s.id("page"), "cluster.local", s.Name, "page"}) {
		t.Errorf("the caller is %+v", id)
	}

	r.stop()
	name, volume, _ := s.volume("greeter")
	config := configuration(t, volume, s.id("page"))
	config.ClientAuth = tls.RequireAnyClientCert
	own := memory.NewRegistry()
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{})
	g := &greeter{}
	service := micro.NewService(micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("greeter"), grpcs.AuthTLS(config))), micro.Client(grpcc.NewClient()), micro.Registry(own),
		micro.Context(ctx), micro.HandleSignal(false), micro.AfterStart(func() error { close(started); return nil }))
	if err := proto.RegisterGreeterHandler(service.Server(), g); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- service.Run() }()
	<-started
	s.register(nil, name, service.Server().Options().Address, nil)
	c := s.newCaller("page", Strict)
	kubetest.Eventually(t, 20*time.Second, "go-micro's server answers", func() error { return c.hello(t.Context()) })
	c.stop()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// configuration returns what a program without this package makes of the files: the certificates are verified by their authority and SPIFFE ID.
func configuration(t *testing.T, v *kubetest.Volume, peer string) *tls.Config {
	pair, err := tls.LoadX509KeyPair(filepath.Join(v.Dir, "credentialbundle.pem"), filepath.Join(v.Dir, "credentialbundle.pem"))
	bundle, bundleErr := os.ReadFile(filepath.Join(v.Dir, "trustbundle.pem"))
	if err := errors.Join(err, bundleErr); err != nil {
		t.Fatal(err)
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(bundle)
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			leaf := s.PeerCertificates[0]
			if len(leaf.URIs) != 1 || leaf.URIs[0].String() != peer {
				return fmt.Errorf("the peer is %v", leaf.URIs)
			}
			_, err := leaf.Verify(x509.VerifyOptions{Roots: authorities, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err
		}}
}

// TestRunErrors has wrong configurations, for which Run returns an error, and with which no call goes out in plaintext.
func TestRunErrors(t *testing.T) {
	authority := kubetest.NewAuthority(t, "the authority")
	volume := kubetest.NewVolume(t, authority.Issue(t, kubetest.PodCertificate{ID: "spiffe://cluster.local/ns/shop/sa/greeter"}), authority)
	for _, test := range []struct {
		name, dir, mode, want string
		order                 func(lifecycle, identity micro.Option) []micro.Option
	}{
		{"no directory", "/does/not/exist", "", "reading the identity of this process from POD_IDENTITY=/does/not/exist: ", nil},
		{"empty directory", t.TempDir(), "", "the directory needs credentialbundle.pem", nil},
		{"other mode", volume.Dir, "lenient", "POD_IDENTITY_MODE=lenient: it must be strict or permissive", nil},
		{"before Lifecycle", volume.Dir, "", "after pod.Lifecycle", func(lifecycle, identity micro.Option) []micro.Option { return []micro.Option{identity, lifecycle} }},
		{"without Lifecycle", volume.Dir, "", "after pod.Lifecycle", func(_, identity micro.Option) []micro.Option { return []micro.Option{identity} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv(Variable, test.dir)
			t.Setenv(ModeVariable, test.mode)
			registry := pod.NewRegistry(kubernetes.NewRegistry)
			defer registry.Close()
			lifecycle, identity := pod.Lifecycle(registry), Serve(registry)
			opts := []micro.Option{lifecycle, identity}
			if test.order != nil {
				opts = test.order(lifecycle, identity)
			}
			c := pod.NewClient(registry, grpcc.NewClient())
			service := micro.NewService(append([]micro.Option{micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"))), micro.Client(c), micro.Registry(memory.NewRegistry()), micro.HandleSignal(false)}, opts...)...)
			if err := service.Run(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Run returns %v, want %q", err, test.want)
			}
			if test.order != nil {
				return
			}
			err := c.Call(t.Context(), c.NewRequest("greeter", "Greeter.Hello", &proto.HelloRequest{}), &proto.HelloResponse{}, client.WithAddress(plaintextGreeter(t)))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("a call returns %v, want %q", err, test.want)
			}
			webService := web.NewService(web.Name("page"), web.HandleSignal(false), web.Registry(memory.NewRegistry()), web.Address("127.0.0.1:0"),
				web.MicroService(micro.NewService(micro.Auth(auth.NewAuth()))), ServeWeb(registry)) // not the default auth, which all services would change
			if err := webService.Run(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Run of a web service returns %v, want %q", err, test.want)
			}
		})
	}
}

// plaintextGreeter serves without TLS, and fails the test if it gets a call.
func plaintextGreeter(t *testing.T) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		t.Error("a call went out in plaintext")
		return status.Error(codes.Internal, "plaintext")
	}))
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return l.Addr().String()
}

// TestOff checks that the options change nothing without the variable.
func TestOff(t *testing.T) {
	t.Setenv(Variable, "")
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	defer registry.Close()
	var o micro.Options
	Serve(registry, Account("greeter", "another"))(&o)
	var w web.Options
	ServeWeb(registry)(&w)
	if len(o.BeforeStart)+len(o.AfterStop)+len(w.BeforeStart)+len(w.AfterStop) != 0 || registry.Options().Context != nil {
		t.Errorf("the options add something: %+v, %+v, %+v", o, w, registry.Options())
	}
}
