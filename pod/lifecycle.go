package pod

import (
	"context"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/shutdown"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/web"
)

// LifecycleOption configures Lifecycle and WebLifecycle.
type LifecycleOption func(*shutdown.Config)

// DrainWait sets how long a pod still accepts new calls after the signal to stop, while
// clients notice, 3 s by default. The wait is shorter if the pod's grace period leaves
// no room for it.
func DrainWait(d time.Duration) LifecycleOption { return func(c *shutdown.Config) { c.DrainWait = d } }

// Lifecycle gives a gRPC service health checks, readiness and drain.
//
// Health: the server answers grpc.health.v1, Check and Watch, on its own port,
// without advertising it. The status of the names "", the service's own name and
// the names of its handlers is SERVING while the service is ready: the API server
// has confirmed the registration, and the process has received no signal to stop. The
// name "liveness" is SERVING as long as the process answers; liveness does not depend on
// the API server. Any other name is NOT_FOUND. Kubernetes' grpc probes use this
// protocol (KEP-2727).
//
// Start: a process that can never register, because it is not in a pod, does not
// start: Run returns the reason. A process whose registration is refused or gets no
// answer keeps running, is not ready, logs the reason, and retries.
//
// Stop: on SIGTERM, SIGINT or SIGQUIT, or at the end of micro.Context, the service
// becomes not ready and deregisters, accepts calls for DrainWait while clients
// notice, and then waits for the calls in flight: for handlers with all wrappers of
// micro.WrapHandler, for streams, which should end when the channel of Draining is
// closed, and for subscribers. All of this ends 3 s before the end of the pod's grace
// period, which the service reads from its pod. Like the kubelet, the service counts the
// grace period from the deletion of the pod, so that it includes the time of a preStop
// hook. A second signal ends the wait at once. Run returns an error if calls in flight were cut off. The last
// lifecycle that uses the registry closes it.
//
// Panics: a panic in a handler fails its call with the text "internal error" and is
// logged. Without this, go-micro sends the text of the panic to the caller, and a
// panic in the handler of a stream ends the process.
//
// Errors: if a handler returns an error that it got from go-micro's client, which has
// the id go.micro.client, the service's name replaces that id, so that callers can tell
// the error from one of their own client. Its code and text stay.
//
// Flow control: up to 1 MiB of a stream, and of a connection, may be unread, unless grpcs.Options
// has set other windows.
//
// If the service uses another registry, as with --registry=mdns, readiness does not
// depend on the registration.
func Lifecycle(r *Registry, opts ...LifecycleOption) micro.Option {
	return shutdown.GRPC(r.lifecycle(opts))
}

// WebLifecycle gives a web service health checks, readiness and drain, as Lifecycle gives
// them to a gRPC service; see Lifecycle for start and stop. It must come after web.Server,
// if that option is given.
//
// Health: GET /healthz answers 200 as long as the process answers; GET /readyz
// answers 200 if the service is ready, else 503 and the reason. Both are answered
// before the service's own handlers and are not advertised.
//
// Stop: while the service accepts calls for DrainWait, each response asks its client to
// open a new connection, which goes to another pod. Then http.Server.Shutdown waits for
// the requests in flight, but not for hijacked connections, such as WebSockets. The
// handler of an endless response should return when the channel of Draining is closed.
//
// Limits, without the option web.Server: the header of a request may take 5 s and have
// 16 KiB (status 431), its body may take 30 s and have 1 MiB (status 413). The time for
// the response has no limit, because a limit would cut long downloads and event streams.
// There may be 1,200 connections, at most 600 of them of one client address. When there
// is one more, the server closes the connection that has waited longest for its client to
// send a request.
//
// Run also returns the error with which serving ends; go-micro alone drops it. The flag
// --registry also works with web.Registry; go-micro alone ignores the flag then.
func WebLifecycle(r *Registry, opts ...LifecycleOption) web.Option {
	return shutdown.Web(r.lifecycle(opts))
}

// Reflection lets grpcurl and similar tools list and call the registered services of
// a gRPC server. It implements gRPC server reflection: grpc.reflection.v1, and
// v1alpha, whose messages are the same. Everyone who can reach the port can read the
// services' proto files.
func Reflection(r *Registry) micro.Option { return shutdown.Reflection(r.registration.Serves) }

// Draining returns a channel that is closed when the service begins to stop. ctx is the
// context that a service with Lifecycle or WebLifecycle gives to a handler, including the
// handler of a stream, or to a subscriber. For any other context the channel is nil, and a
// receive from it blocks for ever. A handler that sends without end, as for a stream or
// server-sent events, should return when the channel is closed: the stop waits for the
// handler as long as the pod's grace period allows, and then cuts it off.
func Draining(ctx context.Context) <-chan struct{} { return shutdown.Draining(ctx) }

// lifecycle returns the configuration of a lifecycle of a service that uses the registry.
func (r *Registry) lifecycle(opts []LifecycleOption) shutdown.Config {
	c := shutdown.Config{Registry: r, Registration: r.registration, Retain: r.retain, Release: r.release, DrainWait: shutdown.DefaultDrainWait}
	for _, o := range opts {
		o(&c)
	}
	return c
}
