package shutdown

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/micro/go-micro/v2"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"google.golang.org/grpc"
)

// GRPC returns the option that adds the lifecycle to a gRPC service.
func GRPC(c Config) micro.Option {
	return func(o *micro.Options) {
		s := &grpcService{lifecycle: newLifecycle(c), drained: make(chan struct{})}
		o.BeforeStart = append(o.BeforeStart, func() error { return s.setUp(o.Server) })
		o.BeforeStop = append(o.BeforeStop, s.beforeStop)
		o.AfterStop = append(o.AfterStop, s.afterStop)
	}
}

// grpcService is the life of a gRPC service.
type grpcService struct {
	*lifecycle
	drained chan struct{} // closed when the calls in flight have ended, or were given up

	calls        inFlight // calls of handlers
	messages     inFlight // messages of subscribers that arrived before the stop
	lateMessages inFlight // messages of subscribers that arrived during the stop
}

// setUp adds the health service and the wrappers to a gRPC server before it starts.
func (s *grpcService) setUp(srv server.Server) error {
	if err := s.useRegistry(srv.Options().Name, srv.Options().Registry); err != nil {
		return err
	}
	if err := srv.Handle(srv.NewHandler(newHealth(s), server.InternalHandler(true))); err != nil {
		return fmt.Errorf("adding the health service: %w", err)
	}
	err := srv.Init(server.WrapHandler(recoverPanics), func(o *server.Options) { // the first wrapper is the outermost
		o.HdlrWrappers = append([]server.HandlerWrapper{s.wrapHandler}, o.HdlrWrappers...)
		o.SubWrappers = append([]server.SubscriberWrapper{s.countMessages}, o.SubWrappers...)
		fixWindows(o)
	})
	if err == nil {
		s.Retain()
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

// beforeStop ends the service while go-micro's server still accepts calls.
func (s *grpcService) beforeStop() error {
	defer close(s.drained)
	s.leave()
	return s.drain("calls", &s.messages, &s.calls) // calls last: they may still arrive
}

// afterStop runs when the server has ended its subscriptions.
func (s *grpcService) afterStop() error {
	return errors.Join(s.drain("messages", &s.lateMessages), s.end())
}

// wrapHandler counts the calls in flight, except those of the server's own services, and gives
// handlers the channel that Draining returns. It also calls gomicro.CapitalizeHeaders and ownError. One
// wrapper does all this, because go-micro's server allocates memory for each wrapper of each call.
func (s *grpcService) wrapHandler(h server.HandlerFunc) server.HandlerFunc {
	return func(ctx context.Context, req server.Request, rsp interface{}) error {
		gomicro.CapitalizeHeaders(ctx)
		if handler, _, _ := strings.Cut(req.Method(), "."); !slices.Contains(internalHandlers, handler) {
			s.calls.begin()
			defer s.calls.end()
			ctx = s.withDraining(ctx)
		}
		return s.ownError(h(ctx, req, rsp))
	}
}

// countMessages counts for subscribers what wrapHandler counts for handlers. Messages arrive
// until the server has ended its subscriptions, which it does after the drain. If the
// drain waited for messages that arrive meanwhile, it might never end.
func (s *grpcService) countMessages(h server.SubscriberFunc) server.SubscriberFunc {
	return func(ctx context.Context, msg server.Message) error {
		messages := &s.messages
		if s.draining() {
			messages = &s.lateMessages
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
