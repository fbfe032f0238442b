package rpc

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
	"google.golang.org/grpc"
)

// passthrough stands for the proxies of a mesh between a client and its instances: the client dials the address of
// a pod, and a proxy accepts in the place of the pod, also if nobody listens there.
type passthrough struct {
	relays map[string]*kubetest.Relay // by the address of the pod
	down   atomic.Bool                // the client's proxy resets every connection
}

// startPassthrough starts proxies for pods, whose processes listen elsewhere.
func startPassthrough(t *testing.T, processes map[string]string) *passthrough {
	t.Helper()
	p := &passthrough{relays: map[string]*kubetest.Relay{}}
	for pod, process := range processes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p.relays[pod] = kubetest.StartRelay(t, resetting{l, &p.down}, func() (net.Conn, error) { return net.Dial("tcp", process) })
	}
	return p
}

func (p *passthrough) dial(ctx context.Context, pod string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", p.relays[pod].Address())
}

// resetting resets the connections that it accepts while down is true.
type resetting struct {
	net.Listener
	down *atomic.Bool
}

func (r resetting) Accept() (net.Conn, error) {
	for {
		c, err := r.Listener.Accept()
		if err != nil || !r.down.Load() {
			return c, err
		}
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
}

// TestClientThroughPassthroughProxies cuts the connections of one proxy and of the other, and lets one process end behind its proxy,
// which goes on to accept connections.
func TestClientThroughPassthroughProxies(t *testing.T) {
	const first, second = "10.244.0.1:9100", "10.244.0.2:9100"
	a, stop := startServer(t, answer)
	b, _ := startServer(t, answer)
	p := startPassthrough(t, map[string]string{first: a, second: b})
	c := newGreeterClient(t, []string{first, second}, dialOptions(grpc.WithContextDialer(p.dial)))
	ctx, end := context.WithCancel(t.Context())
	var calls, failed atomic.Int64
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for ctx.Err() == nil {
				calls.Add(1)
				if err := c.call(20 * time.Second); err != nil {
					failed.Add(1)
					t.Errorf("a call fails: %v", err)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	defer callers.Wait()
	defer end()
	for range 3 {
		for _, pod := range []string{first, second} {
			p.relays[pod].CloseConnections()
			eventually(t, "both instances are called again", func() bool { return len(c.ejected()) == 0 })
		}
	}
	stop()
	toFirst := client.WithSelectOption(selector.WithFilter(func(all []*registry.Service) []*registry.Service {
		for _, v := range all { // copies
			v.Nodes = slices.DeleteFunc(v.Nodes, func(n *registry.Node) bool { return n.Address != first })
		}
		return slices.DeleteFunc(all, func(v *registry.Service) bool { return len(v.Nodes) == 0 })
	}))
	eventually(t, "the instance without a process is ejected", func() bool {
		_ = c.call(time.Second, toFirst, client.WithRetries(0)) // the callers may prefer the other instance
		e := c.ejected()
		return len(e) == 1 && e[0] == first
	})
	time.Sleep(2 * time.Second) // while its proxy accepts the connections of the trials
	end()
	callers.Wait()
	if e := c.ejected(); len(e) != 1 || e[0] != first {
		t.Errorf("ejected: %q, want %s", e, first)
	}
	t.Logf("%d of %d calls failed", failed.Load(), calls.Load())
}

// TestClientBeforeItsSidecar calls from the start, while every connection is reset for the first second.
func TestClientBeforeItsSidecar(t *testing.T) {
	const first, second = "10.244.0.1:9100", "10.244.0.2:9100"
	a, _ := startServer(t, answer)
	b, _ := startServer(t, answer)
	p := startPassthrough(t, map[string]string{first: a, second: b})
	p.down.Store(true)
	c := newGreeterClient(t, []string{first, second}, dialOptions(grpc.WithContextDialer(p.dial)))
	time.AfterFunc(time.Second, func() { p.down.Store(false) })
	begin := time.Now()
	var failed int
	var err error
	for {
		if err = c.call(20 * time.Second); err == nil {
			break
		}
		failed++
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("20 s after the start, a call fails: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("%d calls failed, the first answer came after %s", failed, time.Since(begin).Round(time.Millisecond))
	for range 100 {
		if err := c.call(20 * time.Second); err != nil {
			t.Errorf("after the first answer, a call fails: %v", err)
		}
	}
	eventually(t, "both instances are called", func() bool { return c.call(20*time.Second) == nil && len(c.ejected()) == 0 })
}
