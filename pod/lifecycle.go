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

// BodyLimit sets the size in bytes of the largest request body that a web service accepts, 1 MiB
// by default, and the time for reading a body, 30 s by default. 0 means no limit.
func BodyLimit(size int64, d time.Duration) LifecycleOption {
	return func(c *shutdown.Config) { c.Limits.Body, c.Limits.BodyTimeout = size, d }
}

// ConnectionLimit sets how many connections a web service keeps, 1,200 by default, and how many of
// them of one client address, 600 by default. Behind a proxy, many clients share an address. A
// connection takes about 50 KiB of memory. 0 means no limit.
func ConnectionLimit(total, client int) LifecycleOption {
	return func(c *shutdown.Config) { c.Limits.Connections, c.Limits.ClientConnections = total, client }
}

// Lifecycle gives a gRPC service health checks, readiness and drain.
//
// Health: the server answers grpc.health.v1, Check and Watch, on its own port,
// without advertising it. The status of the names "", the service's own name and
// the names of its handlers is SERVING while the service is ready: the API server
// has confirmed the registration, and the process has received no signal to stop. The
// name "liveness" is SERVING as long as the process answers; liveness does not depend on
// the API server. Any other name is NOT_FOUND. Kubernetes' grpc probes use this
// protocol (KEP-2727). With POD_HEALTH_ADDRESS in the environment, such as :9101, the same is also answered there, in
// plaintext, because these probes speak no TLS; see package pod/identity. Neither micro.Auth nor a router, a wrapper of micro.WrapHandler or a
// grpc.ChainStreamInterceptor sees the calls of health and of Reflection, so that they refuse
// no probe. Only a grpc.StreamInterceptor sees them.
//
// Debug: go-micro gives each server a handler Debug that answers every caller. With Lifecycle its methods
// Log, Stats, Cache and Trace answer PERMISSION_DENIED. With POD_DEBUG_TRACE=on in the environment,
// Debug.Trace answers everyone who reaches the port with the last 256 spans: names, times, codes of
// go-micro's errors, and the addresses of attempts that failed, but no texts of errors, no payloads, and no headers except
// the ids of the trace. Package debugtrace reads them.
//
// Start: a process that can never register, because it is neither in a pod nor has a kubeconfig, does not
// start: Run returns the reason. Outside of the cluster, with a kubeconfig, a service registers
// nothing, logs this once, and is ready. A process whose registration is refused or gets no answer
// keeps running, is not ready, logs the reason, and retries.
//
// Stop: on SIGTERM, SIGINT or SIGQUIT, or at the end of micro.Context, the service
// becomes not ready and deregisters, and accepts calls for DrainWait while clients
// notice. Then it accepts no more connections and sends GOAWAY, so that gRPC clients that
// know nothing of the registration, such as those behind a Kubernetes Service, leave busy
// connections, too. It waits for the calls in flight: for handlers with all wrappers of
// micro.WrapHandler, for streams, which should end when the channel of Draining is
// closed, and for subscribers. All of this ends 3 s before the end of the pod's grace
// period, which the service reads from its pod. Like the kubelet, the service counts the
// grace period from the deletion of the pod, so that it includes the time of a preStop
// hook. A second signal ends the wait at once; the first one does not count if the end of
// micro.Context, other than by signal.NotifyContext, began the stop. Run returns an error if
// calls in flight were cut off, and does not wait longer for the group of server.Wait.
//
// Several services of a process may use one registry: each one that stops deregisters itself, and
// the last one everything else that the process has registered, such as the topics of a broker.
//
// Order: functions of micro.BeforeStop run after the drain, those of micro.AfterStop after the
// last messages, wherever their options are. The last lifecycle that uses the registry closes
// it; a function of micro.AfterStop that calls other services must be given before Lifecycle.
// The server must be one of package server/grpc, and given to micro.NewService: Run refuses
// another one, and one that service.Init has replaced.
//
// Panics: a panic in a handler fails its call with the text "internal error" and is
// logged. Without this, go-micro sends the text of the panic to the caller, and a
// panic in the handler of a stream ends the process.
//
// Errors: if a handler returns an error that it got from go-micro's client, which has
// the id go.micro.client, the service's name replaces that id, so that callers can tell
// the error from one of their own client. Its code and text stay.
//
// Flow control: up to 1 MiB of each stream may be unread, unless grpcs.Options
// has set other windows.
//
// If the service uses another registry, as with --registry=mdns, readiness does not
// depend on the registration. In a pod, a warning names what has chosen that registry.
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
// open a new connection, which goes to another pod. The service goes on accepting until no request has
// arrived for a third of DrainWait, for four times DrainWait or half of the grace period at
// most: kube-proxy can be slow on a busy cluster. Then http.Server.Shutdown waits for
// the requests in flight, but not for hijacked connections, such as WebSockets. The
// handler of an endless response should return when the channel of Draining is closed.
// Functions of web.BeforeStop run after that, wherever their options are.
//
// Limits, without the option web.Server: the header of a request may take 5 s and have
// 16 KiB (status 431), its body may take 30 s and have 1 MiB (status 413, BodyLimit). The time for
// the response has no limit, because a limit would cut long downloads and event streams.
// There may be 1,200 connections, at most 600 of them of one client address (ConnectionLimit). When there
// is one more, the server closes the connection that has waited longest for its client to
// send a request. While all have a request in progress, further requests get status 503; probes
// are answered. An idle connection is kept for 620 s, longer than load balancers keep theirs.
//
// Run also returns the error with which serving ends; go-micro alone drops it. The flag
// --registry also works with web.Registry; go-micro alone ignores the flag then.
func WebLifecycle(r *Registry, opts ...LifecycleOption) web.Option {
	return shutdown.Web(r.lifecycle(opts))
}

// Reflection lets grpcurl and similar tools list and call the services of a gRPC server, whatever
// its registry is. It implements gRPC server reflection: grpc.reflection.v1, and
// v1alpha, whose messages are the same. Everyone who can reach the port can read the
// services' proto files.
func Reflection(*Registry) micro.Option { return shutdown.Reflection() }

// Draining returns a channel that is closed when the service begins to stop. ctx is the
// context that a service with Lifecycle or WebLifecycle gives to a handler, including the
// handler of a stream, or to a subscriber. For any other context the channel is nil, and a
// receive from it blocks for ever. A handler that sends without end, as for a stream or
// server-sent events, should return when the channel is closed: the stop waits for the
// handler as long as the pod's grace period allows, and then cuts it off.
func Draining(ctx context.Context) <-chan struct{} { return shutdown.Draining(ctx) }

// lifecycle returns the configuration of a lifecycle of a service that uses the registry.
func (r *Registry) lifecycle(opts []LifecycleOption) shutdown.Config {
	c := shutdown.Config{Registry: r, Registration: r.registration, Retain: r.retain, Release: r.release,
		DrainWait: shutdown.DefaultDrainWait, Getenv: r.env.Getenv, Limits: shutdown.DefaultLimits,
		Events: &r.events, Started: r.started, ServerOptions: r.serverOptions}
	for _, o := range opts {
		o(&c)
	}
	return c
}
