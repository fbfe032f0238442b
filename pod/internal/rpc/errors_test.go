package rpc

import (
	"context"
	stderrors "errors"
	"fmt"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestResult(t *testing.T) {
	runs := context.Background()
	canceled, cancel := context.WithCancel(runs)
	cancel()
	expired, cancel := context.WithDeadline(runs, time.Now().Add(-time.Second))
	defer cancel()
	late := lateContext{runs}
	for _, test := range []struct {
		name    string
		ctx     context.Context
		err     error
		outcome outcome.Outcome
		id      string
		code    int32
		detail  string
	}{
		{"no error", canceled, nil, outcome.Answered, "", 0, ""},
		{"not a status", runs, stderrors.New("broken"), outcome.Inconclusive, "", 0, "broken"},
		{"an error of a handler", runs, status.Error(codes.Unknown, errors.NotFound("greeter", "no such name").Error()), outcome.Answered, "greeter", 404, "no such name"},
		{"a server error of a handler", runs, status.Error(codes.Unknown, errors.InternalServerError("greeter", "broken").Error()), outcome.ServerError, "greeter", 500, "broken"},
		{"a status", runs, status.Error(codes.NotFound, "none"), outcome.Answered, "go.micro.client", 500, "none"},
		{"the deadline has passed", expired, status.Error(codes.DeadlineExceeded, "late"), outcome.TimedOut, "go.micro.client", 408, "context deadline exceeded"},
		{"the deadline has passed, but its timer was not yet called", late, status.Error(codes.DeadlineExceeded, "late"), outcome.TimedOut, "go.micro.client", 408, "context deadline exceeded"},
		{"a deadline of the server", runs, status.Error(codes.DeadlineExceeded, "late"), outcome.ServerError, "go.micro.client", 500, "late"},
		{"the caller has cancelled", canceled, status.Error(codes.Canceled, "cancelled"), outcome.Inconclusive, "go.micro.client", 408, "context canceled"},
		{"the caller has cancelled, and the connection is lost", canceled, status.Error(codes.Unavailable, "transport is closing"), outcome.Inconclusive, "go.micro.client", 500, "transport is closing"},
		{"cancelled by the server", runs, status.Error(codes.Canceled, "cancelled"), outcome.Inconclusive, "go.micro.client", 500, "cancelled"},
		{"the connection is lost", runs, status.Error(codes.Unavailable, "transport is closing"), outcome.LostConnection, "go.micro.client", 500, "transport is closing"},
		{"the connection is lost after the deadline", expired, status.Error(codes.Unavailable, "transport is closing"), outcome.LostConnection, "go.micro.client", 500, "transport is closing"},
	} {
		o, err := result(test.ctx, test.err)
		if o != test.outcome {
			t.Errorf("%s: outcome %v, want %v", test.name, o, test.outcome)
		}
		var e *errors.Error
		if !stderrors.As(err, &e) {
			if test.id != "" || err != test.err {
				t.Errorf("%s: %v, want an error with the id %q", test.name, err, test.id)
			}
		} else if e.Id != test.id || e.Code != test.code || e.Detail != test.detail {
			t.Errorf("%s: %+v, want the id %q, code %d, detail %q", test.name, e, test.id, test.code, test.detail)
		}
	}
}

// lateContext is a context whose deadline has passed just now.
type lateContext struct{ context.Context }

func (lateContext) Deadline() (time.Time, bool) { return time.Now(), true }

// A call that finds no instance fails with the errors of go-micro's client.
func TestErrorsOfSelectors(t *testing.T) {
	for _, test := range []struct {
		selector selector.Selector
		detail   string
	}{
		{failingSelector{selectErr: selector.ErrNotFound}, "service greeter: not found"},
		{failingSelector{selectErr: stderrors.New("broken")}, "error selecting greeter node: broken"},
		{failingSelector{nextErr: selector.ErrNotFound}, "service greeter: not found"},
		{failingSelector{nextErr: stderrors.New("broken")}, "error selecting greeter node: broken"},
	} {
		c, _ := newTestClient(t, nil, client.Selector(test.selector), client.Retries(0))
		e := errors.FromError(callGreeter(t.Context(), c))
		if e.Id != "go.micro.client" || e.Code != 500 || e.Detail != test.detail {
			t.Errorf("%+v: %+v, want %q", test.selector, e, test.detail)
		}
	}
}

type failingSelector struct {
	selector.Selector
	selectErr, nextErr error
}

func (s failingSelector) Select(string, ...selector.SelectOption) (selector.Next, error) {
	return func() (*registry.Node, error) { return nil, s.nextErr }, s.selectErr
}

func (s failingSelector) Mark(service string, n *registry.Node, _ error) {
	panic(fmt.Sprint("a call without a node is marked: ", service, n))
}

// The registry knows no instances because the API server refuses to tell.
func TestErrorOfTheRegistry(t *testing.T) {
	api := &kubetest.Pods{}
	api.Fail(stderrors.New("pods is forbidden"))
	c := newClientOf(t, newServices(t, api), client.Retries(5), client.Retry(client.RetryAlways))
	attempts := 0
	err := callGreeter(t.Context(), c, client.WithBackoff(func(context.Context, client.Request, int) (time.Duration, error) {
		attempts++
		return 0, nil
	}))
	if e := errors.FromError(err); e.Code != 500 || e.Detail != "error selecting greeter node: pods is forbidden" || attempts != 0 {
		t.Errorf("%+v after %d attempts, want the error of the API server and no attempt", e, attempts)
	}
}
