package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	microerrors "github.com/micro/go-micro/v2/errors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

func TestCodes(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	internal := microerrors.InternalServerError("go.micro.client", "service orders: not found")
	for name, test := range map[string]struct {
		ctx      context.Context
		sent     codes.Code
		attempts int
		err      error
		want     codes.Code
	}{
		"no error":                     {t.Context(), codes.OK, 1, nil, codes.OK},
		"a retry succeeded":            {t.Context(), codes.Unavailable, 2, nil, codes.OK},
		"the caller cancelled":         {cancelled, codes.Unavailable, 1, internal, codes.Canceled},
		"sent by the server":           {t.Context(), codes.NotFound, 1, internal, codes.NotFound},
		"the second attempt was first": {t.Context(), codes.Canceled, 1, microerrors.NotFound("shop", ""), codes.NotFound},
		"no instance":                  {t.Context(), codes.OK, 0, internal, codes.Unavailable},
		"the client's own error":       {t.Context(), codes.OK, 1, internal, codes.Internal},
		"an unknown code of go-micro":  {t.Context(), codes.OK, 1, microerrors.New("", "", 499), codes.Unknown},
		"a timeout before an attempt":  {t.Context(), codes.OK, 0, microerrors.Timeout("", ""), codes.DeadlineExceeded},
		"a status, as of a stream":     {t.Context(), codes.OK, 1, status.Error(codes.Aborted, ""), codes.Aborted},
		"an error of an interceptor":   {t.Context(), codes.OK, 1, errors.New("no token"), codes.Unknown},
		"a wrapped error of go-micro":  {t.Context(), codes.OK, 1, fmt.Errorf("calling: %w", microerrors.NotFound("", "")), codes.NotFound},
		"a deadline within grpc-go":    {t.Context(), codes.DeadlineExceeded, 1, microerrors.Timeout("", ""), codes.DeadlineExceeded},
		"forbidden by the own wrapper": {t.Context(), codes.OK, 1, microerrors.Forbidden("", ""), codes.PermissionDenied},
	} {
		if got := CodeOf(test.ctx, test.sent, test.attempts, test.err); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
	for err, want := range map[error]codes.Code{nil: codes.OK, status.Error(codes.NotFound, ""): codes.NotFound, context.DeadlineExceeded: codes.DeadlineExceeded,
		context.Canceled: codes.Canceled, io.EOF: codes.Unknown} {
		if got := ServedCode(err); got != want {
			t.Errorf("a server sends %v as %s, want %s", err, got, want)
		}
	}
}

// channel is a channel whose states the test sets.
type channel struct {
	states chan connectivity.State
	state  connectivity.State
}

func (c *channel) GetState() connectivity.State { return c.state }
func (c *channel) WaitForStateChange(context.Context, connectivity.State) bool {
	c.state = <-c.states
	return true
}

func TestConnectionChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h Hub
		var group sync.WaitGroup
		h.WatchConnection(&group, nil, Instance{}) // without a callback the channel is not read
		var got []ConnectionChange
		h.Set(&Callbacks{ConnectionChanged: func(i Instance, change ConnectionChange) {
			if i.Pod != "orders-1" {
				t.Errorf("the pod is %q", i.Pod)
			}
			got = append(got, change)
		}})
		c := &channel{states: make(chan connectivity.State)}
		h.WatchConnection(&group, c, Instance{"orders", "orders-1", "10.0.0.1:1"})
		for _, s := range []connectivity.State{connectivity.Connecting, connectivity.TransientFailure, connectivity.Connecting, connectivity.Ready,
			connectivity.Idle, connectivity.Connecting, connectivity.Ready, connectivity.TransientFailure, connectivity.Connecting, connectivity.Ready, connectivity.Shutdown} {
			c.states <- s
		}
		group.Wait()
		if want := []ConnectionChange{Refused, Opened, Lost, Opened, Lost, Opened, Closed}; !slices.Equal(got, want) {
			t.Errorf("the changes are %q, want %q", got, want)
		}
	})
}

func TestServedRequest(t *testing.T) {
	var h Hub
	var got []int
	handlers := map[int]http.HandlerFunc{
		200: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "text") },
		204: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusNoContent)
		},
		500: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		201: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusCreated)
			panic(http.ErrAbortHandler)
		},
	}
	for status, handler := range handlers {
		h.Set(nil)
		serve := func() {
			defer func() { _ = recover() }()
			h.ServeRequest("shop", httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil), handler)
		}
		serve() // without a callback nothing is reported
		h.Set(&Callbacks{ServedRequest: func(_ *http.Request, s ServedRequest) { got = append(got, s.Status) }})
		serve()
		if !slices.Equal(got, []int{status}) {
			t.Errorf("the statuses are %v, want %d", got, status)
		}
		got = nil
	}
}
