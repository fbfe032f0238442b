package shutdown

import (
	"fmt"
	"maps"

	"github.com/micro/go-micro/v2"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// Reflection lets grpcurl and similar tools list and call the services of a gRPC server. It implements gRPC server reflection: grpc.reflection.v1, and
// v1alpha, whose messages are the same. Everyone who can reach the port can read the
// services' proto files.
func Reflection() micro.Option {
	return func(o *micro.Options) {
		var names handlerNames
		s := reflection.NewServerV1(reflection.ServerOptions{Services: services{&names}})
		v1alpha := reflectionv1.ServerReflection_ServiceDesc
		v1alpha.ServiceName = "grpc.reflection.v1alpha.ServerReflection"
		methods := methodsOf(&reflectionv1.ServerReflection_ServiceDesc, s)
		maps.Copy(methods, methodsOf(&v1alpha, s))
		answer := func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if method := methods[info.FullMethod]; method != nil {
				return method(srv, stream)
			}
			return next(srv, stream)
		}
		o.BeforeStart = append(o.BeforeStart, func() error {
			if err := initServer(o.Server, grpc.ChainStreamInterceptor(answer)); err != nil {
				return fmt.Errorf("adding server reflection: %w", err)
			}
			return nil
		})
		o.AfterStart = append([]func() error{func() error { return names.read(o.Server) }}, o.AfterStart...)
	}
}

// services are the services that reflection lists.
type services struct{ handlers *handlerNames }

// GetServiceInfo returns the full names of the services, with the proto package,
// which go-micro does not keep.
func (s services) GetServiceInfo() map[string]grpc.ServiceInfo {
	infos := map[string]grpc.ServiceInfo{
		healthv1.Health_ServiceDesc.ServiceName:               {},
		reflectionv1.ServerReflection_ServiceDesc.ServiceName: {},
	}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			if d := f.Services().Get(i); s.handlers.has(string(d.Name())) {
				infos[string(d.FullName())] = grpc.ServiceInfo{}
			}
		}
		return true
	})
	return infos
}
