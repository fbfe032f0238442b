// Package pod makes a Go-Micro process a good Kubernetes pod: it finds services
// from memory, chooses instances that can answer, answers probes, and stops
// without losing a call.
//
// The package stands between go-micro and its Kubernetes registry plugin:
//
//	registry := pod.NewRegistry(kubernetes.NewRegistry) // the constructor itself, not its result
//	service := micro.NewService(
//		micro.Client(pod.NewClient(registry, grpcc.NewClient())),
//		micro.Registry(registry),
//		pod.Lifecycle(registry),  // in a web service: pod.WebLifecycle
//		pod.Reflection(registry), // for grpcurl
//	)
//
// # Registration
//
// The plugin registers a service as labels and an annotation on the service's own
// pod, and finds services by looking for such pods. This package keeps that format
// to the byte, so services with and without this package find each other.
//
// A registration is a desired state. The registry watches the process's own pod and
// patches it only when the observed registration differs from the desired one, for whatever reason.
// There is no heartbeat. While something else keeps changing the registration, such
// as another container with the same service name, the registry logs this once and
// sends at most 10 PATCH requests in the first minute and then 2 a minute.
//
// The registered address is the pod's IP. A loopback address is refused.
//
// # Discovery
//
// For each service that was ever looked up, an informer lists and watches the pods
// and keeps them in memory.
//
//   - GetService, Watch and calls read from memory. An API server that is down, slow or
//     frozen costs a running client nothing. Only the first call for a service waits
//     for the API server, and returns an error as soon as the reason is known.
//   - An instance is routable when its pod is running, ready and not terminating,
//     and when its annotation can be decoded. Observe shows the other instances too. An
//     invalid annotation of another pod does not crash a client.
//   - Pods whose Kubernetes node stopped reporting stay routable while they outnumber
//     the ready pods, which happens after a long outage of the API server.
//   - A change is seen within milliseconds of its write, in whatever order the
//     label, the annotation and the readiness arrive.
//   - A lost watch is retried at most one second apart; only a header Retry-After from
//     the API server makes the pause longer.
//
// # Choice
//
// A Client calls the better of two random instances (the power of two choices, Mitzenmacher 2001,
// with peak EWMA, from Finagle). A choice reads a snapshot in memory: it takes the same time and
// allocates nothing at any number of instances, and it takes no lock.
//
// The load of an instance is the number of its calls and streams in flight times the square of its
// latency. The latency is an estimate that jumps up with the first slow call, while that call is
// still in flight, and comes down with a time constant of 10 s. Latencies that differ by less than a
// factor of 2 are equal, after adding 1 ms to both. A new instance counts as fast as the others. Each
// server error in a row doubles the load, so that an instance that fails at once does not attract
// calls by looking idle. An instance that got no calls for 10 s because of its load gets one: if it is
// fast again, it gets its share. A stalled instance, which leaves its calls without an answer, is
// passed over before they time out.
//
// An instance is ejected for 5 s when the connection to it fails, or when a call times out although
// the instance had time to answer: it answered no call for twice its usual interval between answers.
// If the instance fails again, the ejection is longer: 20 s, then 80 s, at most 10 s after a failed
// connection. An instance is also ejected when it answers more calls with server errors than the
// others do: after 5 in a row (Envoy's consecutive_5xx), or when they are a fifth of its last 63
// answers, each only if chance is no explanation (gRFC A50's success_rate_stdev_factor). Server errors are the
// statuses UNAVAILABLE, RESOURCE_EXHAUSTED, INTERNAL, UNKNOWN and DATA_LOSS and go-micro errors with a
// code from 500 on. If all instances fail alike, as with the service's database, none is ejected. Other
// errors of handlers do not count, nor does a call that its caller cancels or that began too late to be
// answered, nor the deadline of a stream.
//
// After the ejection one call tries the instance. If it is answered, or the pod has a new process, the
// ejection ends. At most half of a service's instances are ejected, so that the others are not
// overloaded: Envoy's panic threshold is 50 % too, and gRFC A50 has max_ejection_percent. The log has
// one line for each ejection and one for its end. Client.Instances lists the ejections, and WithEvents
// reports picks and ejections to a metrics library.
//
// Filters and strategies given by selector.SelectOption or selector.SetStrategy are honoured; a filter
// sees copies, as with go-micro's own selector.
//
// # Calls
//
// A Client calls like go-micro's gRPC client, over one connection per instance. Each call and stream
// reports how it ended to the choice that was made for it.
//
// NewRegistry gives go-micro a tracer that records the same spans and allocates less memory, unless
// the program has set one. Importing the package changes nothing.
//
// # Stop
//
// On SIGTERM a service with Lifecycle or WebLifecycle becomes not ready, deregisters,
// accepts calls for a short time while clients notice, and waits for everything in
// flight, within the pod's grace period. The handler of an endless stream should return when
// the channel of Draining is closed.
//
// # API server
//
// Every call has a time limit of 5 s or registry.Timeout, except a running watch. The token and the certificate authority are read
// again for each use, so their rotation needs no restart. The token is sent to no
// other server, and only over verified TLS. Errors name the verb, the object, the
// cause and the remedy.
//
// The service account needs these verbs on the pods of its namespace, which
// k8s/pod-rbac.yaml grants:
//
//	list, watch   GetService, Watch, calls of a Client: the pods of a service
//	list, watch   ListServices, Watch, Observe: the pods of all services
//	list, watch   Register: the process's own pod, for the registration and the grace period
//	patch         Register, Deregister: the labels and annotations of the process's own pod;
//	              k8s/pod-admission.yaml allows no other change
//
// # Environment
//
//	POD_NAME                  name of the process's own pod; set it from metadata.name (downward API)
//	POD_IP                    address to register; set it from status.podIP (downward API)
//	HOSTNAME                  used when POD_NAME is not set; not the pod's name under hostNetwork
//	KUBERNETES_SERVICE_HOST   with KUBERNETES_SERVICE_PORT, address of the API server; every pod has them
//	KUBECONFIG                outside a pod: the kubeconfig of the cluster
//
// Outside a pod the registry can be read through a kubeconfig. It cannot be
// written, since there is no pod to write to. It returns the addresses of the pods,
// which a laptop reaches with kubectl port-forward.
//
// # From Register to a picked address
//
// An annotation takes these steps:
//
//	Registry.Register        (registry.go)    go-micro's server registers its address
//	capture                  (internal/registration) the plugin writes the annotation to a local listener
//	registrar.reconcile      (internal/registration) patches the process's own pod with it
//	Connection.ListWatchPods (internal/apiserver) in the client: receives the pod from the watch
//	Informer.Update          (internal/discovery) passes the pod to the table and publishes
//	oneService.update        (internal/discovery) decodes the annotation into instances
//	Informer.publish         (internal/discovery) stores the routable instances as a snapshot
//	serviceChooser.pickBetter (internal/balancer) takes the better of two of the instances for a call
//
// # From greeter.Hello to the wire and back
//
// A call of the generated client takes these steps. Each file is on the way out once, and on the way back once:
//
//	Client.Call               (client.go)                      the public client
//	Client.call               (internal/rpc/client.go)         the wrappers of client.Wrap, and the deadline
//	call.run                  (internal/rpc/call.go)           the attempts: retries and their backoff
//	Selector.Chooser          (internal/balancer/selector.go)  filters, strategies, or the service's chooser
//	call.try                  (internal/rpc/attempt.go)        one attempt, with the call wrappers
//	serviceChooser.pickBetter (internal/balancer/choice.go)    two instances at random
//	Stats.Load                (internal/callstats/load.go)     which of the two is better
//	connections.acquire       (internal/rpc/connections.go)    the instance's connection
//	settings.outgoing         (internal/rpc/settings.go)       the headers; then grpc-go sends the call
//
//	result                    (internal/rpc/errors.go)         grpc-go's status becomes an error of go-micro
//	OfStatus                  (internal/outcome/outcome.go)    what the status says about the instance
//	call.finish               (internal/rpc/attempt.go)        the attempt has ended
//	Choice.Done               (internal/balancer/choice.go)    the end of the choice
//	Stats.End                 (internal/callstats/stats.go)    latency, errors in a row, calls in flight
//	serviceChooser.eject      (internal/balancer/ejection.go)  only if the instance has failed
//
// # From a ConfigMap to a printed map
//
// An edit takes these steps; see package configwatch:
//
//	Connection.ListWatchConfigMap (internal/apiserver)        receives the ConfigMap from the watch
//	watcher.Update                (configwatch/watcher.go)    keeps its data
//	watcher.Next                  (configwatch/watcher.go)    returns the data as a change set
//	newSnapshot                   (configwatch/snapshot.go)   merges it with the other sources
//	ConfigMap.Follow              (configwatch/configmap.go)  yields the configuration
//	printChanges                  (go-micro-config/follow.go) prints its map
//
// # Limits
//
// An informer runs until Close: look up only service names that you know, not names
// that a client sends. All services are in the pod's own namespace, as with
// the plugin. A call to a pod that vanishes without notice can fail; the retry,
// which go-micro makes by default, goes to another instance.
//
// A registry does not trust what other pods register. It skips, with one line in
// the log, a registration whose annotation has the key of another service, an
// address that is not an IP of its pod (see AnyAddress), more than 16 nodes, 32 KiB
// or 1024 JSON objects. Of one pod it reads at most 32 registrations with 64 KiB
// together, and skips the others.
package pod
