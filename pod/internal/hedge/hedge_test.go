package hedge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"google.golang.org/grpc"
	grpcmetadata "google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// service is a service in virtual time. Each attempt takes a time, and ends with its context.
type service struct {
	took     func() (time.Duration, outcome.Outcome)
	attempts atomic.Int64
}

var errServer = errors.New("server error")

// try is an attempt, whose response is its duration.
func (s *service) try(ctx context.Context, rsp any) (outcome.Outcome, error) {
	s.attempts.Add(1)
	took, o := s.took()
	select {
	case <-time.After(took):
	case <-ctx.Done():
		if ctx.Err() == context.Canceled {
			return outcome.Inconclusive, ctx.Err()
		}
		return outcome.TimedOut, ctx.Err()
	}
	if o != outcome.Answered {
		return o, errServer
	}
	rsp.(*wrapperspb.Int64Value).Value = int64(took)
	return o, nil
}

func (s *service) call(m *Method) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if m == nil {
		_, err := s.try(ctx, &wrapperspb.Int64Value{})
		return err
	}
	return m.Race(ctx, &wrapperspb.Int64Value{}, s.try, s.try)
}

// load makes calls from some callers, and returns the latencies in order.
func (s *service) load(m *Method, callers, calls int) (latencies []time.Duration, failed int) {
	var mu sync.Mutex
	var wait sync.WaitGroup
	for range callers {
		wait.Go(func() {
			for range calls / callers {
				began := time.Now()
				err := s.call(m)
				mu.Lock()
				latencies = append(latencies, time.Since(began))
				if err != nil {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	slices.Sort(latencies)
	return latencies, failed
}

func percentile(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)))]
}

func TestSecondAttemptCutsTheTail(t *testing.T) {
	const calls, callers = 40000, 10
	rare := func(share float64) func() (time.Duration, outcome.Outcome) {
		return func() (time.Duration, outcome.Outcome) {
			if rand.Float64() < share {
				return 2 * time.Second, outcome.Answered
			}
			return 5*time.Millisecond + time.Duration(rand.ExpFloat64()*float64(500*time.Microsecond)), outcome.Answered
		}
	}
	for _, share := range []float64{0.005, 0.05} {
		synctest.Test(t, func(t *testing.T) {
			s := &service{took: rare(share)}
			without, _ := s.load(nil, callers, calls)
			s.attempts.Store(0)
			with, failed := s.load(new(Methods).Find("greeter", "Greeter.Hello"), callers, calls)
			more := float64(s.attempts.Load()-calls) / calls
			t.Logf("%.1f %% take 2 s: p99 %s and p99.9 %s without, %s and %s with second attempts, for %.2f %% of the calls",
				share*100, percentile(without, .99), percentile(without, .999), percentile(with, .99), percentile(with, .999), more*100)
			if failed != 0 || more > 0.03 || more == 0 {
				t.Errorf("%d calls failed, %.2f %% more attempts; want none and at most 3 %%", failed, more*100)
			}
			if share == 0.005 && percentile(with, .999) > 4*percentile(without, .99) {
				t.Errorf("p99.9 is %s, want at most 4 times %s", percentile(with, .999), percentile(without, .99))
			}
		})
	}
}

// A service whose latency grows tenfold gets 3 % more attempts and the saved ones, and the delay follows.
func TestBudgetHoldsWhenLatencyGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		usual := 5 * time.Millisecond
		s := &service{took: func() (time.Duration, outcome.Outcome) { return usual, outcome.Answered }}
		m := new(Method)
		s.load(m, 10, 5000)
		usual *= 10
		s.attempts.Store(0)
		const calls = 5000
		s.load(m, 10, calls)
		if more := s.attempts.Load() - calls; more > calls*3/100+maxSaved {
			t.Errorf("%d more attempts in %d calls", more, calls)
		}
		if d := m.Delay(); d < usual || d > usual*9/8 {
			t.Errorf("the delay is %s, want a little more than %s", d, usual)
		}
	})
}

func TestNoSecondAttemptsAboveTenPercentErrors(t *testing.T) {
	for _, failure := range []outcome.Outcome{outcome.ServerError, outcome.LostConnection, outcome.TimedOut} {
		synctest.Test(t, func(t *testing.T) {
			share := 0.
			s := &service{took: func() (time.Duration, outcome.Outcome) {
				switch r := rand.Float64(); {
				case r < share:
					return 5 * time.Millisecond, failure
				case r > 0.98:
					return time.Second, outcome.Answered
				}
				return 5 * time.Millisecond, outcome.Answered
			}}
			m := new(Method)
			s.load(m, 10, 2000)
			share = 0.4
			s.load(m, 10, 500)
			s.attempts.Store(0)
			if s.load(m, 10, 1000); s.attempts.Load() != 1000 {
				t.Errorf("outcome %d: %d attempts of 1,000 calls of which 40 %% fail", failure, s.attempts.Load())
			}
			share = 0
			s.load(m, 10, 1000)
			s.attempts.Store(0)
			if s.load(m, 10, 1000); s.attempts.Load() == 1000 {
				t.Errorf("outcome %d: no second attempts although calls are answered again", failure)
			}
		})
	}
}

// trained returns a method whose calls usually take 5 ms, and whose budget is full.
func trained() *Method {
	m := new(Method)
	for range 1000 {
		m.observe(5*time.Millisecond, outcome.Answered)
	}
	return m
}

func answering(after time.Duration, value int64) Attempt {
	return func(ctx context.Context, rsp any) (outcome.Outcome, error) {
		select {
		case <-time.After(after):
			rsp.(*wrapperspb.Int64Value).Value = value
			return outcome.Answered, nil
		case <-ctx.Done():
			return outcome.Inconclusive, ctx.Err()
		}
	}
}

func failing(after time.Duration, o outcome.Outcome) Attempt {
	return func(_ context.Context, rsp any) (outcome.Outcome, error) {
		time.Sleep(after)
		rsp.(*wrapperspb.Int64Value).Value = -1
		return o, fmt.Errorf("outcome %d after %s", o, after)
	}
}

func TestRace(t *testing.T) {
	const ms = time.Millisecond
	for name, test := range map[string]struct {
		first, second Attempt
		value         int64
		err           string
		took          time.Duration // after the delay, at most
	}{
		"the first is fast":                       {answering(5*ms, 1), answering(0, 2), 1, "", 0},
		"the first is faster":                     {answering(8*ms, 1), answering(20*ms, 2), 1, "", 3 * ms},
		"the second is faster":                    {answering(time.Second, 1), answering(5*ms, 2), 2, "", 5 * ms},
		"the first fails at once":                 {failing(0, outcome.ServerError), answering(0, 2), -1, "outcome 3 after 0s", 0},
		"the first fails later":                   {failing(10*ms, outcome.LostConnection), answering(20*ms, 2), 2, "", 20 * ms},
		"the second fails":                        {answering(20*ms, 1), failing(0, outcome.ServerError), 1, "", 15 * ms},
		"both fail":                               {failing(20*ms, outcome.ServerError), failing(0, outcome.LostConnection), -1, "outcome 3 after 20ms", 15 * ms},
		"the second answers with a handler error": {answering(time.Second, 1), failing(5*ms, outcome.Answered), 0, "outcome 0 after 5ms", 5 * ms},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := trained()
			began, rsp := time.Now(), &wrapperspb.Int64Value{}
			err := m.Race(t.Context(), rsp, test.first, test.second)
			if took := time.Since(began); took > m.Delay()+test.took {
				t.Errorf("%s: %s", name, took)
			}
			if rsp.Value != test.value || (err == nil) != (test.err == "") || err != nil && err.Error() != test.err {
				t.Errorf("%s: response %d, error %v; want %d, %q", name, rsp.Value, err, test.value, test.err)
			}
			synctest.Wait() // the bubble has no other goroutine, otherwise it does not end
		})
	}
}

// A panic of an interceptor or a codec reaches the caller, whose wrapper may recover it.
func TestRaceThatPanics(t *testing.T) {
	panics := func(context.Context, any) (outcome.Outcome, error) {
		panic("codec")
	}
	late := func(context.Context, any) (outcome.Outcome, error) {
		time.Sleep(10 * time.Millisecond)
		panic("codec")
	}
	for name, test := range map[string][2]Attempt{
		"first": {panics, answering(0, 2)}, "second": {answering(time.Second, 1), panics}, "first, while the second waits": {late, answering(time.Hour, 2)},
	} {
		synctest.Test(t, func(t *testing.T) {
			defer func() {
				if recover() != "codec" {
					t.Errorf("%s: the caller sees no panic", name)
				}
			}()
			_ = trained().Race(t.Context(), &wrapperspb.Int64Value{}, test[0], test[1])
		})
	}
}

func TestPossible(t *testing.T) {
	var header grpcmetadata.MD
	for name, test := range map[string]struct {
		rsp     any
		options []grpc.CallOption
		want    bool
	}{
		"a message":     {&wrapperspb.Int64Value{}, nil, true},
		"a map":         {&map[string]any{}, []grpc.CallOption{grpc.WaitForReady(true)}, true},
		"no pointer":    {map[string]any{}, nil, false},
		"a nil pointer": {(*wrapperspb.Int64Value)(nil), nil, false},
		"a header":      {&wrapperspb.Int64Value{}, []grpc.CallOption{grpc.Header(&header)}, false},
	} {
		if Possible(test.rsp, test.options) != test.want {
			t.Errorf("%s: want %t", name, test.want)
		}
	}
}

func TestAssign(t *testing.T) {
	type response struct{ A, B int }
	rsp := &response{A: 1}
	second := newLike(rsp).(*response)
	second.B = 2
	if assign(rsp, second); *rsp != (response{B: 2}) {
		t.Errorf("%+v", rsp)
	}
	message := wrapperspb.String("first")
	if assign(message, newLike(message)); !proto.Equal(message, &wrapperspb.StringValue{}) {
		t.Errorf("%v", message)
	}
}

func TestMethodsAreBounded(t *testing.T) {
	var all Methods
	for i := range maxMethods {
		if all.Find("greeter", fmt.Sprint(i)) == nil {
			t.Fatalf("method %d is not known", i)
		}
	}
	if all.Find("greeter", "another") != nil || all.Find("greeter", "0") == nil {
		t.Error("a method beyond the limit is known, or one of them is not")
	}
}

func TestHistogram(t *testing.T) {
	for _, d := range []time.Duration{0, time.Microsecond, 15 * time.Microsecond, 16 * time.Microsecond, 999 * time.Microsecond, 5 * time.Millisecond, 2 * time.Second, time.Hour} {
		if u := upper(bucketOf(d)); u <= d || float64(u) > float64(d)*1.13+float64(time.Microsecond) {
			t.Errorf("%s is in a bucket that ends at %s", d, u)
		}
	}
	if n := bucketOf(1<<63 - 1); n != nBuckets-1 {
		t.Errorf("the longest duration is in bucket %d of %d", n, nBuckets)
	}
	var h histogram
	for i := range 10000 {
		h.add(time.Duration(i%100) * time.Millisecond)
	}
	if q := h.at(quantile); q < 97*time.Millisecond || q > 110*time.Millisecond {
		t.Errorf("the quantile is %s", q)
	}
}
