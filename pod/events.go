package pod

import (
	"context"
	"time"

	"github.com/micro/go-micro/v2/registry"
)

// Events are callbacks for the collection of metrics; a field may be nil. Pass them to
// NewRegistry with WithEvents. They report the events of that registry and of its
// selectors. The callbacks run in the goroutine of the call that they report, and must be
// fast and safe for concurrent use. The age of the snapshot that a selector chooses from is
// the time since Registry.LastContact.
type Events struct {
	// Picked reports that a call goes to an instance.
	Picked func(service, pod, address string)

	// Ejected reports that an instance gets no calls for a duration, and the error of
	// the call that caused the ejection. An instance that fails again is ejected again.
	Ejected func(service, pod, address string, duration time.Duration, cause error)

	// Readmitted reports that an ejected instance gets calls again, because it answered a
	// call or because of Selector.Reset, and the time since the first of its ejections in
	// a row.
	Readmitted func(service, pod, address string, after time.Duration)

	// APIError reports that a request to the API server began to fail, or fails with
	// another error than before, and with a nil error that it works again. The operation
	// is as in the log: watching service "greeter", watching this process's pod, or
	// writing service "greeter" to the pod.
	APIError func(operation string, err error)
}

type eventsKey struct{}

// WithEvents is an option of NewRegistry that adds callbacks. If several options add one,
// all of them are called. Init takes the option too, before the registry is used.
func WithEvents(e Events) registry.Option {
	return func(o *registry.Options) {
		ctx := o.Context
		if ctx == nil {
			ctx = context.Background()
		}
		o.Context = context.WithValue(ctx, eventsKey{}, eventsOf(*o).and(e))
	}
}

// eventsOf returns the callbacks that WithEvents has set.
func eventsOf(o registry.Options) Events {
	if o.Context == nil {
		return Events{}
	}
	e, _ := o.Context.Value(eventsKey{}).(Events)
	return e
}

// and returns the callbacks that call those of e and then those of f.
func (e Events) and(f Events) Events {
	if first, second := e.Picked, f.Picked; first == nil {
		e.Picked = second
	} else if second != nil {
		e.Picked = func(service, pod, address string) {
			first(service, pod, address)
			second(service, pod, address)
		}
	}
	if first, second := e.Ejected, f.Ejected; first == nil {
		e.Ejected = second
	} else if second != nil {
		e.Ejected = func(service, pod, address string, duration time.Duration, cause error) {
			first(service, pod, address, duration, cause)
			second(service, pod, address, duration, cause)
		}
	}
	if first, second := e.Readmitted, f.Readmitted; first == nil {
		e.Readmitted = second
	} else if second != nil {
		e.Readmitted = func(service, pod, address string, after time.Duration) {
			first(service, pod, address, after)
			second(service, pod, address, after)
		}
	}
	if first, second := e.APIError, f.APIError; first == nil {
		e.APIError = second
	} else if second != nil {
		e.APIError = func(operation string, err error) {
			first(operation, err)
			second(operation, err)
		}
	}
	return e
}
