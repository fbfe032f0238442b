package load

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Instance is a grpc-go server whose behaviour can be changed while it runs. All
// libraries call the same instances, so that only their clients differ. Hello answers "Hello <name>!"; the
// wire format of a StringValue is that of HelloRequest and HelloResponse.
type Instance struct {
	Address  string
	received atomic.Int64
	behavior atomic.Pointer[func(context.Context) error]
	listener net.Listener

	mu          sync.Mutex
	connections map[string]net.Conn // by the address of the client
}

// NewInstance starts an instance on loopback that answers at once.
func NewInstance() (*Instance, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	i := &Instance{Address: l.Addr().String(), listener: l, connections: map[string]net.Conn{}}
	i.Behave(func(context.Context) error { return nil })
	s := grpc.NewServer()
	for _, name := range []string{"Greeter", "greeter.Greeter"} { // go-micro puts the name of the service in front
		s.RegisterService(&grpc.ServiceDesc{ServiceName: name, HandlerType: (*any)(nil),
			Methods: []grpc.MethodDesc{{MethodName: "Hello", Handler: i.hello}, {MethodName: "Export", Handler: export}},
			Streams: []grpc.StreamDesc{{StreamName: "Stream", Handler: stream, ServerStreams: true, ClientStreams: true}}}, i) // go-micro does not close its side after the request
	}
	grpc_health_v1.RegisterHealthServer(s, health.NewServer()) // kratos' client asks for it
	go func() { _ = s.Serve(listener{l, i}) }()
	return i, nil
}

// Behave sets what a call does before its answer: sleep, or return an error.
func (i *Instance) Behave(b func(context.Context) error) { i.behavior.Store(&b) }

func (i *Instance) hello(_ any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	q := &wrapperspb.StringValue{}
	if err := decode(q); err != nil {
		return nil, err
	}
	handle := func(ctx context.Context, q any) (any, error) {
		i.received.Add(1)
		if err := (*i.behavior.Load())(ctx); err != nil {
			return nil, err
		}
		return Hello(q.(*wrapperspb.StringValue)), nil
	}
	if interceptor == nil {
		return handle(ctx, q)
	}
	return interceptor(ctx, q, &grpc.UnaryServerInfo{Server: i, FullMethod: "/Greeter/Hello"}, handle)
}

// exportTime is less than timeout.
const exportTime = 4500 * time.Millisecond

func export(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	q := &wrapperspb.StringValue{}
	if err := decode(q); err != nil {
		return nil, err
	}
	select {
	case <-time.After(exportTime):
		return Hello(q), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Register registers the Greeter with the server of another library.
func Register(r grpc.ServiceRegistrar) {
	RegisterWork(r, func(context.Context) error { return nil })
}

// RegisterWork registers a Greeter that does some work before its answer.
func RegisterWork(r grpc.ServiceRegistrar, work func(context.Context) error) {
	i := &Instance{}
	i.Behave(work)
	r.RegisterService(&grpc.ServiceDesc{ServiceName: "Greeter", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{MethodName: "Hello", Handler: i.hello}}}, i)
}

// Hello is what the Greeter answers.
func Hello(q *wrapperspb.StringValue) *wrapperspb.StringValue {
	return &wrapperspb.StringValue{Value: "Hello " + q.Value + "!"}
}

// The names in a request for a stream.
const (
	oneMessage  = "one" // one message, then wait until the client closes the stream
	allMessages = "all" // messages until the client closes the stream
)

func stream(_ any, s grpc.ServerStream) error {
	q := &wrapperspb.StringValue{}
	if err := s.RecvMsg(q); err != nil {
		return err
	}
	answer := Hello(q)
	for s.Context().Err() == nil {
		if err := s.SendMsg(answer); err != nil {
			return err
		}
		if q.Value == oneMessage {
			<-s.Context().Done()
		}
	}
	return s.Context().Err()
}

// listener keeps the connections of an instance, so that calls can break them.
type listener struct {
	net.Listener
	instance *Instance
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.instance.mu.Lock()
		l.instance.connections[c.RemoteAddr().String()] = c
		l.instance.mu.Unlock()
	}
	return c, err
}

// failures are the ways in which an instance fails a call at once.
var failures = map[string]func(*Instance, context.Context) error{
	"transport": func(i *Instance, ctx context.Context) error { // like a process that crashes on each call
		if p, ok := peer.FromContext(ctx); ok {
			i.mu.Lock()
			if c := i.connections[p.Addr.String()]; c != nil {
				c.Close()
				delete(i.connections, p.Addr.String())
			}
			i.mu.Unlock()
		}
		return errors.New("the connection is closed")
	},
	"unavailable": func(*Instance, context.Context) error { return status.Error(codes.Unavailable, "overloaded") },
	"error": func(*Instance, context.Context) error { // as go-micro's server sends an error of a handler
		return status.Error(codes.Internal, `{"id":"go.micro.srv.greeter","code":500,"detail":"no database","status":"Internal Server Error"}`)
	},
}

// lognormal returns a behaviour that answers after a random time. Sigma is that of the logarithm; 0 is a
// constant time.
func lognormal(median time.Duration, sigma float64) func(context.Context) error {
	return func(context.Context) error {
		time.Sleep(time.Duration(float64(median) * math.Exp(sigma*rand.NormFloat64())))
		return nil
	}
}

// instances starts n instances with the same behaviour.
func instances(n int, behavior func(context.Context) error) (all group, err error) {
	for range n {
		i, err := NewInstance()
		if err != nil {
			return nil, err
		}
		i.Behave(behavior)
		all = append(all, i)
	}
	return all, nil
}

type group []*Instance

func (g group) addresses() (all []string) {
	for _, i := range g {
		all = append(all, i.Address)
	}
	return all
}

// spread returns a function that returns the calls from now on of the instance with the fewest and of that
// with the most, divided by the mean of all instances.
func (g group) spread() func() (least, most float64) {
	var before []int64
	for _, i := range g {
		before = append(before, i.received.Load())
	}
	return func() (least, most float64) {
		least = math.Inf(1)
		sum := 0.
		for k, i := range g {
			n := float64(i.received.Load() - before[k])
			least, most, sum = min(least, n), max(most, n), sum+n
		}
		mean := max(1, sum) / float64(len(g))
		return least / mean, most / mean
	}
}

// received returns the calls that the instances have received: the last one, and all.
func (g group) received() (last, all int) {
	for _, i := range g {
		last = int(i.received.Load())
		all += last
	}
	return last, all
}
