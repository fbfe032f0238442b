package rpc

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/outcome"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/codec"
	"github.com/micro/go-micro/v2/codec/bytes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
)

// stream is an open stream.
type stream struct {
	ctx      context.Context // of the caller
	cancel   context.CancelFunc
	grpc     grpc.ClientStream
	request  client.Request
	response *response
	end      *streamEnd

	mu  sync.Mutex
	err error // of the last Send or Recv
}

var errOpeningTooLong = errors.New("the connection was not ready in time")

// open opens the stream with a context of the caller. The stream releases the connection when it
// ends, also if it does not open. The outcome is that of an attempt that has failed.
func (s *stream) open(callerCtx context.Context, conn *connection, req client.Request, codecName string, options []grpc.CallOption, limit time.Duration) (outcome.Outcome, error) {
	end := &streamEnd{connection: conn}
	ctx, cancel := context.WithCancelCause(callerCtx)
	options = append(options[:len(options):len(options)], grpc.OnFinish(func(err error) { end.finish(streamOutcome(callerCtx, err), err) }))
	opening := time.AfterFunc(openLimit(limit), func() { cancel(errOpeningTooLong) })
	opened := false
	defer func() { // also if an interceptor panics
		if !opened {
			opening.Stop()
			cancel(nil)
			end.finish(outcome.Inconclusive, nil) // the attempt reports its outcome itself
		}
	}()
	g, err := conn.channel.NewStream(ctx, streamDesc, methodOf(req), options...)
	if !opening.Stop() && err == nil {
		err = errOpeningTooLong // the time was up when the stream was open
	}
	if err != nil {
		o := streamOutcome(callerCtx, err)
		tooLong := (errors.Is(err, errOpeningTooLong) || errors.Is(context.Cause(ctx), errOpeningTooLong)) && callerCtx.Err() == nil
		if tooLong {
			o, err = outcome.TimedOut, errOpeningTooLong
		}
		if contextEnded(callerCtx) {
			return o, contextError(callerCtx)
		}
		return o, clientError("Error creating stream: " + err.Error())
	}
	opened = true
	codec := &streamCodec{stream: g, name: codecName}
	if r, ok := req.(*request); ok {
		r.codec = codec
	}
	if s.cancel != nil { // a call wrapper has opened the stream before
		s.cancel()
	}
	s.ctx, s.cancel, s.grpc, s.request, s.end = callerCtx, func() { cancel(nil) }, g, req, end
	s.response = &response{stream: g, codec: codec}
	return outcome.Inconclusive, nil
}

// check returns the error of opening a stream through call wrappers. A wrapper may return an
// error although it has opened the stream, and none although it has not.
func (s *stream) check(err error) error {
	switch {
	case err != nil && s.cancel != nil:
		s.cancel()
	case err == nil && s.grpc == nil:
		return clientError("Error creating stream: a call wrapper returned without opening it")
	}
	return err
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
}

func (e *streamEnd) finish(o outcome.Outcome, err error) {
	e.mu.Lock()
	if e.finished {
		e.mu.Unlock()
		return
	}
	e.finished, e.outcome, e.err = true, o, err
	c := e.choice
	e.mu.Unlock()
	e.connection.release()
	if c != nil {
		c.Done(o, err)
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

// response is the response of a stream.
type response struct {
	stream grpc.ClientStream
	codec  codec.Reader
}

func (r *response) Codec() codec.Reader { return r.codec }

// Header waits for the headers of the response and returns them.
func (r *response) Header() map[string]string {
	md, err := r.stream.Header()
	if err != nil {
		return map[string]string{}
	}
	return joined(md)
}

func joined(md map[string][]string) map[string]string {
	m := make(map[string]string, len(md))
	for k, v := range md {
		m[k] = strings.Join(v, ",")
	}
	return m
}

// Read returns the next message as it was sent.
func (r *response) Read() ([]byte, error) {
	var f bytes.Frame
	if err := r.codec.ReadBody(&f); err != nil {
		return nil, err
	}
	return f.Data, nil
}

// streamCodec reads and writes the messages of a stream.
type streamCodec struct {
	stream grpc.ClientStream
	name   string
}

var _ codec.Codec = (*streamCodec)(nil)

func (c *streamCodec) ReadHeader(m *codec.Message, _ codec.MessageType) error {
	md, err := c.stream.Header()
	if err != nil {
		return err
	}
	if m == nil {
		return nil
	}
	if m.Header == nil {
		m.Header = make(map[string]string, len(md))
	}
	for k, v := range joined(md) {
		m.Header[k] = v
	}
	m.Id, m.Target, m.Method, m.Endpoint = "", "", "", ""
	return nil
}

func (c *streamCodec) ReadBody(v any) error { return c.stream.RecvMsg(v) }

func (c *streamCodec) Write(m *codec.Message, v any) error {
	if v != nil {
		return c.stream.SendMsg(v)
	}
	return c.stream.SendMsg(&bytes.Frame{Data: m.Body})
}

func (c *streamCodec) Close() error   { return c.stream.CloseSend() }
func (c *streamCodec) String() string { return c.name }

var _ encoding.CodecV2 = (*contentCodec)(nil)
