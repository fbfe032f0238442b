// Package hedge makes a second attempt of a call that takes longer than usual. The first answer counts,
// and the other attempt is cancelled. It is for methods that may be executed twice (Dean and Barroso,
// "The Tail at Scale", 2013; gRFC A6, hedgingPolicy; kitex, backup request).
//
//	Methods.Find   what is known of one method of one service
//	Method.Race    makes a call with one or two attempts
//	histogram      the latencies, whose 98th percentile is the time before the second attempt
//
// The second attempt begins after the 98th percentile of the method's latency, so one call of 50 has one.
// If the latency changes, a budget limits the second attempts to 3 % of the calls. Above 10 % errors
// there are none, because they would add load to a service that fails because of its load.
package hedge

import (
	"context"
	"reflect"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

type optionKey struct{}

// Option is the option of a call that may have a second attempt.
func Option() client.CallOption {
	return func(o *client.CallOptions) {
		ctx := o.Context
		if ctx == nil {
			ctx = context.Background()
		}
		o.Context = context.WithValue(ctx, optionKey{}, true)
	}
}

// Wanted reports whether a call has the option.
func Wanted(o *client.CallOptions) bool {
	return o.Context != nil && o.Context.Value(optionKey{}) != nil
}

// Possible reports whether two attempts can run at the same time: the response can be decoded into
// another value first, and no call option makes grpc-go write to a variable of the caller.
func Possible(rsp any, options []grpc.CallOption) bool {
	for _, o := range options {
		switch o.(type) {
		case grpc.HeaderCallOption, grpc.TrailerCallOption, grpc.PeerCallOption, grpc.OnFinishCallOption:
			return false
		}
	}
	v := reflect.ValueOf(rsp)
	return v.Kind() == reflect.Pointer && !v.IsNil()
}

// Attempt makes an attempt of a call and decodes the response into rsp.
type Attempt func(ctx context.Context, rsp any) (outcome.Outcome, error)

// result is the end of an attempt.
type result struct {
	outcome  outcome.Outcome
	err      error
	rsp      any // of the second attempt
	panicked any // what the second attempt has panicked with; nil if it has not
}

// isAnswer reports whether an attempt decides the call. An error of the handler does, and an error that
// another instance may not have does not.
func (r result) isAnswer() bool { return r.err == nil || r.outcome == outcome.Answered }

// Race makes a call. The first attempt runs in the caller's goroutine and decodes its response into rsp.
// If it takes too long, the second attempt runs in another goroutine, which has ended when Race returns.
// If the first attempt fails, Race waits for the second one if it has begun. If both fail, Race returns
// the error of the first.
func (m *Method) Race(ctx context.Context, rsp any, first, second Attempt) error {
	delay, began := m.Delay(), time.Now()
	if delay == 0 {
		o, err := first(ctx, rsp)
		m.observe(time.Since(began), o)
		return err
	}
	firstContext, cancelFirst := context.WithCancel(ctx)
	defer cancelFirst()
	secondContext, cancelSecond := context.WithCancel(ctx)
	other := result{outcome: outcome.Inconclusive, err: context.Canceled}
	ended := make(chan struct{})
	timer := time.AfterFunc(delay, func() {
		defer close(ended)
		if !m.draw() {
			return
		}
		defer func() { other.panicked = recover() }() // the goroutine of the caller panics with it
		other.rsp = newLike(rsp)
		other.outcome, other.err = second(secondContext, other.rsp)
		if other.isAnswer() {
			cancelFirst()
		}
	})
	wait := sync.OnceFunc(func() {
		if !timer.Stop() {
			<-ended
		}
	})
	defer wait() // also if the first attempt panics
	defer cancelSecond()
	var own result
	own.outcome, own.err = first(firstContext, rsp)
	took := time.Since(began)
	if own.isAnswer() {
		cancelSecond()
	}
	wait()
	switch {
	case other.panicked != nil:
		panic(other.panicked)
	case own.isAnswer() || !other.isAnswer():
		m.observe(took, own.outcome)
		return own.err
	case own.outcome == outcome.Inconclusive: // cancelled, it would have taken longer
		own.outcome = outcome.Answered
	}
	m.observe(took, own.outcome)
	if other.err == nil {
		assign(rsp, other.rsp)
	}
	return other.err
}

// newLike returns an empty value of the same type.
func newLike(rsp any) any {
	if m, ok := rsp.(proto.Message); ok {
		return m.ProtoReflect().New().Interface()
	}
	return reflect.New(reflect.TypeOf(rsp).Elem()).Interface()
}

// assign makes the response of the caller that of the second attempt.
func assign(rsp, second any) {
	if m, ok := rsp.(proto.Message); ok {
		proto.Reset(m)
		proto.Merge(m, second.(proto.Message))
		return
	}
	reflect.ValueOf(rsp).Elem().Set(reflect.ValueOf(second).Elem())
}
