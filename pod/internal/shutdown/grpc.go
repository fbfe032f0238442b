package shutdown

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/debughandler"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/debug/service/handler"
	"github.com/micro/go-micro/v2/debug/trace"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/server"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// GRPC returns the option that adds the lifecycle to a gRPC service.
func GRPC(c Config) micro.Option { return newGRPCService(c).addTo }

// grpcService is the life of a gRPC service.
type grpcService struct {
	*lifecycle
	server      server.Server
	connections *grpc.Server                  // serves the connections of server
	health      map[string]grpc.StreamHandler // methods of the health service by their paths
	port        healthPort                    // of POD_HEALTH_ADDRESS
	closing     chan struct{}                 // closed when the server begins to close its connections
	waits       *sync.WaitGroup               // of server.Wait; nil if the option is not given
	names       handlerNames
	methods     map[string]bool // of the handlers; true for streams
	limit       callLimit       // refuses none without pod.AdaptiveLimit
	debug       *debughandler.Handler

	calls        inFlight // calls of the user's handlers
	messages     inFlight // messages of subscribers that arrived before the stop
	lateMessages inFlight // messages of subscribers that arrived during the stop
}

func newGRPCService(c Config) *grpcService {
	s := &grpcService{lifecycle: newLifecycle(c), closing: make(chan struct{})}
	s.debug = debughandler.New(c.Getenv, trace.DefaultTracer)
	s.health = methodsOf(&healthv1.Health_ServiceDesc, &health{service: s})
	return s
}

// addTo adds the lifecycle to the options of a service.
func (s *grpcService) addTo(o *micro.Options) {
	o.BeforeStart = append(o.BeforeStart, func() error { return s.setUp(o) })
	o.AfterStart = append([]func() error{s.started}, o.AfterStart...)
	// The user's functions may close what handlers and subscribers need.
	o.BeforeStop = append([]func() error{s.beforeStop}, o.BeforeStop...)
	o.AfterStop = append([]func() error{s.drainLateMessages}, append(o.AfterStop, s.port.close, s.end)...)
}

// setUp adds the lifecycle to the service before its server starts. The options are those of
// micro.NewService; service.Init changes a copy.
func (s *grpcService) setUp(o *micro.Options) error {
	s.server, s.context = o.Server, o.Context
	if o.Registry == s.Registry && o.Server.Options().Registry == registry.DefaultRegistry { // micro.Server came after micro.Registry
		if err := o.Server.Init(server.Registry(s.Registry)); err != nil {
			return err
		}
	}
	if s.debug.On() {
		if err := o.Client.Init(client.WrapCall(debughandler.Attempts(trace.DefaultTracer))); err != nil {
			return err
		}
	}
	if err := s.setUpServer(o.Server, o.Client); err != nil {
		return fmt.Errorf("adding the lifecycle to service %q: %w", o.Server.Options().Name, err)
	}
	if err := s.useRegistry(o.Server.Options().Name, o.Server.Options().Registry); err != nil {
		return err
	}
	if err := s.port.serve(s.Getenv(healthVariable), s.health); err != nil {
		return err
	}
	s.Retain()
	s.reportTo(s.inFlight)
	return nil
}

// setUpServer adds the health service, the wrappers and the windows to a server.
func (s *grpcService) setUpServer(srv server.Server, c client.Client) (err error) {
	if s.waits, err = gomicro.TakeWaitGroup(srv); err != nil {
		return err
	}
	if s.methods, err = gomicro.Methods(srv); err != nil {
		return err
	}
	options := []grpc.ServerOption{grpc.StaticStreamWindowSize(gomicro.FlowControlWindow), grpc.StaticConnWindowSize(gomicro.FlowControlWindow),
		grpc.ChainStreamInterceptor(s.intercept)}
	if s.AdaptiveLimit {
		options = append(options, arrivals(gomicro.ServerOptions(srv.Options()))...)
		if s.limit, err = newCallLimit(srv.Options().Name, s.methods); err != nil {
			return err
		}
	}
	// Run has added this handler to the server that it starts. A server takes it only once.
	if srv.Handle(srv.NewHandler(handler.NewHandler(c), server.InternalHandler(true))) == nil {
		return errors.New("the service runs another server than that of micro.NewService: give micro.Server to micro.NewService, not to service.Init, and no flag --server")
	}
	if s.ServerOptions != nil {
		options = append(slices.Clip(s.ServerOptions()), options...)
	}
	if gomicro.ServerTLS(srv.Options()) == nil { // other credentials, which come later, replace these
		options = append([]grpc.ServerOption{grpc.Creds(newPlaintext())}, options...)
	}
	if err = initServer(srv, options...); err != nil {
		return err
	}
	return srv.Init(server.WrapHandler(recoverPanics), func(o *server.Options) { // the first wrapper is the outermost
		o.HdlrWrappers = append([]server.HandlerWrapper{s.wrapHandler}, o.HdlrWrappers...)
		o.SubWrappers = append([]server.SubscriberWrapper{s.countMessages}, o.SubWrappers...)
	})
}

// started runs when the server has started.
func (s *grpcService) started() (err error) {
	if s.connections, err = gomicro.GRPCServer(s.server); err != nil {
		return err
	}
	return s.names.read(s.server)
}

// intercept answers the calls of health and of Debug, and counts the others while they are in flight,
// unless they are too many, from the header of the request to the end of the response. Neither the drain nor the group of
// server.Wait waits for reflection and go-micro's handler Debug, whose streams have no end.
func (s *grpcService) intercept(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if method := s.health[info.FullMethod]; method != nil {
		return method(srv, stream)
	}
	if strings.HasPrefix(info.FullMethod, "/grpc.reflection.") {
		return next(srv, stream)
	}
	if method := debughandler.MethodOf(info.FullMethod); method != "" {
		return s.debug.Serve(method, stream, func() error { return next(srv, stream) })
	}
	if s.waits != nil {
		s.waits.Add(1)
		defer s.waits.Done()
	}
	s.calls.begin()
	defer s.calls.end()
	measured := s.Events.Served()
	method := s.methodOf(info.FullMethod)
	err := s.limit.serve(method, srv, stream, next)
	if measured.Active() {
		measured.Served(stream.Context(), events.ServedCall{Service: s.name, Method: method, Code: events.ServedCode(err)})
	}
	return err
}

// OtherMethod stands for all methods that a server does not have: callers can invent any number of them.
const OtherMethod = "_OTHER"

// methodOf returns the method of the server that a path names, such as Greeter/Hello for /greeter.Greeter/Hello. go-micro's server
// ignores the part before the last dot.
func (s *grpcService) methodOf(path string) string {
	method := strings.TrimPrefix(path, "/")
	if slash := strings.IndexByte(method, '/'); slash > 0 {
		method = method[strings.LastIndexByte(method[:slash], '.')+1:]
	}
	if _, ok := s.methods[method]; ok {
		return method
	}
	return OtherMethod
}

func (s *grpcService) inFlight() int {
	return count([]*inFlight{&s.calls, &s.messages, &s.lateMessages})
}

// beforeStop ends the service before go-micro stops its server. GracefulStop sends GOAWAY to
// the clients, so that also those that know nothing of the registration leave connections
// that are never idle. go-micro calls it too, but cuts the calls off after one second.
func (s *grpcService) beforeStop() error {
	s.leave()
	close(s.closing)
	closed := make(chan struct{})
	go func() { // ends with the last handler
		s.connections.GracefulStop()
		close(closed)
	}()
	defer s.connections.Stop()
	if err := s.drain("calls", closed, &s.messages, &s.calls); err != nil || s.waits == nil {
		return err
	}
	return s.await(s.waits)
}

// await waits for the group of server.Wait. go-micro alone waits for it without limit.
func (s *grpcService) await(group *sync.WaitGroup) error {
	done := make(chan struct{})
	go func() { // ends with the group
		group.Wait()
		close(done)
	}()
	ctx, cancel := s.drainContext()
	defer cancel()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the group of server.Wait: cut off: %w", context.Cause(ctx))
	}
}

// drainLateMessages runs when the server has ended its subscriptions.
func (s *grpcService) drainLateMessages() error { return s.drain("messages", nil, &s.lateMessages) }

// wrapHandler gives handlers the channel that Draining returns. It also calls
// gomicro.CapitalizeHeaders and ownError. One wrapper does all this, because go-micro's
// server allocates memory for each wrapper of each call.
func (s *grpcService) wrapHandler(h server.HandlerFunc) server.HandlerFunc {
	return func(ctx context.Context, req server.Request, rsp interface{}) error {
		gomicro.CapitalizeHeaders(ctx)
		return s.ownError(h(s.withDraining(ctx), req, rsp))
	}
}

// countMessages counts for subscribers what intercept counts for handlers. Messages arrive
// until the server has ended its subscriptions, which it does after the drain. If the
// drain waited for messages that arrive meanwhile, it might never end.
func (s *grpcService) countMessages(h server.SubscriberFunc) server.SubscriberFunc {
	return func(ctx context.Context, msg server.Message) error {
		messages := &s.messages
		if s.draining() {
			messages = &s.lateMessages
		} else if s.waits != nil {
			s.waits.Add(1)
			defer s.waits.Done()
		}
		messages.begin()
		defer messages.end()
		return h(s.withDraining(ctx), msg)
	}
}

// ownError replaces the id of an error of go-micro's client that a handler returns by
// the service's name, so that the caller can tell it from an error of its own client.
func (s *grpcService) ownError(err error) error {
	if e, ok := err.(*microerrors.Error); ok && e.Id == gomicro.ClientID { //nolint:errorlint // go-micro's server sends the id of no wrapped error
		return microerrors.New(s.name, e.Detail, e.Code)
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
