package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	shortAnswer = 2 * time.Millisecond
	fewCallers  = 8
	mixedTime   = 3 * time.Second // less than exportTime
)

// exports measures how 8 callers of a fast method are spread over 4 instances, three of which, at best,
// answer a call of a slow method.
func exports(l Library, j Job) (r Result, err error) {
	all, client, err := dial(l, j, 4, lognormal(shortAnswer, 0))
	if err != nil {
		return r, err
	}
	record := recorder{client: client}
	record.closed(fewCallers, time.Now().Add(warmUp))
	record.wait()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var running sync.WaitGroup
	for range 3 {
		running.Go(func() { _ = client.Export(ctx) }) // the end of the measurement ends it
	}
	time.Sleep(100 * time.Millisecond)
	return spread(&record, all), nil
}

// idleStreams opens 60 streams to 3 instances, adds a fourth one, and measures how unary calls are spread.
func idleStreams(l Library, j Job) (r Result, err error) {
	all, client, err := dial(l, j, 3, lognormal(shortAnswer, 0))
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range 60 {
		receive, _, err := client.Stream(ctx, oneMessage)
		if err == nil {
			err = receive()
		}
		if err != nil {
			return r, fmt.Errorf("opening a stream: %w", err)
		}
	}
	more, err := instances(1, lognormal(shortAnswer, 0))
	if err != nil {
		return r, err
	}
	if err := client.Add(more[0].Address); err != nil {
		return r, err
	}
	record := recorder{client: client}
	record.closed(fewCallers, time.Now().Add(warmUp))
	record.wait()
	return spread(&record, append(all, more...)), nil
}

func spread(record *recorder, all group) (r Result) {
	result := all.spread()
	record.all = nil
	record.closed(fewCallers, time.Now().Add(mixedTime))
	calls := record.wait()
	r.Least, r.Most = result()
	r.Percentiles, r.Failed = calls.percentiles(), calls.failed()
	return r
}

// rare measures the latency when 10 instances with 4 workers each are 70 % busy, and 0.1 % of the calls take 2 s.
func rare(l Library, j Job) (r Result, err error) {
	const n, workersOfEach = 10, 4
	all, client, err := dial(l, j, n, nil)
	if err != nil {
		return r, err
	}
	usual := lognormal(100*time.Millisecond, 0.25)
	for _, i := range all {
		free := make(chan struct{}, workersOfEach)
		i.Behave(func(ctx context.Context) error {
			free <- struct{}{}
			defer func() { <-free }()
			if rand.IntN(1000) == 0 {
				time.Sleep(2 * time.Second)
				return nil
			}
			return usual(ctx)
		})
	}
	record := recorder{client: client}
	const mean = 0.999*0.103 + 0.001*2
	rate := 0.7 * n * workersOfEach / mean
	start := time.Now()
	record.open(rate, rate, warmUp+j.Duration)
	calls := record.wait().between(start.Add(warmUp), start.Add(warmUp+j.Duration))
	return Result{Percentiles: calls.percentiles(), Failed: calls.failed()}, nil
}
