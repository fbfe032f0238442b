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
	// drainWait is how long a pod that was told to stop still takes new calls.
	// Clients with this package stop within milliseconds; kube-proxy and others
	// who follow a Service's endpoints want a second or two.
	drainWait = 3 * time.Second

	// drainMargin of the grace period is left for what comes after the handlers:
	// go-micro gives its gRPC server up to one second to close its connections.
	drainMargin = 3 * time.Second

	// confirmLimit is how long a stop waits at most for the API server's word,
	// where DrainWait is shorter.
	confirmLimit = time.Second

	// gracePeriod is Kubernetes' default, for where the pod's own is not known.
	gracePeriod = 30 * time.Second
)

// LifecycleOption changes what Lifecycle and WebLifecycle do.
type LifecycleOption func(*lifecycle)

// DrainWait sets for how long a pod that was told to stop still takes calls from
// those who have not noticed yet, 3 s by default. It is cut short where the
// pod's grace period leaves no room for it.
func DrainWait(d time.Duration) LifecycleOption { return func(l *lifecycle) { l.wait = d } }

// Lifecycle gives a gRPC service health, readiness and drain.
//
// Health: the server answers grpc.health.v1, Check and Watch, on its own port
// and without advertising it. The names "", the service's own and those of its
// handlers say whether it is ready: the API server has confirmed the
// registration, and nobody has told the process to stop. The name "liveness"
// says that the process answers, whatever the API server does. Other names are
// NOT_FOUND. Kubernetes' grpc probes ask so (KEP-2727).
//
// Start: a process that can never register, as it is not in a pod, does not
// start: Run returns why. One whose registration is refused, or not answered,
// runs, is not ready, says why in its log, and tries on.
//
// Stop: on SIGTERM, SIGINT or SIGQUIT, or the end of micro.Context, it is not
// ready any more and is deregistered, takes calls for DrainWait from who has not
// noticed, and then waits for the handlers that run. All of it ends 3 s before
// the pod's grace period does, which it learns from the pod. A second signal
// ends it at once. Run then returns an error if handlers were cut off. At the
// end the registry is closed.
//
// Panics: one in a handler fails its call, as "internal error", and is logged.
// go-micro alone sends callers its text, and ends with one in a stream's handler.
//
// With another registry, as with --registry=mdns, being registered does not count.
func Lifecycle(r *Registry, opts ...LifecycleOption) micro.Option {
	return func(o *micro.Options) {
		l := newLifecycle(r, opts)
		o.BeforeStart = append(o.BeforeStart, func() error { return l.serve(o.Server) })
		o.BeforeStop = append(o.BeforeStop, func() error {
			defer l.stopped()
			l.begin()
			return l.handlers()
		})
		o.AfterStop = append(o.AfterStop, r.Close)
	}
}

// lifecycle is one service's life from start to stop.
type lifecycle struct {
	registry *Registry
	wait     time.Duration
	name     string        // the service's
	foreign  bool          // the service uses another registry
	begun    chan struct{} // closed when the process is told to stop
	ended    chan struct{}

	// The stop's own, one function after the other:
	deadline time.Time
	signals  chan os.Signal // from the first on
	second   os.Signal      // the one that ends waiting

	mu    sync.Mutex
	calls int           // handlers that run
	idle  chan struct{} // closed when none does; nil while nobody asks
}

func newLifecycle(r *Registry, opts []LifecycleOption) *lifecycle {
	l := &lifecycle{registry: r, wait: drainWait, begun: make(chan struct{}), ended: make(chan struct{})}
	for _, o := range opts {
		o(l)
	}
	return l
}

// serve adds to a gRPC server, before it starts, what Lifecycle promises.
func (l *lifecycle) serve(s server.Server) error {
	l.name, l.foreign = s.Options().Name, s.Options().Registry != registry.Registry(l.registry)
	if !l.foreign {
		if err := l.registry.inBackground(l.name); err != nil {
			return err
		}
	}
	if err := s.Handle(s.NewHandler(newHealth(l), server.InternalHandler(true))); err != nil {
		return fmt.Errorf("adding the health service: %w", err)
	}
	return s.Init(server.WrapHandler(l.count), server.WrapHandler(contain))
}

// draining says whether the process was told to stop.
func (l *lifecycle) draining() bool {
	select {
	case <-l.begun:
		return true
	default:
		return false
	}
}

// unready says why the service should get no calls; "" when it should.
func (l *lifecycle) unready() string {
	switch {
	case l.draining():
		return "shutting down"
	case l.foreign || l.registry.Registered():
		return ""
	}
	if err := l.registry.refused(); err != nil {
		return fmt.Sprintf("not registered: %v", err)
	}
	return "not registered yet"
}

// begin makes the service not ready, takes it off the pod, and waits for those
// who call it to notice.
func (l *lifecycle) begin() {
	begin := time.Now()
	l.signals = make(chan os.Signal, 1)
	signal.Notify(l.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT) // the second one: go-micro has taken the first
	close(l.begun)
	l.registry.changed.send()

	until := begin.Add(l.wait)
	if l.limit(begin); l.deadline.Before(until) {
		until = l.deadline
	}
	logger.Infof("Shutting down: deregistering, and taking calls for %s from who has not noticed", max(0, time.Until(until)).Round(time.Millisecond))
	l.registry.withdraw()
	noticed, late := time.NewTimer(time.Until(until)), time.NewTimer(max(time.Until(until), confirmLimit))
	defer noticed.Stop()
	defer late.Stop()
	select {
	case <-noticed.C:
	case l.second = <-l.signals:
	}
	for l.second == nil {
		changed := l.registry.changed.next()
		if !l.registry.withdrawing() {
			break
		}
		select {
		case <-changed:
			continue
		case <-late.C:
		case l.second = <-l.signals:
		}
		logger.Warnf("Deregistering: the API server has not confirmed it")
		break
	}
	l.limit(begin) // the pod's deletion may be known by now, with another grace period
}

// limit sets the deadline by what is known of the pod's grace period.
func (l *lifecycle) limit(begin time.Time) {
	l.deadline = begin.Add(max(0, l.registry.grace()-drainMargin))
}

// handlers waits until none runs any more.
func (l *lifecycle) handlers() error {
	l.mu.Lock()
	idle := make(chan struct{})
	if l.calls == 0 {
		l.mu.Unlock()
		return nil
	}
	l.idle = idle
	l.mu.Unlock()
	ctx, cancel := l.patience()
	defer cancel()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Errorf("waiting for handlers: %d cut off: %w", l.calls, context.Cause(ctx))
}

// patience ends, with its cause, at the deadline or with a second signal.
func (l *lifecycle) patience() (context.Context, context.CancelFunc) {
	left := max(0, time.Until(l.deadline))
	logger.Infof("Waiting for what runs, for %s at most", left.Round(time.Millisecond))
	timed, stop := context.WithTimeoutCause(context.Background(), left, errors.New("the pod's grace period ends"))
	ctx, cancel := context.WithCancelCause(timed)
	if l.second != nil {
		cancel(fmt.Errorf("a second signal: %s", l.second))
	}
	var watched sync.WaitGroup
	watched.Go(func() {
		select {
		case s := <-l.signals:
			cancel(fmt.Errorf("a second signal: %s", s))
		case <-ctx.Done():
		}
	})
	return ctx, func() { stop(); watched.Wait() }
}

// stopped ends what outlives handlers: signals, and who watches health.
func (l *lifecycle) stopped() {
	signal.Stop(l.signals)
	close(l.ended)
}

// count knows how many handlers run, but for those of the server's own services.
func (l *lifecycle) count(h server.HandlerFunc) server.HandlerFunc {
	return func(ctx context.Context, req server.Request, rsp interface{}) error {
		if of, _, _ := strings.Cut(req.Method(), "."); slices.Contains(internal, of) {
			return h(ctx, req, rsp)
		}
		l.mu.Lock()
		l.calls++
		l.mu.Unlock()
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.calls--; l.calls == 0 && l.idle != nil {
				close(l.idle)
				l.idle = nil
			}
		}()
		return h(ctx, req, rsp)
	}
}

// contain keeps what a panic says from callers, and a stream's from ending the process.
func contain(h server.HandlerFunc) server.HandlerFunc {
	return func(ctx context.Context, req server.Request, rsp interface{}) (err error) {
		const gomicro = "go.micro.server" // who says that a handler has panicked
		internal := microerrors.InternalServerError(gomicro, "internal error")
		defer func() {
			if p := recover(); p != nil { // of a stream: go-micro has recovered, and logged, any other
				logger.Errorf("panic recovered: %v\n%s", p, debug.Stack())
				err = internal
			}
		}()
		err = h(ctx, req, rsp)
		var e *microerrors.Error
		if errors.As(err, &e) && e.Id == gomicro && strings.HasPrefix(e.Detail, "panic recovered: ") {
			return internal
		}
		return err
	}
}

// broadcast wakes all who wait for a change.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// next is closed at the next change.
func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
