// Package retry decides whether a failed attempt of a call may be repeated, so that retries help when
// an instance fails and do not multiply the load when a whole service fails. client.Retry decides
// before whether an error is worth a retry.
//
// # Budget
//
// Each called service has a budget. A retry that fails takes a token, a retry that succeeds takes
// none, and a retry in flight counts as failed unless the budget is full. Each call that succeeds adds
// 0.2 tokens, 10 seconds add one, and a budget holds at most 10. The retries of an outage are therefore
// bounded by a number that does not depend on the traffic before it, and the retries that rescue calls
// are not bounded by their share of the calls.
//
// Other budgets count all retries. Linkerd and Finagle permit 20 % of the calls of the last 10 s, so a
// busy service spends hundreds of retries on an outage. gRFC A6 permits retries while more than half of
// the tokens are left; with its example, 21 of 25 calls that were lost with one connection
// are not retried, although all retries would succeed. The AWS SDKs return the cost of a retry that
// succeeds, as here.
//
// Calls that were lost with one connection cost one token together. Retries after no answer and after
// error replies have budgets of their own, so that a handler whose errors are retried in vain does not
// prevent the retries of lost connections.
//
// # Chain stop
//
// A retry carries the header grpc-previous-rpc-attempts (gRFC A6). go-micro passes the metadata of a
// request on to the calls that its handler makes with its context, so all tiers below receive the
// header, also through go-micro's own client. Calls with the header in their context are not retried:
// otherwise each tier would double the attempts. kitex does the same.
//
// # Pushback
//
// A server that answers with an error and the trailer grpc-retry-pushback-ms (gRFC A6) decides when the
// call is repeated: after so many milliseconds, or not at all if the value is negative or not a number.
package retry

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/micro/go-micro/v2/logger"
)

const (
	// capacity is how many retries may fail before retries are refused, as in the example of gRFC A6.
	capacity = 10

	// perSuccess is what a call that succeeds adds. Linkerd (retryRatio) and Finagle (RetryBudget,
	// percentCanRetry) permit retries of 20 % of the calls.
	perSuccess = 0.2

	// perSecond is what a second adds. Linkerd and Finagle permit 10 retries a second whatever the
	// traffic (minRetriesPerSecond), for services that are called seldom. Here retries that succeed cost
	// nothing, and calls that succeed refill the budget, so time has to refill it only for a service whose
	// first attempts all fail. In three tiers, one a second would add 45 attempts in an outage of 15 s.
	perSecond = 0.1

	// maxInFlight is how many retries may be in flight while the budget is full. go-micro waits 100 ms
	// before a retry: of 10,000 calls a second, 1 % may fail and be retried.
	maxInFlight = 100

	// maxServices bounds the memory if the names of services come from outside. Further services
	// share a budget.
	maxServices   = 1000
	otherServices = "all others"

	// minLogInterval is the least time from the log line about a budget that is used up to the next one.
	minLogInterval = 10 * time.Second
)

// Kind is a kind of failed attempts that has a budget of its own.
type Kind int

// The kinds of failed attempts.
const (
	NoAnswer   Kind = iota // the connection was refused or lost, or no answer came in time
	ErrorReply             // the server answered with an error, or the client itself failed
	kinds
)

func (k Kind) String() string {
	return [kinds]string{"calls without an answer", "errors of the server"}[k]
}

// Budgets are the budgets of a client. The zero value has full budgets. It is safe for concurrent
// use.
type Budgets struct {
	notFull  atomic.Int32 // number of buckets that are not full
	mu       sync.Mutex
	services atomic.Pointer[map[string]*Budget] // immutable, so that reading takes no lock
}

// find returns the budget of a service, nil before Of.
func (b *Budgets) find(service string) *Budget {
	if all := b.services.Load(); all != nil {
		return (*all)[service]
	}
	return nil
}

// Of returns the budget of a service.
func (b *Budgets) Of(service string) *Budget {
	if found := b.find(service); found != nil {
		return found
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[string]*Budget{}
	if old := b.services.Load(); old != nil {
		maps.Copy(all, *old)
	}
	if len(all) >= maxServices && all[service] == nil {
		service = otherServices
	}
	if all[service] == nil {
		full := bucket{tokens: capacity, refilled: time.Now()}
		all[service] = &Budget{service: service, budgets: b, buckets: [kinds]bucket{full, full}}
		b.services.Store(&all)
	}
	return all[service]
}

// Succeeded records that a call of a service has ended without an error that is worth a retry. It takes
// a nanosecond while all budgets are full.
func (b *Budgets) Succeeded(service string) {
	if b.notFull.Load() == 0 {
		return
	}
	if found := b.find(service); found != nil {
		found.succeeded()
	}
}

// Counts returns how many retries of a service were made and refused.
func (b *Budgets) Counts(service string) Counts {
	found := b.find(service)
	if found == nil {
		return Counts{}
	}
	found.mu.Lock()
	defer found.mu.Unlock()
	return found.counts
}

// Counts are how many retries of a service were made, and how many were refused for each reason.
type Counts struct{ Made, OverBudget, ChainStopped, PushedBack uint64 }

// Budget is the budget of one service. It is safe for concurrent use.
type Budget struct {
	service string
	budgets *Budgets

	mu      sync.Mutex
	buckets [kinds]bucket
	counts  Counts
}

// bucket holds the tokens for one kind of failed attempts. The lock of its Budget guards it.
type bucket struct {
	tokens   float64 // from 0 to capacity
	refilled time.Time
	inFlight int       // retries that will take a token if they fail
	usedUp   time.Time // when the log said so; zero if the last line said that the bucket is full again
}

// take begins a retry if the budget permits it. It counts the retries that are made and refused.
func (b *Budget) take(kind Kind, lossCharged bool) (Retry, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := &b.buckets[kind]
	b.refill(kind, 0)
	switch {
	case lossCharged && p.tokens >= 1:
		b.counts.Made++
		return Retry{}, true
	case p.tokens == capacity && p.inFlight < maxInFlight, p.tokens-float64(p.inFlight) >= 1:
		b.counts.Made++
		p.inFlight++
		return Retry{budget: b, kind: kind}, true
	}
	b.counts.OverBudget++
	if p.usedUp.IsZero() {
		p.usedUp = time.Now()
		logger.Warnf("Client [pod] Retry budget of service %q for %s is used up: its calls are not retried, except one in 10 s, until more of them succeed", b.service, kind)
	}
	return Retry{}, false
}

// refill adds the tokens of the time since the last refill, and further ones. The caller holds the lock.
func (b *Budget) refill(kind Kind, more float64) {
	p, now := &b.buckets[kind], time.Now()
	wasFull := p.tokens == capacity
	p.tokens = min(capacity, p.tokens+more+perSecond*now.Sub(p.refilled).Seconds())
	p.refilled = now
	if p.tokens == capacity && !wasFull {
		b.budgets.notFull.Add(-1)
	}
}

func (b *Budget) succeeded() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for kind := range kinds {
		b.refill(kind, perSuccess)
		if p := &b.buckets[kind]; p.tokens == capacity && !p.usedUp.IsZero() && time.Since(p.usedUp) >= minLogInterval {
			p.usedUp = time.Time{}
			logger.Infof("Client [pod] Retry budget of service %q for %s is full again", b.service, kind)
		}
	}
}

// Retry is a retry that has begun. End of the zero value does nothing.
type Retry struct {
	budget *Budget // nil after the end
	kind   Kind
}

// End ends the retry. Only the first call counts.
func (r *Retry) End(succeeded bool) {
	b := r.budget
	if b == nil {
		return
	}
	r.budget = nil
	b.mu.Lock()
	defer b.mu.Unlock()
	p := &b.buckets[r.kind]
	p.inFlight--
	if succeeded {
		return
	}
	b.refill(r.kind, 0)
	if p.tokens == capacity {
		b.budgets.notFull.Add(1)
	}
	p.tokens = max(0, p.tokens-1)
}
