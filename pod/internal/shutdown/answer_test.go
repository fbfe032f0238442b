package shutdown

import (
	"context"
	"errors"
	"testing"

	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/auth"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
)

// refusingAuth refuses every call, as auth does for calls without a token.
type refusingAuth struct{ auth.Auth }

func (refusingAuth) Verify(*auth.Account, *auth.Resource, ...auth.VerifyOption) error {
	return auth.ErrForbidden
}

// refusingRouter refuses every call. go-micro asks it instead of the handlers.
type refusingRouter struct{ server.Router }

func (refusingRouter) ServeRequest(context.Context, server.Request, server.Response) error {
	return errors.New("refused by the router")
}

// Whatever refuses the calls of strangers or of too many callers must not refuse probes.
func TestHealthAndReflectionAreAboveWhatRefusesCalls(t *testing.T) {
	refuse := func(server.HandlerFunc) server.HandlerFunc {
		return func(context.Context, server.Request, any) error { return errors.New("too many requests") }
	}
	intercept := func(any, grpc.ServerStream, *grpc.StreamServerInfo, grpc.StreamHandler) error {
		return status.Error(codes.ResourceExhausted, "too many requests")
	}
	onServer := func(opts ...server.Option) micro.Option {
		return func(o *micro.Options) { _ = o.Server.Init(opts...) }
	}
	for name, option := range map[string]micro.Option{
		"wrapper":     micro.WrapHandler(refuse),
		"micro.Auth":  micro.Auth(refusingAuth{auth.NewAuth()}),
		"router":      onServer(server.WithRouter(refusingRouter{})),
		"interceptor": onServer(grpcs.Options(grpc.ChainStreamInterceptor(intercept))),
	} {
		t.Run(name, func(t *testing.T) {
			c, _, _, _ := newConfig()
			c.DrainWait = 0
			ctx, cancel := context.WithCancel(t.Context())
			conn, stop := startServer(t, c, withOrders(new(Orders)), option)
			for _, service := range []string{"", "greeter", "Orders", "liveness"} {
				rsp, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: service})
				if err != nil || rsp.Status != healthv1.HealthCheckResponse_SERVING {
					t.Errorf("Check of %q answers %s and %v", service, rsp.GetStatus(), err)
				}
			}
			watch, err := healthv1.NewHealthClient(conn).Watch(ctx, &healthv1.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if rsp, err := watch.Recv(); err != nil || rsp.Status != healthv1.HealthCheckResponse_SERVING {
				t.Errorf("Watch sends %s and %v", rsp.GetStatus(), err)
			}
			v1, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
			if err != nil {
				t.Fatal(err)
			}
			_ = v1.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
			if rsp, err := v1.Recv(); err != nil || len(rsp.GetListServicesResponse().GetService()) < 2 {
				t.Errorf("reflection v1 answers %v and %v", rsp, err)
			}
			alpha, err := reflectionv1alpha.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
			if err != nil {
				t.Fatal(err)
			}
			//nolint:staticcheck // deprecated, and older versions of grpcurl use it
			_ = alpha.Send(&reflectionv1alpha.ServerReflectionRequest{MessageRequest: &reflectionv1alpha.ServerReflectionRequest_ListServices{}})
			if rsp, err := alpha.Recv(); err != nil || len(rsp.GetListServicesResponse().GetService()) < 2 { //nolint:staticcheck // as above
				t.Errorf("reflection v1alpha answers %v and %v", rsp, err)
			}
			if err := conn.Invoke(ctx, "/orders.Orders/Get", &healthv1.HealthCheckRequest{}, &healthv1.HealthCheckResponse{}); err == nil {
				t.Error("a call is not refused")
			}
			cancel() // the stop waits for open streams of reflection
			_ = stop()
		})
	}
}
