package shutdown

import (
	"context"

	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/server"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// livenessName is the name whose status is SERVING as long as the process answers.
const livenessName = "liveness"

// internalHandlers are the handlers whose calls the drain does not wait for. go-micro's
// server routes by the last part of a gRPC service's name, which is the name of the
// handler's Go type.
var internalHandlers = []string{"Health", "ServerReflection", "Debug"}

func newHealth(s *grpcService) any {
	type Health struct{ *health }
	return &Health{&health{s}}
}

// health implements grpc.health.v1.Health.
// https://github.com/grpc/grpc/blob/master/doc/health-checking.md
type health struct{ service *grpcService }

func (h *health) status(service string) healthv1.HealthCheckResponse_ServingStatus {
	switch {
	case service == livenessName:
		return healthv1.HealthCheckResponse_SERVING
	case service != "" && service != h.service.name && !h.service.Registration.Serves(service):
		return healthv1.HealthCheckResponse_SERVICE_UNKNOWN
	case h.service.notReadyReason() != "":
		return healthv1.HealthCheckResponse_NOT_SERVING
	default:
		return healthv1.HealthCheckResponse_SERVING
	}
}

// Check returns the current status of a service.
func (h *health) Check(_ context.Context, req *healthv1.HealthCheckRequest, rsp *healthv1.HealthCheckResponse) error {
	if rsp.Status = h.status(req.Service); rsp.Status == healthv1.HealthCheckResponse_SERVICE_UNKNOWN {
		return errors.NotFound("grpc.health.v1", "service %q is not known here", req.Service)
	}
	return nil
}

// Watch sends the status of a service, at once and after each change, until the
// server stops.
func (h *health) Watch(ctx context.Context, stream server.Stream) error {
	var req healthv1.HealthCheckRequest
	if err := stream.Recv(&req); err != nil {
		return err
	}
	sent := healthv1.HealthCheckResponse_UNKNOWN
	stopping := h.service.stopping
	for {
		changed := h.service.Registration.Changed()
		if status := h.status(req.Service); status != sent {
			if err := stream.Send(&healthv1.HealthCheckResponse{Status: status}); err != nil {
				return err
			}
			sent = status
		}
		select {
		case <-changed:
		case <-stopping:
			stopping = nil // the stop begins once
		case <-ctx.Done():
			return ctx.Err()
		case <-h.service.drained:
			return errors.New("grpc.health.v1", "the server stops", 503)
		}
	}
}
