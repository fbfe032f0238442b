package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/micro/go-micro/v2/web"
)

const maxRequestBody = 1 << 20 // of a request to a web service

// WebLifecycle gives a web service what Lifecycle gives a gRPC service; see there
// for start and stop. It must come after web.Server, where that is given.
//
// Health: GET /healthz answers 200 as long as the process answers; GET /readyz
// answers 200 when the service is ready, else 503 and why. Both are answered
// before the service's own handlers and not advertised.
//
// Stop: while it takes calls from who has not noticed, each response asks its
// client to connect anew, elsewhere; then http.Server.Shutdown waits for the
// requests that run. Hijacked connections, such as WebSockets, are not waited for;
// a response without an end of its own is to end by Draining.
//
// Limits, where web.Server gives no server of its own: the header of a request may
// take 5 s and 16 KiB (431), its body 30 s and 1 MiB (413). The time for the
// response has no limit, because a limit would cut long downloads and event streams.
// There may be 1,200 connections, 600 of them of one client address; for one more,
// the connection is closed that has waited longest for its client to send a request.
//
// Run also returns the error with which serving ends, which go-micro drops.
func WebLifecycle(r *Registry, opts ...LifecycleOption) web.Option {
	return func(o *web.Options) {
		w := &webLife{lifecycle: newLifecycle(r, opts), server: o.Server, served: make(chan struct{})}
		if w.server == nil {
			w.server = &http.Server{ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
			limitConnections(w.server, maxConnections, maxClientConnections)
			w.limitBody = true
		}
		// go-micro starts the server it is given, drops what Serve returns, and
		// closes the listener without a thought of the requests that run. So the
		// server it is given only hands its listener over to the one that serves.
		given := &http.Server{} //nolint:gosec // it reads no header: another serves
		given.BaseContext = func(l net.Listener) context.Context {
			w.serve(l, given.Handler)
			return context.Background()
		}
		o.Server = given
		o.Context, w.cancel = context.WithCancel(o.Context)

		o.BeforeStart = append(o.BeforeStart, func() error {
			if o.Server != given {
				return errors.New("starting the web service: pod.WebLifecycle must come after web.Server")
			}
			return r.inBackground(o.Name)
		})
		o.BeforeStop = append(o.BeforeStop, func() error {
			w.mu.Lock()
			failed := w.failed
			w.mu.Unlock()
			if failed != nil {
				return errors.Join(failed, r.Close())
			}
			w.begin()
			return nil
		})
		o.AfterStop = append(o.AfterStop, func() error { return errors.Join(w.requests(), r.Close()) })
	}
}

type webLife struct {
	*lifecycle
	server    *http.Server
	limitBody bool // the bodies of requests are limited
	cancel    context.CancelFunc
	served    chan struct{} // closed when serving has ended
	failed    error         // why, when nobody asked for it
}

// serve takes connections until go-micro closes the listener.
func (w *webLife) serve(l net.Listener, h http.Handler) {
	defer close(w.served)
	w.server.Handler = w.handler(h)
	base := w.server.BaseContext
	w.server.BaseContext = func(l net.Listener) context.Context {
		ctx := context.Background()
		if base != nil {
			ctx = base(l)
		}
		return context.WithValue(ctx, drainingKey{}, w.begun)
	}
	err := w.server.Serve(l)
	if !w.draining() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.failed = fmt.Errorf("serving on %s: %w", l.Addr(), err)
		w.cancel() // Run returns it
	}
}

type drainingKey struct{}

// Draining is closed when the service is told to stop, given the context of a
// request to a service with WebLifecycle; of any other it is nil, which never is
// ready. Who sends without end, such as server-sent events, ends then: the stop
// waits for requests that run, for as long as the pod's grace period allows.
func Draining(ctx context.Context) <-chan struct{} {
	begun, _ := ctx.Value(drainingKey{}).(chan struct{})
	return begun
}

// handler answers the probes and sends the rest on.
func (w *webLife) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		unready := ""
		switch r.URL.Path {
		case "/readyz":
			unready = w.unready()
			fallthrough
		case "/healthz":
			rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
			rw.Header().Set("Cache-Control", "no-store")
			if unready != "" {
				rw.WriteHeader(http.StatusServiceUnavailable)
			}
			_, _ = fmt.Fprintln(rw, cmp.Or(unready, "ok"))
			return
		}
		if w.draining() {
			rw.Header().Set("Connection", "close")
		}
		if w.limitBody {
			if r.ContentLength > maxRequestBody { // before the handler sees it; of one that does not say it sees the first MiB, and an error
				http.Error(rw, fmt.Sprintf("the body is larger than %d bytes", maxRequestBody), http.StatusRequestEntityTooLarge)
				return
			}
			limitBody(rw, r, bodyTimeout)
		}
		next.ServeHTTP(rw, r)
	})
}

// requests waits for those that run. go-micro closes the listener beside it;
// serving ends by that, and Shutdown does not close it a second time.
func (w *webLife) requests() error {
	defer w.stopped()
	<-w.served
	ctx, cancel := w.patience()
	defer cancel()
	switch err := w.server.Shutdown(ctx); {
	case err == nil, errors.Is(err, net.ErrClosed):
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("waiting for requests: cut off: %w", errors.Join(context.Cause(ctx), w.server.Close()))
	default:
		return fmt.Errorf("stopping the web server: %w", err)
	}
}
