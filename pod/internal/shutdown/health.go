package shutdown

import (
	"context"

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
