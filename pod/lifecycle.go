package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/micro/go-micro/v2"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/server"
)

const (
	// defaultDrainWait is how long a pod still accepts new calls after it was told
	// to stop. Clients with this package stop calling it within milliseconds;
	// kube-proxy and other readers of a Service's endpoints need a second or two.
	defaultDrainWait = 3 * time.Second

	// stopMargin is the part of the grace period that is left for the time after
	// the last handler: go-micro gives its gRPC server up to one second to close
	// its connections.
	stopMargin = 3 * time.Second

	// confirmationTimeout is how long a stop waits at least for the API server to
	// confirm the deregistration, even if DrainWait is shorter.
	confirmationTimeout = time.Second
)

// LifecycleOption configures Lifecycle and WebLifecycle.
type LifecycleOption func(*lifecycle)

// DrainWait sets for how long a pod that was told to stop still accepts new calls
// while clients notice, 3 s by default. The wait is shorter if the pod's grace
// period leaves no room for it.
func DrainWait(d time.Duration) LifecycleOption { return func(l *lifecycle) { l.drainWait = d } }

// Lifecycle gives a gRPC service health checks, readiness and drain.
//
// Health: the server answers grpc.health.v1, Check and Watch, on its own port,
// without advertising it. The status of the names "", the service's own name and
// the names of its handlers is SERVING while the service is ready: the API server
// has confirmed the registration, and the process was not told to stop. The name
// "liveness" is SERVING as long as the process answers; liveness does not depend on
// the API server. Any other name is NOT_FOUND. Kubernetes' grpc probes use this
// protocol (KEP-2727).
//
// Start: a process that can never register, because it is not in a pod, does not
// start: Run returns the reason. A process whose registration is refused, or not
// answered, runs, is not ready, logs the reason, and retries.
//
// Stop: on SIGTERM, SIGINT or SIGQUIT, or at the end of micro.Context, the service
// becomes not ready and deregisters, accepts calls for DrainWait while clients
// notice, and then waits for the calls in flight. All of this ends 3 s before the
// pod's grace period, which the service reads from its pod. A second signal ends
// the wait at once. Run returns an error if calls in flight were cut off. At the
// end the registry is closed.
//
// Panics: a panic in a handler fails its call with the text "internal error" and is
// logged. Without this, go-micro sends the text of the panic to the caller, and a
// panic in the handler of a stream ends the process.
//
// If the service uses another registry, as with --registry=mdns, readiness does not
// depend on the registration.
func Lifecycle(r *Registry, opts ...LifecycleOption) micro.Option {
	return func(o *micro.Options) {
		l := newLifecycle(r, opts)
		o.BeforeStart = append(o.BeforeStart, func() error { return l.setUp(o.Server) })
		o.BeforeStop = append(o.BeforeStop, func() error {
			defer l.finish()
			l.deregister()
			return l.drain()
		})
		o.AfterStop = append(o.AfterStop, r.Close)
	}
}

// lifecycle is the life of one service from its start to its stop.
type lifecycle struct {
	registry      *Registry
	drainWait     time.Duration
	name          string        // of the service
	otherRegistry bool          // the service uses another registry
	stopping      chan struct{} // closed when the process is told to stop
	stopped       chan struct{} // closed when the drain has ended

	// Only the functions of the stop use these, one after the other.
	deadline     time.Time      // end of the drain
	signals      chan os.Signal // signals that arrive during the stop
	secondSignal os.Signal      // nil until one has arrived

	mu       sync.Mutex
	inFlight int           // calls whose handler has not returned
	idle     chan struct{} // closed when inFlight becomes 0; nil while nobody waits for that
}

func newLifecycle(r *Registry, opts []LifecycleOption) *lifecycle {
	l := &lifecycle{registry: r, drainWait: defaultDrainWait, stopping: make(chan struct{}), stopped: make(chan struct{})}
	for _, o := range opts {
		o(l)
	}
	return l
}

// setUp adds to a gRPC server, before it starts, what Lifecycle promises.
func (l *lifecycle) setUp(s server.Server) error {
	l.name, l.otherRegistry = s.Options().Name, s.Options().Registry != registry.Registry(l.registry)
	if !l.otherRegistry {
		if err := l.registry.registerInBackground(l.name); err != nil {
			return err
		}
	}
	if err := s.Handle(s.NewHandler(newHealth(l), server.InternalHandler(true))); err != nil {
		return fmt.Errorf("adding the health service: %w", err)
	}
	return s.Init(server.WrapHandler(l.countInFlight), server.WrapHandler(recoverPanics))
}

// draining reports whether the process was told to stop.
func (l *lifecycle) draining() bool {
	select {
	case <-l.stopping:
		return true
	default:
		return false
	}
}

// notReadyReason returns why the service should get no calls, "" if it should.
func (l *lifecycle) notReadyReason() string {
	switch {
	case l.draining():
		return "shutting down"
	case l.otherRegistry || l.registry.Registered():
		return ""
	}
	if err := l.registry.registrationError(); err != nil {
		return fmt.Sprintf("not registered: %v", err)
	}
	return "not registered yet"
}

// deregister makes the service not ready, takes its registration off the pod, and
// waits until the clients have noticed.
func (l *lifecycle) deregister() {
	begin := time.Now()
	l.signals = make(chan os.Signal, 1)
	signal.Notify(l.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT) // go-micro has received the first signal: this is the second
	close(l.stopping)
	l.registry.statusChanged.notify()

	waitEnd := begin.Add(l.drainWait)
	if l.setDeadline(begin); l.deadline.Before(waitEnd) {
		waitEnd = l.deadline
	}
	logger.Infof("Shutting down: deregistering, and accepting calls for %s more while clients notice", max(0, time.Until(waitEnd)).Round(time.Millisecond))
	l.registry.deregisterAll()
	wait, confirmation := time.NewTimer(time.Until(waitEnd)), time.NewTimer(max(time.Until(waitEnd), confirmationTimeout))
	defer wait.Stop()
	defer confirmation.Stop()
	select {
	case <-wait.C:
	case l.secondSignal = <-l.signals:
	}
	for l.secondSignal == nil {
		changed := l.registry.statusChanged.wait()
		if !l.registry.deregistrationPending() {
			break
		}
		select {
		case <-changed:
			continue
		case <-confirmation.C:
		case l.secondSignal = <-l.signals:
		}
		logger.Warnf("Deregistering: the API server has not confirmed it")
		break
	}
	l.setDeadline(begin) // the pod's deletion, with another grace period, may be known by now
}

// setDeadline sets the end of the drain from what is known of the pod's grace period.
func (l *lifecycle) setDeadline(begin time.Time) {
	l.deadline = begin.Add(max(0, l.registry.gracePeriod()-stopMargin))
}

// drain waits until no call is in flight.
func (l *lifecycle) drain() error {
	l.mu.Lock()
	idle := make(chan struct{})
	if l.inFlight == 0 {
		l.mu.Unlock()
		return nil
	}
	l.idle = idle
	l.mu.Unlock()
	ctx, cancel := l.drainContext()
	defer cancel()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Errorf("waiting for calls in flight: %d cut off: %w", l.inFlight, context.Cause(ctx))
}

// drainContext returns a context that ends, with its cause, at the deadline or with
// a second signal.
func (l *lifecycle) drainContext() (context.Context, context.CancelFunc) {
	left := max(0, time.Until(l.deadline))
	logger.Infof("Waiting for calls in flight, for %s at most", left.Round(time.Millisecond))
	timed, stop := context.WithTimeoutCause(context.Background(), left, errors.New("the pod's grace period ends"))
	ctx, cancel := context.WithCancelCause(timed)
	if l.secondSignal != nil {
		cancel(fmt.Errorf("a second signal: %s", l.secondSignal))
	}
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case s := <-l.signals:
			cancel(fmt.Errorf("a second signal: %s", s))
		case <-ctx.Done():
		}
	})
	return ctx, func() { stop(); watcher.Wait() }
}

// finish ends the goroutines and channels that outlive the handlers.
func (l *lifecycle) finish() {
	signal.Stop(l.signals)
	close(l.stopped)
}

// countInFlight counts the calls in flight, except those of the server's own services.
func (l *lifecycle) countInFlight(h server.HandlerFunc) server.HandlerFunc {
	return func(ctx context.Context, req server.Request, rsp interface{}) error {
		if handler, _, _ := strings.Cut(req.Method(), "."); slices.Contains(internalHandlers, handler) {
			return h(ctx, req, rsp)
		}
		l.mu.Lock()
		l.inFlight++
		l.mu.Unlock()
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.inFlight--; l.inFlight == 0 && l.idle != nil {
				close(l.idle)
				l.idle = nil
			}
		}()
		return h(ctx, req, rsp)
	}
}

// recoverPanics keeps the text of a panic from callers, and keeps a panic in the
// handler of a stream from ending the process.
func recoverPanics(h server.HandlerFunc) server.HandlerFunc {
	return func(ctx context.Context, req server.Request, rsp interface{}) (err error) {
		const microServer = "go.micro.server" // the id of go-micro's error for a panic
		internalError := microerrors.InternalServerError(microServer, "internal error")
		defer func() {
			if p := recover(); p != nil { // only of a stream: go-micro recovers and logs the others
				logger.Errorf("panic recovered: %v\n%s", p, debug.Stack())
				err = internalError
			}
		}()
		err = h(ctx, req, rsp)
		var e *microerrors.Error
		if errors.As(err, &e) && e.Id == microServer && strings.HasPrefix(e.Detail, "panic recovered: ") {
			return internalError
		}
		return err
	}
}
