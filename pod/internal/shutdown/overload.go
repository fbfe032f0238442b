package shutdown

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/overload"
	microerrors "github.com/micro/go-micro/v2/errors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

const overloaded = "overloaded: too many calls in flight"

// callLimit refuses calls of a gRPC service that has too many. Its zero value refuses none.
type callLimit struct {
	methods map[string]*overload.Method // such as Greeter/Hello; without streams, whose length says nothing
	refusal error
}

// noRetry is the trailer of a refused call. gRFC A6: "If the value for pushback is negative or unparseble, then it will be
// seen as the server asking the client not to retry at all." The other instances probably have too many calls, too.
var noRetry = metadata.Pairs("grpc-retry-pushback-ms", "-1")

// newCallLimit returns a limit for the methods of a service, of which streams have the value true.
func newCallLimit(service string, methods map[string]bool) (callLimit, error) {
	const code = http.StatusTooManyRequests // go-micro's clients do not repeat a call that ends with it
	s, err := status.New(codes.ResourceExhausted, overloaded).WithDetails(&microerrors.Error{Id: service, Code: code, Detail: overloaded, Status: http.StatusText(code)})
	if err != nil {
		return callLimit{}, err
	}
	l := callLimit{map[string]*overload.Method{}, s.Err()}
	limiter := overload.New()
	for name, isStream := range methods {
		if !isStream {
			l.methods[name] = limiter.NewMethod()
		}
	}
	return l, nil
}

// serve handles a call, or refuses it.
func (l *callLimit) serve(method string, srv any, stream grpc.ServerStream, next grpc.StreamHandler) error {
	m := l.methods[method]
	if m == nil {
		return next(srv, stream)
	}
	ctx := stream.Context()
	if err := ctx.Err(); err != nil { // the caller no longer waits
		return status.FromContextError(err).Err()
	}
	now := overload.Clock()
	call, ok := m.Begin(arrivalOf(ctx, now), now)
	if !ok {
		stream.SetTrailer(noRetry)
		return l.refusal
	}
	defer func() { call.End(overload.Clock()) }()
	return next(srv, stream)
}

// arrival is the context of a call with the time at which its header was read, before a goroutine of its own waited for a CPU.
type arrival struct {
	context.Context
	time int64
}

type arrivalKey struct{}

func (a *arrival) Value(key any) any {
	if key == (arrivalKey{}) {
		return a
	}
	return a.Context.Value(key)
}

// arrivalOf returns the time at which a call arrived, or now if it is not known.
func arrivalOf(ctx context.Context, now int64) int64 {
	if a, ok := ctx.Value(arrivalKey{}).(*arrival); ok {
		return a.time
	}
	return now
}

// arrivals returns the option that makes a server note when calls arrive, or none if the user's options contain grpc.InTapHandle,
// which grpc allows once.
func arrivals(user []grpc.ServerOption) (option []grpc.ServerOption) {
	defer func() {
		if recover() != nil { // grpc: "The tap handle was already set and may not be reset."
			option = nil
		}
	}()
	option = []grpc.ServerOption{grpc.InTapHandle(func(ctx context.Context, _ *tap.Info) (context.Context, error) {
		return &arrival{ctx, overload.Clock()}, nil
	})}
	grpc.NewServer(slices.Concat(option, user)...).Stop()
	return option
}

// requestLimit refuses requests of a web service that has too many.
type requestLimit struct {
	next    http.Handler
	limiter *overload.Limiter
	mu      sync.Mutex                                  // serializes changes of methods
	methods atomic.Pointer[map[string]*overload.Method] // by the first part of the path
}

// maxPaths is how many paths are told apart. Others share one method, because a stranger may ask for any path.
const maxPaths = 256

func newRequestLimit(next http.Handler) *requestLimit {
	l := &requestLimit{next: next, limiter: overload.New()}
	l.methods.Store(&map[string]*overload.Method{"": l.limiter.NewMethod()})
	return l
}

func (l *requestLimit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "" || strings.Contains(r.Header.Get("Accept"), "text/event-stream") { // a stream
		l.next.ServeHTTP(w, r)
		return
	}
	now := overload.Clock()
	call, ok := l.method(r.URL.Path).Begin(now, now)
	if !ok {
		w.Header().Set("Retry-After", "1") // seconds: the shortest time that the header can have
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, overloaded, http.StatusServiceUnavailable)
		return
	}
	defer func() { call.End(overload.Clock()) }()
	l.next.ServeHTTP(w, r)
}

// method returns the method of the requests whose paths have the same first part.
func (l *requestLimit) method(path string) *overload.Method {
	if len(path) > 1 {
		if end := strings.IndexByte(path[1:], '/'); end >= 0 {
			path = path[:end+1]
		}
	}
	known := *l.methods.Load()
	if m := known[path]; m != nil {
		return m
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	known = *l.methods.Load()
	switch m := known[path]; {
	case m != nil:
		return m
	case len(known) >= maxPaths:
		return known[""]
	}
	more, m := maps.Clone(known), l.limiter.NewMethod()
	more[strings.Clone(path)] = m
	l.methods.Store(&more)
	return m
}
