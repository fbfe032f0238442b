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
// patches it only when the pod does not carry the registration, for whatever reason.
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
//   - GetService, Select and Watch read from memory. An API server that is down, slow or
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
// A Selector takes the better of two random instances, in constant time: the one with
// fewer calls in flight, a lower latency and no recent faults. It ejects an instance whose
// connection fails, that does not answer in time or, with Client, that fails more often
// than the others, for a growing time, and never more than half of the instances. An
// instance is blamed only for its own faults. WithEvents reports picks and ejections to a
// metrics library.
//
// # Calls
//
// A Client calls like go-micro's gRPC client, over one connection per instance, and tells the
// choice which instance each call and stream went to and how it ended. Where the client is
// wrong for you, give the selector of NewSelector to go-micro's client.
//
// When the package is imported, it replaces go-micro's trace.DefaultTracer with a tracer that records the
// same spans and allocates less memory. A program may set another one before micro.NewService.
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
//	list, watch   GetService, ListServices, Watch, Select: the pods of a service
//	list, watch   Observe: the pods of all services
//	list, watch   Register: the process's own pod, for the registration and the grace period
//	patch         Register, Deregister: the labels and annotations of the process's own pod;
//	              k8s/pod-policy.yaml allows no other change
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
//	capture                  (capture.go)     the plugin writes the annotation to a local listener
//	registrar.reconcile      (registrar.go)   patches the process's own pod with it
//	Connection.ListWatchPods (internal/apiserver) in the client: receives the pod from the watch
//	informer.Update          (informer.go)    passes the pod to the table and publishes
//	podTable.update          (podtable.go)    decodes the annotation into instances
//	informer.publish         (informer.go)    stores the routable instances as a snapshot
//	Selector.Select, pick    (selector.go)    takes one of the snapshot's instances
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
