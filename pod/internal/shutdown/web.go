package shutdown

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/weblimit"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/web"
)

// Web returns the option that adds the lifecycle to a web service.
func Web(c Config) web.Option {
	return func(o *web.Options) {
		s := &webService{lifecycle: newLifecycle(c), server: o.Server, served: make(chan struct{})}
		if s.server == nil {
			s.server = &http.Server{ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
			weblimit.LimitConnections(s.server, weblimit.MaxConnections, weblimit.MaxClientConnections)
			s.limitBody = true
		}
		// go-micro starts the server in its options, drops the error of Serve, and
		// closes the listener without waiting for the requests in flight. So the
		// server in its options only passes its listener to s.server, which serves.
		listening := &http.Server{} //nolint:gosec // this server only passes its listener to s.server
		listening.BaseContext = func(l net.Listener) context.Context {
			s.serve(l, listening.Handler)
			return context.Background()
		}
		o.Server = listening
		o.Context, s.stopService = context.WithCancel(o.Context)

		o.BeforeStart = append(o.BeforeStart, func() error {
			if o.Server != listening {
				return errors.New("starting the web service: pod.WebLifecycle must come after web.Server")
			}
			return s.setUp(o)
		})
		o.BeforeStop = append(o.BeforeStop, s.beforeStop)
		o.AfterStop = append(o.AfterStop, s.afterStop)
	}
}

// webService is the life of a web service.
type webService struct {
	*lifecycle
	server      *http.Server
	limitBody   bool               // bound the size of request bodies and the time to read them
	stopService context.CancelFunc // makes Run stop the service
	served      chan struct{}      // closed when serving has ended

	mu       sync.Mutex
	serveErr error // why serving ended before the stop began
}

// setUp determines which registry the service uses, as go-micro does, and returns an
// error if the service can never register there.
func (s *webService) setUp(o *web.Options) error {
	used := o.Registry
	if used == nil {
		used = o.Service.Client().Options().Registry
	}
	// The flag --registry, and MICRO_REGISTRY, change the registry of the inner service;
	// go-micro ignores them if web.Registry is given. Without web.Service.Init, which
	// reads the flags, the inner service has the default registry.
	if flag := o.Service.Options().Registry; used == s.Registry && flag != s.Registry && flag != registry.DefaultRegistry {
		s.Registration.UseOther(flag)
		used = flag
	}
	if err := s.useRegistry(o.Name, used); err != nil {
		return err
	}
	s.Retain()
	return nil
}

// serve accepts connections until go-micro closes the listener.
func (s *webService) serve(l net.Listener, h http.Handler) {
	defer close(s.served)
	s.server.Handler = s.handler(h)
	base := s.server.BaseContext
	s.server.BaseContext = func(l net.Listener) context.Context {
		ctx := context.Background()
		if base != nil {
			ctx = base(l)
		}
		return s.withDraining(ctx)
	}
	err := s.server.Serve(l)
	if !s.draining() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.serveErr = fmt.Errorf("serving on %s: %w", l.Addr(), err)
		s.stopService() // Run returns serveErr
	}
}

// handler answers the probes and passes every other request to next.
func (s *webService) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/healthz":
			answerProbe(w, "")
			return
		case "/readyz":
			answerProbe(w, s.notReadyReason())
			return
		}
		if s.draining() {
			w.Header().Set("Connection", "close")
		}
		if s.limitBody && !weblimit.LimitBody(w, r, weblimit.BodyTimeout) {
			return
		}
		next.ServeHTTP(w, r)
	})
}

// answerProbe answers 200, or 503 and the reason.
func answerProbe(w http.ResponseWriter, reason string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if reason != "" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = fmt.Fprintln(w, cmp.Or(reason, "ok"))
}

// beforeStop ends the service while it still accepts connections. If serving has ended
// already, go-micro does not call afterStop.
func (s *webService) beforeStop() error {
	s.mu.Lock()
	serveErr := s.serveErr
	s.mu.Unlock()
	if serveErr != nil {
		return errors.Join(serveErr, s.Release())
	}
	s.leave()
	return nil
}

// afterStop runs while go-micro closes the listener.
func (s *webService) afterStop() error { return errors.Join(s.shutDown(), s.end()) }

// shutDown waits for the requests in flight. go-micro closes the listener, which
// ends serving; Shutdown does not close it a second time.
func (s *webService) shutDown() error {
	<-s.served
	ctx, cancel := s.drainContext("requests")
	defer cancel()
	switch err := s.server.Shutdown(ctx); {
	case err == nil, errors.Is(err, net.ErrClosed):
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("waiting for requests in flight: cut off: %w", errors.Join(context.Cause(ctx), s.server.Close()))
	default:
		return fmt.Errorf("stopping the web server: %w", err)
	}
}
