package load

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
)

// The work of a call of the group overload.
const (
	Workers = "workers" // wait for one of 8 workers, and let it work for 10 ms without CPU
	CPU     = "cpu"     // use a CPU for 5 ms
)

const (
	workerTime    = 10 * time.Millisecond
	workersOfEach = 8
	cpuTime       = 5 * time.Millisecond
)

// limitedServers starts servers that refuse calls when they get too many, and serves until the benchmark closes standard
// input. The first address of the result is that of an HTTP server that answers with the Refusals.
func limitedServers(l Library, j Job) (r Result, err error) {
	all := &refusals{}
	handle := map[string]func() func(context.Context) error{Workers: ofWorkers, CPU: ofCPU}[j.Work]
	if handle == nil || l.Limited == nil {
		return r, fmt.Errorf("no server of %q for the work %q", j.Library, j.Work)
	}
	r.Addresses = []string{httptest.NewServer(all).URL}
	for range j.Count {
		address, err := l.Limited(handle(), grpc.StatsHandler(all))
		if err != nil {
			return r, err
		}
		r.Addresses = append(r.Addresses, address)
	}
	if err := print(r); err != nil {
		return r, err
	}
	select {}
}

func ofWorkers() func(context.Context) error {
	free := make(chan struct{}, workersOfEach)
	return func(ctx context.Context) error {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		defer func() { <-free }()
		time.Sleep(workerTime)
		return nil
	}
}

// ofCPU counts how many hashes take cpuTime, and returns work that makes as many: the time of a call without other calls.
func ofCPU() func(context.Context) error {
	var sum [sha256.Size]byte
	n := 0
	for start := time.Now(); time.Since(start) < 20*cpuTime; n++ {
		sum = sha256.Sum256(sum[:])
	}
	n /= 20
	return func(context.Context) error {
		var sum [sha256.Size]byte
		for range n {
			sum = sha256.Sum256(sum[:])
		}
		if sum == [sha256.Size]byte{} {
			return errors.New("the hash is zero")
		}
		return nil
	}
}

// Refusals are what the servers of limitedServers saw.
type Refusals struct {
	Calls    int64         // with those that were refused
	P99      time.Duration // from the beginning of a call to its refusal, measured in the server
	Answered time.Duration // p99 of the calls without an error, measured in the server
}

// refusals measures the calls, and tells those that end with an error apart. ServeHTTP answers with the Refusals since the last answer.
type refusals struct {
	calls          atomic.Int64
	mu             sync.Mutex
	took, answered []time.Duration
}

func (r *refusals) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (r *refusals) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (r *refusals) HandleConn(context.Context, stats.ConnStats)                       {}
func (r *refusals) HandleRPC(_ context.Context, s stats.RPCStats) {
	end, ok := s.(*stats.End)
	if !ok {
		return
	}
	r.calls.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if took := end.EndTime.Sub(end.BeginTime); end.Error != nil {
		r.took = append(r.took, took)
	} else {
		r.answered = append(r.answered, took)
	}
}

func (r *refusals) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer := Refusals{r.calls.Swap(0), p99(r.took), p99(r.answered)}
	r.took, r.answered = nil, nil
	_ = json.NewEncoder(w).Encode(answer)
}

// p99 sorts durations.
func p99(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)*99/100]
}

func ask(url string) (r Refusals, err error) {
	answer, err := http.Get(url)
	if err != nil {
		return r, err
	}
	defer answer.Body.Close()
	return r, json.NewDecoder(answer.Body).Decode(&r)
}

// overload measures the latency at 30 % of the capacity, then the peak, with as many callers as the servers have workers,
// and then three times the calls of the peak.
func overload(l Library, j Job) (r Result, err error) {
	client, err := l.Dial(j.Servers[1:], j.Retry)
	if err != nil {
		return r, err
	}
	capacity, callers := float64(j.Count*workersOfEach)/workerTime.Seconds(), j.Count*workersOfEach
	if j.Work == CPU {
		capacity, callers = 1/cpuTime.Seconds(), 2
	}
	run := func(d time.Duration, begin func(*recorder)) calls {
		record, start := recorder{client: client}, time.Now()
		begin(&record)
		return record.wait().between(start.Add(d/4), start.Add(d))
	}
	const calm = 4 * time.Second
	if _, err := ask(j.Servers[0]); err != nil {
		return r, err
	}
	usual := run(calm, func(r *recorder) { r.random(0.3*capacity, calm) })
	usualAtServers, err := ask(j.Servers[0])
	if err != nil {
		return r, err
	}
	peak := run(calm, func(r *recorder) { r.closed(callers, time.Now().Add(calm)) })
	best := float64(len(peak.answered())) / (calm * 3 / 4).Seconds()
	time.Sleep(warmUp)
	if _, err := ask(j.Servers[0]); err != nil {
		return r, err
	}
	record, start := recorder{client: client}, time.Now()
	record.random(3*best, j.Duration)
	end := time.Now()
	all := record.wait()
	refusals, err := ask(j.Servers[0])
	if err != nil {
		return r, err
	}
	answered := all.answered()
	return Result{Calm: usual.p99(), Peak: best, Rate: float64(len(answered.before(end))) / end.Sub(start).Seconds(), Disturbed: answered.p99(), Refused: refusals.P99,
		CalmAtServers: usualAtServers.Answered, DisturbedAtServers: refusals.Answered,
		Attempts: ratio(int(refusals.Calls), len(all)), Failed: usual.failed()}, nil
}

// random makes calls at random times. Unlike open, it does not make up for the time in which its process had no CPU: calls
// that it would make all at once are no overload that lasts.
func (r *recorder) random(rate float64, duration time.Duration) {
	const sources = 64
	end := time.Now().Add(duration)
	var all sync.WaitGroup
	for range sources {
		all.Go(func() {
			for time.Now().Before(end) {
				time.Sleep(time.Duration(rand.ExpFloat64() / rate * sources * float64(time.Second)))
				r.done.Go(func() {
					c := r.one(time.Now())
					r.mu.Lock()
					defer r.mu.Unlock()
					r.all = append(r.all, c)
				})
			}
		})
	}
	all.Wait()
}

// before returns the calls that ended before a time.
func (c calls) before(end time.Time) (some calls) {
	for _, one := range c {
		if one.start+one.took < end.Sub(epoch) {
			some = append(some, one)
		}
	}
	return some
}

func (c calls) answered() (some calls) {
	for _, one := range c {
		if !one.failed {
			some = append(some, one)
		}
	}
	return some
}
