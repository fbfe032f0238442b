package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/signal"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/weblimit"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/web"
)

// WebLifecycle gives a web service health checks, readiness and drain, as Lifecycle gives
// them to a gRPC service; see Lifecycle for start and stop. It must come after web.Server,
// if that option is given.
//
// Health: GET /healthz answers 200 as long as the process answers; GET /readyz
// answers 200 if the service is ready, else 503 and the reason. Both are answered
// before the service's own handlers and are not advertised.
//
// Stop: while the service accepts calls for DrainWait, each response asks its client to
// open a new connection, which goes to another pod. Then http.Server.Shutdown waits for
// the requests in flight, but not for hijacked connections, such as WebSockets. The
// handler of an endless response should return when the channel of Draining is closed.
//
// Limits, without the option web.Server: the header of a request may take 5 s and have
// 16 KiB (status 431), its body may take 30 s and have 1 MiB (status 413). The time for
// the response has no limit, because a limit would cut long downloads and event streams.
// There may be 1,200 connections, at most 600 of them of one client address. When there
// is one more, the server closes the connection that has waited longest for its client to
// send a request.
//
// Run also returns the error with which serving ends; go-micro alone drops it. The flag
// --registry also works with web.Registry; go-micro alone ignores the flag then.
func WebLifecycle(r *Registry, opts ...LifecycleOption) web.Option {
	return func(o *web.Options) {
		w := &webLifecycle{lifecycle: newLifecycle(r, opts), server: o.Server, served: make(chan struct{})}
		if w.server == nil {
			w.server = &http.Server{ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
			weblimit.LimitConnections(w.server, weblimit.MaxConnections, weblimit.MaxClientConnections)
			w.limitBody = true
		}
		// go-micro starts the server in its options, drops the error of Serve, and
		// closes the listener without waiting for the requests in flight. So the
		// server in its options only hands the listener over to w.server, which serves.
		handover := &http.Server{} //nolint:gosec // this server only passes its listener to w.server
		handover.BaseContext = func(l net.Listener) context.Context {
			w.serve(l, handover.Handler)
			return context.Background()
		}
		o.Server = handover
		o.Context, w.stopService = context.WithCancel(o.Context)

		o.BeforeStart = append(o.BeforeStart, func() error {
			if o.Server != handover {
				return errors.New("starting the web service: pod.WebLifecycle must come after web.Server")
			}
			if err := w.setUp(o); err != nil {
				return err
			}
			r.retain()
			return nil
		})
		o.BeforeStop = append(o.BeforeStop, func() error {
			w.mu.Lock()
			serveErr := w.serveErr
			w.mu.Unlock()
			if serveErr != nil {
				return errors.Join(serveErr, r.release())
			}
			w.deregister()
			return nil
		})
		o.AfterStop = append(o.AfterStop, func() error { return errors.Join(w.shutDown(), r.release()) })
	}
}

// setUp determines which registry the service uses, as go-micro does, and returns an
// error if the service can never register there.
func (w *webLifecycle) setUp(o *web.Options) error {
	r := registry.Registry(w.registry)
	used := o.Registry
	if used == nil {
		used = o.Service.Client().Options().Registry
	}
	// The flag --registry, and MICRO_REGISTRY, change the registry of the inner service;
	// go-micro ignores them if web.Registry is given. Without web.Service.Init, which
	// reads the flags, the inner service has the default registry.
	if flag := o.Service.Options().Registry; used == r && flag != r && flag != registry.DefaultRegistry {
		w.registration.UseOther(flag)
		used = flag
	}
	return w.useRegistry(o.Name, used)
}

type webLifecycle struct {
	*lifecycle
	server      *http.Server
	limitBody   bool               // bound the size of request bodies and the time to read them
	stopService context.CancelFunc // makes Run stop the service
	served      chan struct{}      // closed when serving has ended

	mu       sync.Mutex
	serveErr error // why serving ended before the stop began
}

// serve accepts connections until go-micro closes the listener.
func (w *webLifecycle) serve(l net.Listener, h http.Handler) {
	defer close(w.served)
	w.server.Handler = w.handler(h)
	base := w.server.BaseContext
	w.server.BaseContext = func(l net.Listener) context.Context {
		ctx := context.Background()
		if base != nil {
			ctx = base(l)
		}
		return context.WithValue(ctx, drainingKey{}, w.stopping)
	}
	err := w.server.Serve(l)
	if !w.draining() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.serveErr = fmt.Errorf("serving on %s: %w", l.Addr(), err)
		w.stopService() // Run returns serveErr
	}
}

// handler answers the probes and passes every other request to next.
func (w *webLifecycle) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		reason := ""
		switch r.URL.Path {
		case "/readyz":
			reason = w.notReadyReason()
			fallthrough
		case "/healthz":
			rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
			rw.Header().Set("Cache-Control", "no-store")
			if reason != "" {
				rw.WriteHeader(http.StatusServiceUnavailable)
			}
			_, _ = fmt.Fprintln(rw, cmp.Or(reason, "ok"))
			return
		}
		if w.draining() {
			rw.Header().Set("Connection", "close")
		}
		if w.limitBody && !weblimit.LimitBody(rw, r, weblimit.BodyTimeout) {
			return
		}
		next.ServeHTTP(rw, r)
	})
}

// shutDown waits for the requests in flight. go-micro closes the listener, which
// ends serving; Shutdown does not close it a second time.
func (w *webLifecycle) shutDown() error {
	defer signal.Stop(w.signals)
	<-w.served
	ctx, cancel := w.drainContext("requests")
	defer cancel()
	switch err := w.server.Shutdown(ctx); {
	case err == nil, errors.Is(err, net.ErrClosed):
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("waiting for requests in flight: cut off: %w", errors.Join(context.Cause(ctx), w.server.Close()))
	default:
		return fmt.Errorf("stopping the web server: %w", err)
	}
}
