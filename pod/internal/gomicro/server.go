package gomicro

import (
	"fmt"
	"reflect"
	"sync"

	"github.com/micro/go-micro/v2/server"
	"google.golang.org/grpc"
)

// GRPCServer returns grpc-go's server in a server of go-micro's package server/grpc. Each call
// of server.Server.Init replaces it.
func GRPCServer(s server.Server) (*grpc.Server, error) {
	field, err := serverField[*grpc.Server](s, "srv")
	if err != nil {
		return nil, err
	}
	return *field, nil
}

// TakeWaitGroup returns the group that server.Wait has given to a server that does not run yet,
// nil if there is none, and removes it from the server. The server counts its calls and messages
// there, and its Stop waits for the group without limit; the caller does both instead.
func TakeWaitGroup(s server.Server) (*sync.WaitGroup, error) {
	field, err := serverField[*sync.WaitGroup](s, "wg")
	if err != nil {
		return nil, err
	}
	group := *field
	*field = nil
	return group, nil
}

// HandlerNames returns the names of a server's handlers, except internal ones. It must not be called
// while handlers are added.
func HandlerNames(s server.Server) (map[string]bool, error) {
	handlers, err := serverField[map[string]server.Handler](s, "handlers")
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for name, h := range *handlers {
		if !h.Options().Internal {
			names[name] = true
		}
	}
	return names, nil
}

// Methods returns the methods of a server's handlers, such as Greeter/Hello, and whether they are streams. It must not be
// called while handlers are added.
func Methods(s server.Server) (map[string]bool, error) {
	handlers, err := serverField[map[string]server.Handler](s, "handlers")
	if err != nil {
		return nil, err
	}
	methods := map[string]bool{}
	for name, h := range *handlers {
		t := reflect.TypeOf(h.Handler())
		for i := range t.NumMethod() {
			m := t.Method(i)
			methods[name+"/"+m.Name] = m.Type.NumIn() == 3 // the receiver, a context and a stream: prepareEndpoint of go-micro's server/grpc
		}
	}
	return methods, nil
}

// serverField returns a private field of a server of go-micro's package server/grpc.
func serverField[T any](s server.Server, name string) (*T, error) {
	if v := reflect.Indirect(reflect.ValueOf(s)); v.Kind() == reflect.Struct {
		if f := v.FieldByName(name); f.IsValid() && f.CanAddr() && f.Type() == reflect.TypeFor[T]() {
			return (*T)(f.Addr().UnsafePointer()), nil
		}
	}
	return nil, fmt.Errorf("its server is a %T, not one of go-micro's package server/grpc", s)
}
