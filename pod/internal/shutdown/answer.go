package shutdown

import (
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"google.golang.org/grpc"
)

// initServer gives a gRPC server options that come before those of grpcs.Options. So an
// interceptor among them is above the user's, and the user's windows replace others. Only
// grpc.WaitForHandlers has no effect: the drain waits for handlers, and a handler that hangs would
// hold the process without limit.
func initServer(srv server.Server, first ...grpc.ServerOption) error {
	if err := gomicro.Check(); err != nil {
		return err
	}
	return srv.Init(func(o *server.Options) {
		grpcs.Options(slices.Concat(first, gomicro.ServerOptions(*o), []grpc.ServerOption{grpc.WaitForHandlers(false)})...)(o)
	})
}

// handlerNames are the names of a server's handlers. It is safe for concurrent use.
type handlerNames struct {
	names atomic.Pointer[map[string]bool]
}

// read reads the names from a server that has started, and to which no handlers are added any more.
func (n *handlerNames) read(srv server.Server) error {
	names, err := gomicro.HandlerNames(srv)
	n.names.Store(&names)
	return err
}

// has reports whether the server has a handler of that name.
func (n *handlerNames) has(name string) bool {
	names := n.names.Load()
	return names != nil && (*names)[name]
}

// methodsOf returns the handlers of a service's methods by their paths. go-micro's server
// registers no service with grpc-go: it handles every call in one handler of streams, with
// its own auth, router and wrappers. Token checks and rate limiters among them must not
// refuse probes, so an interceptor answers the calls of these methods.
func methodsOf(service *grpc.ServiceDesc, implementation any) map[string]grpc.StreamHandler {
	methods := map[string]grpc.StreamHandler{}
	path := func(method string) string { return fmt.Sprintf("/%s/%s", service.ServiceName, method) }
	for _, m := range service.Methods {
		methods[path(m.MethodName)] = func(_ any, stream grpc.ServerStream) error {
			rsp, err := m.Handler(implementation, stream.Context(), stream.RecvMsg, nil)
			if err != nil {
				return err
			}
			return stream.SendMsg(rsp)
		}
	}
	for _, m := range service.Streams {
		methods[path(m.StreamName)] = func(_ any, stream grpc.ServerStream) error { return m.Handler(implementation, stream) }
	}
	return methods
}
