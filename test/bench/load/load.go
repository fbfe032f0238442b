// Package load measures one RPC library under load. The program that contains the
// library calls Main; the benchmark starts this program once for each measurement,
// because libraries register codecs and balancers for the whole process.
//
// A program reads one Job as JSON from standard input and writes its Result as JSON to
// standard output. Client and servers are in the same process and talk over loopback, so
// a result includes the cost of both sides.
package load

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// Library is an RPC library that is compared.
type Library struct {
	// Serve starts the library's own server with the method Greeter.Hello, on
	// loopback.
	Serve func() (address string, err error)

	// Limited starts the library's own server with the method Greeter.Hello, which does some work,
	// and with the library's own protection from overload.
	Limited func(work func(context.Context) error, options ...grpc.ServerOption) (address string, err error)

	// Dial returns a client of the service with instances at these addresses. It uses
	// the library's retries only if retry is set.
	Dial func(addresses []string, retry bool) (Client, error)

	// Tier starts the library's own server with a handler that answers what call returns. It is nil for a
	// library that does not retry by itself, whose servers make no difference then.
	Tier func(call func(context.Context) error) (address string, err error)
}

// Client calls the Greeter. Its methods are safe for concurrent use.
type Client interface {
	// Hello makes one unary call.
	Hello(ctx context.Context) error

	// Export makes one unary call of a method that answers after exportTime.
	Export(ctx context.Context) error

	// Stream opens a server stream and returns functions that receive the next message
	// and that close the stream. The name of the request is one of those in package load.
	Stream(ctx context.Context, name string) (receive, close func() error, err error)

	// Add makes a further instance known.
	Add(address string) error
}

// Job describes one measurement.
type Job struct {
	Library  string
	Measure  string        // a key of measurements
	Duration time.Duration // how long to measure
	Callers  int           // callers at the same time, of throughput
	Failure  string        // a key of failures, of failing
	Retry    bool          // let the client retry
	Count    int           // instances, of servers; connections that memory needs at least; tiers
	Servers  []string      // addresses, of memory and overload
	Work     string        // Workers or CPU, of overload
	Env      []string      // variables of the process, such as GOGC=400
	CPU      int           // number of the only CPU of the process, from 1 on; 0 if it may use all
}

// Result is what a measurement found. Which fields are set depends on the measurement.
type Result struct {
	Rate        float64         // calls, opened streams or messages per second
	Messages    float64         // messages per second of a stream
	Percentiles []time.Duration // latency at Quantiles
	Fast        float64         // share of the calls that took less than a second
	Share       float64         // share of the calls at the disturbed instance, while it was disturbed
	Least, Most float64         // calls of the instance with the fewest and the most, by the mean of all
	ShareFirst  float64         // the same in the first second
	Failed      float64         // share of the calls that failed for the caller, after the first second
	FailedFirst float64         // the same in the first second
	Calm        time.Duration   // p99 before the disturbance
	Disturbed   time.Duration   // p99 from 3 s after its start to its end
	Bytes       int             // memory per connection
	Connections int             // of memory
	Total       int             // memory of the client, without the fake API server's pods
	Addresses   []string        // of servers
	Attempts    float64         // attempts at the last tier, or at the servers of overload, for each call
	Peak        float64         // answered calls per second, at best, of overload
	Refused     time.Duration   // p99 of a refusal, measured in the server
	Collecting  float64         // share of the CPU time that the garbage collector takes, of throughput
	Resident    int             // most memory of the process that was resident, of throughput
	FailedCalls int             // calls that failed for the caller, of killed

	CalmAtServers, DisturbedAtServers time.Duration // p99 of the answered calls, measured in the servers of overload
}

// Quantiles are those of Result.Percentiles.
var Quantiles = []float64{0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999}

// At returns the latency at one of Quantiles.
func (r Result) At(quantile float64) time.Duration {
	return r.Percentiles[slices.Index(Quantiles, quantile)]
}

// timeout is the time limit of a call with every library: go-micro's default.
const timeout = 5 * time.Second

var measurements = map[string]func(Library, Job) (Result, error){
	"throughput": throughput, "streams": streams, "slow": slowServer, "failing": failing, "tenfold": tenfold, "joining": joining, "exports": exports, "idle streams": idleStreams, "rare": rare, "servers": servers, "memory": memory, "limited servers": limitedServers, "overload": overload, "tiers": tiers, "killed": killed,
}

// Main runs the job on standard input with one of the libraries and exits.
func Main(libraries map[string]Library) {
	if err := run(libraries); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(libraries map[string]Library) error {
	var job Job
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		return fmt.Errorf("reading the job: %w", err)
	}
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); os.Exit(1) }() // end with the benchmark
	library, ok := libraries[job.Library]
	measure := measurements[job.Measure]
	if !ok || measure == nil {
		return fmt.Errorf("measuring %q of %q: this program has no such library or measurement", job.Measure, job.Library)
	}
	result, err := measure(library, job)
	if err != nil {
		return err
	}
	return print(result)
}

func print(r Result) error { return json.NewEncoder(os.Stdout).Encode(r) }

// call is the record of one call. It has no pointers, so that the garbage collector need not look at the records: under overload, a client
// with one CPU had so many after a minute that the collector delayed its calls by 100 ms.
type call struct {
	start  time.Duration // since epoch
	took   time.Duration
	failed bool
}

var epoch = time.Now()

type calls []call

func (c calls) between(from, to time.Time) (some calls) {
	for _, one := range c {
		if one.start >= from.Sub(epoch) && one.start < to.Sub(epoch) {
			some = append(some, one)
		}
	}
	return some
}

func (c calls) failed() float64 {
	n := 0
	for _, one := range c {
		if one.failed {
			n++
		}
	}
	return ratio(n, len(c))
}

func (c calls) faster(than time.Duration) float64 {
	n := 0
	for _, one := range c {
		if !one.failed && one.took < than {
			n++
		}
	}
	return ratio(n, len(c))
}

func ratio(n, of int) float64 { return float64(n) / float64(max(of, 1)) }

// percentiles returns the latency at Quantiles.
func (c calls) percentiles() (p []time.Duration) {
	all := c.sorted()
	if len(all) == 0 {
		return make([]time.Duration, len(Quantiles))
	}
	for _, q := range Quantiles {
		p = append(p, all[min(len(all)-1, int(q*float64(len(all))))])
	}
	return p
}

func (c calls) sorted() []time.Duration {
	all := make([]time.Duration, len(c))
	for i, one := range c {
		all[i] = one.took
	}
	slices.Sort(all)
	return all
}

func (c calls) p99() time.Duration {
	if len(c) == 0 {
		return 0
	}
	return c.sorted()[len(c)*99/100]
}

// recorder makes calls and collects their records.
type recorder struct {
	client Client
	mu     sync.Mutex
	all    calls
	err    error // the first one
	done   sync.WaitGroup
}

func (r *recorder) one(start time.Time) call {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := r.client.Hello(ctx)
	c := call{start.Sub(epoch), time.Since(start), err != nil}
	if c.failed {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.err = cmp.Or(r.err, err)
	}
	return c
}

// closed starts callers that each make one call after the other until the end.
func (r *recorder) closed(callers int, end time.Time) {
	for range callers {
		r.done.Go(func() {
			var own calls
			for now := time.Now(); now.Before(end); now = time.Now() {
				own = append(own, r.one(now))
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.all = append(r.all, own...)
		})
	}
}

// open makes calls at a rate that does not depend on their latency and grows evenly over
// the duration. A latency begins when the call should have been made.
func (r *recorder) open(from, to float64, duration time.Duration) {
	start := time.Now()
	next := start
	for next.Before(start.Add(duration)) {
		time.Sleep(time.Until(next))
		at := next
		r.done.Go(func() {
			c := r.one(at)
			r.mu.Lock()
			defer r.mu.Unlock()
			r.all = append(r.all, c)
		})
		rate := from + (to-from)*float64(next.Sub(start))/float64(duration)
		next = next.Add(time.Duration(float64(time.Second) / rate))
	}
}

func (r *recorder) wait() calls {
	r.done.Wait()
	return r.all
}
