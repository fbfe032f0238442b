package identity

import (
	"context"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// quiet is a handler that keeps nothing, which would cost more than to know who calls.
type quiet struct{}

func (quiet) Hello(ctx context.Context, req *proto.HelloRequest, rsp *proto.HelloResponse) error {
	_, _ = Caller(ctx)
	rsp.Greeting = "Hello " + req.Name + "!"
	return nil
}

// newPair starts a greeter and returns a function that calls it, and the registry of the client. No API server is needed: the
// service registers in memory, and the client has its address.
func newPair(t testing.TB, mode string) (call func(), clients *pod.Registry) {
	authority := kubetest.NewAuthority(t, "the authority")
	of := func(account string) func(string) string {
		return environment(kubetest.NewVolume(t, authority.Issue(t, kubetest.PodCertificate{ID: "spiffe://cluster.local/ns/shop/sa/" + account}), authority), mode)
	}
	servers := pod.NewRegistry(kubernetes.NewRegistry)
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan struct{}), make(chan error, 1)
	service := micro.NewService(micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("greeter"))), micro.Client(grpcc.NewClient()),
		micro.Registry(memory.NewRegistry()), micro.Context(ctx), micro.HandleSignal(false), pod.Lifecycle(servers, pod.DrainWait(0)), serve(of("greeter"), servers, nil),
		micro.AfterStart(func() error { close(started); return nil }))
	if err := proto.RegisterGreeterHandler(service.Server(), quiet{}); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- service.Run() }()
	<-started
	clients = pod.NewRegistry(kubernetes.NewRegistry)
	newService(of("page"), clients, nil)
	g, at := proto.NewGreeterService("greeter", pod.NewClient(clients, grpcc.NewClient())), client.WithAddress(service.Server().Options().Address)
	t.Cleanup(func() {
		_ = clients.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	request := &proto.HelloRequest{Name: "Ada"}
	return func() {
		if _, err := g.Hello(context.Background(), request, at); err != nil {
			t.Error(err)
		}
	}, clients
}

var modes = []struct{ name, mode string }{{"plaintext", ""}, {"mtls", Strict}}

// BenchmarkCall makes calls over an open connection, each of which ends in the client and in the server of this process.
func BenchmarkCall(b *testing.B) {
	for _, m := range modes {
		b.Run(m.name, func(b *testing.B) {
			call, _ := newPair(b, m.mode)
			call()
			b.ReportAllocs()
			for b.Loop() {
				call()
			}
		})
	}
}

// BenchmarkConnect makes each call over a new connection.
func BenchmarkConnect(b *testing.B) {
	for _, m := range modes {
		b.Run(m.name, func(b *testing.B) {
			call, clients := newPair(b, m.mode)
			for b.Loop() {
				clients.Reconnect()
				call()
			}
		})
	}
}

// BenchmarkMemory measures the memory of an open connection, of both of its ends.
func BenchmarkMemory(b *testing.B) {
	inUse := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	for _, m := range modes {
		b.Run(m.name, func(b *testing.B) {
			for b.Loop() {
				const connections = 50
				before := inUse()
				for range connections {
					call, _ := newPair(b, m.mode)
					call()
				}
				b.ReportMetric(float64(inUse()-before)/connections/1024, "KiB/pair")
			}
		})
	}
}

// TestCostOfCalls compares the time of the CPU for calls over open connections, of client and server together. Other processes of a busy
// machine change it little.
func TestCostOfCalls(t *testing.T) {
	plaintext, _ := newPair(t, "")
	encrypted, _ := newPair(t, Strict)
	measure := func(call func()) time.Duration {
		begin := cpuTime(t)
		for range 300 {
			call()
		}
		return cpuTime(t) - begin
	}
	var ratios []float64
	for range 11 {
		ratios = append(ratios, float64(measure(encrypted))/float64(measure(plaintext)))
	}
	slices.Sort(ratios)
	t.Logf("a call with mutual TLS costs %.2f times as much, the median of %.2f", ratios[len(ratios)/2], ratios)
	if ratios[len(ratios)/2] > 1.5 {
		t.Errorf("a call with mutual TLS costs %.2f times as much as in plaintext, want about 1.15", ratios[len(ratios)/2])
	}
}

// cpuTime returns the time that this process has used a CPU.
func cpuTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
