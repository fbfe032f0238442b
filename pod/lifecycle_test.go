package pod

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/auth"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-micro/v2/web"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// life is a service that runs as a main would run it.
type life struct {
	t        *testing.T
	registry *Registry
	address  string
	stop     context.CancelFunc // as a first signal does
	ended    chan error         // what Run returns
	hold     chan struct{}      // handlers asked to be slow wait for its end
	release  func()             // ends hold
	held     chan struct{}      // each of them says here that it runs
}

func (l *life) slow() { l.held <- struct{}{}; <-l.hold }

// Greeter answers, and when it is asked by "slow" not before hold ends.
type Greeter struct{ life *life }

func (g *Greeter) Hello(_ context.Context, req *proto.HelloRequest, rsp *proto.HelloResponse) error {
	switch req.Name {
	case "slow":
		g.life.slow()
	case "panic":
		panic("what only the log may say")
	}
	rsp.Greeting = "Hello " + req.Name + "!"
	return nil
}

func newLife(s *space, env apiserver.Environment) (*life, context.Context) {
	l := &life{t: s.t, registry: newRegistry(env, kubernetes.NewRegistry), ended: make(chan error, 1), hold: make(chan struct{}), held: make(chan struct{}, 1)}
	ctx, stop := context.WithCancel(context.Background())
	l.stop, l.release = stop, sync.OnceFunc(func() { close(l.hold) })
	return l, ctx
}

// begun waits for the service to listen or to have ended.
func (l *life) begun(run func() error, started chan struct{}) *life {
	go func() { l.ended <- run() }()
	l.t.Cleanup(func() {
		l.stop()
		l.release()
		select {
		case <-l.ended: //nolint:errcheck // how it ended is for the test to ask
		case <-time.After(20 * time.Second):
			l.t.Error("Run does not return")
		}
		l.registry.Close()
	})
	select {
	case <-started:
	case err := <-l.ended:
		l.ended <- err
	case <-time.After(5 * time.Second):
		l.t.Fatal("the service does not start")
	}
	return l
}

func (s *space) greeter(env apiserver.Environment, wait time.Duration, opts ...micro.Option) *life {
	l, ctx := newLife(s, env)
	started := make(chan struct{})
	service := micro.NewService(append([]micro.Option{
		micro.Name("greeter"), micro.HandleSignal(false), micro.Context(ctx),
		micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("greeter"), server.RegisterInterval(50*time.Millisecond))),
		micro.Client(grpcc.NewClient()),
		micro.Registry(l.registry),
		Lifecycle(l.registry, DrainWait(wait)),
		Reflection(l.registry),
		micro.AfterStart(func() error { close(started); return nil }),
	}, opts...)...)
	if err := proto.RegisterGreeterHandler(service.Server(), &Greeter{l}); err != nil {
		s.t.Fatal(err)
	}
	l.begun(service.Run, started)
	l.address = service.Server().Options().Address
	return l
}

func (s *space) web(env apiserver.Environment, wait time.Duration, opts ...web.Option) *life {
	l, ctx := newLife(s, env)
	started := make(chan struct{})
	service := web.NewService(append([]web.Option{
		web.Name("page"), web.HandleSignal(false), web.Context(ctx), web.Address("127.0.0.1:0"),
		web.MicroService(micro.NewService(micro.Auth(auth.NewAuth()))), // Run writes to it behind its back
		web.Registry(l.registry), web.RegisterInterval(50 * time.Millisecond),
		WebLifecycle(l.registry, DrainWait(wait)),
		web.AfterStart(func() error { close(started); return nil }),
	}, opts...)...)
	service.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		if r.URL.Path == "/panic" {
			panic("what only the log may say")
		}
		_, _ = io.WriteString(w, "first half, ")
		switch r.URL.Path {
		case "/slow":
			w.(http.Flusher).Flush()
			l.slow()
		case "/endless":
			w.(http.Flusher).Flush()
			<-Draining(r.Context())
		}
		_, _ = io.WriteString(w, "second half")
	})
	l.begun(service.Run, started)
	l.address = service.Options().Address
	return l
}

// dial connects to the service for as long as the test runs.
func (l *life) dial() *grpc.ClientConn {
	l.t.Helper()
	c, err := grpc.NewClient("passthrough:"+l.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func hello(ctx context.Context, c *grpc.ClientConn, name string) (string, error) {
	var rsp proto.HelloResponse
	err := c.Invoke(ctx, "/Greeter/Hello", &proto.HelloRequest{Name: name}, &rsp)
	return rsp.Greeting, err
}

// health is what grpc.health.v1 says of a name: a status, or a gRPC code.
func (l *life) health(c *grpc.ClientConn, name string) string {
	rsp, err := healthv1.NewHealthClient(c).Check(within(l.t, 5*time.Second), &healthv1.HealthCheckRequest{Service: name})
	if err != nil {
		return status.Code(err).String()
	}
	return rsp.Status.String()
}

// is returns a condition for soon: something is what it should be.
func is[T comparable](got func() T, want T) func() error {
	return func() error {
		if g := got(); g != want {
			return fmt.Errorf("it is %v, want %v", g, want)
		}
		return nil
	}
}

// end waits for Run to return.
func (l *life) end(limit time.Duration) (error, time.Duration) {
	l.t.Helper()
	begin := time.Now()
	select {
	case err := <-l.ended:
		l.ended <- err
		return err, time.Since(begin)
	case <-time.After(limit):
		l.t.Fatalf("Run has not returned after %s", limit)
		return nil, 0
	}
}

// page gets a path of a web service: status and body.
func page(c *http.Client, address, path string) (string, error) {
	rsp, err := c.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer rsp.Body.Close()
	body, err := io.ReadAll(rsp.Body)
	return fmt.Sprintf("%d %s", rsp.StatusCode, body), err
}

// fresh makes a connection for each request.
func fresh(t *testing.T) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
}

func (s *space) labelled(pod, service string) bool {
	return s.get(pod).Labels[selectorPrefix+service] != ""
}

func TestHealthSaysReadyWhenRegistered(t *testing.T) {
	s := newSpace(t, "list", "watch") // not patch
	s.pod("a")
	l := s.greeter(s.inside("a"), 0)
	c := l.dial()
	soon(t, 5*time.Second, "the refusal being known", func() error {
		if why := (&lifecycle{registry: l.registry}).unready(); !strings.Contains(why, `verb "patch" on pods (k8s/pod-rbac.yaml grants it)`) {
			return errors.New(why)
		}
		return nil
	})
	for name, want := range map[string]string{"": "NOT_SERVING", "greeter": "NOT_SERVING", "Greeter": "NOT_SERVING", "liveness": "SERVING", "other": "NotFound"} {
		if got := l.health(c, name); got != want {
			t.Errorf("before: %q is %s, want %s", name, got, want)
		}
	}
	watch := func(name string) <-chan string {
		stream, err := healthv1.NewHealthClient(c).Watch(within(t, time.Minute), &healthv1.HealthCheckRequest{Service: name})
		if err != nil {
			t.Fatal(err)
		}
		said := make(chan string, 10)
		go func() {
			defer close(said)
			for {
				rsp, err := stream.Recv()
				if err != nil {
					said <- status.Code(err).String()
					return
				}
				said <- rsp.Status.String()
			}
		}()
		return said
	}
	of := map[string]<-chan string{"greeter": watch("greeter"), "other": watch("other")}
	next := func(name, want string) {
		t.Helper()
		select {
		case got := <-of[name]:
			if got != want {
				t.Fatalf("Watch of %q says %s, want %s", name, got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("Watch of %q says nothing, want %s", name, want)
		}
	}
	next("greeter", "NOT_SERVING")
	next("other", "SERVICE_UNKNOWN")
	s.allow("patch")
	next("greeter", "SERVING")
	for name, want := range map[string]string{"": "SERVING", "greeter": "SERVING", "Greeter": "SERVING", "liveness": "SERVING", "other": "NotFound"} {
		if got := l.health(c, name); got != want {
			t.Errorf("after: %q is %s, want %s", name, got, want)
		}
	}
	if a := s.get("a").Annotations[annotationPrefix+"greeter"]; !strings.Contains(a, "Greeter.Hello") || strings.Contains(a, "Health") || strings.Contains(a, "Reflection") {
		t.Errorf("it advertises %s", a)
	}
	l.stop()
	next("greeter", "NOT_SERVING")
	next("greeter", "Unavailable")
	next("other", "Unavailable")
	if err, _ := l.end(5 * time.Second); err != nil {
		t.Error(err)
	}
}

// allow grants one verb more.
func (s *space) allow(verb string) {
	s.t.Helper()
	role, err := admin.RbacV1().Roles(s.name).Get("micro-registry", metav1.GetOptions{})
	if err == nil {
		role.Rules[0].Verbs = append(role.Rules[0].Verbs, verb)
		_, err = admin.RbacV1().Roles(s.name).Update(role)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func TestWebServiceWithoutTheRightRunsAndSaysWhy(t *testing.T) {
	s := newSpace(t, "list", "watch")
	s.pod("a")
	l := s.web(s.inside("a"), 0)
	c := fresh(t)
	get := func(path string) func() string {
		return func() string { body, err := page(c, l.address, path); return fmt.Sprint(body, err) }
	}
	soon(t, 5*time.Second, "the refusal being shown", func() error {
		got := get("/readyz")()
		if !strings.HasPrefix(got, "503 not registered: patch pod") || !strings.Contains(got, "k8s/pod-rbac.yaml grants it") {
			return errors.New(got)
		}
		return nil
	})
	if got := get("/healthz")(); got != "200 ok\n<nil>" {
		t.Errorf("/healthz answers %s", got)
	}
	s.allow("patch")
	soon(t, 15*time.Second, "being ready", is(get("/readyz"), "200 ok\n<nil>"))
	if got := get("/")(); got != "200 first half, second half<nil>" {
		t.Errorf("/ answers %s", got)
	}
	if a := s.get("a").Annotations[annotationPrefix+"page"]; a == "" || strings.Contains(a, "readyz") {
		t.Errorf("it advertises %s", a)
	}
}

func TestAPIServerFrozenChangesNeitherHealthNorStartNorStop(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	s.pod("b")
	before := s.greeter(s.inside("a"), 0)
	c := before.dial()
	soon(t, 5*time.Second, "being ready", is(func() string { return before.health(c, "") }, "SERVING"))
	inB := s.inside("b")

	pid := apiServer(t)
	kill(t, pid, syscall.SIGSTOP)
	thaw := sync.OnceFunc(func() { kill(t, pid, syscall.SIGCONT) })
	defer thaw()
	begin := time.Now()
	during := s.web(inB, 100*time.Millisecond) // listens at once
	h := fresh(t)
	if got, err := page(h, during.address, "/healthz"); err != nil || got != "200 ok\n" || time.Since(begin) > 3*time.Second {
		t.Errorf("liveness of one just started: %q, %v after %s", got, err, time.Since(begin))
	}
	if got, _ := page(h, during.address, "/readyz"); !strings.HasPrefix(got, "503 not registered") {
		t.Errorf("its readiness: %q", got)
	}
	soon(t, 20*time.Second, "its saying why", func() error { // past the connection's sign of life, too
		if got, _ := page(h, during.address, "/readyz"); !strings.Contains(got, "does not answer") {
			return errors.New(got)
		}
		return nil
	})
	if got := before.health(c, ""); got != "SERVING" {
		t.Errorf("readiness of one that is registered: %s", got)
	}
	during.stop()
	if err, took := during.end(5 * time.Second); err != nil || took > 3*time.Second {
		t.Errorf("stopping: %v after %s", err, took)
	}
	thaw()
	soon(t, 20*time.Second, "the API server's return", func() error { _, err := admin.Discovery().ServerVersion(); return err })
	if got := before.health(c, ""); got != "SERVING" {
		t.Errorf("readiness afterwards: %s", got)
	}
}

// Both kinds of service, told to stop while a caller waits for its answer.
func TestDrain(t *testing.T) {
	type caller struct {
		call  func() error  // one that ends at once
		slow  func() error  // one that waits for hold
		ready func() string // "" when it is not known any more
	}
	kinds := map[string]func(*space, apiserver.Environment, time.Duration) (*life, caller){
		"grpc": func(s *space, env apiserver.Environment, wait time.Duration) (*life, caller) {
			l := s.greeter(env, wait)
			c := l.dial()
			say := func(name string) func() error {
				return func() error {
					got, err := hello(within(s.t, 30*time.Second), c, name)
					if err == nil && got != "Hello "+name+"!" {
						err = fmt.Errorf("the answer is %q", got)
					}
					return err
				}
			}
			return l, caller{say("you"), say("slow"), func() string { return l.health(c, "") }}
		},
		"web": func(s *space, env apiserver.Environment, wait time.Duration) (*life, caller) {
			l := s.web(env, wait)
			c := fresh(s.t)
			get := func(path string) func() error {
				return func() error {
					got, err := page(c, l.address, path)
					if err == nil && got != "200 first half, second half" {
						err = fmt.Errorf("the answer is %q", got)
					}
					return err
				}
			}
			return l, caller{get("/"), get("/slow"), func() string {
				got, _ := page(c, l.address, "/readyz")
				return map[string]string{"200 ok\n": "SERVING", "503 shutting down\n": "NOT_SERVING"}[got]
			}}
		},
	}
	services := map[string]string{"grpc": "greeter", "web": "page"}
	for kind, start := range kinds {
		ready := func(t *testing.T, s *space, env apiserver.Environment, wait time.Duration) (*life, caller, chan error) {
			l, c := start(s, env, wait)
			soon(t, 5*time.Second, "being ready", is(c.ready, "SERVING"))
			answer := make(chan error, 1)
			go func() { answer <- c.slow() }()
			<-l.held
			return l, c, answer
		}
		t.Run(kind+"/what runs ends, in order", func(t *testing.T) {
			s := newSpace(t)
			s.pod("a")
			const wait = 2 * time.Second
			l, c, answer := ready(t, s, s.inside("a"), wait)
			begin := time.Now()
			l.stop()
			soon(t, time.Second, "not being ready", is(c.ready, "NOT_SERVING"))
			soon(t, wait, "being off the pod", is(func() bool { return s.labelled("a", services[kind]) }, false))
			if err := c.call(); err != nil || time.Since(begin) > wait {
				t.Errorf("a call of who has not noticed: %v after %s", err, time.Since(begin))
			}
			select {
			case err := <-l.ended:
				t.Fatalf("Run returned %v while a caller waits", err)
			case err := <-answer:
				t.Fatalf("the caller is told %v before its handler has ended", err)
			case <-time.After(time.Until(begin.Add(wait + 1500*time.Millisecond))): // go-micro itself gives a handler 1 s
			}
			l.release()
			if err := <-answer; err != nil {
				t.Error(err)
			}
			if err, took := l.end(5 * time.Second); err != nil || took > 2*time.Second {
				t.Errorf("Run returned %v, %s after its last handler", err, took)
			}
			if s.labelled("a", services[kind]) { // go-micro says Register each 50 ms here
				t.Error("it is registered again")
			}
		})
		t.Run(kind+"/idle, it ends with the wait", func(t *testing.T) {
			s := newSpace(t)
			s.pod("a")
			l, c := start(s, s.inside("a"), 500*time.Millisecond)
			soon(t, 5*time.Second, "being ready", is(c.ready, "SERVING"))
			l.stop()
			if err, took := l.end(5 * time.Second); err != nil || took < 500*time.Millisecond || took > 2500*time.Millisecond {
				t.Errorf("Run returned %v after %s", err, took)
			}
		})
		t.Run(kind+"/the pod's grace period bounds it", func(t *testing.T) {
			s := newSpace(t)
			period := int64(4)
			s.podWith("a", func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = &period })
			l, _, answer := ready(t, s, s.inside("a"), 200*time.Millisecond)
			begin := time.Now()
			l.stop()
			select {
			case err := <-answer:
				if took := time.Since(begin); err == nil || took < 900*time.Millisecond || took > 4*time.Second {
					t.Errorf("the caller: %v after %s", err, took)
				}
			case <-time.After(10 * time.Second):
				t.Error("the caller waits for ever")
			}
			l.release() // go-micro's Stop waits for handlers that it has cut off
			if err, _ := l.end(time.Second); err == nil || !strings.Contains(err.Error(), "cut off: the pod's grace period ends") {
				t.Errorf("Run returned %v", err)
			}
		})
		t.Run(kind+"/a second signal ends it", func(t *testing.T) {
			mine := make(chan os.Signal, 1) // or the first one below would end this test
			signal.Notify(mine, syscall.SIGTERM)
			defer signal.Stop(mine)
			s := newSpace(t)
			s.pod("a")
			l, c, answer := ready(t, s, s.inside("a"), 20*time.Second)
			l.stop()
			soon(t, time.Second, "not being ready", is(c.ready, "NOT_SERVING"))
			begin := time.Now()
			kill(t, os.Getpid(), syscall.SIGTERM)
			if err := <-answer; err == nil || time.Since(begin) > 3*time.Second {
				t.Errorf("the caller: %v after %s", err, time.Since(begin))
			}
			l.release()
			if err, _ := l.end(time.Second); err == nil || !strings.Contains(err.Error(), "cut off: a second signal: terminated") {
				t.Errorf("Run returned %v", err)
			}
		})
	}
}

func TestDrainEndsWhatHasNoEnd(t *testing.T) {
	if Draining(context.Background()) != nil {
		t.Error("of no request it is not nil")
	}
	s := newSpace(t)
	s.pod("a")
	l := s.web(s.inside("a"), 500*time.Millisecond)
	rsp, err := fresh(t).Get("http://" + l.address + "/endless")
	if err != nil {
		t.Fatal(err)
	}
	defer rsp.Body.Close()
	begin := time.Now()
	l.stop()
	if body, err := io.ReadAll(rsp.Body); err != nil || string(body) != "first half, second half" || time.Since(begin) > 400*time.Millisecond {
		t.Errorf("it ends after %s with %q, %v", time.Since(begin), body, err)
	}
	if err, took := l.end(5 * time.Second); err != nil || took > 2*time.Second {
		t.Errorf("Run returned %v after %s", err, took)
	}
}

func TestDrainAsksKeptConnectionsToGoElsewhere(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	l := s.web(s.inside("a"), time.Second)
	conn, err := net.Dial("tcp", l.address)
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
		t.Error("told to go before the stop")
	}
	l.stop()
	soon(t, time.Second, "not being ready", func() error {
		if got, err := page(fresh(t), l.address, "/readyz"); got != "503 shutting down\n" {
			return fmt.Errorf("%q, %v", got, err)
		}
		return nil
	})
	if rsp := ask(); rsp.StatusCode != http.StatusOK || !rsp.Close {
		t.Errorf("status %d, Connection: close %v", rsp.StatusCode, rsp.Close)
	}
}

func TestWebServiceSaysWhyServingEnds(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	l := s.web(s.inside("a"), 0, func(o *web.Options) { // its listener ends behind everyone's back
		serve := o.Server.BaseContext
		o.Server.BaseContext = func(l net.Listener) context.Context {
			l.Close()
			return serve(l)
		}
	})
	if err, _ := l.end(5 * time.Second); err == nil || !strings.Contains(err.Error(), "serving on 127.0.0.1:") || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run returned %v", err)
	}
}

func TestWhatCannotStartSaysSo(t *testing.T) {
	s := newSpace(t)
	t.Setenv("KUBECONFIG", "/nonexistent")
	nowhere := apiserver.Environment{Getenv: func(string) string { return "" }, ServiceAccountDir: t.TempDir()}
	for name, l := range map[string]*life{"grpc": s.greeter(nowhere, 0), "web": s.web(nowhere, 0)} {
		if err, _ := l.end(time.Second); err == nil || !strings.Contains(err.Error(), "not in a pod") {
			t.Errorf("%s: Run returned %v", name, err)
		}
	}
	s.pod("a")
	l := s.web(s.inside("a"), 0, web.Server(&http.Server{}))
	if err, _ := l.end(time.Second); err == nil || !strings.Contains(err.Error(), "must come after web.Server") {
		t.Errorf("Run returned %v", err)
	}
}

func TestWithAnotherRegistryRegistrationDoesNotCount(t *testing.T) {
	other := memory.NewRegistry() // never ends its goroutine
	s := newSpace(t)
	nowhere := apiserver.Environment{Getenv: func(string) string { return "" }, ServiceAccountDir: t.TempDir()}
	l := s.greeter(nowhere, 0, micro.Registry(other))
	c := l.dial()
	for _, name := range []string{"", "greeter"} {
		if got := l.health(c, name); got != "SERVING" {
			t.Errorf("%q is %s", name, got)
		}
	}
	l.stop()
	if err, _ := l.end(5 * time.Second); err != nil {
		t.Error(err)
	}
}

func TestReflectionListsWhatIsRegistered(t *testing.T) {
	s := newSpace(t)
	s.pod("a")
	l := s.greeter(s.inside("a"), 0)
	c := l.dial()
	v1, err := reflectionv1.NewServerReflectionClient(c).ServerReflectionInfo(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(q *reflectionv1.ServerReflectionRequest) *reflectionv1.ServerReflectionResponse {
		t.Helper()
		if err := v1.Send(q); err != nil {
			t.Fatal(err)
		}
		a, err := v1.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	var names []string
	for _, s := range ask(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}).GetListServicesResponse().GetService() {
		names = append(names, s.Name)
	}
	if want := []string{"Greeter", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"}; !slices.Equal(names, want) {
		t.Errorf("it lists %q, want %q", names, want)
	}
	files := ask(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "Greeter"}}).GetFileDescriptorResponse().GetFileDescriptorProto()
	if len(files) != 1 || !strings.Contains(string(files[0]), "HelloRequest") {
		t.Errorf("the file of the Greeter is %q", files)
	}
	if err := v1.CloseSend(); err != nil {
		t.Error(err)
	}
	alpha, err := reflectionv1alpha.NewServerReflectionClient(c).ServerReflectionInfo(within(t, 10*time.Second))
	if err == nil {
		//nolint:staticcheck // deprecated, and what older grpcurls speak
		err = alpha.Send(&reflectionv1alpha.ServerReflectionRequest{MessageRequest: &reflectionv1alpha.ServerReflectionRequest_ListServices{}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if a, err := alpha.Recv(); err != nil || len(a.GetListServicesResponse().GetService()) != 3 { //nolint:staticcheck // as above
		t.Errorf("v1alpha: %v, %v", a, err)
	}
	if err := alpha.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := hello(within(t, time.Second), c, "after"); status.Code(err) != codes.OK {
		t.Error(err)
	}
}
