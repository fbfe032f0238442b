package pod

import "github.com/jiangjiancc/go_micro_k8s/pod/internal/shutdown"

// AdaptiveLimit limits the calls in flight of a service that gets more calls than it can handle: it answers as many as it can in
// about twice their usual time at most, and refuses the others at once. There is no number to set. The service learns how long the
// calls of each method usually take. When they take twice as long for 40 ms, because they wait for a worker or a connection to a
// database, it finds out how many calls in flight it needs for its highest rate of answers, as BBR does, and admits no more. The limit
// ends one second after less than a sixth of the calls were refused. Calls that are slow for another reason have no limit after
// about a second, in which some are refused: then fewer calls in flight have not made them faster.
//
// Handlers that only use the CPU are protected in a gRPC service: when all calls wait for a CPU for more than 20 ms, or their usual
// time if that is longer, before their handlers begin, those that have waited so long are refused, as in DAGOR. A service that
// sets grpc.InTapHandle, which grpc allows once, does not have this. A call that was cancelled while it waited is not handled.
//
// Slow methods do not take the places of fast ones: methods that usually take less than 10 ms, less than 100 ms, less than 1 s
// and longer have limits of their own. In a web service, the first part of a request's path stands for the method.
//
// A refused call ends with the gRPC status RESOURCE_EXHAUSTED and go-micro's code 429, with the service's name as id, before the service
// reads the request. The trailer grpc-retry-pushback-ms of gRFC A6 is -1: neither clients that know it nor go-micro's retry the
// call. A web service answers status 503 with Retry-After. Metrics and events show refused calls by these codes.
//
// Never refused, and not counted: the calls of health, Reflection and go-micro's handler Debug, the probes of a web service,
// streams, server-sent events, WebSockets, and the messages of subscribers. Methods that are not known when the service
// starts, such as those of server.WithRouter, have no limit.
func AdaptiveLimit() LifecycleOption {
	return func(c *shutdown.Config) { c.AdaptiveLimit = true }
}
