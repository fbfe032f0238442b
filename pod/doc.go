// Package pod makes a Go-Micro process a good Kubernetes pod. It stands between
// go-micro and its Kubernetes registry plugin:
//
//	registry := pod.NewRegistry(kubernetes.NewRegistry)
//	service := micro.NewService(
//		micro.Registry(registry),
//		micro.Selector(pod.NewSelector(registry)),
//		pod.Lifecycle(registry),  // a web service: pod.WebLifecycle
//		pod.Reflection(registry), // for grpcurl
//	)
//
// # Why
//
// The plugin registers a service as labels and an annotation on the service's
// own pod, and finds services by looking for such pods. That needs nothing but
// the API server, and is kept: what stands on a pod is what the plugin writes,
// to the byte, and services with and without this package find each other. But
// its reads go to the API server and have no time limit, its watch does not
// survive the API server's end of it, it knows nothing of readiness, and it
// reads its token once; and go-micro itself answers no probe and cuts off what
// runs when it stops. So with this package
//
//   - reads come from memory, which client-go keeps current: an API server that
//     is down, slow or frozen costs running clients nothing;
//   - only pods that can answer are found: phase Running, condition Ready, not
//     being deleted, with an annotation that decodes;
//   - a change is seen within milliseconds of its write, in whatever order the
//     label, the address and the readiness arrive; a watch that is closed, cut,
//     expired or refused is taken up again, at most a second apart;
//   - registering is a declaration: the own pod is watched, and patched when it
//     lacks what was declared, whoever took it away; never otherwise;
//   - token and authority are read anew, so rotation needs no restart;
//   - every call is bounded: 5 s, or what registry.Timeout says;
//   - choosing a node costs the same at any number of them, and a node that
//     fails is set aside;
//   - probes are answered: ready is registered and not told to stop, live is
//     answering, whatever the API server does;
//   - stopping loses nothing: deregistered first, calls taken while others
//     notice, what runs ends, all within the pod's grace period.
//
// # Configuration
//
// A ConfigMap is a source of go-micro's configuration, and can be followed:
//
//	for cfg, err := range pod.NewConfigMap("", "go-micro-config").Follow(ctx, env.NewSource()) {
//		if err != nil {
//			return err
//		}
//		host := cfg.Get("DB_HOST").String("localhost")
//		...
//	}
//
// The configmap plugin's watcher does not see the ConfigMap created or deleted, never
// ends, and has no time limit; and it cuts each value into pairs. Here values are
// scalars, or the trees that JSON and YAML files hold; see ConfigMap.
//
// # Rights
//
// The service account needs these verbs on pods in its own namespace, which
// k8s/pod-rbac.yaml grants:
//
//	list, watch   GetService, ListServices, Watch, Select: the pods of a service
//	list, watch   Observe: the pods of all services, while somebody observes
//	list, watch   Register: the own pod, to notice that a mark was taken away,
//	              and how long the pod may take to stop
//	patch         Register, Deregister: the own pod's labels and annotation,
//	              to which k8s/pod-policy.yaml narrows it
//
// and these on the ConfigMap, which k8s/configmap-rbac.yaml grants:
//
//	get           Read, and the first one of Follow
//	list, watch   Follow, Watch: every change afterwards
//
// # Environment
//
//	POD_NAME                  the own pod's name; set it from metadata.name (downward API)
//	HOSTNAME                  stands in for POD_NAME; wrong under hostNetwork
//	KUBERNETES_SERVICE_HOST   with KUBERNETES_SERVICE_PORT where the API server is; every pod has them
//	KUBECONFIG                outside a pod: how to reach a cluster whose services to read
//
// Outside a pod, on a laptop, the registry can be read through a kubeconfig but
// not written, since there is no pod to write on; the addresses it returns are
// the pods' own, to be forwarded with kubectl. A ConfigMap works as in a pod; no
// namespace is then the kubeconfig's.
//
// # Limits
//
// Each name ever asked for is followed until Close: ask for names that you know,
// not for names a stranger sends. The namespace is the pod's own, as with the
// plugin. The last call to a pod that vanishes without a word can fail: a
// retry, which go-micro makes by default, goes to another.
package pod
