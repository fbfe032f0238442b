package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/identity"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/jiangjiancc/go_micro_k8s/test/faults"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// maxFailures is how many failed calls of a second are listed. containerd splits lines of more than 16 KiB.
const maxFailures = 100

// counter counts the calls of all callers, second by second.
type counter struct {
	independent bool // calls begin independently of each other: the callers do not wait for answers

	mu       sync.Mutex
	current  faults.Second
	started  int
	inFlight map[int]time.Time // when each began, by its number
}

func newSecond(begin time.Time) faults.Second {
	return faults.Second{Begin: begin, Answered: map[string]int{}, FailedTries: map[string]int{}, TryErrors: map[string]string{}, Latencies: faults.Histogram{}, Served: faults.Histogram{}}
}

func (c *counter) update(f func(*faults.Second)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.current)
}

// run starts the callers. Each of them calls do until the pod ends and pauses after each call. If the calls are
// independent, each caller begins one after a random pause, whose mean is pause. run prints one line per second.
func (c *counter) run(callers int, pause time.Duration, do func(caller int) error) error {
	c.current = newSecond(time.Now())
	c.inFlight = map[int]time.Time{}
	for i := range callers {
		go func() {
			for {
				if c.independent {
					time.Sleep(time.Duration(rand.ExpFloat64() * float64(pause)))
					go c.count(i, do)
				} else {
					c.count(i, do)
					time.Sleep(pause)
				}
			}
		}()
	}
	out := json.NewEncoder(os.Stdout)
	for range time.Tick(time.Second) {
		var last faults.Second
		c.update(func(s *faults.Second) {
			// The clock is read under the lock, so that every call that ended before s.End is counted.
			s.End = time.Now()
			for _, begin := range c.inFlight {
				s.Oldest = max(s.Oldest, s.End.Sub(begin))
			}
			last = *s
			*s = newSecond(s.End)
		})
		if err := out.Encode(last); err != nil {
			return err
		}
	}
	return nil
}

// count makes a call and counts it.
func (c *counter) count(caller int, do func(caller int) error) {
	begin := time.Now()
	var number int
	c.update(func(s *faults.Second) {
		s.Started++
		c.started++
		number = c.started
		c.inFlight[number] = begin
	})
	err := do(caller)
	c.update(func(s *faults.Second) {
		delete(c.inFlight, number)
		s.Latencies.Add(time.Since(begin))
		if err == nil {
			s.Succeeded++
			return
		}
		if len(s.Failures) < maxFailures {
			s.Failures = append(s.Failures, faults.Failure{Began: begin, Caller: caller})
		}
		if s.Failed++; s.Error == "" {
			s.Error = err.Error()
		}
	})
}

// call calls the Greeter until the pod ends and prints the results.
func call(args []string) error {
	flags := flag.NewFlagSet("call", flag.ContinueOnError)
	upstream := flags.Bool("upstream", false, "use go-micro's registry plugin and default selector instead of package pod")
	retries := flags.Int("retries", client.DefaultRetries, "how often go-micro's client retries a failed call")
	name := flags.String("name", "probe", "the name to send")
	clients := flags.Int("clients", 1, "how many clients share the callers")
	independent := flags.Bool("independent", false, "begin calls independently of each other, instead of one after the other")
	ignoreZones := flags.Bool("ignore-zones", false, "call the instances of all zones alike")
	samples := flags.Bool("samples", false, "print the metrics of this process and of the instances too, once a second")
	if err := flags.Parse(args); err != nil {
		return err
	}
	callers, pause, err := parseLoad(flags.Args())
	if err != nil {
		return err
	}
	c := counter{independent: *independent}
	tries := func(try client.CallFunc) client.CallFunc {
		return func(ctx context.Context, node *registry.Node, req client.Request, rsp interface{}, opts client.CallOptions) error {
			err := try(ctx, node, req, rsp, opts)
			c.update(func(s *faults.Second) {
				if err == nil {
					s.Answered[node.Address]++
					return
				}
				if s.FailedTries[node.Address]++; s.TryErrors[node.Address] == "" {
					s.TryErrors[node.Address] = err.Error()
				}
			})
			return err
		}
	}
	opts := []client.Option{client.WrapCall(tries), client.Retries(*retries)}
	var registryOptions []registry.Option
	if *ignoreZones {
		registryOptions = append(registryOptions, pod.IgnoreZones())
	}
	caller := newClient(*upstream, registryOptions, opts...)
	if c, ok := caller.(*pod.Client); ok && *samples {
		printSamples(func() []pod.InstanceCalls { return c.Instances("go-micro-srv") })
	}
	greeters := []proto.GreeterService{proto.NewGreeterService("go-micro-srv", caller)}
	for len(greeters) < *clients { // each with a registry of its own, as that of another process
		other := pod.NewClient(newRegistry(registryOptions...), grpcc.NewClient(opts...))
		greeters = append(greeters, proto.NewGreeterService("go-micro-srv", other))
	}
	return c.run(callers, pause, func(caller int) error {
		rsp, err := greeters[caller%len(greeters)].Hello(context.Background(), &proto.HelloRequest{Name: *name})
		if took, isTime := time.ParseDuration(rsp.GetGreeting()); isTime == nil {
			c.update(func(s *faults.Second) { s.Served.Add(took) })
		}
		return err
	})
}

// fetch gets a URL until the pod ends and prints the results.
func fetch(args []string) error {
	flags := flag.NewFlagSet("fetch", flag.ContinueOnError)
	newConnections := flags.Bool("new-connections", false, "open a new connection for each request")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("fetching: want URL CALLERS PAUSE")
	}
	callers, pause, err := parseLoad(flags.Args()[1:])
	if err != nil {
		return err
	}
	var c counter
	web := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: *newConnections}}
	return c.run(callers, pause, func(int) error {
		rsp, err := web.Get(flags.Arg(0))
		if err != nil {
			return err
		}
		defer rsp.Body.Close()
		body, err := io.ReadAll(rsp.Body) // returns an error if the body was cut off
		if err != nil || rsp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s, %d bytes, %w", rsp.Status, len(body), err)
		}
		podName, _, _ := strings.Cut(string(body), "\n")
		c.update(func(s *faults.Second) { s.Answered[podName]++ })
		return nil
	})
}

// parseLoad parses the arguments CALLERS and PAUSE.
func parseLoad(args []string) (callers int, pause time.Duration, err error) {
	if len(args) != 2 {
		return 0, 0, fmt.Errorf("parsing %q: want CALLERS PAUSE", args)
	}
	callers, err = strconv.Atoi(args[0])
	if err == nil {
		pause, err = time.ParseDuration(args[1])
	}
	if err != nil {
		return 0, 0, fmt.Errorf("parsing CALLERS PAUSE: %w", err)
	}
	return callers, pause, nil
}

// newClient returns go-micro's gRPC client with the defaults of a service: a
// timeout of 5 s and one retry.
func newClient(upstream bool, registryOptions []registry.Option, opts ...client.Option) client.Client {
	if upstream {
		r := kubernetes.NewRegistry()
		return grpcc.NewClient(append(opts, client.Registry(r), client.Selector(selector.NewSelector(selector.Registry(r))))...)
	}
	r := newRegistry(registryOptions...)
	serveMetrics(r)
	return pod.NewClient(r, grpcc.NewClient(opts...))
}

func newRegistry(opts ...registry.Option) *pod.Registry {
	events := pod.Events{Ejected: func(_, _, address string, duration time.Duration, cause error) {
		fmt.Fprintf(os.Stderr, "ejected %s for %s: %v\n", address, duration, cause)
	}}
	r := pod.NewRegistry(kubernetes.NewRegistry, append(opts, pod.WithEvents(events))...)
	_ = identity.Serve(r) // secures the clients of r at once, if POD_IDENTITY is set
	return r
}
