package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// greeter is a handler that tells who has called it.
type greeter struct {
	calls   atomic.Int64
	callers sync.Map // of IDs, by the text that was greeted
}

func (g *greeter) Hello(ctx context.Context, req *proto.HelloRequest, rsp *proto.HelloResponse) error {
	g.calls.Add(1)
	if id, ok := Caller(ctx); ok {
		g.callers.Store(req.Name, id)
	}
	rsp.Greeting = "Hello " + req.Name + "!"
	return nil
}

// shop is a namespace with an authority for its pods.
type shop struct {
	*kubetest.Namespace
	t         testing.TB
	authority *kubetest.Authority
	pods      int
}

func newShop(t *testing.T) *shop {
	return &shop{Namespace: kubetest.NewNamespace(t), t: t, authority: kubetest.NewAuthority(t, "the authority")}
}

func (s *shop) id(account string) string {
	return "spiffe://cluster.local/ns/" + s.Name + "/sa/" + account
}

// volume creates a pod, and the volume with its certificate for an account.
func (s *shop) volume(account string) (name string, v *kubetest.Volume, c kubetest.PodCertificate) {
	s.t.Helper()
	s.pods++
	p := s.CreateReadyPod(fmt.Sprintf("%s-%d", account, s.pods))
	c = kubetest.PodCertificate{ID: s.id(account), Pod: p.Name, UID: string(p.UID)}
	return p.Name, kubetest.NewVolume(s.t, s.authority.Issue(s.t, c), s.authority), c
}

// environment returns the variables of a mode; "" is plaintext.
func environment(v *kubetest.Volume, mode string) func(string) string {
	if mode == "" {
		return func(string) string { return "" }
	}
	return func(name string) string { return map[string]string{Variable: v.Dir, ModeVariable: mode}[name] }
}

// registryOf returns the registry of a process in a pod.
func (s *shop) registryOf(name string) *pod.Registry {
	before := apiserver.ProcessEnvironment
	defer func() { apiserver.ProcessEnvironment = before }()
	apiserver.ProcessEnvironment = s.Environment(name)
	return pod.NewRegistry(kubernetes.NewRegistry, pod.AnyAddress())
}

// replica is a running instance of the service greeter.
type replica struct {
	greeter
	*kubetest.Volume
	certificate  kubetest.PodCertificate
	pod, address string
	metadata     map[string]string // of the registration
	registered   string            // the annotation
	stop         func()
}

// start starts an instance of the greeter in a pod of an account.
func (s *shop) start(account, mode string, opts ...micro.Option) *replica {
	s.t.Helper()
	r := &replica{}
	r.pod, r.Volume, r.certificate = s.volume(account)
	own, memoryRegistry := s.registryOf(r.pod), memory.NewRegistry()
	ctx, cancel := context.WithCancel(context.Background())
	started := make(chan struct{})
	service := micro.NewService(append([]micro.Option{
		micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("greeter"))), micro.Client(grpcc.NewClient()),
		micro.Registry(memoryRegistry), micro.Context(ctx), micro.HandleSignal(false),
		pod.Lifecycle(own, pod.DrainWait(500*time.Millisecond)), serve(environment(r.Volume, mode), own, nil),
		micro.AfterStart(func() error { close(started); return nil })}, opts...)...)
	if err := proto.RegisterGreeterHandler(service.Server(), r); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- service.Run() }()
	select {
	case <-started:
	case err := <-ended:
		s.t.Fatal(err)
	}
	r.stop = sync.OnceFunc(func() {
		s.Deregister(r.pod, "greeter")
		cancel()
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(r.stop)
	all, err := memoryRegistry.GetService("greeter")
	if err != nil {
		s.t.Fatal(err)
	}
	r.address, r.metadata = service.Server().Options().Address, all[0].Nodes[0].Metadata
	s.register(r, r.pod, r.address, r.metadata)
	return r
}

// register writes an instance of the greeter onto a pod.
func (s *shop) register(r *replica, name, address string, metadata map[string]string) {
	b, err := json.Marshal(&registry.Service{Name: "greeter", Version: "1", Nodes: []*registry.Node{{Id: "greeter-" + name, Address: address, Metadata: metadata}}})
	if err != nil {
		s.t.Fatal(err)
	}
	if r != nil {
		r.registered = string(b)
	}
	s.Register(name, "greeter", string(b))
}

// caller is a process that calls the greeter.
type caller struct {
	*kubetest.Volume
	certificate kubetest.PodCertificate
	client      *pod.Client
	greeter     proto.GreeterService
	stop        func()
}

// newCaller starts a process of an account that calls the greeter.
func (s *shop) newCaller(account, mode string, opts ...client.Option) *caller {
	s.t.Helper()
	c := &caller{}
	var name string
	name, c.Volume, c.certificate = s.volume(account)
	r := s.registryOf(name)
	c.client = pod.NewClient(r, grpcc.NewClient(append([]client.Option{client.RequestTimeout(10 * time.Second)}, opts...)...))
	c.greeter = proto.NewGreeterService("greeter", c.client)
	own := newService(environment(c.Volume, mode), r, nil)
	if own != nil {
		if err := own.start(); err != nil {
			s.t.Fatal(err)
		}
	}
	c.stop = sync.OnceFunc(func() {
		if own != nil {
			_ = own.stop()
		}
		if err := r.Close(); err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(c.stop)
	return c
}

func (c *caller) hello(ctx context.Context, opts ...client.CallOption) error {
	rsp, err := c.greeter.Hello(ctx, &proto.HelloRequest{Name: "Ada"}, opts...)
	if err == nil && rsp.Greeting != "Hello Ada!" {
		err = fmt.Errorf("the greeting is %q", rsp.Greeting)
	}
	return err
}

// instances is a condition for Eventually: the caller knows so many instances.
func (c *caller) instances(n int) func() error {
	return func() error {
		if err := c.hello(context.Background()); err != nil {
			return err
		}
		if all := c.client.Instances("greeter"); len(all) != n {
			return fmt.Errorf("%d instances, want %d", len(all), n)
		}
		return nil
	}
}

// load calls the greeter from several goroutines until it is stopped.
type load struct {
	calls, failed atomic.Int64
	firstErr      atomic.Pointer[error]
	stop          func()
}

func (c *caller) load(t testing.TB) *load {
	l := &load{}
	ctx, cancel := context.WithCancel(context.Background())
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for ctx.Err() == nil {
				l.calls.Add(1)
				if err := c.hello(context.Background()); err != nil {
					l.failed.Add(1)
					l.firstErr.CompareAndSwap(nil, &err)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	l.stop = sync.OnceFunc(func() {
		cancel()
		callers.Wait()
	})
	t.Cleanup(l.stop)
	return l
}

// check stops a load and reports failed calls.
func (l *load) check(t testing.TB, what string) {
	t.Helper()
	l.stop()
	t.Logf("%s: %d calls, %d failed", what, l.calls.Load(), l.failed.Load())
	if err := l.firstErr.Load(); err != nil {
		t.Errorf("%s: %d of %d calls failed, the first with: %v", what, l.failed.Load(), l.calls.Load(), *err)
	}
}
