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

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/registration"
	"github.com/micro/go-micro/v2"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"google.golang.org/grpc"
)

const (
	// defaultDrainWait is how long a pod still accepts new calls after the signal to
	// stop. Clients with this package stop calling it within milliseconds;
	// kube-proxy and other readers of a Service's endpoints need a second or two.
	defaultDrainWait = 3 * time.Second

	// stopMargin is the part of the grace period that is kept for the work after the
	// drain: go-micro gives its gRPC server up to one second to close its
	// connections.
	stopMargin = 3 * time.Second

	// confirmationTimeout is how long a stop waits for the API server to confirm the
	// deregistration if DrainWait is shorter than that.
	confirmationTimeout = time.Second
)

// LifecycleOption configures Lifecycle and WebLifecycle.
type LifecycleOption func(*lifecycle)

// DrainWait sets how long a pod still accepts new calls after the signal to stop, while
// clients notice, 3 s by default. The wait is shorter if the pod's grace period leaves
// no room for it.
func DrainWait(d time.Duration) LifecycleOption { return func(l *lifecycle) { l.drainWait = d } }

// Lifecycle gives a gRPC service health checks, readiness and drain.
//
// Health: the server answers grpc.health.v1, Check and Watch, on its own port,
// without advertising it. The status of the names "", the service's own name and
// the names of its handlers is SERVING while the service is ready: the API server
// has confirmed the registration, and the process has received no signal to stop. The
// name "liveness" is SERVING as long as the process answers; liveness does not depend on
// the API server. Any other name is NOT_FOUND. Kubernetes' grpc probes use this
// protocol (KEP-2727).
//
// Start: a process that can never register, because it is not in a pod, does not
// start: Run returns the reason. A process whose registration is refused or gets no
// answer keeps running, is not ready, logs the reason, and retries.
//
// Stop: on SIGTERM, SIGINT or SIGQUIT, or at the end of micro.Context, the service
// becomes not ready and deregisters, accepts calls for DrainWait while clients
// notice, and then waits for the calls in flight: for handlers with all wrappers of
// micro.WrapHandler, for streams, which should end when the channel of Draining is
// closed, and for subscribers. All of this ends 3 s before the end of the pod's grace
// period, which the service reads from its pod. Like the kubelet, the service counts the
// grace period from the deletion of the pod, so that it includes the time of a preStop
// hook. A second signal ends the wait at once. Run returns an error if calls in flight were cut off. The last
// lifecycle that uses the registry closes it.
//
// Panics: a panic in a handler fails its call with the text "internal error" and is
// logged. Without this, go-micro sends the text of the panic to the caller, and a
// panic in the handler of a stream ends the process.
//
// Errors: if a handler returns an error that it got from go-micro's client, which has
// the id go.micro.client, the service's name replaces that id, so that callers can tell
// the error from one of their own client. Its code and text stay.
//
// Flow control: up to 1 MiB of a stream, and of a connection, may be unread, unless grpcs.Options
// has set other windows.
//
// If the service uses another registry, as with --registry=mdns, readiness does not
// depend on the registration.
func Lifecycle(r *Registry, opts ...LifecycleOption) micro.Option {
	return func(o *micro.Options) {
		l := newLifecycle(r, opts)
		o.BeforeStart = append(o.BeforeStart, func() error { return l.setUp(o.Server) })
		o.BeforeStop = append(o.BeforeStop, func() error {
			defer close(l.drained)
			l.deregister()
			return l.drain("calls", &l.messages, &l.calls) // calls last: they may still arrive
		})
		o.AfterStop = append(o.AfterStop, func() error { // the server has ended its subscriptions
			defer signal.Stop(l.signals)
			return errors.Join(l.drain("messages", &l.lateMessages), r.release())
		})
	}
}

// lifecycle is the life of one service from its start to its stop.
type lifecycle struct {
	registry          *Registry
	registration      *registration.Service // of the registry
	drainWait         time.Duration
	name              string        // of the service
	usesOtherRegistry bool          // the service uses another registry
	stopping          chan struct{} // closed when the stop begins
	drained           chan struct{} // closed when the calls in flight have ended, or were given up

	// Only the functions that run during the stop, one after the other, use these fields.
	deadline     time.Time      // end of the drain
	signals      chan os.Signal // signals that arrive during the stop
	secondSignal os.Signal      // nil until one has arrived

	calls        inFlight // calls of handlers
	messages     inFlight // messages of subscribers that arrived before the stop
	lateMessages inFlight // messages of subscribers that arrived during the stop
}

func newLifecycle(r *Registry, opts []LifecycleOption) *lifecycle {
	l := &lifecycle{registry: r, registration: r.registration, drainWait: defaultDrainWait, stopping: make(chan struct{}), drained: make(chan struct{})}
	for _, o := range opts {
		o(l)
	}
	return l
}

// setUp adds the health service and the wrappers to a gRPC server before it starts.
func (l *lifecycle) setUp(s server.Server) error {
	if err := l.useRegistry(s.Options().Name, s.Options().Registry); err != nil {
		return err
	}
	if err := s.Handle(s.NewHandler(newHealth(l), server.InternalHandler(true))); err != nil {
		return fmt.Errorf("adding the health service: %w", err)
	}
	err := s.Init(server.WrapHandler(recoverPanics), func(o *server.Options) { // the first wrapper is the outermost
		o.HdlrWrappers = append([]server.HandlerWrapper{l.wrapHandler}, o.HdlrWrappers...)
		o.SubWrappers = append([]server.SubscriberWrapper{l.countMessages}, o.SubWrappers...)
		fixWindows(o)
	})
	if err == nil {
		l.registry.retain()
	}
	return err
}

// fixWindows gives a gRPC server fixed flow-control windows, unless grpcs.Options has set others.
func fixWindows(o *server.Options) {
	if gomicro.Check() != nil {
		return
	}
	windows := []grpc.ServerOption{grpc.StaticStreamWindowSize(gomicro.FlowControlWindow), grpc.StaticConnWindowSize(gomicro.FlowControlWindow)}
	grpcs.Options(append(windows, gomicro.ServerOptions(*o)...)...)(o)
}

// useRegistry records which registry the service uses. The error says why the service can
// never register there.
func (l *lifecycle) useRegistry(service string, used registry.Registry) error {
	l.name, l.usesOtherRegistry = service, used != registry.Registry(l.registry)
	if l.usesOtherRegistry {
		logger.Infof("Service %q uses registry %q: it is ready whether or not it is registered", service, used)
		return nil
	}
	return l.registration.InBackground(service)
}

// draining reports whether the stop has begun.
func (l *lifecycle) draining() bool {
	select {
	case <-l.stopping:
		return true
	default:
		return false
	}
}

// notReadyReason returns why the service should get no calls, "" if it is ready.
func (l *lifecycle) notReadyReason() string {
	switch {
	case l.draining():
		return "shutting down"
	case l.usesOtherRegistry || l.registration.Registered():
		return ""
	}
	if err := l.registration.LastError(); err != nil {
		return fmt.Sprintf("not registered: %v", err)
	}
	return "not registered yet"
}

// deregister makes the service not ready, removes its registration from the pod, and
// waits until the clients have noticed.
func (l *lifecycle) deregister() {
	begin := time.Now()
	l.signals = make(chan os.Signal, 1)
	signal.Notify(l.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT) // go-micro has received the first signal: this is the second
	close(l.stopping)

	waitEnd := begin.Add(l.drainWait)
	if l.setDeadline(begin); l.deadline.Before(waitEnd) {
		waitEnd = l.deadline
	}
	logger.Infof("Shutting down: deregistering, and accepting calls for %s more while clients notice", max(0, time.Until(waitEnd)).Round(100*time.Millisecond))
	l.registration.DeregisterAll()
	wait, confirmation := time.NewTimer(time.Until(waitEnd)), time.NewTimer(max(time.Until(waitEnd), confirmationTimeout))
	defer wait.Stop()
	defer confirmation.Stop()
	select {
	case <-wait.C:
	case l.secondSignal = <-l.signals:
	}
	for l.secondSignal == nil {
		changed := l.registration.Changed()
		if !l.registration.DeregistrationPending() {
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
	l.setDeadline(begin) // by now the registry may have seen the pod's deletion, with another grace period
}

// setDeadline computes the end of the drain from the pod's grace period, as far as the
// registry knows it. The kubelet counts the grace period from when it sees the deletion
// of the pod, and runs a preStop hook within that time, before it sends SIGTERM.
func (l *lifecycle) setDeadline(begin time.Time) {
	if deletion := l.registration.TerminatingSince(); !deletion.IsZero() && deletion.Before(begin) {
		begin = deletion
	}
	l.deadline = begin.Add(max(0, l.registration.GracePeriod()-stopMargin))
}

// drain waits until nothing of the given kinds is in flight. The log and the error call
// them by the given name.
func (l *lifecycle) drain(what string, kinds ...*inFlight) error {
	busy := false
	for _, k := range kinds {
		busy = busy || k.count() > 0
	}
	if !busy {
		return nil
	}
	ctx, cancel := l.drainContext(what)
	defer cancel()
	cutOff := 0
	for _, k := range kinds {
		cutOff += k.wait(ctx)
	}
	if cutOff == 0 {
		return nil
	}
	return fmt.Errorf("waiting for %s in flight: %d cut off: %w", what, cutOff, context.Cause(ctx))
}

// drainContext returns a context that ends, with its cause, at the deadline or with
// a second signal.
func (l *lifecycle) drainContext(what string) (context.Context, context.CancelFunc) {
	left := max(0, time.Until(l.deadline))
	logger.Infof("Waiting for %s in flight, for %s at most", what, left.Round(100*time.Millisecond))
	timed, stop := context.WithTimeoutCause(context.Background(), left, errors.New("the pod's grace period ends"))
	ctx, cancel := context.WithCancelCause(timed)
	if l.secondSignal != nil {
		cancel(fmt.Errorf("a second signal: %s", l.secondSignal))
	}
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case l.secondSignal = <-l.signals:
			cancel(fmt.Errorf("a second signal: %s", l.secondSignal))
		case <-ctx.Done():
		}
	})
	return ctx, func() { stop(); watcher.Wait() }
}

// wrapHandler counts the calls in flight, except those of the server's own services, and gives
// handlers the channel that Draining returns. It also calls gomicro.CapitalizeHeaders and ownError. One
// wrapper does all this, because go-micro's server allocates memory for each wrapper of each call.
func (l *lifecycle) wrapHandler(h server.HandlerFunc) server.HandlerFunc {
	return func(ctx context.Context, req server.Request, rsp interface{}) error {
		gomicro.CapitalizeHeaders(ctx)
		if handler, _, _ := strings.Cut(req.Method(), "."); !slices.Contains(internalHandlers, handler) {
			l.calls.begin()
			defer l.calls.end()
			ctx = context.WithValue(ctx, drainingKey{}, l.stopping)
		}
		return l.ownError(h(ctx, req, rsp))
	}
}

// countMessages counts for subscribers what wrapHandler counts for handlers. Messages arrive
// until the server has ended its subscriptions, which it does after the drain. If the
// drain waited for messages that arrive meanwhile, it might never end.
func (l *lifecycle) countMessages(h server.SubscriberFunc) server.SubscriberFunc {
	return func(ctx context.Context, msg server.Message) error {
		messages := &l.messages
		if l.draining() {
			messages = &l.lateMessages
		}
		messages.begin()
		defer messages.end()
		return h(context.WithValue(ctx, drainingKey{}, l.stopping), msg)
	}
}

// ownError replaces the id of an error of go-micro's client that a handler returns by
// the service's name. Otherwise the caller's selector would take the error for a failure
// of this instance.
func (l *lifecycle) ownError(err error) error {
	if e, ok := err.(*microerrors.Error); ok && e.Id == gomicro.ClientID { //nolint:errorlint // go-micro's server sends the id of no wrapped error
		return microerrors.New(l.name, e.Detail, e.Code)
	}
	return err
}

// recoverPanics hides the text of a panic from callers, and prevents a panic in the
// handler of a stream from ending the process.
func recoverPanics(h server.HandlerFunc) server.HandlerFunc {
	return func(ctx context.Context, req server.Request, rsp interface{}) (err error) {
		const microServer = "go.micro.server" // the id of go-micro's error for a panic
		defer func() {
			if p := recover(); p != nil { // the handler of a stream: go-micro recovers and logs other panics
				logger.Errorf("panic recovered: %v\n%s", p, debug.Stack())
				err = microerrors.InternalServerError(microServer, "internal error")
			}
		}()
		if err = h(ctx, req, rsp); err == nil {
			return nil
		}
		var e *microerrors.Error
		if errors.As(err, &e) && e.Id == microServer && strings.HasPrefix(e.Detail, "panic recovered: ") {
			return microerrors.InternalServerError(microServer, "internal error")
		}
		return err
	}
}

// inFlight counts the calls or messages in flight. It is safe for concurrent use.
type inFlight struct {
	mu   sync.Mutex
	n    int
	idle broadcast.Broadcast // notified when n becomes 0
}

// begin counts one more call or message until end is called.
func (f *inFlight) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
}

func (f *inFlight) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n--; f.n == 0 {
		f.idle.Notify()
	}
}

func (f *inFlight) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

// wait waits until nothing is in flight or ctx ends, and returns the number still in flight.
func (f *inFlight) wait(ctx context.Context) (left int) {
	for {
		idle := f.idle.Wait()
		n := f.count()
		if n == 0 {
			return 0
		}
		select {
		case <-idle:
		case <-ctx.Done():
			return n
		}
	}
}

// drainingKey is the context key of the channel that Draining returns.
type drainingKey struct{}

// Draining returns a channel that is closed when the service begins to stop. ctx is the
// context that a service with Lifecycle or WebLifecycle gives to a handler, including the
// handler of a stream, or to a subscriber. For any other context the channel is nil, and a
// receive from it blocks for ever. A handler that sends without end, as for a stream or
// server-sent events, should return when the channel is closed: the stop waits for the
// handler as long as the pod's grace period allows, and then cuts it off.
func Draining(ctx context.Context) <-chan struct{} {
	stopping, _ := ctx.Value(drainingKey{}).(chan struct{})
	return stopping
}
