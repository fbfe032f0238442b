package shutdown

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/web"
)

// Web returns the option that adds the lifecycle to a web service.
func Web(c Config) web.Option {
	return func(o *web.Options) {
		s := newWebService(c, o.Server)
		if s.server == nil {
			s.server = &http.Server{ReadHeaderTimeout: 5 * time.Second, IdleTimeout: idleTimeout, MaxHeaderBytes: 16 << 10}
			c.Limits.LimitConnections(s.server)
			s.limited = true
		}
		// go-micro starts the server in its options, drops the error of Serve, and
		// closes the listener without waiting for the requests in flight. So the
		// server in its options only accepts connections, and s.server serves them.
		listening := &http.Server{} //nolint:gosec // this server serves nothing
		listening.BaseContext = func(l net.Listener) context.Context {
			accepting := newListener(l)
			go s.serve(accepting, listening.Handler)
			accepting.accept()
			return context.Background()
		}
		o.Server = listening
		o.Context, s.stopService = context.WithCancel(o.Context)

		o.BeforeStart = append(o.BeforeStart, func() error {
			if o.Server != listening {
				return errors.New("starting the web service: pod.WebLifecycle must come after web.Server")
			}
			if !s.limited && s.Limits != DefaultLimits {
				return errors.New("starting the web service: pod.BodyLimit and pod.ConnectionLimit do not apply to the server of web.Server: leave out web.Server or these options")
			}
			return s.setUp(o)
		})
		o.AfterStart = append([]func() error{s.awaitServing}, o.AfterStart...)
		// An error of the user's functions ends go-micro's stop.
		o.BeforeStop = append([]func() error{s.beforeStop}, o.BeforeStop...)
		o.AfterStop = append(o.AfterStop, s.afterStop)
	}
}

// idleTimeout is how long a connection may be idle. Load balancers keep idle connections for up
// to 600 s, and their requests fail if the server closes a connection first. Google Cloud
// recommends 620 s. The number of connections is limited, and the oldest idle ones are closed first.
// https://cloud.google.com/load-balancing/docs/https#timeouts_and_retries
const idleTimeout = 620 * time.Second

// startTimeout is how long go-micro may take to start serving.
const startTimeout = 10 * time.Second

// webService is the life of a web service.
type webService struct {
	*lifecycle
	server      *http.Server
	limited     bool               // the server is not the user's: it has limits
	stopService context.CancelFunc // makes Run stop the service
	serving     chan struct{}      // closed when serving begins
	served      chan struct{}      // closed when serving has ended

	requests    inFlight     // requests of the user's handlers
	lastRequest atomic.Int64 // when the last of them arrived, in nanoseconds from the beginning of the stop; 0 before
	cutOff      error        // result of the drain

	mu  sync.Mutex
	err error // why serving ended before the stop began
}

func newWebService(c Config, server *http.Server) *webService {
	return &webService{lifecycle: newLifecycle(c), server: server, serving: make(chan struct{}), served: make(chan struct{})}
}

// setUp determines which registry the service uses, as go-micro does, and returns an
// error if the service can never register there.
func (s *webService) setUp(o *web.Options) error {
	s.context = o.Context
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
	s.reportTo(s.requests.count)
	return nil
}

// awaitServing returns an error if go-micro does not start the server that it was given.
func (s *webService) awaitServing() error {
	select {
	case <-s.serving:
		return nil
	case <-time.After(startTimeout):
		return errors.New("starting the web service: it runs another server than that of web.NewService: give web.Server to web.NewService, before pod.WebLifecycle, not to service.Init")
	}
}

// serve accepts connections until the stop.
func (s *webService) serve(l net.Listener, h http.Handler) {
	close(s.serving)
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
		s.err = fmt.Errorf("serving on %s: %w", l.Addr(), err)
		s.stopService()
	}
}

// handler answers the probes and passes every other request to next.
func (s *webService) handler(next http.Handler) http.Handler {
	if s.AdaptiveLimit {
		next = newRequestLimit(next)
	}
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
			s.lastRequest.Store(int64(time.Since(s.began)))
		}
		if s.limited && !s.Limits.LimitBody(w, r) {
			return
		}
		s.requests.begin()
		defer s.requests.end()
		s.Events.ServeRequest(s.name, w, r, next)
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

// beforeStop ends the service before go-micro closes the listener. If calls were cut off, afterStop
// returns the error, because go-micro would skip the user's functions now. If serving has ended
// before, the listener may be closed already, and go-micro would return only that.
func (s *webService) beforeStop() error {
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	if err != nil {
		return errors.Join(err, s.end())
	}
	s.leave()
	s.awaitQuiet()
	s.cutOff = s.shutDown()
	return nil
}

func (s *webService) afterStop() error { return errors.Join(s.cutOff, s.end()) }

// awaitQuiet waits until no request has arrived for a third of DrainWait. On a busy cluster kube-proxy and load balancers
// can be slower than DrainWait, and http.Server.Shutdown would close the connections that they still open without an
// answer. It waits until four times DrainWait after the beginning of the stop at most, for callers that use the address of the pod
// itself, and leaves half of the grace period to the requests.
func (s *webService) awaitQuiet() {
	limit := s.began.Add(min(4*s.DrainWait, s.deadline.Sub(s.began)/2))
	for s.interrupted.Err() == nil {
		quiet := s.began.Add(time.Duration(s.lastRequest.Load()) + s.DrainWait/3)
		if now := time.Now(); !now.Before(quiet) || !now.Before(limit) {
			return
		} else if limit.Before(quiet) {
			quiet = limit
		}
		s.waitUntil(quiet)
	}
}

// shutDown ends serving and waits for the requests in flight.
func (s *webService) shutDown() error {
	s.logWaiting("requests")
	ctx, cancel := s.drainContext()
	defer cancel()
	err := s.server.Shutdown(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		s.cutOffs += s.requests.count()
		err = fmt.Errorf("waiting for requests in flight: cut off: %w", errors.Join(context.Cause(ctx), s.server.Close()))
	default:
		err = fmt.Errorf("stopping the web server: %w", err)
	}
	<-s.served
	return err
}
