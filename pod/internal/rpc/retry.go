package rpc

import (
	"context"
	stderrors "errors"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/retry"
	"github.com/micro/go-micro/v2/errors"
	"google.golang.org/grpc/codes"
)

// retryHint is what the end of an attempt says about a retry, besides its outcome.
type retryHint struct {
	pushback    retry.Pushback
	lossCharged bool       // another call was lost with the same connection before
	code        codes.Code // that the server or grpc-go has sent, for events
}

// mayRetry begins a retry after an attempt has failed with an error that client.Retry wants to repeat. If
// there should be no retry, it returns the error of the call.
func (k *call) mayRetry(ctx context.Context, err error) error {
	k.retry.End(false)
	if k.node == nil && k.address == "" {
		return nil // no instance was found: looking again costs no server anything
	}
	kind := retry.ErrorReply
	if k.outcome == outcome.LostConnection || k.outcome == outcome.TimedOut {
		kind = retry.NoAnswer
	}
	var refusal retry.Refusal
	k.retry, refusal = k.client.retries.Of(k.service).Begin(ctx, retry.Failure{Kind: kind, LossCharged: k.hint.lossCharged, Pushback: k.hint.pushback})
	k.retryDecided(ctx, refusal, false)
	var e *errors.Error
	switch {
	case refusal == retry.Permitted:
		k.called++
		return nil
	case refusal == retry.OverBudget && stderrors.As(err, &e): // programs may compare the detail, which may be a handler's
		return &errors.Error{Id: e.Id, Code: e.Code, Detail: e.Detail, Status: e.Status + "; not retried: the retry budget of service " + k.service + " is used up"}
	}
	return err
}

// retryDecided reports that a retry, or a second attempt beside the first, is made or refused.
func (k *call) retryDecided(ctx context.Context, r retry.Refusal, isHedge bool) {
	if decided := k.client.events.Get().RetryDecided; decided != nil {
		decided(ctx, events.Retry{Service: k.service, IsHedge: isHedge, Refusal: r.String()})
	}
}

// succeeded records that the call has ended without an error that is worth a retry.
func (k *call) succeeded() {
	k.retry.End(true)
	k.client.retries.Succeeded(k.service)
}

// lossCharged reports whether another call that was lost with the connection has paid for the loss. The
// first one pays. losses is the number of losses before the attempt, and err the error of the attempt. A
// connection that was never established has carried no other call.
func (c *connection) lossCharged(losses uint32, err error) bool {
	var e *errors.Error
	if stderrors.As(err, &e) && outcome.NeverConnected(e.Detail) {
		return false
	}
	return !c.losses.CompareAndSwap(losses, losses+1)
}
