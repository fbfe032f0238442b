package rpc

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/codec"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// stream is an open stream.
type stream struct {
	ctx      context.Context // of the caller
	cancel   context.CancelFunc
	grpc     grpc.ClientStream
	request  client.Request
	response client.Response
	end      *streamEnd

	mu  sync.Mutex
	err error // of the last Send or Recv
}

var errOpeningTooLong = errors.New("the connection was not ready in time")

// open opens the stream with a context of the caller. The stream releases the connection when it
// ends, also if it does not open. The outcome is that of an attempt that has failed.
func (s *stream) open(callerCtx context.Context, conn *connection, req client.Request, codecName string, options []grpc.CallOption, limit time.Duration) (outcome.Outcome, error) {
	end := &streamEnd{connection: conn, ended: func(error) {}}
	ctx, cancel := context.WithCancelCause(callerCtx)
	options = append(options[:len(options):len(options)], grpc.OnFinish(func(err error) { end.finish(conn.judge(streamOutcome(callerCtx, err), err)) }))
	opening := time.AfterFunc(openLimit(limit), func() { cancel(errOpeningTooLong) })
	opened := false
	defer func() { // also if an interceptor panics
		if !opened {
			opening.Stop()
			cancel(nil)
			end.finish(outcome.Inconclusive, nil) // the attempt reports its outcome itself
		}
	}()
	g, err := conn.channel.NewStream(ctx, streamDesc, gomicro.MethodPath(req), options...)
	if !opening.Stop() && err == nil {
		err = errOpeningTooLong // the time was up when the stream was open
	}
	if err != nil {
		o := streamOutcome(callerCtx, err)
		tooLong := (errors.Is(err, errOpeningTooLong) || errors.Is(context.Cause(ctx), errOpeningTooLong)) && callerCtx.Err() == nil
		if tooLong {
			o, err = outcome.TimedOut, errOpeningTooLong
		}
		if outcome.HasEnded(callerCtx) {
			return o, contextError(callerCtx)
		}
		return o, clientError("Error creating stream: " + err.Error())
	}
	opened = true
	g = &observedStream{g, end}
	response, writer := codec.ForStream(g, codecName)
	gomicro.SetCodec(req, writer)
	s.ctx, s.cancel, s.grpc, s.request, s.response, s.end = callerCtx, func() { cancel(nil) }, g, req, response, end
	return outcome.Inconclusive, nil
}

var streamDesc = &grpc.StreamDesc{StreamName: "go-micro", ClientStreams: true, ServerStreams: true}

// streamOutcome says what the end of a stream says about its instance.
func streamOutcome(ctx context.Context, err error) outcome.Outcome {
	o, _ := result(ctx, err)
	return o
}

// openLimit returns how long the opening of a stream may take.
func openLimit(dialTimeout time.Duration) time.Duration {
	if dialTimeout <= 0 {
		return 1 << 62
	}
	return dialTimeout
}

// streamEnd reports the end of a stream. grpc-go may end a stream before the choice is known
// here, in which case report reports the end.
type streamEnd struct {
	connection *connection

	mu       sync.Mutex
	finished bool
	outcome  outcome.Outcome
	err      error
	choice   *balancer.Choice // nil until report is called
	answered atomic.Bool
	ended    func(error) // called at the end; observe sets it
}

// answer reports the first header or message of the stream.
func (e *streamEnd) answer() {
	if e.answered.Load() {
		return
	}
	e.mu.Lock()
	c := e.choice
	e.mu.Unlock()
	if c != nil && e.answered.CompareAndSwap(false, true) {
		e.connection.answered.Store(true)
		c.Answered()
	}
}

// observedStream reports the first header or message of a stream.
type observedStream struct {
	grpc.ClientStream
	end *streamEnd
}

func (s *observedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil {
		s.end.answer()
	}
	return err
}

func (s *observedStream) Header() (metadata.MD, error) {
	md, err := s.ClientStream.Header()
	if len(md) > 0 { // otherwise the stream has ended with a status
		s.end.answer()
	}
	return md, err
}

func (e *streamEnd) finish(o outcome.Outcome, err error) {
	e.mu.Lock()
	if e.finished {
		e.mu.Unlock()
		return
	}
	e.finished, e.outcome, e.err = true, o, err
	c, ended := e.choice, e.ended
	e.mu.Unlock()
	ended(err)
	e.connection.release()
	if c != nil {
		c.Done(o, err)
	}
}

// observe makes f learn the error at the end of the stream.
func (e *streamEnd) observe(f func(error)) {
	e.mu.Lock()
	finished := e.finished
	e.ended = f
	e.mu.Unlock()
	if finished {
		f(e.err)
	}
}

// report makes the end of the stream the end of the choice.
func (e *streamEnd) report(c balancer.Choice) {
	e.mu.Lock()
	e.choice = &c
	finished := e.finished
	e.mu.Unlock()
	if finished {
		c.Done(e.outcome, e.err)
	}
}

func (s *stream) Context() context.Context  { return s.ctx }
func (s *stream) Request() client.Request   { return s.request }
func (s *stream) Response() client.Response { return s.response }

func (s *stream) Send(msg any) error {
	err := s.grpc.SendMsg(msg)
	if err != nil {
		s.setError(err)
	}
	return err
}

func (s *stream) Recv(msg any) error {
	err := s.grpc.RecvMsg(msg)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			s.setError(err)
		}
		s.cancel()
	}
	return err
}

func (s *stream) setError(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// Error returns the last error of Send or Recv, except io.EOF from Recv.
func (s *stream) Error() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends the stream at once: what the server still sends is lost. To receive the rest,
// call Recv until it returns io.EOF.
func (s *stream) Close() error {
	s.cancel()
	return nil
}
