package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// second is what happened in about one second. Call prints one for each.
type second struct {
	Begin, End               time.Time
	Begun, Succeeded, Failed int
	Error                    string            `json:",omitempty"` // the first failed call's
	Oldest                   time.Duration     // how long the longest call under way has taken
	Answered                 map[string]int    `json:",omitempty"` // calls by address
	Tries                    map[string]int    `json:",omitempty"` // by address, those that failed, retried or not
	TryErrors                map[string]string `json:",omitempty"` // the first one's of each address
}

func (s *second) reset(now time.Time) {
	*s = second{Begin: now, Answered: map[string]int{}, Tries: map[string]int{}, TryErrors: map[string]string{}}
}

// call makes calls to the Greeter until the pod ends, and prints how they went.
func call(args []string) error {
	flags := flag.NewFlagSet("call", flag.ContinueOnError)
	upstream := flags.Bool("upstream", false, "upstream's registry and go-micro's default selector instead of pod's")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 2 {
		return fmt.Errorf("calling with %q: want CALLERS PAUSE", flags.Args())
	}
	callers, err := strconv.Atoi(flags.Arg(0))
	if err != nil {
		return fmt.Errorf("reading CALLERS: %w", err)
	}
	pause, err := time.ParseDuration(flags.Arg(1))
	if err != nil {
		return fmt.Errorf("reading PAUSE: %w", err)
	}

	var mu sync.Mutex
	var now second
	now.reset(time.Now())
	note := func(f func()) {
		mu.Lock()
		defer mu.Unlock()
		f()
	}
	tries := func(try client.CallFunc) client.CallFunc {
		return func(ctx context.Context, node *registry.Node, req client.Request, rsp interface{}, opts client.CallOptions) error {
			err := try(ctx, node, req, rsp, opts)
			note(func() {
				if err == nil {
					now.Answered[node.Address]++
					return
				}
				if now.Tries[node.Address]++; now.TryErrors[node.Address] == "" {
					now.TryErrors[node.Address] = err.Error()
				}
			})
			return err
		}
	}
	greeter := proto.NewGreeterService("go-micro-srv", newClient(*upstream, client.WrapCall(tries)))

	began := make([]atomic.Int64, callers) // Unix time in nanoseconds of each caller's call, 0 between two
	for i := range callers {
		go func() {
			for ; ; time.Sleep(pause) {
				began[i].Store(time.Now().UnixNano())
				note(func() { now.Begun++ })
				_, err := greeter.Hello(context.Background(), &proto.HelloRequest{Name: "probe"})
				note(func() {
					if began[i].Store(0); err == nil {
						now.Succeeded++
					} else if now.Failed++; now.Error == "" {
						now.Error = err.Error()
					}
				})
			}
		}()
	}
	out := json.NewEncoder(os.Stdout)
	for range time.Tick(time.Second) {
		var s second
		note(func() {
			// The clock is read under the lock: what ended before it is counted.
			now.End = time.Now()
			for i := range began {
				if b := began[i].Load(); b != 0 {
					now.Oldest = max(now.Oldest, now.End.Sub(time.Unix(0, b)))
				}
			}
			s = now
			now.reset(s.End)
		})
		if err := out.Encode(s); err != nil {
			return err
		}
	}
	return nil
}

// newClient is go-micro's gRPC client as a service has it: its own timeout of
// 5 s and its own one retry.
func newClient(upstream bool, opts ...client.Option) client.Client {
	if upstream {
		r := kubernetes.NewRegistry()
		return grpcc.NewClient(append(opts, client.Registry(r), client.Selector(selector.NewSelector(selector.Registry(r))))...)
	}
	r := pod.NewRegistry(kubernetes.NewRegistry)
	return grpcc.NewClient(append(opts, client.Registry(r), client.Selector(pod.NewSelector(r)))...)
}
