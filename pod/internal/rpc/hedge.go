package rpc

import (
	"context"
	"errors"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/hedge"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/retry"
)

var errNoSecond = errors.New("there is no second attempt")

// hedged returns what is known of the method if the call may have a second attempt, else nil.
func (k *call) hedged(rsp any) *hedge.Method {
	if !hedge.Wanted(k.options) || k.method.IsStream || k.choice.Instance == nil || !hedge.Possible(rsp, gomicro.CallOptions(*k.options)) {
		return nil
	}
	return k.client.hedges.Find(k.service, k.method.Name)
}

// race calls the instance that was chosen and, if the call takes long, another one.
func (k *call) race(ctx context.Context, m *hedge.Method, rsp any) error {
	first := k.choice.Instance
	return m.Race(ctx, rsp, func(ctx context.Context, rsp any) (outcome.Outcome, error) {
		err := k.callChosen(ctx, rsp)
		return k.outcome, err
	}, func(ctx context.Context, rsp any) (outcome.Outcome, error) {
		return k.second(ctx, first, rsp)
	})
}

// second makes the second attempt, unless the budget for retries refuses it or no other instance is
// available. It runs while the first attempt runs, and uses only what that does not change.
func (k *call) second(ctx context.Context, first *discovery.Instance, rsp any) (o outcome.Outcome, err error) {
	r, refusal := k.client.retries.Of(k.service).Begin(ctx, retry.Failure{Kind: retry.NoAnswer})
	if refusal != retry.Permitted {
		k.retryDecided(ctx, refusal, true)
		return outcome.Inconclusive, errNoSecond
	}
	defer func() { r.End(err == nil || o == outcome.Answered || o == outcome.Inconclusive) }()
	s := &call{client: k.client, settings: k.settings, req: k.req, options: k.options, timeout: k.timeout, service: k.service, method: k.method, called: 1}
	s.outcome = outcome.Inconclusive
	if s.choice, err = k.choose(balancer.Attempt{Method: k.method, Previous: first}); err != nil {
		return outcome.Inconclusive, err
	}
	if s.choice.Instance == first || s.choice.Instance == nil {
		s.choice.Done(outcome.Inconclusive, nil)
		return outcome.Inconclusive, errNoSecond
	}
	k.retryDecided(ctx, retry.Permitted, true)
	s.node = s.choice.Node
	err = s.callChosen(ctx, rsp)
	return s.outcome, err
}
