// Package pod makes a Go-Micro process a good Kubernetes pod: it finds services from memory, chooses instances that can answer, answers
// probes, and stops without losing a call.
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
// The plugin registers a service as labels and an annotation on the service's own pod, and finds services by looking for such pods. This
// package keeps that format to the byte, so services with and without this package find each other.
//
// A registration is a desired state. The registry watches the process's own pod and patches it only when the observed registration differs
// from the desired one, for whatever reason. There is no heartbeat. While something else keeps changing the registration, such as another
// container with the same service name, the registry logs this once and sends at most 10 PATCH requests in the first minute and then 2 a
// minute.
//
// The registered address is the pod's IP. A loopback address is refused. A service is ready when its own registration is confirmed; other
// registrations of the process, such as the topics of go-micro's HTTP broker, do not matter.
//
// # Discovery
//
// For each service that was ever looked up, an informer lists and watches the pods and keeps them in memory.
//
//   - GetService, Watch and calls read from memory. An API server that is down, slow or frozen costs a running client nothing. Only the
//     first call for a service waits for the API server, and returns an error as soon as the reason is known.
//   - An instance is routable when its pod is running, ready and not terminating, and when its annotation can be decoded. Observe shows the
//     other instances too. An invalid annotation of another pod does not crash a client.
//   - Pods whose Kubernetes node stopped reporting stay routable while they outnumber the ready pods, which happens after a long outage of
//     the API server.
//   - A change is seen within milliseconds of its write, in whatever order the label, the annotation and the readiness arrive.
//   - A lost watch is retried at most one second apart, and continues from its last version: a restart of the API server costs one LIST only
//     if the API server no longer has that version. A header Retry-After makes the pause longer, and so does a refusal that somebody must
//     repair, such as a missing right: it is retried after up to 30 s.
//   - After etcd was restored from a backup, clients read all pods again and lost registrations are written again: at once if the watch has
//     broken off, otherwise within 2 minutes.
//
// # Choice
//
// A Client calls the better of two random instances (the power of two choices, Mitzenmacher 2001, with a moving average, from Finagle). A
// choice reads a snapshot in memory: it takes the same time and allocates nothing at any number of instances, and it takes no lock.
//
// The load of an instance is the number of its calls in flight times the square of its slowness. Only calls of methods that usually take
// about as long count: methods of less than 10 ms, 100 ms and 1 s count for each other if they are neighbours, longer ones only among
// themselves. Streams are balanced by streams. The client learns how long each method of a service usually takes, for up to 256 methods.
// Slowness is the duration of a call divided by the usual one of its method: an estimate that each answer raises by a quarter at most, and
// that comes down with a time constant of 10 s, so that rare long calls change nothing. Estimates that differ by less than a factor of 2 are
// equal. A new instance counts as fast as the others. Each server error in a row doubles the load, so that an instance that fails at once
// does not attract calls by looking idle. An instance that got no calls for 10 s because of its load gets one: if it is fast again, it gets
// its share. A stalled instance, which answers none of its calls for 8 times as long as usual, is passed over before they time out.
//
// An instance that gave no answer gets no calls as long as others are left: the connection to it failed, or a call timed out although the
// instance answered no call for twice its usual interval between answers. While the service is called, the client probes such an instance,
// at most once a second: over a new HTTP/2 connection it asks for the health of the server, and takes any answer, since a frozen process
// accepts connections but does not answer. The answer brings the instance back, as does the answer to a call that began later. No call is
// sent to try it. After a lost connection the instance is ejected for 5 s, and after a timeout if the first probe fails, too; if it still
// does not answer then, it is ejected again, for 20 s, and then for 80 s each time. A method that always takes longer than its deadline, a
// pause of the client's own process, wrong TLS settings of one client and a GOAWAY that announces the end of a connection eject nothing.
//
// An instance is also ejected, for 5 s, 20 s and 80 s, when it answers more calls with server errors than the others do: after 5 in a row
// (Envoy's consecutive_5xx), or when they are a fifth of its last 63 answers, each only if chance is no explanation (gRFC A50's
// success_rate_stdev_factor). Server errors are the statuses UNAVAILABLE, INTERNAL, UNKNOWN and DATA_LOSS, go-micro errors with a code from
// 500 on, and, of an instance that answers its probe, timeouts of methods that usually take less than half as long. If all instances fail
// alike, as with the service's database, none is ejected. Other errors of handlers do not count, nor does a call that its caller cancels or
// that began too late to be answered, nor the deadline of a stream. The status RESOURCE_EXHAUSTED counts as a slow answer: an overloaded
// instance gets fewer calls, and is not ejected. After the ejection one call at a time tries the instance: one with retries left, and with
// time for a retry by the usual latency. If there is none for 5 s, any call does. A good answer, or the first message of a stream, ends the
// ejection, as does a new process in the pod.
//
// At most half of a service's instances are ejected, so that the others are not overloaded: Envoy's panic threshold is 50 % too, and gRFC
// A50 has max_ejection_percent. Beyond half, an instance that gave no answer still gets no calls, which would fail, but is not ejected. The
// log has one line for each ejection and one for its end. Client.Instances lists the ejections, and WithEvents reports calls, picks and
// ejections to a metrics library, such as package pod/metrics.
//
// With the option Subset, a client calls a part of a service's instances.
//
// Since Kubernetes 1.35 pods have the label topology.kubernetes.io/zone. A client that knows its zone takes both instances from it, if the
// service has at least 6 instances and the zone at least 72 % of its share. An instance that cannot be called is replaced by one of all zones, and a retry
// goes to the other side. One of 32 calls goes to any zone, and more and more do while the answers of the own zone take more than 1.1 times
// as long as those of the others: see internal/zone for the sources of these numbers. The option IgnoreZones turns this off.
//
// Filters and strategies given by selector.SelectOption or selector.SetStrategy are honoured; a filter sees copies, as with go-micro's own
// selector.
//
// # Calls
//
// A Client calls like go-micro's gRPC client, over one connection per instance. With the option Hedge, a call that takes unusually long gets
// a second attempt. Each call and stream reports how it ended to the choice that was made for it.
//
// NewRegistry gives go-micro a tracer that records the same spans and allocates less memory, unless the program has set one. Importing the
// package changes nothing.
//
// # Stop
//
// On SIGTERM a service with Lifecycle or WebLifecycle becomes not ready, deregisters, accepts calls for a short time while clients notice,
// and waits for everything in flight, within the pod's grace period. The handler of an endless stream should return when the channel of
// Draining is closed.
//
// # API server
//
// Every call has a time limit of 5 s or registry.Timeout, except a running watch. The token and the certificate authority are read again for
// each use, so their rotation needs no restart. The token is sent to no other server, and only over verified TLS. Errors name the verb, the
// object, the cause and the remedy.
//
// The service account needs these verbs on the pods of its namespace, which k8s/pod-rbac.yaml grants:
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
//	POD_ZONE                  zone of a process that has registered nothing yet, from metadata.labels['topology.kubernetes.io/zone'] (downward API)
//	POD_DEBUG_TRACE           on: the server answers Debug.Trace; see Lifecycle and package pod/debugtrace
//	POD_IDENTITY              directory of the certificate for mutual TLS; see package pod/identity
//	POD_HEALTH_ADDRESS        address of health without TLS, such as :9101; see Lifecycle
//	POD_METRICS_ADDRESS       address of /metrics, such as :9464; see package pod/metrics
//	OTEL_*                    where traces go, and which; see package pod/tracing
//	HOSTNAME                  used when POD_NAME is not set; not the pod's name under hostNetwork
//	KUBERNETES_SERVICE_HOST   with KUBERNETES_SERVICE_PORT, address of the API server; every pod has them
//	KUBECONFIG                outside a pod: the kubeconfig of the cluster
//
// Outside a pod the registry can be read through a kubeconfig, also one with a credential plugin, as those of EKS, GKE and AKS, or with
// proxy-url. It cannot be written, since there is no pod to write to.
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
//	table.update             (internal/discovery) decodes the annotation into instances
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
//	call.mayRetry             (internal/rpc/retry.go)          whether an attempt that has failed is repeated
//	serviceChooser.pickBetter (internal/balancer/choice.go)    two instances at random
//	Stats.IsBetter            (internal/callstats/load.go)     which of the two is better
//	connections.acquire       (internal/rpc/connections.go)    the instance's connection
//	call.outgoing             (internal/rpc/settings.go)       the headers; then grpc-go sends the call
//
//	result                    (internal/rpc/errors.go)         grpc-go's status becomes an error of go-micro
//	OfStatus                  (internal/outcome/outcome.go)    what the status says about the instance
//	call.finish               (internal/rpc/attempt.go)        the attempt has ended
//	Choice.Done               (internal/balancer/choice.go)    the end of the choice
//	Stats.End                 (internal/callstats/stats.go)    latency, errors in a row, calls in flight
//	serviceChooser.eject      (internal/balancer/ejection.go)  only if the instance has failed
//	probes.start              (internal/rpc/probe.go)          the next call probes an instance that gave no answer
//
// # Outside of the cluster
//
// With a kubeconfig (KUBECONFIG or ~/.kube/config, its current context and namespace) a program outside of a pod finds services as in the
// cluster, and its Client calls them through the API server, by port-forwards to their pods. The registry registers nothing, because there
// is no pod to register on, and logs this once; services of the program are ready, and other services cannot find them. The user of the
// kubeconfig needs the verbs list and watch on pods, and get and create on pods/portforward.
//
// # Limits
//
// An informer runs until Close: look up only service names that you know, not names that a client sends. All services are in the pod's own
// namespace, as with the plugin. A call to a pod that vanishes without notice can fail; the retry, which go-micro makes by default, goes to
// another instance.
//
// Kubernetes allows 256 KiB for all annotations of a pod. A method with messages of 12 fields takes 3.3 kB of them, so that a pod can
// register about 77 such methods. Register refuses more, and names the way out: handlers that are registered with
// server.InternalHandler(true) serve calls as before and are not listed as endpoints.
//
// A registry does not trust what other pods register. It skips, with one line in the log, a registration whose annotation has the key of
// another service, an address that is not an IP of its pod (see AnyAddress), more than 16 nodes, or, beside its endpoints, more than 32 KiB
// or 1024 JSON objects. Of one pod it reads at most 32 registrations with 64 KiB together beside their endpoints, and skips the others. The
// endpoints of all instances of a version are kept once, as text, up to 16 MiB for each service that is read; GetService, Watch and Observe
// decode them.
package pod
