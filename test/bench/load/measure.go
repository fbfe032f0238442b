package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	warmUp  = 2 * time.Second       // connections are open and latencies known
	answer  = 20 * time.Millisecond // latency of an instance, where no other is given
	workers = 32                    // callers, where no other number is given
)

// throughput measures closed-loop callers against one instance with the library's own server.
func throughput(l Library, j Job) (r Result, err error) {
	address, err := l.Serve()
	if err != nil {
		return r, err
	}
	client, err := l.Dial([]string{address}, true)
	if err != nil {
		return r, err
	}
	record := recorder{client: client}
	start := time.Now().Add(j.Duration / 4)
	end := start.Add(j.Duration)
	collectedBefore, usedBefore := cpuSeconds()
	record.closed(j.Callers, end)
	collected, used := cpuSeconds()
	all := record.wait().between(start, end)
	if f := all.failed(); f == 1 {
		return r, fmt.Errorf("all %d calls failed: %w", len(all), record.err)
	}
	return Result{Rate: float64(len(all)) * (1 - all.failed()) / j.Duration.Seconds(), Percentiles: all.percentiles(), Failed: all.failed(),
		Collecting: (collected - collectedBefore) / (used - usedBefore), Resident: resident()}, nil
}

// cpuSeconds returns how many seconds of CPU time the garbage collector and the process as a whole have taken.
func cpuSeconds() (collecting, all float64) {
	s := []metrics.Sample{{Name: "/cpu/classes/gc/total:cpu-seconds"}, {Name: "/cpu/classes/user:cpu-seconds"}}
	runtime.GC() // the numbers are those of the last one
	metrics.Read(s)
	return s[0].Value.Float64(), s[0].Value.Float64() + s[1].Value.Float64()
}

// resident returns the most memory of this process that was resident so far.
func resident() int {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail
	return int(u.Maxrss) << 10
}

// streams opens streams one after the other, receives one message of each and closes them;
// then it receives the messages of one stream.
func streams(l Library, j Job) (r Result, err error) {
	all, err := instances(1, lognormal(0, 0))
	if err != nil {
		return r, err
	}
	client, err := l.Dial(all.addresses(), true)
	if err != nil {
		return r, err
	}
	count := func(operation func() error) (float64, error) {
		for end := time.Now().Add(j.Duration / 4); time.Now().Before(end); {
			if err := operation(); err != nil {
				return 0, err
			}
		}
		n, start := 0, time.Now()
		for time.Since(start) < j.Duration {
			if err := operation(); err != nil {
				return 0, err
			}
			n++
		}
		return float64(n) / time.Since(start).Seconds(), nil
	}
	if r.Rate, err = count(func() error {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		receive, stop, err := client.Stream(ctx, oneMessage)
		if err == nil {
			err = receive()
		}
		if err == nil {
			err = stop()
		}
		return err
	}); err != nil {
		return r, fmt.Errorf("opening a stream: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	receive, _, err := client.Stream(ctx, allMessages)
	if err == nil {
		r.Messages, err = count(receive)
	}
	return r, err
}

// slowServer is the experiment of Buoyant's "Beyond Round Robin: Load Balancing for Latency" (2016): 11 instances; one
// of them answers after 2 s during the second and third quarter of the time. Half of the
// calls take 167 ms; sigma gives 300 ms at p99.
func slowServer(l Library, j Job) (r Result, err error) {
	usual := lognormal(167*time.Millisecond, 0.25)
	all, client, err := dial(l, j, 11, usual)
	if err != nil {
		return r, err
	}
	record := recorder{client: client}
	slow := all[len(all)-1]
	shares := make(chan float64, 1)
	go func() {
		time.Sleep(j.Duration / 4)
		s := all.share()
		slow.Behave(lognormal(2*time.Second, 0))
		time.Sleep(j.Duration / 2)
		shares <- s()
		slow.Behave(usual)
	}()
	record.open(500, 1000, j.Duration)
	calls := record.wait()
	return Result{Fast: calls.faster(time.Second), Share: <-shares, Failed: calls.failed(), Percentiles: calls.percentiles()}, nil
}

// dial starts n instances and returns a client for them.
func dial(l Library, j Job, n int, behavior func(context.Context) error) (group, Client, error) {
	all, err := instances(n, behavior)
	if err != nil {
		return nil, nil, err
	}
	client, err := l.Dial(all.addresses(), j.Retry)
	return all, client, err
}

// share returns a function that returns the share of the last instance in the calls from now on.
func (g group) share() func() float64 {
	last, all := g.received()
	return func() float64 {
		l, a := g.received()
		return ratio(l-last, a-all)
	}
}

// failing makes one of 10 instances fail every call at once. Shares count attempts, including retries.
func failing(l Library, j Job) (r Result, err error) {
	fail := failures[j.Failure]
	if fail == nil {
		return r, fmt.Errorf("no failure %q", j.Failure)
	}
	all, client, err := dial(l, j, 10, lognormal(answer, 0))
	if err != nil {
		return r, err
	}
	record := recorder{client: client}
	start := time.Now().Add(warmUp)
	end := start.Add(j.Duration)
	record.closed(workers, end)
	time.Sleep(time.Until(start))
	bad, share := all[len(all)-1], all.share()
	bad.Behave(func(ctx context.Context) error { return fail(bad, ctx) })
	time.Sleep(time.Second)
	r.ShareFirst, share = share(), all.share()
	time.Sleep(time.Until(end))
	r.Share = share()
	calls := record.wait()
	if f := calls.between(start.Add(-warmUp), start.Add(-50*time.Millisecond)); f.failed() > 0 {
		return r, fmt.Errorf("calls failed before the instance did: %w", record.err)
	}
	r.FailedFirst = calls.between(start, start.Add(time.Second)).failed()
	r.Failed = calls.between(start.Add(time.Second), end).failed()
	return r, nil
}

// tenfold makes one of 10 instances ten times slower.
func tenfold(l Library, j Job) (r Result, err error) {
	all, client, err := dial(l, j, 10, lognormal(answer, 0))
	if err != nil {
		return r, err
	}
	record := recorder{client: client}
	start := time.Now().Add(2 * warmUp)
	end := start.Add(j.Duration)
	record.closed(workers, end)
	time.Sleep(time.Until(start))
	share := all.share()
	all[len(all)-1].Behave(lognormal(10*answer, 0))
	time.Sleep(time.Until(end))
	r.Share = share()
	calls := record.wait()
	r.Failed = calls.failed()
	r.Calm = calls.between(start.Add(-warmUp), start.Add(-2*answer)).p99()
	r.Disturbed = calls.between(start.Add(3*time.Second), end).p99()
	return r, nil
}

// joining adds an eleventh instance and measures its share of the calls in the second after its first call.
func joining(l Library, j Job) (r Result, err error) {
	all, client, err := dial(l, j, 10, lognormal(answer, 0))
	if err != nil {
		return r, err
	}
	record := recorder{client: client}
	start := time.Now().Add(warmUp)
	end := start.Add(3 * time.Second)
	record.closed(workers, end)
	time.Sleep(time.Until(start))
	more, err := instances(1, lognormal(answer, 0))
	if err != nil {
		return r, err
	}
	if err := client.Add(more[0].Address); err != nil {
		return r, err
	}
	all = append(all, more[0])
	for last, _ := all.received(); last == 0; last, _ = all.received() {
		if time.Now().After(end) {
			return r, errors.New("the new instance received no call")
		}
		time.Sleep(time.Millisecond)
	}
	share := all.share()
	time.Sleep(time.Second)
	r.ShareFirst = share()
	r.Failed = record.wait().failed()
	return r, nil
}

// servers starts instances for memory, prints their addresses as the result, and serves
// until the benchmark closes standard input.
func servers(_ Library, j Job) (r Result, err error) {
	all, err := instances(j.Count, lognormal(0, 0))
	if err != nil {
		return r, err
	}
	if err := print(Result{Addresses: all.addresses()}); err != nil {
		return r, err
	}
	select {}
}

// memory measures the memory of a client and its connections without calls. The instances
// are in another process.
func memory(l Library, j Job) (r Result, err error) {
	before, connectedBefore := InUse(), connections()
	client, err := l.Dial(j.Servers, true)
	if err != nil {
		return r, err
	}
	call := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		return client.Hello(ctx)
	}
	var left atomic.Int64 // calls until each instance was very likely chosen
	left.Store(int64(20 * len(j.Servers)))
	var failed atomic.Pointer[error]
	var callers sync.WaitGroup
	for range 16 {
		callers.Go(func() {
			for left.Add(-1) >= 0 && failed.Load() == nil {
				if err := call(); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	callers.Wait()
	if err := failed.Load(); err != nil {
		return r, *err
	}
	time.Sleep(time.Second)
	r.Connections = connections() - connectedBefore
	if r.Connections < j.Count {
		return r, fmt.Errorf("only %d connections to %d instances", r.Connections, len(j.Servers))
	}
	r.Total = InUse() - before
	if c, ok := client.(interface{ Overhead() int }); ok {
		r.Total -= c.Overhead()
	}
	r.Bytes = r.Total / r.Connections
	return r, nil
}

// InUse returns the heap and the stacks in use after a garbage collection.
func InUse() int {
	runtime.GC()
	runtime.GC() // the second one frees what sync.Pools still hold
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// connections returns the number of open sockets of this process.
func connections() (n int) {
	all, _ := os.ReadDir("/proc/self/fd")
	for _, f := range all {
		if to, _ := os.Readlink("/proc/self/fd/" + f.Name()); strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}
