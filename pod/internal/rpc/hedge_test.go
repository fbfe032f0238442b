package rpc

import (
	"context"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/hedge"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/retry"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/codec/bytes"
	micrometadata "github.com/micro/go-micro/v2/metadata"
	"github.com/micro/go-micro/v2/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
)

// hanging are servers in virtual time, which answer with their number after 5 ms. Some calls hang until
// they are cancelled.
type hanging struct {
	*Client
	calls, second   atomic.Int64 // received, and those that say that they are second attempts
	hang, cancelled atomic.Int64 // calls that shall hang, and those that hung and were cancelled
	hung            atomic.Int64 // number of the server where the last call hung
}

// withHanging runs a test in virtual time, with a client of some servers.
func withHanging(t *testing.T, servers int, test func(*testing.T, *hanging), opts ...client.Option) {
	var listeners []*bufconn.Listener
	// Outside of the bubble, because a goroutine of it never ends.
	c := grpcc.NewClient(append(opts, client.Retries(0), dialOptions(grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(address)
			n, err := strconv.Atoi(port)
			if err != nil {
				return nil, err
			}
			return listeners[n-1].DialContext(ctx)
		})))...)
	synctest.Test(t, func(t *testing.T) {
		h := &hanging{}
		for i := range servers {
			listeners = append(listeners, serveInBubble(t, func(ctx context.Context) ([]byte, error) { return h.handle(ctx, i+1) }))
		}
		h.Client = newBubbleClient(t, c, servers, func() {})
		for range 400 { // until the latency is known and some second attempts are saved
			if _, err := h.get(t.Context(), hedge.Option()); err != nil {
				t.Fatal(err)
			}
		}
		test(t, h)
	})
}

func (h *hanging) handle(ctx context.Context, server int) ([]byte, error) {
	h.calls.Add(1)
	if md, _ := micrometadata.FromContext(ctx); md["Grpc-Previous-Rpc-Attempts"] == "1" {
		h.second.Add(1)
	}
	if left := h.hang.Load(); left > 0 && h.hang.CompareAndSwap(left, left-1) {
		h.hung.Store(int64(server))
		<-ctx.Done()
		h.cancelled.Add(1)
		return nil, ctx.Err()
	}
	time.Sleep(5 * time.Millisecond)
	return []byte(strconv.Itoa(server)), nil
}

// get makes a call, and returns the number of the server that has answered.
func (h *hanging) get(ctx context.Context, opts ...client.CallOption) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	rsp := &bytes.Frame{Data: []byte("none")}
	err := h.Call(ctx, h.NewRequest("greeter", "Orders.Export", &bytes.Frame{}, client.WithContentType("application/grpc+bytes")), rsp, opts...)
	return string(rsp.Data), err
}

// A call that hangs is answered by another instance. The handler that hangs is cancelled, and nothing is
// held against its instance.
func TestHedgedCall(t *testing.T) {
	withHanging(t, 3, func(t *testing.T, h *hanging) {
		second := h.second.Load()
		h.hang.Store(1)
		begin := time.Now()
		answered, err := h.get(t.Context(), hedge.Option())
		took := time.Since(begin)
		synctest.Wait()
		if err != nil || answered == "none" || answered == strconv.FormatInt(h.hung.Load(), 10) || took > 20*time.Millisecond {
			t.Errorf("instance %d hangs: after %s response %q, error %v", h.hung.Load(), took, answered, err)
		}
		if n := h.second.Load() - second; n != 1 || h.cancelled.Load() != 1 {
			t.Errorf("%d calls say that they are second attempts, and %d were cancelled, want 1 and 1", n, h.cancelled.Load())
		}
		for _, i := range instancesOf(h.Client) {
			if i.Failures != 0 || i.EjectedFor != 0 || i.InFlight != 0 {
				t.Errorf("%+v", i)
			}
		}
		h.hang.Store(1)
		if _, err := h.get(t.Context()); codeOf(err) != 408 {
			t.Errorf("without the option: %v", err)
		}
	})
}

func TestCallsThatAreNotHedged(t *testing.T) {
	isRetry := micrometadata.Metadata{"Grpc-Previous-Rpc-Attempts": "1"}
	for name, test := range map[string]struct {
		servers  int
		opts     []client.CallOption
		metadata micrometadata.Metadata
		isUsedUp bool
		attempts int64
		reported []events.Retry
	}{
		"hedged, for comparison":        {servers: 2, attempts: 2, reported: []events.Retry{{Service: "greeter", IsHedge: true}}},
		"the only instance":             {servers: 1, attempts: 1},
		"an address":                    {servers: 2, opts: []client.CallOption{client.WithAddress("127.0.0.1:1")}, attempts: 1},
		"for a request that is a retry": {servers: 2, metadata: isRetry, attempts: 1, reported: []events.Retry{{Service: "greeter", IsHedge: true, Refusal: "chain_stopped"}}},
		"the retry budget is used up":   {servers: 2, isUsedUp: true, attempts: 1, reported: []events.Retry{{Service: "greeter", IsHedge: true, Refusal: "over_budget"}}},
	} {
		t.Run(name, func(t *testing.T) {
			withHanging(t, test.servers, func(t *testing.T, h *hanging) {
				for test.isUsedUp {
					r, refusal := h.retries.Of("greeter").Begin(t.Context(), retry.Failure{Kind: retry.NoAnswer})
					r.End(false)
					test.isUsedUp = refusal == retry.Permitted
				}
				synctest.Wait()
				h.hang.Store(1)
				before := h.calls.Load()
				var reported []events.Retry
				h.events = &events.Hub{}
				h.events.Set(&events.Callbacks{RetryDecided: func(_ context.Context, r events.Retry) { reported = append(reported, r) }})
				_, err := h.get(micrometadata.NewContext(t.Context(), test.metadata), append(test.opts, hedge.Option())...)
				synctest.Wait()
				if n := h.calls.Load() - before; n != test.attempts || (err == nil) != (test.attempts == 2) {
					t.Errorf("error %v, %d attempts, want %d", err, n, test.attempts)
				}
				if !slices.Equal(reported, test.reported) {
					t.Errorf("reported: %+v, want %+v", reported, test.reported)
				}
			})
		})
	}
}

func TestStreamsAreNotHedged(t *testing.T) {
	withHanging(t, 2, func(t *testing.T, h *hanging) {
		h.hang.Store(1)
		before := h.calls.Load()
		s, err := h.Stream(t.Context(), h.NewRequest("greeter", "Orders.Export", nil, client.WithContentType("application/grpc+bytes")), hedge.Option())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := h.calls.Load() - before; n != 1 {
			t.Errorf("%d attempts, want 1", n)
		}
		_ = s.Close()
	})
}

// A second attempt that fails takes a token from the retry budget, and one that is not needed takes none.
func TestSecondAttemptIsWithinTheRetryBudget(t *testing.T) {
	withHanging(t, 2, func(t *testing.T, h *hanging) {
		before := h.Retries("greeter").Made
		left := func() (n int) {
			var all []retry.Retry
			for {
				r, refusal := h.retries.Of("greeter").Begin(t.Context(), retry.Failure{Kind: retry.NoAnswer})
				if refusal != retry.Permitted {
					break
				}
				all = append(all, r)
			}
			for _, r := range all {
				r.End(true)
			}
			return len(all)
		}
		h.hang.Store(1)
		if _, err := h.get(t.Context(), hedge.Option()); err != nil {
			t.Error(err)
		}
		if n := h.Retries("greeter").Made - before; n != 1 {
			t.Errorf("%d second attempts, want 1", n)
		}
		if n := left(); n != 100 {
			t.Errorf("%d retries are permitted after a second attempt that has answered, want 100", n)
		}
		h.hang.Store(2) // both attempts
		if _, err := h.get(t.Context(), hedge.Option()); codeOf(err) != 408 {
			t.Errorf("both hang: %v", err)
		}
		if n := left(); n != 9 {
			t.Errorf("%d retries are permitted after a second attempt that has failed, want 9", n)
		}
	})
}

// Many callers, of whose calls some hang, share budget, connections and options, with a call wrapper.
func TestHedgedCallsOfManyCallers(t *testing.T) {
	var wrapped atomic.Int64
	wrapper := func(next client.CallFunc) client.CallFunc {
		return func(ctx context.Context, node *registry.Node, req client.Request, rsp any, o client.CallOptions) error {
			wrapped.Add(1)
			return next(ctx, node, req, rsp, o)
		}
	}
	withHanging(t, 3, func(t *testing.T, h *hanging) {
		const callers, calls = 8, 200
		before := h.calls.Load()
		var group sync.WaitGroup
		for i := range callers {
			group.Go(func() {
				for n := range calls {
					if n%100 == i {
						h.hang.Add(1)
					}
					if answered, err := h.get(t.Context(), hedge.Option()); err == nil && answered != "1" && answered != "2" && answered != "3" {
						t.Errorf("response %q", answered)
					}
				}
			})
		}
		group.Wait()
		synctest.Wait()
		more := h.calls.Load() - before - callers*calls
		t.Logf("%d calls, %d of which hung, with %d second attempts", callers*calls, callers*calls/100, more)
		if most := int64(callers*calls*3/100 + 20); more < 1 || more > most {
			t.Errorf("%d more attempts, want 1 to %d", more, most)
		}
		if n := wrapped.Load(); n < h.calls.Load() {
			t.Errorf("the call wrapper saw %d of %d attempts", n, h.calls.Load())
		}
		if n := inFlightCalls(h.Client); n != 0 {
			t.Errorf("%d calls are in flight", n)
		}
	}, client.WrapCall(wrapper))
}
