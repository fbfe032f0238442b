package shutdown

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/micro/go-micro/v2/logger"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// livenessName is the name whose status is SERVING as long as the process answers.
const livenessName = "liveness"

// health implements grpc.health.v1.Health.
// https://github.com/grpc/grpc/blob/master/doc/health-checking.md
type health struct {
	healthv1.UnimplementedHealthServer // List: the service does not know the names of all handlers
	service                            *grpcService
}

func (h *health) status(service string) healthv1.HealthCheckResponse_ServingStatus {
	switch {
	case service == livenessName:
		return healthv1.HealthCheckResponse_SERVING
	case service != "" && service != h.service.name && !h.service.names.has(service):
		return healthv1.HealthCheckResponse_SERVICE_UNKNOWN
	case h.service.notReadyReason() != "":
		return healthv1.HealthCheckResponse_NOT_SERVING
	default:
		return healthv1.HealthCheckResponse_SERVING
	}
}

// Check returns the current status of a service.
func (h *health) Check(_ context.Context, req *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	current := h.status(req.GetService())
	if current == healthv1.HealthCheckResponse_SERVICE_UNKNOWN {
		return nil, status.Errorf(codes.NotFound, "service %q is not known here", req.GetService())
	}
	return &healthv1.HealthCheckResponse{Status: current}, nil
}

// Watch sends the status of a service, at once and after each change, until the
// server stops.
func (h *health) Watch(req *healthv1.HealthCheckRequest, stream grpc.ServerStreamingServer[healthv1.HealthCheckResponse]) error {
	sent := healthv1.HealthCheckResponse_UNKNOWN
	stopping := h.service.stopping
	for {
		changed := h.service.Registration.Changed()
		if current := h.status(req.GetService()); current != sent {
			if err := stream.Send(&healthv1.HealthCheckResponse{Status: current}); err != nil {
				return err
			}
			sent = current
		}
		select {
		case <-changed:
		case <-stopping:
			stopping = nil // the stop begins once
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-h.service.closing:
			return status.Error(codes.Unavailable, "the server stops")
		}
	}
}

// healthVariable is the environment variable with the address of a second port for health, without TLS: Kubernetes' grpc probes cannot
// speak it ("gRPC probes do not support any authentication parameters (like -tls)"). It has no handlers.
// https://kubernetes.io/docs/tasks/configure-pod-container/configure-liveness-readiness-startup-probes/#define-a-grpc-liveness-probe
const healthVariable = "POD_HEALTH_ADDRESS"

// healthPort answers health from before the registration to the end of the drain. Its zero value does not.
type healthPort struct {
	server *grpc.Server
	served chan struct{} // closed when serving has ended
}

func (p *healthPort) serve(address string, methods map[string]grpc.StreamHandler) error {
	if address == "" {
		return nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("serving health: %w; set %s to a free address such as :9101, or unset it", err, healthVariable)
	}
	logger.Infof("Serving health on %s", l.Addr())
	p.server = grpc.NewServer(grpc.MaxConcurrentStreams(100), grpc.ConnectionTimeout(10*time.Second), grpc.MaxRecvMsgSize(16<<10), grpc.MaxHeaderListSize(16<<10),
		grpc.UnknownServiceHandler(func(srv any, stream grpc.ServerStream) error {
			path, _ := grpc.MethodFromServerStream(stream)
			if method := methods[path]; method != nil {
				return method(srv, stream)
			}
			return status.Errorf(codes.Unimplemented, "only health is served here: there is no %s", path)
		}))
	p.served = make(chan struct{})
	go func() { // ends with close
		defer close(p.served)
		_ = p.server.Serve(l)
	}()
	return nil
}

// close ends serving. Streams of Watch have ended with the stop of the service.
func (p *healthPort) close() error {
	if p.server != nil {
		p.server.Stop()
		<-p.served
	}
	return nil
}
