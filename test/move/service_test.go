package move

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/etcd"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-micro/v2/web"
	"github.com/micro/go-plugins/registry/consul/v2"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// The stages of a move.
const (
	inOld  = "old"  // a service as it was written in 2020
	inBoth = "both" // with pod/ and pod.Also
	onPods = "pods" // with pod/ alone
)

// The kinds of services, which are also their names.
const (
	kindServer = "greeter" // serves gRPC calls
	kindWeb    = "page"    // serves HTTP, and calls the greeter for each request
	kindClient = "caller"  // calls both with 8 callers
	kindReader = "reader"  // reads the registry only
)

const callers = 8

// process is what a process of the test is told in its environment, as JSON.
type process struct {
	Kind, Stage       string
	Old, OldAddress   string // name and address of the old registry
	Listen, Advertise string
	ServiceAccountDir string
	Variables         map[string]string // those of a pod
}

const processVariable = "MOVE_PROCESS"

// counts is what a client or a reader prints at its end, as JSON.
type counts struct {
	Calls, Failures int64
	Errors          []string // the first ones
}

// main runs the process until a signal.
func (p process) main() error {
	apiserver.ProcessEnvironment = apiserver.Environment{Getenv: func(k string) string { return p.Variables[k] }, ServiceAccountDir: p.ServiceAccountDir}
	switch p.Kind {
	case kindServer:
		return p.server()
	case kindWeb:
		return p.web()
	default:
		return p.count()
	}
}

// oldRegistry returns a registry by its name.
func oldRegistry(name, address string) registry.Registry {
	if name == "consul" {
		return consul.NewRegistry(registry.Addrs(address))
	}
	return etcd.NewRegistry(registry.Addrs(address))
}

// registries returns the registry of a service, and the same as pod/ needs it, nil in the old one.
func (p process) registries() (registry.Registry, *pod.Registry) {
	switch p.Stage {
	case inOld:
		return oldRegistry(p.Old, p.OldAddress), nil
	case inBoth:
		r := pod.NewRegistry(kubernetes.NewRegistry, pod.AnyAddress(), pod.Also(oldRegistry(p.Old, p.OldAddress)))
		return r, r
	default:
		r := pod.NewRegistry(kubernetes.NewRegistry, pod.AnyAddress())
		return r, r
	}
}

// ttl is the time to live of registrations in the old registry, short so that the test renews them.
const ttl = 6 * time.Second

// drainWait is a third of the default: the test stops many services.
var drainWait = pod.DrainWait(time.Second)

func (p process) server() error {
	r, onPod := p.registries()
	options := []micro.Option{
		micro.Server(grpcs.NewServer(server.Name(p.Kind), server.Address(p.Listen), server.Advertise(p.Advertise),
			server.RegisterTTL(ttl), server.RegisterInterval(ttl/3))),
		micro.Client(grpcc.NewClient()),
		micro.Registry(r),
	}
	if onPod != nil {
		options = append(options, pod.Lifecycle(onPod, drainWait))
	}
	service := micro.NewService(options...)
	if err := proto.RegisterGreeterHandler(service.Server(), greeter{}); err != nil {
		return err
	}
	return service.Run()
}

type greeter struct{}

func (greeter) Hello(_ context.Context, req *proto.HelloRequest, rsp *proto.HelloResponse) error {
	time.Sleep(time.Millisecond) // so that calls are in flight at a stop
	rsp.Greeting = "Hello " + req.Name + "!"
	return nil
}

func (p process) web() error {
	r, onPod := p.registries()
	options := []web.Option{web.Name(p.Kind), web.Address(p.Listen), web.Advertise(p.Advertise), web.Registry(r),
		web.RegisterTTL(ttl), web.RegisterInterval(ttl / 3)}
	if onPod != nil {
		options = append(options, pod.WebLifecycle(onPod, drainWait))
	}
	service := web.NewService(options...)
	c := p.client(r, onPod)
	service.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		text, err := hello(r.Context(), c)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprint(w, text)
	})
	return service.Run()
}

func (p process) client(r registry.Registry, onPod *pod.Registry) client.Client {
	if onPod != nil {
		return pod.NewClient(onPod, grpcc.NewClient())
	}
	return grpcc.NewClient(client.Registry(r))
}

func hello(ctx context.Context, c client.Client) (string, error) {
	var rsp proto.HelloResponse
	err := c.Call(ctx, c.NewRequest(kindServer, "Greeter.Hello", &proto.HelloRequest{Name: "you"}), &rsp)
	return rsp.Greeting, err
}

// get gets the page from an instance that the registry returns. Like go-micro's client, it tries twice,
// 100 ms apart.
func get(ctx context.Context, r registry.Registry) (string, error) {
	try := func() (string, error) {
		all, err := r.GetService(kindWeb)
		if err != nil {
			return "", err
		}
		var nodes []*registry.Node
		for _, s := range all {
			nodes = append(nodes, s.Nodes...)
		}
		if len(nodes) == 0 {
			return "", errors.New("the page has no node")
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+nodes[rand.IntN(len(nodes))].Address, http.NoBody)
		if err != nil {
			return "", err
		}
		rsp, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", err
		}
		defer rsp.Body.Close()
		b, err := io.ReadAll(rsp.Body)
		if err == nil && rsp.StatusCode != http.StatusOK {
			err = errors.New(rsp.Status + " " + string(b))
		}
		return string(b), err
	}
	text, err := try()
	if err != nil {
		time.Sleep(100 * time.Millisecond)
		text, err = try()
	}
	return text, err
}

// count makes calls, or reads, until a signal, and prints its counts. It prints "ready" after the first round.
func (p process) count() error {
	r, onPod := p.registries()
	if onPod != nil {
		defer onPod.Close()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c := p.client(r, onPod)
	var calls atomic.Int64
	var mu sync.Mutex
	var result counts
	report := func(what, text string, err error) {
		calls.Add(1)
		if err == nil && text == "Hello you!" {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		result.Failures++
		if len(result.Errors) < 10 {
			result.Errors = append(result.Errors, fmt.Sprintf("%s %s: %q, %v", time.Now().Format("15:04:05.000"), what, text, err))
		}
	}
	round := func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if p.Kind == kindReader {
			report("reading", "Hello you!", read(r))
			return
		}
		text, err := hello(limited, c)
		report("calling the greeter", text, err)
		text, err = get(limited, r)
		report("getting the page", text, err)
	}
	round()
	fmt.Println("ready")
	var running sync.WaitGroup
	for range callers {
		running.Go(func() {
			for ctx.Err() == nil {
				round()
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	running.Wait()
	result.Calls = calls.Load()
	return json.NewEncoder(os.Stdout).Encode(result)
}

// read returns an error if the registry does not know both services.
func read(r registry.Registry) error {
	for _, name := range []string{kindServer, kindWeb} {
		all, err := r.GetService(name)
		if err != nil {
			return fmt.Errorf("GetService %s: %w", name, err)
		}
		seen := map[string]bool{}
		for _, s := range all {
			for _, n := range s.Nodes {
				if seen[n.Address] {
					return fmt.Errorf("GetService %s returns %s twice", name, n.Address)
				}
				seen[n.Address] = true
			}
		}
		if len(seen) == 0 {
			return fmt.Errorf("GetService %s returns no node", name)
		}
	}
	all, err := r.ListServices()
	if err != nil {
		return err
	}
	found := map[string]bool{}
	for _, s := range all {
		found[s.Name] = true
	}
	if !found[kindServer] || !found[kindWeb] {
		return fmt.Errorf("ListServices returns only %v", found)
	}
	return nil
}
