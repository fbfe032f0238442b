package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/auth"
	memorybroker "github.com/micro/go-micro/v2/broker/memory"
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
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	corev1 "k8s.io/api/core/v1"
)

// testService is a service that runs as a main function would run it.
type testService struct {
	t        *testing.T
	registry *Registry
	address  string
	stop     context.CancelFunc // begins the stop, as the first signal does
	runErr   chan error         // receives the result of Run
	hold     chan struct{}      // slow handlers wait until it is closed
	release  func()             // closes hold
	started  chan struct{}      // each slow handler sends when it starts
}

func (svc *testService) slow() { svc.started <- struct{}{}; <-svc.hold }

// Greeter answers at once, except the name "slow", which it answers when hold is closed.
type Greeter struct{ service *testService }

func (g *Greeter) Hello(_ context.Context, req *proto.HelloRequest, rsp *proto.HelloResponse) error {
	switch req.Name {
	case "slow":
		g.service.slow()
	case "panic":
		panic("only for the log")
	case "client error":
		return microerrors.InternalServerError("go.micro.client", "connection error")
	}
	rsp.Greeting = "Hello " + req.Name + "!"
	return nil
}

func newTestService(t *testing.T, env apiserver.Environment) (*testService, context.Context) {
	return newTestServiceOn(t, newRegistry(env, kubernetes.NewRegistry))
}

func newTestServiceOn(t *testing.T, registry *Registry) (*testService, context.Context) {
	svc := &testService{t: t, registry: registry, runErr: make(chan error, 1), hold: make(chan struct{}), started: make(chan struct{}, 1)}
	ctx, stop := context.WithCancel(context.Background())
	svc.stop, svc.release = stop, sync.OnceFunc(func() { close(svc.hold) })
	return svc, ctx
}

// start runs the service and waits until it listens or has ended.
func (svc *testService) start(run func() error, started chan struct{}) *testService {
	go func() { svc.runErr <- run() }()
	svc.t.Cleanup(func() {
		svc.stop()
		svc.release()
		select {
		case <-svc.runErr: //nolint:errcheck // the test checks the error with waitForRun
		case <-time.After(20 * time.Second):
			svc.t.Error("Run does not return")
		}
		svc.registry.Close()
	})
	select {
	case <-started:
	case err := <-svc.runErr:
		svc.runErr <- err
	case <-time.After(20 * time.Second):
		svc.t.Fatal("the service does not start")
	}
	return svc
}

func startGreeter(t *testing.T, env apiserver.Environment, wait time.Duration, opts ...micro.Option) *testService {
	return startGreeterOn(t, newRegistry(env, kubernetes.NewRegistry), wait, opts...)
}

func startGreeterOn(t *testing.T, registry *Registry, wait time.Duration, opts ...micro.Option) *testService {
	svc, ctx := newTestServiceOn(t, registry)
	started := make(chan struct{})
	service := micro.NewService(append([]micro.Option{
		micro.Name("greeter"), micro.HandleSignal(false), micro.Context(ctx),
		micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("greeter"), server.RegisterInterval(50*time.Millisecond))),
		micro.Client(grpcc.NewClient()),
		micro.Registry(svc.registry),
		Lifecycle(svc.registry, DrainWait(wait)),
		Reflection(svc.registry),
		micro.AfterStart(func() error { close(started); return nil }),
	}, opts...)...)
	if err := proto.RegisterGreeterHandler(service.Server(), &Greeter{svc}); err != nil {
		t.Fatal(err)
	}
	svc.start(service.Run, started)
	svc.address = service.Server().Options().Address
	return svc
}

// dial returns a connection to the service, which is closed when the test ends.
func (svc *testService) dial() *grpc.ClientConn {
	svc.t.Helper()
	c, err := grpc.NewClient("passthrough:"+svc.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		svc.t.Fatal(err)
	}
	svc.t.Cleanup(func() { c.Close() })
	return c
}

func contextWithTimeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func sayHello(ctx context.Context, c *grpc.ClientConn, name string) (string, error) {
	var rsp proto.HelloResponse
	err := c.Invoke(ctx, "/Greeter/Hello", &proto.HelloRequest{Name: name}, &rsp)
	return rsp.Greeting, err
}

// equals returns a condition for kubetest.Eventually: get returns want.
func equals[T comparable](get func() T, want T) func() error {
	return func() error {
		if got := get(); got != want {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		return nil
	}
}

// waitForRun waits until Run returns, and returns its error and the time that took.
func (svc *testService) waitForRun(limit time.Duration) (error, time.Duration) {
	svc.t.Helper()
	begin := time.Now()
	select {
	case err := <-svc.runErr:
		svc.runErr <- err
		return err, time.Since(begin)
	case <-time.After(limit):
		svc.t.Fatalf("Run has not returned after %s", limit)
		return nil, 0
	}
}

func TestFrozenAPIServerAffectsNeitherHealthNorStartNorStop(t *testing.T) {
	n := kubetest.NewNamespace(t)
	n.CreateReadyPod("a")
	n.CreateReadyPod("b")
	registered := startGreeter(t, n.Environment("a"), 0)
	c := registered.dial()
	kubetest.Eventually(t, 10*time.Second, "ready", equals(func() string { return registered.healthStatus(c, "") }, "SERVING"))
	environmentOfB := n.Environment("b")

	thaw := n.Freeze(t)
	begin := time.Now()
	starting := startWeb(t, environmentOfB, 100*time.Millisecond) // starts while the API server is frozen
	h := newHTTPClient(t)
	if got, err := getPage(h, starting.address, "/healthz"); err != nil || got != "200 ok\n" || time.Since(begin) > 3*time.Second {
		t.Errorf("liveness of a service that just started: %q, %v after %s", got, err, time.Since(begin))
	}
	if got, _ := getPage(h, starting.address, "/readyz"); !strings.HasPrefix(got, "503 not registered") {
		t.Errorf("readiness of a service that just started: %q", got)
	}
	kubetest.Eventually(t, 20*time.Second, "the reason on /readyz", func() error { // the limit includes the ping timeout of the connection
		if got, _ := getPage(h, starting.address, "/readyz"); !strings.Contains(got, "does not answer") {
			return errors.New(got)
		}
		return nil
	})
	if got := registered.healthStatus(c, ""); got != "SERVING" {
		t.Errorf("readiness of a registered service: %s", got)
	}
	starting.stop()
	if err, took := starting.waitForRun(5 * time.Second); err != nil || took > 3*time.Second {
		t.Errorf("stopping: %v after %s", err, took)
	}
	thaw()
	kubetest.Eventually(t, 20*time.Second, "the API server answers again", func() error { _, err := n.Admin.Discovery().ServerVersion(); return err })
	if got := registered.healthStatus(c, ""); got != "SERVING" {
		t.Errorf("readiness afterwards: %s", got)
	}
}

// Both kinds of service stop while a caller waits for its answer.
func TestDrain(t *testing.T) {
	type caller struct {
		call   func() error  // a call that ends at once
		slow   func() error  // a call that waits for hold
		status func() string // health; "" if it is unknown
	}
	kinds := map[string]func(*testing.T, apiserver.Environment, time.Duration) (*testService, caller){
		"grpc": func(t *testing.T, env apiserver.Environment, wait time.Duration) (*testService, caller) {
			svc := startGreeter(t, env, wait)
			c := svc.dial()
			hello := func(name string) func() error {
				return func() error {
					got, err := sayHello(contextWithTimeout(t, 30*time.Second), c, name)
					if err == nil && got != "Hello "+name+"!" {
						err = fmt.Errorf("the answer is %q", got)
					}
					return err
				}
			}
			return svc, caller{hello("you"), hello("slow"), func() string { return svc.healthStatus(c, "") }}
		},
		"web": func(t *testing.T, env apiserver.Environment, wait time.Duration) (*testService, caller) {
			svc := startWeb(t, env, wait)
			c := newHTTPClient(t)
			get := func(path string) func() error {
				return func() error {
					got, err := getPage(c, svc.address, path)
					if err == nil && got != "200 first half, second half" {
						err = fmt.Errorf("the answer is %q", got)
					}
					return err
				}
			}
			return svc, caller{get("/"), get("/slow"), func() string {
				got, _ := getPage(c, svc.address, "/readyz")
				return map[string]string{"200 ok\n": "SERVING", "503 shutting down\n": "NOT_SERVING"}[got]
			}}
		},
	}
	services := map[string]string{"grpc": "greeter", "web": "page"}
	for kind, start := range kinds {
		ready := func(t *testing.T, env apiserver.Environment, wait time.Duration) (*testService, caller, chan error) {
			svc, c := start(t, env, wait)
			kubetest.Eventually(t, 10*time.Second, "ready", equals(c.status, "SERVING"))
			answer := make(chan error, 1)
			go func() { answer <- c.slow() }()
			<-svc.started
			return svc, c, answer
		}
		t.Run(kind+"/calls in flight finish, in order", func(t *testing.T) {
			n := kubetest.NewNamespace(t)
			n.CreateReadyPod("a")
			const wait = 4 * time.Second
			svc, c, answer := ready(t, n.Environment("a"), wait)
			begin := time.Now()
			svc.stop()
			kubetest.Eventually(t, wait, "not ready", equals(c.status, "NOT_SERVING"))
			kubetest.Eventually(t, wait, "deregistration", equals(func() bool { return n.Registered("a", services[kind]) }, false))
			if err := c.call(); err != nil || time.Since(begin) > wait {
				t.Errorf("a new call during DrainWait: %v after %s", err, time.Since(begin))
			}
			select {
			case err := <-svc.runErr:
				t.Fatalf("Run returned %v while a caller waits", err)
			case err := <-answer:
				t.Fatalf("the caller gets %v before its handler has returned", err)
			case <-time.After(time.Until(begin.Add(wait + 1500*time.Millisecond))): // go-micro alone gives a handler 1 s
			}
			svc.release()
			if err := <-answer; err != nil {
				t.Error(err)
			}
			if err, took := svc.waitForRun(10 * time.Second); err != nil || took > 5*time.Second {
				t.Errorf("Run returned %v, %s after the last handler", err, took)
			}
			if n.Registered("a", services[kind]) { // go-micro calls Register every 50 ms here
				t.Error("the service is registered again")
			}
		})
		t.Run(kind+"/without calls it ends after DrainWait", func(t *testing.T) {
			n := kubetest.NewNamespace(t)
			n.CreateReadyPod("a")
			svc, c := start(t, n.Environment("a"), 500*time.Millisecond)
			kubetest.Eventually(t, 10*time.Second, "ready", equals(c.status, "SERVING"))
			begin := time.Now()
			svc.stop()
			err, _ := svc.waitForRun(20 * time.Second)
			if took := time.Since(begin); err != nil || took < 500*time.Millisecond || took > 10*time.Second { // the grace period is 30 s
				t.Errorf("Run returned %v after %s", err, took)
			}
		})
		t.Run(kind+"/the pod's grace period limits the drain", func(t *testing.T) {
			n := kubetest.NewNamespace(t)
			period := int64(6)
			n.CreateReadyPod("a", func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = &period })
			svc, _, answer := ready(t, n.Environment("a"), 200*time.Millisecond)
			begin := time.Now()
			svc.stop()
			select {
			case err := <-answer:
				if took := time.Since(begin); err == nil || took < 2900*time.Millisecond || took > 6*time.Second {
					t.Errorf("the caller: %v after %s", err, took)
				}
			case <-time.After(10 * time.Second):
				t.Error("the caller still waits")
			}
			svc.release() // go-micro's Stop waits for the handlers whose calls it has cut off
			if err, _ := svc.waitForRun(10 * time.Second); err == nil || !strings.Contains(err.Error(), "cut off: the pod's grace period ends") {
				t.Errorf("Run returned %v", err)
			}
		})
		t.Run(kind+"/a second signal ends the drain", func(t *testing.T) {
			received := make(chan os.Signal, 1) // without this channel the signal below would end the test
			signal.Notify(received, syscall.SIGTERM)
			defer signal.Stop(received)
			n := kubetest.NewNamespace(t)
			n.CreateReadyPod("a")
			svc, c, answer := ready(t, n.Environment("a"), 20*time.Second)
			svc.stop()
			kubetest.Eventually(t, 10*time.Second, "not ready", equals(c.status, "NOT_SERVING"))
			begin := time.Now()
			for range 2 { // the end of the context has begun the stop
				if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				<-received
			}
			if err := <-answer; err == nil || time.Since(begin) > 10*time.Second {
				t.Errorf("the caller: %v after %s", err, time.Since(begin))
			}
			svc.release()
			if err, _ := svc.waitForRun(10 * time.Second); err == nil || !strings.Contains(err.Error(), "cut off: a second signal: terminated") {
				t.Errorf("Run returned %v", err)
			}
		})
	}
}

func TestRunReturnsWhyServiceCannotStart(t *testing.T) {
	n := kubetest.NewNamespace(t)
	t.Setenv("KUBECONFIG", "/nonexistent")
	outside := apiserver.Environment{Getenv: func(string) string { return "" }, ServiceAccountDir: t.TempDir()}
	for name, svc := range map[string]*testService{"grpc": startGreeter(t, outside, 0), "web": startWeb(t, outside, 0)} {
		if err, _ := svc.waitForRun(10 * time.Second); err == nil || !strings.Contains(err.Error(), "not in a pod") {
			t.Errorf("%s: Run returned %v", name, err)
		}
	}
	n.CreateReadyPod("a")
	svc := startWeb(t, n.Environment("a"), 0, web.Server(&http.Server{}))
	if err, _ := svc.waitForRun(10 * time.Second); err == nil || !strings.Contains(err.Error(), "must come after web.Server") {
		t.Errorf("Run returned %v", err)
	}
}

func TestReadinessIgnoresRegistrationInAnotherRegistry(t *testing.T) {
	other := memory.NewRegistry() // its goroutine never ends
	kubetest.NewNamespace(t)
	outside := apiserver.Environment{Getenv: func(string) string { return "" }, ServiceAccountDir: t.TempDir()}
	svc := startGreeter(t, outside, 0, micro.Registry(other))
	c := svc.dial()
	for _, name := range []string{"", "greeter"} {
		if got := svc.healthStatus(c, name); got != "SERVING" {
			t.Errorf("%q is %s", name, got)
		}
	}
	svc.stop()
	if err, _ := svc.waitForRun(10 * time.Second); err != nil {
		t.Error(err)
	}
}

// Streams has handlers of streams.
type Streams struct{}

func (*Streams) Panic(context.Context, server.Stream) error { panic("only for the log") }

func TestPanicTextIsHiddenFromCallers(t *testing.T) {
	n := kubetest.NewNamespace(t)
	n.CreateReadyPod("a")
	n.CreateReadyPod("b")
	g := startGreeter(t, n.Environment("a"), 0, func(o *micro.Options) {
		o.BeforeStart = append(o.BeforeStart, func() error { return o.Server.Handle(o.Server.NewHandler(new(Streams))) })
	})
	c := g.dial()
	_, unary := sayHello(contextWithTimeout(t, 20*time.Second), c, "panic")
	stream, err := c.NewStream(contextWithTimeout(t, 20*time.Second), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/Streams/Panic")
	if err == nil {
		err = stream.RecvMsg(new(emptypb.Empty))
	}
	for kind, err := range map[string]error{"call": unary, "stream": err} {
		if text := fmt.Sprint(status.Convert(err)); status.Code(err) != codes.Internal || !strings.Contains(text, "internal error") || strings.Contains(text, "log") {
			t.Errorf("%s: the caller gets %s", kind, text)
		}
	}
	if got, err := sayHello(contextWithTimeout(t, 20*time.Second), c, "you"); got != "Hello you!" {
		t.Errorf("afterwards: %q, %v", got, err)
	}

	w := startWeb(t, n.Environment("b"), 0)
	if got, err := getPage(newHTTPClient(t), w.address, "/panic"); err == nil {
		t.Errorf("the caller of the page gets %q, want a closed connection", got)
	}
	if got, err := getPage(newHTTPClient(t), w.address, "/"); err != nil || got != "200 first half, second half" {
		t.Errorf("afterwards: %q, %v", got, err)
	}
}

func TestTooLargeMessageFailsOnlyItsCall(t *testing.T) {
	n := kubetest.NewNamespace(t)
	n.CreateReadyPod("a")
	c := startGreeter(t, n.Environment("a"), 0).dial()
	if _, err := sayHello(contextWithTimeout(t, 20*time.Second), c, strings.Repeat("x", 4<<20)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("more than 4 MiB: %v", err)
	}
	if got, err := sayHello(contextWithTimeout(t, 20*time.Second), c, "you"); got != "Hello you!" {
		t.Errorf("afterwards: %q, %v", got, err)
	}
}

func TestOptionsOfLimits(t *testing.T) {
	r := newGreeterRegistry(t)
	before, after := r.lifecycle(nil), r.lifecycle([]LifecycleOption{BodyLimit(1, 2), ConnectionLimit(3, 4)})
	if l := before.Limits; l.Body != 1<<20 || l.BodyTimeout != 30*time.Second || l.Connections != 1200 || l.ClientConnections != 600 {
		t.Errorf("the limits are %+v", l)
	}
	if l := after.Limits; l.Body != 1 || l.BodyTimeout != 2 || l.Connections != 3 || l.ClientConnections != 4 {
		t.Errorf("the limits are %+v", l)
	}
}

// startGreeterOutside starts a greeter that needs no Kubernetes, because it registers
// with a registry in memory.
func startGreeterOutside(t *testing.T, wait time.Duration, opts ...micro.Option) *testService {
	t.Helper()
	return startGreeter(t, outsideCluster(t), wait, append([]micro.Option{micro.Registry(memory.NewRegistry())}, opts...)...)
}

func outsideCluster(t *testing.T) apiserver.Environment {
	t.Helper()
	t.Setenv("KUBECONFIG", "/nonexistent")
	return apiserver.Environment{Getenv: func(string) string { return "" }, ServiceAccountDir: t.TempDir()}
}

// expectRunning fails the test if Run returns within d.
func (svc *testService) expectRunning(d time.Duration, while string) {
	svc.t.Helper()
	select {
	case err := <-svc.runErr:
		svc.runErr <- err
		svc.t.Fatalf("Run returned %v while %s", err, while)
	case <-time.After(d):
	}
}

// A wrapper that the user adds may also work after the handler, for example to commit a
// transaction.
func TestDrainWaitsForUsersWrappers(t *testing.T) {
	var svc *testService
	svc = startGreeterOutside(t, 50*time.Millisecond, micro.WrapHandler(func(h server.HandlerFunc) server.HandlerFunc {
		return func(ctx context.Context, req server.Request, rsp interface{}) error {
			err := h(ctx, req, rsp)
			if req.Method() == "Greeter.Hello" {
				svc.slow()
			}
			return err
		}
	}))
	answer := make(chan error, 1)
	go func() {
		_, err := sayHello(contextWithTimeout(t, 30*time.Second), svc.dial(), "you")
		answer <- err
	}()
	<-svc.started
	svc.stop()
	svc.expectRunning(2*time.Second, "a wrapper works") // go-micro alone gives a handler 1 s
	svc.release()
	if err := <-answer; err != nil {
		t.Error(err)
	}
	if err, took := svc.waitForRun(10 * time.Second); err != nil || took > 5*time.Second {
		t.Errorf("Run returned %v after %s", err, took)
	}
}

func TestDrainWaitsForSubscribers(t *testing.T) {
	for name, publishAfterStop := range map[string]bool{"of a message before the stop": false, "of a message during the stop": true} {
		t.Run(name, func(t *testing.T) {
			b := memorybroker.NewBroker()
			const wait = 500 * time.Millisecond
			var svc *testService
			handled := make(chan bool, 1)
			var handledInTime atomic.Bool
			svc = startGreeterOutside(t, wait, micro.Broker(b), func(o *micro.Options) {
				o.BeforeStart = append(o.BeforeStart, func() error {
					return micro.RegisterSubscriber("greetings", o.Server, func(ctx context.Context, _ *proto.HelloRequest) error {
						if Draining(ctx) == nil {
							t.Error("Draining returns nil in a subscriber")
						}
						svc.slow()
						handledInTime.Store(true)
						handled <- true
						return nil
					})
				})
			})
			publish := func() {
				c := grpcc.NewClient(client.Broker(b))
				if err := c.Publish(t.Context(), c.NewMessage("greetings", &proto.HelloRequest{Name: "x"})); err != nil {
					t.Error(err)
				}
			}
			if publishAfterStop {
				svc.stop()
				go publish()
				<-svc.started
			} else {
				go publish()
				<-svc.started
				svc.stop()
			}
			svc.expectRunning(wait+1500*time.Millisecond, "a subscriber works")
			svc.release()
			if err, took := svc.waitForRun(10 * time.Second); err != nil || took > 5*time.Second || !handledInTime.Load() {
				t.Errorf("Run returned %v after %s; before the subscriber returned: %v", err, took, !handledInTime.Load())
			}
			<-handled
		})
	}
}

// Endless streams until the service drains.
func (*Streams) Endless(ctx context.Context, stream server.Stream) error {
	if err := stream.Send(&emptypb.Empty{}); err != nil {
		return err
	}
	select {
	case <-Draining(ctx):
		return nil
	case <-time.After(20 * time.Second):
		return errors.New("the channel of Draining was not closed")
	}
}

func TestDrainEndsEndlessStream(t *testing.T) {
	svc := startGreeterOutside(t, 3*time.Second, func(o *micro.Options) {
		o.BeforeStart = append(o.BeforeStart, func() error { return o.Server.Handle(o.Server.NewHandler(new(Streams))) })
	})
	stream, err := svc.dial().NewStream(contextWithTimeout(t, 30*time.Second), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/Streams/Endless")
	if err == nil {
		err = stream.RecvMsg(new(emptypb.Empty))
	}
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	svc.stop()
	if err := stream.RecvMsg(new(emptypb.Empty)); err != io.EOF || time.Since(begin) > 2500*time.Millisecond {
		t.Errorf("the stream ends after %s with %v", time.Since(begin), err)
	}
	if err, took := svc.waitForRun(20 * time.Second); err != nil || took > 10*time.Second {
		t.Errorf("Run returned %v after %s", err, took)
	}
}

// The handler calls another service with go-micro's client and returns that client's error.
func TestHandlersClientErrorGetsIDOfService(t *testing.T) {
	svc := startGreeterOutside(t, 0)
	_, err := sayHello(contextWithTimeout(t, 20*time.Second), svc.dial(), "client error")
	if e := microerrors.Parse(status.Convert(err).Message()); e.Id != "greeter" || e.Code != 500 || e.Detail != "connection error" || status.Code(err) != codes.Internal {
		t.Errorf("the caller gets %v", err)
	}
}

// One process has a gRPC and a web service, on one registry.
func TestLastLifecycleClosesRegistry(t *testing.T) {
	registry := newRegistry(outsideCluster(t), kubernetes.NewRegistry)
	t.Cleanup(func() { registry.Close() })
	var services []*testService
	for range 2 {
		services = append(services, startGreeterOn(t, registry, 0, micro.Registry(memory.NewRegistry())))
	}
	services = append(services, startWebOn(t, registry, 0, web.Registry(memory.NewRegistry())))
	for i, svc := range services {
		if _, err := registry.GetService("x"); err == nil || strings.Contains(err.Error(), "closed") {
			t.Errorf("with %d of %d services stopped: %v", i, len(services), err)
		}
		svc.stop()
		if err, _ := svc.waitForRun(10 * time.Second); err != nil {
			t.Error(err)
		}
	}
	if _, err := registry.GetService("x"); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("with all services stopped: %v", err)
	}
}

// The kubelet counts the grace period from the moment when it sees the deletion, and runs
// the preStop hook before it sends SIGTERM.
func TestGracePeriodBeginsWithDeletion(t *testing.T) {
	n := kubetest.NewNamespace(t)
	period := int64(9)
	n.CreateReadyPod("a", func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = &period })
	svc := startGreeter(t, n.Environment("a"), 100*time.Millisecond)
	c := svc.dial()
	kubetest.Eventually(t, 10*time.Second, "ready", equals(func() string { return svc.healthStatus(c, "") }, "SERVING"))
	go func() { _, _ = sayHello(context.Background(), c, "slow") }()
	<-svc.started
	n.TerminatePod("a")
	begin := time.Now()
	time.Sleep(4 * time.Second) // the preStop hook
	svc.stop()
	kubetest.Eventually(t, 10*time.Second, "the drain has begun", func() error {
		if len(kubetest.LogLines(t, begin, "Waiting for calls in flight")) == 0 {
			return errors.New("the drain has not begun")
		}
		return nil
	})
	time.Sleep(time.Until(begin.Add(6500 * time.Millisecond)))
	svc.release()
	err, _ := svc.waitForRun(10 * time.Second)
	if err == nil || !strings.Contains(err.Error(), "cut off: the pod's grace period ends") {
		t.Errorf("the grace period is 9 s and stopMargin 3 s: 6.5 s after the deletion Run returned %v", err)
	}
}

// constantAuth never changes. In go-micro's own Auth, a goroutine of web.Service.Init and
// a goroutine of web.Service.Run change the options every 15 s, which is a data race.
type constantAuth struct{ auth.Auth }

func (constantAuth) Init(...auth.Option) {}

func (constantAuth) Options() auth.Options {
	return auth.Options{Token: &auth.Token{Expiry: time.Now().Add(time.Hour)}}
}

// The test uses the flag --registry, which the error of a service that cannot register
// recommends.
func TestFlagChoosesAnotherRegistry(t *testing.T) {
	before := os.Args
	defer func() { os.Args = before }()
	os.Args = []string{before[0], "--registry=memory"}
	t.Run("grpc", func(t *testing.T) {
		svc, ctx := newTestService(t, outsideCluster(t))
		started := make(chan struct{})
		service := micro.NewService(micro.Name("greeter"), micro.HandleSignal(false), micro.Context(ctx), micro.Auth(constantAuth{auth.NewAuth()}),
			micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("greeter"))), micro.Registry(svc.registry),
			Lifecycle(svc.registry, DrainWait(0)), micro.AfterStart(func() error { close(started); return nil }))
		service.Init()
		svc.start(service.Run, started)
		svc.address = service.Server().Options().Address
		if got := svc.healthStatus(svc.dial(), ""); got != "SERVING" {
			t.Errorf("its health is %s", got)
		}
		if all, err := service.Options().Registry.GetService("greeter"); err != nil || len(all) != 1 {
			t.Errorf("the chosen registry has %v, %v", all, err)
		}
	})
	t.Run("web", func(t *testing.T) {
		svc, ctx := newTestService(t, outsideCluster(t))
		started := make(chan struct{})
		inner := micro.NewService(micro.Auth(constantAuth{auth.NewAuth()}))
		service := web.NewService(web.Name("page"), web.HandleSignal(false), web.Context(ctx), web.Address("127.0.0.1:0"), web.MicroService(inner),
			web.Registry(svc.registry), WebLifecycle(svc.registry, DrainWait(0)), web.AfterStart(func() error { close(started); return nil }))
		if err := service.Init(); err != nil {
			t.Fatal(err)
		}
		svc.start(service.Run, started)
		svc.address = service.Options().Address
		if got, err := getPage(newHTTPClient(t), svc.address, "/readyz"); got != "200 ok\n" {
			t.Errorf("/readyz answers %q, %v", got, err)
		}
		kubetest.Eventually(t, 10*time.Second, "registered in the chosen registry", func() error {
			_, err := inner.Options().Registry.GetService("page")
			return err
		})
		svc.stop()
		if err, _ := svc.waitForRun(10 * time.Second); err != nil {
			t.Error(err)
		}
		if _, err := inner.Options().Registry.GetService("page"); err == nil {
			t.Error("the stopped service is still registered")
		}
	})
}

func TestWebServiceWithAnotherRegistryIsReady(t *testing.T) {
	svc := startWeb(t, outsideCluster(t), 0, web.Registry(memory.NewRegistry()))
	if got, err := getPage(newHTTPClient(t), svc.address, "/readyz"); got != "200 ok\n" {
		t.Errorf("/readyz answers %q, %v", got, err)
	}
}
