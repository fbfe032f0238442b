// Package events passes what happens in a registry, its clients and its services to the callbacks of
// pod.WithEvents, which documents them. Without callbacks nothing is measured: whoever reports an
// event asks the Hub first, which costs the load of a pointer.
package events

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
)

// Callbacks are the callbacks for events. A field may be nil.
type Callbacks struct {
	CallEnded           func(context.Context, Call)
	RetryDecided        func(context.Context, Retry)
	ConnectionChanged   func(Instance, ConnectionChange)
	ServedCall          func(context.Context, ServedCall)
	ServedRequest       func(*http.Request, ServedRequest)
	Patched             func(service string, err error)
	SkippedRegistration func(Annotation, error)
	Drained             func(service string, d Drain)
}

// Call is a call or stream of a client that has ended.
type Call struct {
	Service, Method string
	IsStream        bool
	Code            codes.Code
	Attempts        int
	Duration        time.Duration
}

// Retry is a retry of a call, or a second attempt beside the first, that is made or refused.
type Retry struct {
	Service string
	IsHedge bool
	Refusal string // empty if it is made
}

// The zone of a called instance, seen from this process.
const (
	SameZone  = "same"
	OtherZone = "other"
)

// Attempt is one attempt of a call that has ended.
type Attempt struct {
	Service, Pod, Address string
	Zone                  string // "" if one of the zones is not known
	Outcome               string
	Duration              time.Duration
	Err                   error
}

// Instance is an instance of a service.
type Instance struct{ Service, Pod, Address string }

// ConnectionChange says what has happened to a connection.
type ConnectionChange string

// The changes.
const (
	Opened  ConnectionChange = "opened"
	Closed  ConnectionChange = "closed"
	Lost    ConnectionChange = "lost"
	Refused ConnectionChange = "refused"
)

// Annotation is an annotation of a pod.
type Annotation struct{ Pod, Name string }

// Drain is the end of a drain.
type Drain struct {
	Duration time.Duration
	CutOff   int
}

// The causes of ejections.
const (
	NoAnswer     = "no_answer"
	ServerErrors = "server_errors"
)

// Ejection is an ejection of an instance, or one that was refused.
type Ejection struct {
	Service, Pod, Address string
	Cause                 string
	Refused               bool
	Duration              time.Duration
	Err                   error
}

// ServedCall is a call that a gRPC server has served.
type ServedCall struct {
	Service, Method string
	Code            codes.Code
	Duration        time.Duration
}

// ServedRequest is a request that a web service has served.
type ServedRequest struct {
	Service, Route string
	Status         int
	Duration       time.Duration
}

// Hub holds the callbacks of a registry. Its zero value has none. It is safe for concurrent use.
type Hub struct{ callbacks atomic.Pointer[Callbacks] }

// Set replaces the callbacks; nil stands for none.
func (h *Hub) Set(c *Callbacks) { h.callbacks.Store(c) }

// none is what Get returns without callbacks.
var none Callbacks

// Get returns the callbacks, which may all be nil. The hub may be nil.
func (h *Hub) Get() *Callbacks {
	if h == nil {
		return &none
	}
	if c := h.callbacks.Load(); c != nil {
		return c
	}
	return &none
}

// Served begins the measurement of a call that a server serves. Without a callback it measures nothing.
func (h *Hub) Served() Measurement {
	if c := h.Get(); c.ServedCall != nil {
		return Measurement{callbacks: c, begin: time.Now()}
	}
	return Measurement{}
}

// Called begins the measurement of a call of a client.
func (h *Hub) Called() Measurement {
	if c := h.Get(); c.CallEnded != nil {
		return Measurement{callbacks: c, begin: time.Now()}
	}
	return Measurement{}
}

// Measurement is the measurement of one call. Its zero value measures nothing.
type Measurement struct {
	callbacks *Callbacks
	begin     time.Time
}

// Active reports whether somebody wants to know the end.
func (m Measurement) Active() bool { return m.callbacks != nil }

// Called reports the end of a call of a client. sent and err are as for CodeOf.
func (m Measurement) Called(ctx context.Context, c Call, sent codes.Code, err error) {
	if m.callbacks != nil {
		c.Duration, c.Code = time.Since(m.begin), CodeOf(ctx, sent, c.Attempts, err)
		m.callbacks.CallEnded(ctx, c)
	}
}

// Served reports the end of a call that a server has served.
func (m Measurement) Served(ctx context.Context, c ServedCall) {
	if m.callbacks != nil {
		c.Duration = time.Since(m.begin)
		m.callbacks.ServedCall(ctx, c)
	}
}
