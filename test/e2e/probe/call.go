package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
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

// tally counts what callers do, second by second.
type tally struct {
	mu  sync.Mutex
	now second
}

func (t *tally) note(f func(*second)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(&t.now)
}

// run lets callers do something until the pod ends, each pause after its last
// end, and prints how it went.
func (t *tally) run(callers int, pause time.Duration, do func() error) error {
	t.now.reset(time.Now())
	began := make([]atomic.Int64, callers) // Unix time in nanoseconds of what each caller does, 0 between two
	for i := range callers {
		go func() {
			for ; ; time.Sleep(pause) {
				began[i].Store(time.Now().UnixNano())
				t.note(func(now *second) { now.Begun++ })
				err := do()
				t.note(func(now *second) {
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
		t.note(func(now *second) {
			// The clock is read under the lock: what ended before it is counted.
			now.End = time.Now()
			for i := range began {
				if b := began[i].Load(); b != 0 {
					now.Oldest = max(now.Oldest, now.End.Sub(time.Unix(0, b)))
				}
			}
			s = *now
			now.reset(s.End)
		})
		if err := out.Encode(s); err != nil {
			return err
		}
	}
	return nil
}

// call makes calls to the Greeter until the pod ends, and prints how they went.
func call(args []string) error {
	flags := flag.NewFlagSet("call", flag.ContinueOnError)
	upstream := flags.Bool("upstream", false, "upstream's registry and go-micro's default selector instead of pod's")
	retries := flags.Int("retries", client.DefaultRetries, "of go-micro's client")
	name := flags.String("name", "probe", "whom to greet")
	if err := flags.Parse(args); err != nil {
		return err
	}
	callers, pause, err := pace(flags.Args())
	if err != nil {
		return err
	}
	var t tally
	tries := func(try client.CallFunc) client.CallFunc {
		return func(ctx context.Context, node *registry.Node, req client.Request, rsp interface{}, opts client.CallOptions) error {
			err := try(ctx, node, req, rsp, opts)
			t.note(func(now *second) {
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
	greeter := proto.NewGreeterService("go-micro-srv", newClient(*upstream, client.WrapCall(tries), client.Retries(*retries)))
	return t.run(callers, pause, func() error {
		_, err := greeter.Hello(context.Background(), &proto.HelloRequest{Name: *name})
		return err
	})
}

// fetch gets an URL until the pod ends, and prints how it went.
func fetch(args []string) error {
	flags := flag.NewFlagSet("fetch", flag.ContinueOnError)
	fresh := flags.Bool("fresh", false, "a connection of its own for each request")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("fetching: want URL CALLERS PAUSE")
	}
	callers, pause, err := pace(flags.Args()[1:])
	if err != nil {
		return err
	}
	var t tally
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: *fresh}}
	return t.run(callers, pause, func() error {
		rsp, err := c.Get(flags.Arg(0))
		if err != nil {
			return err
		}
		defer rsp.Body.Close()
		body, err := io.ReadAll(rsp.Body) // an error when it is not whole
		if err != nil || rsp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s, %d bytes, %w", rsp.Status, len(body), err)
		}
		who, _, _ := strings.Cut(string(body), "\n")
		t.note(func(now *second) { now.Answered[who]++ })
		return nil
	})
}

// pace reads CALLERS and PAUSE.
func pace(args []string) (callers int, pause time.Duration, err error) {
	if len(args) != 2 {
		return 0, 0, fmt.Errorf("reading %q: want CALLERS PAUSE", args)
	}
	callers, err = strconv.Atoi(args[0])
	if err == nil {
		pause, err = time.ParseDuration(args[1])
	}
	if err != nil {
		return 0, 0, fmt.Errorf("reading CALLERS PAUSE: %w", err)
	}
	return callers, pause, nil
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
