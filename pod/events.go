package pod

import (
	"context"
	"net/http"
	"runtime/debug"
	"slices"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
	"google.golang.org/grpc/codes"
)

// Events are callbacks for the collection of metrics; a field may be nil, and then its event costs nothing. Pass them to NewRegistry with
// WithEvents. They report the events of that registry, of its clients, and of the services with a Lifecycle or WebLifecycle that use it.
// The callbacks run in the goroutine of the call or probe that they report, and must be fast and safe for concurrent use. A panic of Picked
// reaches the caller. A panic of another callback is logged, because it may happen in a goroutine of this package, where it would end the
// process. Registry.Status returns what changes without an event, such as the age of the snapshot that a client chooses from. Package
// pod/metrics uses both.
type Events struct {
	// Picked reports that a call goes to an instance.
	Picked func(service, pod, address string)

	// AttemptEnded reports the end of an attempt of a call, or of a stream, that went to an instance of the registry. A call has one
	// attempt, and one more for each retry and each second attempt of Hedge.
	AttemptEnded func(Attempt)

	// CallEnded reports the end of a call of a Client, with all its retries, or the end of a stream. ctx is the context of the call, below
	// all wrappers of client.Wrap. Its metadata contain the ids of the trace.
	CallEnded func(ctx context.Context, c Call)

	// RetryDecided reports that a failed attempt of a call is repeated, that Hedge makes a second attempt, or that one of them is refused.
	// An attempt for which no instance was found is repeated without a report. ctx is as for CallEnded.
	RetryDecided func(ctx context.Context, r Retry)

	// Ejected reports that an instance gets no calls for a duration, and the error of the call or probe that caused the ejection. An
	// instance that fails again is ejected again. An ejection for no answer ends earlier if the instance answers.
	Ejected func(service, pod, address string, duration time.Duration, cause error)

	// EjectionDecided reports the same ejections as Ejected, with the kind of their cause, and also those that are refused because half of
	// the instances are ejected already (gRFC A91 calls them unenforced). An instance that keeps failing is reported each time.
	EjectionDecided func(Ejection)

	// Readmitted reports that an ejected instance gets calls again, because it answered a call or a probe, and the time since the first of
	// its ejections in a row.
	Readmitted func(service, pod, address string, after time.Duration)

	// ConnectionChanged reports what happens to a connection of a Client to an instance. While there is such a callback, each connection
	// has a goroutine.
	ConnectionChanged func(service, pod, address string, change ConnectionChange)

	// ServedCall reports the end of a call or stream that a service with Lifecycle has served. Calls of health, reflection and go-micro's
	// Debug are not reported. The metadata of ctx are grpc-go's.
	ServedCall func(ctx context.Context, c ServedCall)

	// ServedRequest reports the end of a request that a service with WebLifecycle has served. The probes of /healthz and /readyz are not
	// reported.
	ServedRequest func(r *http.Request, s ServedRequest)

	// Patched reports a PATCH request for the process's own pod, and its error, nil if the API server has accepted it.
	Patched func(service string, err error)

	// SkippedRegistration reports that the registration in an annotation of another pod is skipped, once until it changes, and why. The
	// callback must not use the registry.
	SkippedRegistration func(pod, annotation string, err error)

	// Drained reports the end of the drain of a service, the time since the signal to stop, and how many calls, messages or requests were
	// cut off. The process usually ends right after.
	Drained func(service string, took time.Duration, cutOff int)

	// APIError reports that a request to the API server began to fail, or fails with another error than before, and with a nil error that
	// it works again. The operation is as in the log: watching service "greeter", watching this process's pod, or writing service
	// "greeter" to the pod.
	APIError func(operation string, err error)
}

// Call is a call or stream of a Client that has ended.
type Call struct {
	Service, Method string // such as go-micro-srv and Greeter.Hello
	IsStream        bool
	Code            codes.Code // of the last attempt; UNAVAILABLE if no instance was found
	Attempts        int        // 0 if no instance was found; each one after the first is a retry; second attempts of Hedge do not count
	Duration        time.Duration
}

// Retry is a retry of a call, or a second attempt of Hedge, that is made or refused.
type Retry struct {
	Service string
	IsHedge bool
	Refusal string // over_budget, chain_stopped or pushed_back, as Retries counts them; empty if it is made
}

// Attempt is an attempt of a call, or a stream, that has ended.
type Attempt struct {
	Service, Pod, Address string
	Zone                  string // same or other, as the zone of this process; "" if one of them is not known
	Outcome               string // answered, server_error, refused, timed_out, lost_connection, or inconclusive, as after a cancellation
	Duration              time.Duration
	Err                   error // nil if it succeeded
}

// Ejection is an ejection of an instance, or one that was refused.
type Ejection struct {
	Service, Pod, Address string
	Cause                 string // no_answer or server_errors
	Refused               bool
	Duration              time.Duration // 0 if it was refused
	Err                   error         // of the last call or probe
}

// ConnectionChange says what has happened to a connection.
type ConnectionChange string

// The changes of a connection.
const (
	ConnectionOpened  ConnectionChange = "opened"
	ConnectionClosed  ConnectionChange = "closed"  // by the client: it was idle, or the instance has left
	ConnectionLost    ConnectionChange = "lost"    // by the instance or the network
	ConnectionRefused ConnectionChange = "refused" // it was not made
)

// ServedCall is a call or stream that a service has served.
type ServedCall struct {
	Service, Method string // such as go-micro-srv and Greeter/Hello; the method is _OTHER if the service does not have it
	Code            codes.Code
	Duration        time.Duration
}

// ServedRequest is a request that a web service has served.
type ServedRequest struct {
	Service, Route string // the route is the pattern of http.ServeMux, "" if the handler is not found
	Status         int
	Duration       time.Duration
}

// WithEvents is an option of NewRegistry that adds callbacks. If several options add some, all of them are called, in the order of the
// options. Init takes the option too, before the registry is used.
func WithEvents(e Events) registry.Option {
	return func(o *registry.Options) { setOption(eventsKey, append(slices.Clip(observersOf(*o)), e))(o) }
}

// eventObservers are the callbacks of all options WithEvents.
type eventObservers []Events

func observersOf(o registry.Options) eventObservers {
	all, _ := optionOf[eventObservers](o, eventsKey)
	return all
}

// ofBalancer returns the callbacks that the balancer calls.
func (all eventObservers) ofBalancer() (observers []balancer.Events) {
	for _, e := range all {
		b := balancer.Events{Picked: e.Picked}
		if e.AttemptEnded != nil {
			b.AttemptEnded = func(a events.Attempt) {
				defer logPanic("AttemptEnded")
				e.AttemptEnded(Attempt(a))
			}
		}
		if e.Ejected != nil {
			b.Ejected = func(service, pod, address string, duration time.Duration, cause error) {
				defer logPanic("Ejected")
				e.Ejected(service, pod, address, duration, cause)
			}
		}
		if e.EjectionDecided != nil {
			b.EjectionDecided = func(j events.Ejection) {
				defer logPanic("EjectionDecided")
				e.EjectionDecided(Ejection(j))
			}
		}
		if e.Readmitted != nil {
			b.Readmitted = func(service, pod, address string, after time.Duration) {
				defer logPanic("Readmitted")
				e.Readmitted(service, pod, address, after)
			}
		}
		observers = append(observers, b)
	}
	return observers
}

func (all eventObservers) apiError(operation string, err error) {
	for _, e := range all {
		if e.APIError != nil {
			func() {
				defer logPanic("APIError")
				e.APIError(operation, err)
			}()
		}
	}
}

// callbacks returns the other callbacks as one set, nil if there are none.
func (all eventObservers) callbacks() *events.Callbacks {
	if len(all) == 0 {
		return nil
	}
	c := &events.Callbacks{}
	for _, e := range all {
		if f := e.CallEnded; f != nil {
			addCallback(&c.CallEnded, "CallEnded", func(ctx context.Context, k events.Call) { f(ctx, Call(k)) })
		}
		if f := e.RetryDecided; f != nil {
			addCallback(&c.RetryDecided, "RetryDecided", func(ctx context.Context, r events.Retry) { f(ctx, Retry(r)) })
		}
		if f := e.ConnectionChanged; f != nil {
			addCallback(&c.ConnectionChanged, "ConnectionChanged", func(i events.Instance, change events.ConnectionChange) {
				f(i.Service, i.Pod, i.Address, ConnectionChange(change))
			})
		}
		if f := e.ServedCall; f != nil {
			addCallback(&c.ServedCall, "ServedCall", func(ctx context.Context, k events.ServedCall) { f(ctx, ServedCall(k)) })
		}
		if f := e.ServedRequest; f != nil {
			addCallback(&c.ServedRequest, "ServedRequest", func(r *http.Request, s events.ServedRequest) { f(r, ServedRequest(s)) })
		}
		if f := e.Patched; f != nil {
			addCallback(&c.Patched, "Patched", f)
		}
		if f := e.SkippedRegistration; f != nil {
			addCallback(&c.SkippedRegistration, "SkippedRegistration", func(a events.Annotation, err error) { f(a.Pod, a.Name, err) })
		}
		if f := e.Drained; f != nil {
			addCallback(&c.Drained, "Drained", func(service string, d events.Drain) { f(service, d.Duration, d.CutOff) })
		}
	}
	return c
}

// addCallback makes a field of events.Callbacks call f after what it calls already.
func addCallback[A, B any](field *func(A, B), name string, f func(A, B)) {
	before := *field
	*field = func(a A, b B) {
		if before != nil {
			before(a, b)
		}
		defer logPanic(name)
		f(a, b)
	}
}

// logPanic keeps a panic of a callback from ending the process. It must be deferred.
func logPanic(callback string) {
	if r := recover(); r != nil {
		logger.Errorf("Registry [kubernetes] Reporting to the callback %s of pod.WithEvents: panic: %v\n%s", callback, r, debug.Stack())
	}
}
