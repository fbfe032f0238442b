package rpc

import (
	"context"
	stderrors "errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/retry"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/codec/bytes"
	"github.com/micro/go-micro/v2/errors"
	micrometadata "github.com/micro/go-micro/v2/metadata"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/memory"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	corev1 "k8s.io/api/core/v1"
)

// tier starts a greeter whose handler calls the next tier.
func tier(t *testing.T, next client.Client) (address string) {
	address, _ = startServer(t, func(ctx context.Context, _ *proto.HelloRequest, _ *proto.HelloResponse) error {
		return callGreeter(ctx, next)
	})
	return address
}

// callEvery makes calls of some callers, and each caller begins a call at most every interval. It returns
// how many failed.
func callEvery(callers, calls int, interval time.Duration, call func() error) (failed int64) {
	var all sync.WaitGroup
	var failures atomic.Int64
	for range callers {
		all.Go(func() {
			for range calls {
				next := time.After(interval)
				if call() != nil {
					failures.Add(1)
				}
				<-next
			}
		})
	}
	all.Wait()
	return failures.Load()
}

// goMicroClient is go-micro's own client, for an address.
func goMicroClient(t *testing.T, address string) client.Client {
	t.Helper()
	r := memory.NewRegistry()
	if err := r.Register(&registry.Service{Name: "greeter", Version: "1", Nodes: []*registry.Node{{Id: "1", Address: address}}}); err != nil {
		t.Fatal(err)
	}
	return grpcc.NewClient(client.Selector(selector.NewSelector(selector.Registry(r))))
}

// Tiers in virtual time, the last one down. Without a bound, 100 calls become 200 attempts at the last of one tier, and 800 at
// that of three.
func TestRetriesDoNotMultiply(t *testing.T) {
	const callers, calls = 10, 10
	for name, failure := range map[string]error{
		"refuses connections": nil,
		"answers UNAVAILABLE": status.Error(codes.Unavailable, "down"),
		"handler fails":       status.Error(codes.Unknown, "down"),
	} {
		for tiers, bound := range map[int]int64{1: 120, 3: 140} {
			t.Run(fmt.Sprintf("%s, %d tiers", name, tiers), func(t *testing.T) {
				networks := make([]*dialCounter, tiers)
				clients := make([]client.Client, tiers)
				for i := range tiers { // outside of the bubble, because a goroutine of each never ends
					networks[i] = &dialCounter{}
					clients[i] = grpcc.NewClient(networks[i].option())
				}
				synctest.Test(t, func(t *testing.T) {
					attempts := make([]atomic.Int64, tiers)
					handle := func(context.Context) ([]byte, error) { return nil, failure }
					for i := tiers - 1; i >= 0; i-- {
						networks[i].up.Store(i < tiers-1 || failure != nil)
						networks[i].to = serveInBubble(t, handle)
						c := newBubbleClient(t, clients[i], 1, func() { attempts[i].Add(1) })
						handle = func(ctx context.Context) ([]byte, error) { return nil, exportIn(ctx, c) }
					}
					begin := time.Now()
					failed := callEvery(callers, calls, 200*time.Millisecond, func() error {
						ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
						defer cancel()
						_, err := handle(ctx)
						return err
					})
					if failed != callers*calls {
						t.Errorf("%d of %d calls fail", failed, callers*calls)
					}
					for i := range attempts {
						n := attempts[i].Load()
						t.Logf("%d attempts at tier %d in %s", n, i+1, time.Since(begin))
						if n < callers*calls || n > bound {
							t.Errorf("%d attempts at tier %d for %d calls, want at most %d", n, i+1, callers*calls, bound)
						}
					}
				})
			})
		}
	}
}

// serveInBubble starts a server of the method Orders.Export. As go-micro's server does, it gives the handler
// the metadata of the request.
func serveInBubble(t *testing.T, handle func(context.Context) ([]byte, error)) *bufconn.Listener {
	l := bufconn.Listen(1 << 20)
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(stream); method != "/greeter.Orders/Export" { // a probe
			return status.Error(codes.Unimplemented, method)
		}
		incoming, _ := metadata.FromIncomingContext(stream.Context())
		md := micrometadata.Metadata{}
		for key, values := range incoming {
			md[key] = strings.Join(values, ", ")
		}
		data, err := handle(micrometadata.NewContext(stream.Context(), md))
		if err != nil {
			return err
		}
		return stream.SendMsg(&bytes.Frame{Data: data})
	}))
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	t.Cleanup(serving.Wait)
	t.Cleanup(s.Stop)
	return l
}

// newBubbleClient returns a client of some greeters at the addresses 127.0.0.1:1 and so on. It calls picked
// before each attempt.
func newBubbleClient(t *testing.T, c client.Client, greeters int, picked func()) *Client {
	services := newServices(t, &kubetest.Pods{})
	inf, err := services.Synced(t.Context(), "greeter")
	if err != nil {
		t.Fatal(err)
	}
	var pods []*corev1.Pod
	for i := range greeters {
		pods = append(pods, greeterPod(t, i, fmt.Sprint("127.0.0.1:", i+1)))
	}
	inf.Replace(pods)
	return newClientFrom(t, services, c, balancer.Events{Picked: func(string, string, string) { picked() }})
}

// A tier that calls with go-micro's client passes the header on. Only its own retries are not bounded.
func TestChainStopPassesThroughGoMicrosClient(t *testing.T) {
	var first, retries atomic.Int64
	last, _ := startServer(t, func(ctx context.Context, _ *proto.HelloRequest, _ *proto.HelloResponse) error {
		md, _ := metadata.FromIncomingContext(ctx)
		if len(md[retry.AttemptsHeader]) > 0 {
			retries.Add(1)
		} else {
			first.Add(1)
		}
		return stderrors.New("down")
	})
	beforeLast, _ := newTestClient(t, []string{last}, client.Backoff(noBackoff))
	upper := goMicroClient(t, tier(t, beforeLast))
	c, _ := newTestClient(t, []string{tier(t, upper)}, client.Backoff(noBackoff))
	if err := callGreeter(t.Context(), c); codeOf(err) != 500 {
		t.Errorf("%v", err)
	}
	// The first call of c is called twice by go-micro's client, and each of these twice by beforeLast, the second
	// time with the header. The retry of c is called twice by go-micro's client, which beforeLast does not retry.
	if first.Load() != 2 || retries.Load() != 4 {
		t.Errorf("the last tier serves %d calls without and %d with the header, want 2 and 4", first.Load(), retries.Load())
	}
	if n := beforeLast.Retries("greeter"); n.Made != 2 || n.ChainStopped != 2 {
		t.Errorf("%+v, want 2 retries and 2 that the header stopped", n)
	}
}

// 100 callers; one of 4 instances loses its connections and refuses further ones. All calls
// that it has accepted are retried, however many they are.
func TestNoCallFailsWhenAnInstanceIsKilled(t *testing.T) {
	const callers = 100
	for _, test := range []struct {
		takes time.Duration // of a call
		calls int           // of a caller
	}{{5 * time.Millisecond, 100}, {500 * time.Millisecond, 6}} {
		t.Run(test.takes.String(), func(t *testing.T) {
			t.Parallel()
			handler := func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
				select {
				case <-time.After(test.takes):
				case <-ctx.Done():
				}
				return nil, nil
			}
			addresses, victim := make([]string, 4), (*grpc.Server)(nil)
			for i := range addresses {
				addresses[i], victim = startGRPC(t, handler)
			}
			c, _ := newTestClient(t, addresses)
			var begun atomic.Int64
			var killed sync.WaitGroup
			failed := callEvery(callers, test.calls, 0, func() error {
				if begun.Add(1) == int64(callers*test.calls/2) {
					killed.Go(victim.Stop)
				}
				err := callGreeter(t.Context(), c, client.WithRequestTimeout(time.Minute))
				if err != nil {
					t.Log(err)
				}
				return err
			})
			killed.Wait()
			n := c.Retries("greeter")
			t.Logf("%+v", n)
			if failed != 0 || n.Made == 0 || n.OverBudget > 0 {
				t.Errorf("%d calls fail; %+v, want some retries, none refused", failed, n)
			}
		})
	}
}

func TestClientSaysThatTheBudgetIsUsedUp(t *testing.T) {
	c, _ := newTestClient(t, []string{startFailing(t, status.Error(codes.Unknown, "out of stock"))}, client.Backoff(noBackoff))
	var first, err error
	for i := range 20 {
		if err = callGreeter(t.Context(), c); i == 0 {
			first = err
		}
	}
	want := &errors.Error{Id: "go.micro.client", Code: 500, Detail: "out of stock", Status: "Internal Server Error"}
	if e, ok := first.(*errors.Error); !ok || e.Error() != want.Error() {
		t.Errorf("before: %v, want %v", first, want)
	}
	want.Status += "; not retried: the retry budget of service greeter is used up"
	if e, ok := err.(*errors.Error); !ok || e.Error() != want.Error() {
		t.Errorf("%v, want %v", err, want)
	}
}

// Each retry is reported, and so is each one that is refused, with the reason.
func TestRetriesAreReported(t *testing.T) {
	pushback := ""
	address, _ := startGRPC(t, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		if pushback != "" {
			_ = grpc.SetTrailer(ctx, metadata.Pairs(retry.PushbackTrailer, pushback))
		}
		return nil, status.Error(codes.Unknown, "out of stock")
	})
	c, _ := newTestClient(t, []string{address}, client.Backoff(noBackoff), client.Retries(1))
	reported := map[events.Retry]uint64{}
	c.events = &events.Hub{}
	c.events.Set(&events.Callbacks{RetryDecided: func(_ context.Context, r events.Retry) { reported[r]++ }})
	for range 20 {
		_ = callGreeter(t.Context(), c) // fails
	}
	pushback = "-1"
	_ = callGreeter(t.Context(), c)
	pushback = ""
	_ = callGreeter(micrometadata.NewContext(t.Context(), micrometadata.Metadata{"Grpc-Previous-Rpc-Attempts": "1"}), c)
	n := c.Retries("greeter")
	want := map[events.Retry]uint64{
		{Service: "greeter"}:                           n.Made,
		{Service: "greeter", Refusal: "over_budget"}:   n.OverBudget,
		{Service: "greeter", Refusal: "chain_stopped"}: 1,
		{Service: "greeter", Refusal: "pushed_back"}:   1,
	}
	if !maps.Equal(reported, want) || n.Made < 10 || n.OverBudget == 0 {
		t.Errorf("reported: %v, want %v", reported, want)
	}
}

// Without pushback, client.Retry decides.
func TestRefusedCallsAreRetriedOnlyWithPushback(t *testing.T) {
	for value, test := range map[string]struct {
		attempts int64
		delay    time.Duration
	}{"": {1, 0}, "300": {2, 300 * time.Millisecond}, "-1": {1, 0}, "later": {1, 0}, "60000": {1, 0}} {
		t.Run(value, func(t *testing.T) {
			t.Parallel()
			var attempts atomic.Int64
			address, _ := startGRPC(t, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
				attempts.Add(1)
				if value != "" {
					_ = grpc.SetTrailer(ctx, metadata.Pairs(retry.PushbackTrailer, value))
				}
				return nil, status.Error(codes.ResourceExhausted, "overloaded")
			})
			c, _ := newTestClient(t, []string{address}, client.Backoff(noBackoff), client.Retry(client.RetryAlways))
			begin := time.Now()
			err := callGreeter(t.Context(), c, client.WithRequestTimeout(20*time.Second))
			took := time.Since(begin)
			if e, ok := err.(*errors.Error); !ok || !strings.Contains(e.Detail, "overloaded") {
				t.Errorf("%v", err)
			}
			if attempts.Load() != test.attempts || took < test.delay || took > 15*time.Second {
				t.Errorf("%d attempts in %s, want %d, %s apart", attempts.Load(), took, test.attempts, test.delay)
			}
		})
	}
}
