package pod

import (
	"context"
	"fmt"

	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/server"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// liveness is the name under which health says that the process answers.
const liveness = "liveness"

// internal are the handlers that no drain waits for. go-micro's server routes by
// the last part of a gRPC service's name, which is the name of the handler's Go type.
var internal = []string{"Health", "ServerReflection", "Debug"}

func newHealth(l *lifecycle) any {
	type Health struct{ *health }
	return &Health{&health{l}}
}

// health answers grpc.health.v1.Health.
// https://github.com/grpc/grpc/blob/master/doc/health-checking.md
type health struct{ life *lifecycle }

func (h *health) status(service string) healthv1.HealthCheckResponse_ServingStatus {
	switch {
	case service == liveness:
		return healthv1.HealthCheckResponse_SERVING
	case service != "" && service != h.life.name && !h.life.registry.knows(service):
		return healthv1.HealthCheckResponse_SERVICE_UNKNOWN
	case h.life.unready() != "":
		return healthv1.HealthCheckResponse_NOT_SERVING
	default:
		return healthv1.HealthCheckResponse_SERVING
	}
}

// Check says how a service is now.
func (h *health) Check(_ context.Context, req *healthv1.HealthCheckRequest, rsp *healthv1.HealthCheckResponse) error {
	if rsp.Status = h.status(req.Service); rsp.Status == healthv1.HealthCheckResponse_SERVICE_UNKNOWN {
		return errors.NotFound("grpc.health.v1", "service %q is not known here", req.Service)
	}
	return nil
}

// Watch says how a service is, now and after each change, until the server stops.
func (h *health) Watch(ctx context.Context, stream server.Stream) error {
	var req healthv1.HealthCheckRequest
	if err := stream.Recv(&req); err != nil {
		return err
	}
	said := healthv1.HealthCheckResponse_UNKNOWN
	for {
		changed := h.life.registry.changed.next()
		if is := h.status(req.Service); is != said {
			if err := stream.Send(&healthv1.HealthCheckResponse{Status: is}); err != nil {
				return err
			}
			said = is
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-h.life.ended:
			return errors.New("grpc.health.v1", "the server stops", 503)
		}
	}
}

// Reflection lets grpcurl and its like list and call the registered services of
// a gRPC server, by gRPC server reflection (grpc.reflection.v1, and v1alpha,
// whose messages are the same). Whoever reaches the port learns the services'
// proto files by it.
func Reflection(r *Registry) micro.Option {
	return func(o *micro.Options) {
		type ServerReflection struct{ *reflected }
		s := &ServerReflection{&reflected{reflection.NewServerV1(reflection.ServerOptions{Services: services{r}})}}
		o.BeforeStart = append(o.BeforeStart, func() error {
			if err := o.Server.Handle(o.Server.NewHandler(s, server.InternalHandler(true))); err != nil {
				return fmt.Errorf("adding server reflection: %w", err)
			}
			return nil
		})
	}
}

type reflected struct {
	by reflectionv1.ServerReflectionServer
}

// ServerReflectionInfo answers questions until the caller has no more.
func (r *reflected) ServerReflectionInfo(ctx context.Context, stream server.Stream) error {
	return r.by.ServerReflectionInfo(questions{ctx: ctx, stream: stream})
}

// questions is go-micro's stream in grpc-go's form, as far as reflection reads it.
type questions struct {
	grpc.ServerStream
	ctx    context.Context
	stream server.Stream
}

func (q questions) Context() context.Context { return q.ctx }

func (q questions) Recv() (*reflectionv1.ServerReflectionRequest, error) {
	var m reflectionv1.ServerReflectionRequest
	return &m, q.stream.Recv(&m)
}

func (q questions) Send(m *reflectionv1.ServerReflectionResponse) error { return q.stream.Send(m) }

// services are what reflection lists.
type services struct{ registry *Registry }

// GetServiceInfo has the full names, with the proto package, that go-micro forgets.
func (s services) GetServiceInfo() map[string]grpc.ServiceInfo {
	all := map[string]grpc.ServiceInfo{
		healthv1.Health_ServiceDesc.ServiceName:               {},
		reflectionv1.ServerReflection_ServiceDesc.ServiceName: {},
	}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			if d := f.Services().Get(i); s.registry.knows(string(d.Name())) {
				all[string(d.FullName())] = grpc.ServiceInfo{}
			}
		}
		return true
	})
	return all
}
