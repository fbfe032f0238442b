package shutdown

import (
	"context"
	"fmt"

	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/server"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// Reflection lets grpcurl and similar tools list and call the registered services of
// a gRPC server. It implements gRPC server reflection: grpc.reflection.v1, and
// v1alpha, whose messages are the same. Everyone who can reach the port can read the
// services' proto files.
func Reflection(serves func(name string) bool) micro.Option {
	return func(o *micro.Options) {
		type ServerReflection struct{ *reflectionHandler }
		s := &ServerReflection{&reflectionHandler{reflection.NewServerV1(reflection.ServerOptions{Services: registeredServices{serves}})}}
		o.BeforeStart = append(o.BeforeStart, func() error {
			if err := o.Server.Handle(o.Server.NewHandler(s, server.InternalHandler(true))); err != nil {
				return fmt.Errorf("adding server reflection: %w", err)
			}
			return nil
		})
	}
}

// reflectionHandler passes go-micro's streams to grpc-go's implementation.
type reflectionHandler struct {
	server reflectionv1.ServerReflectionServer
}

// ServerReflectionInfo answers requests until the caller sends no more.
func (r *reflectionHandler) ServerReflectionInfo(ctx context.Context, stream server.Stream) error {
	return r.server.ServerReflectionInfo(reflectionStream{ctx: ctx, stream: stream})
}

// reflectionStream is a stream of go-micro with the methods of grpc-go's that
// reflection uses.
type reflectionStream struct {
	grpc.ServerStream
	ctx    context.Context
	stream server.Stream
}

func (s reflectionStream) Context() context.Context { return s.ctx }

func (s reflectionStream) Recv() (*reflectionv1.ServerReflectionRequest, error) {
	var m reflectionv1.ServerReflectionRequest
	return &m, s.stream.Recv(&m)
}

func (s reflectionStream) Send(m *reflectionv1.ServerReflectionResponse) error {
	return s.stream.Send(m)
}

// registeredServices are the services that reflection lists.
type registeredServices struct{ serves func(name string) bool }

// GetServiceInfo returns the full names of the services, with the proto package,
// which go-micro does not keep.
func (s registeredServices) GetServiceInfo() map[string]grpc.ServiceInfo {
	infos := map[string]grpc.ServiceInfo{
		healthv1.Health_ServiceDesc.ServiceName:               {},
		reflectionv1.ServerReflection_ServiceDesc.ServiceName: {},
	}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			if d := f.Services().Get(i); s.serves(string(d.Name())) {
				infos[string(d.FullName())] = grpc.ServiceInfo{}
			}
		}
		return true
	})
	return infos
}
