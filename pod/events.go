package pod

import (
	"context"
	"slices"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/micro/go-micro/v2/registry"
)

// Events are callbacks for the collection of metrics; a field may be nil. Pass them to
// NewRegistry with WithEvents. They report the events of that registry and of its
// clients. The callbacks run in the goroutine of the call that they report, and must be
// fast and safe for concurrent use. The age of the snapshot that a client chooses from is
// the time since Registry.LastContact.
type Events struct {
	// Picked reports that a call goes to an instance.
	Picked func(service, pod, address string)

	// Ejected reports that an instance gets no calls for a duration, and the error of
	// the call that caused the ejection. An instance that fails again is ejected again.
	Ejected func(service, pod, address string, duration time.Duration, cause error)

	// Readmitted reports that an ejected instance gets calls again, because it answered a
	// call, and the time since the first of its ejections in a row.
	Readmitted func(service, pod, address string, after time.Duration)

	// APIError reports that a request to the API server began to fail, or fails with
	// another error than before, and with a nil error that it works again. The operation
	// is as in the log: watching service "greeter", watching this process's pod, or
	// writing service "greeter" to the pod.
	APIError func(operation string, err error)
}

type eventsKey struct{}

// WithEvents is an option of NewRegistry that adds callbacks. If several options add some,
// all of them are called, in the order of the options. Init takes the option too, before the
// registry is used.
func WithEvents(e Events) registry.Option {
	return func(o *registry.Options) {
		ctx := o.Context
		if ctx == nil {
			ctx = context.Background()
		}
		o.Context = context.WithValue(ctx, eventsKey{}, append(slices.Clip(observersOf(*o)), e))
	}
}

// eventObservers are the callbacks of all options WithEvents.
type eventObservers []Events

func observersOf(o registry.Options) eventObservers {
	if o.Context == nil {
		return nil
	}
	all, _ := o.Context.Value(eventsKey{}).(eventObservers)
	return all
}

// ofBalancer returns the callbacks that the balancer calls.
func (all eventObservers) ofBalancer() (events []balancer.Events) {
	for _, e := range all {
		events = append(events, balancer.Events{Picked: e.Picked, Ejected: e.Ejected, Readmitted: e.Readmitted})
	}
	return events
}

func (all eventObservers) apiError(operation string, err error) {
	for _, e := range all {
		if e.APIError != nil {
			e.APIError(operation, err)
		}
	}
}
