package retry

import (
	"context"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
)

// AttemptsHeader says how many attempts of a call were made before this one (gRFC A6).
const AttemptsHeader = "grpc-previous-rpc-attempts"

// capitalizedHeader is the key of the header in go-micro's metadata.
const capitalizedHeader = "Grpc-Previous-Rpc-Attempts"

// Failure is what is known of an attempt that has failed.
type Failure struct {
	Kind        Kind
	LossCharged bool // another call was lost with the same connection before, and pays for the loss
	Pushback    Pushback
}

// Refusal is the reason why a call is not retried.
type Refusal int

// The reasons why a call is not retried.
const (
	Permitted    Refusal = iota // no reason
	OverBudget                  // the budget of the service is used up
	ChainStopped                // the call is made for a request that is a retry
	PushedBack                  // the server does not want a retry, or not before the deadline
)

// String returns the name of the refusal in metrics, which is empty for Permitted.
func (r Refusal) String() string {
	return [...]string{"", "over_budget", "chain_stopped", "pushed_back"}[r]
}

// Begin begins a retry after an attempt of a call with a context has failed, unless there is a reason
// against it. The caller ends a retry that has begun.
func (b *Budget) Begin(ctx context.Context, f Failure) (Retry, Refusal) {
	deadline, limited := ctx.Deadline()
	switch p := f.Pushback; {
	case p.Given && (p.Delay < 0 || limited && p.Delay >= time.Until(deadline)):
		b.count(func(c *Counts) { c.PushedBack++ })
		return Retry{}, PushedBack
	case isRetry(gomicro.Metadata(ctx)):
		b.count(func(c *Counts) { c.ChainStopped++ })
		return Retry{}, ChainStopped
	}
	if r, ok := b.take(f.Kind, f.LossCharged); ok {
		return r, Permitted
	}
	return Retry{}, OverBudget
}

func (b *Budget) count(add func(*Counts)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	add(&b.counts)
}

// isRetry reports whether metadata of go-micro is that of a request that is a retry. go-micro's server
// leaves keys as gRPC transmits them; see gomicro.CapitalizeHeaders.
func isRetry(md map[string]string) bool {
	attempts := md[capitalizedHeader]
	if attempts == "" {
		attempts = md[AttemptsHeader]
	}
	return attempts != "" && attempts != "0"
}
