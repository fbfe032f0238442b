package pod

import (
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/also"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/registration"
	"github.com/micro/go-micro/v2/registry"
)

// Also is an option of NewRegistry for the move from another registry, such as etcd or Consul, to pods:
//
//	pod.NewRegistry(kubernetes.NewRegistry, pod.Also(etcd.NewRegistry(registry.Addrs("etcd:2379"))))
//
// The services of the process register on their pod and in the old registry, and the process finds the instances of both. So services move
// one after the other, in any order, and back. When all have moved, remove the option, again in any order.
//
// Reading: instances that pods have registered come from the pods, and count only while their pod is ready; the old registry has them with
// the metadata micro.mu/pod-namespace, and callers in this namespace ignore what it keeps of a process that could not deregister.
// GetService, Watch of a service, ListServices and clients add those that only the old registry knows, each address once. They come from
// memory too, which one watch and one reading a minute for each service keep up to date; while the old registry does not answer, those last
// known stay. The first call for a service waits for the old registry only if no pod has the service. If the pods cannot be read at first,
// the instances of the old registry are used alone. A Watch of all services includes the old registry's instances of the services that the
// process has looked up, and Observe shows pods only.
//
// Registering: the old registry gets each registration with the address that the pod has, the options of go-micro's server, such as the
// time to live, and the calls with which the server renews it. It is never waited for and never makes a service not ready. What fails or
// gets no answer is logged once, and retried after 1 s to 30 s. At the stop, the service deregisters from both at once. Callers whose watch
// of the old registry has broken notice only after the minute for which go-micro caches: DrainWait of 65 s waits for them.
//
// Outside of the cluster, Also does nothing. Close of the Registry does not close the old registry.
func Also(old registry.Registry) registry.Option {
	if old == nil {
		return func(*registry.Options) {}
	}
	return setOption(alsoKey, also.New(old))
}

func alsoOf(o registry.Options) *also.Registry {
	a, _ := optionOf[*also.Registry](o, alsoKey)
	return a
}

// alsoRegisters returns the registry of Also for writing, nil if there is none.
func (r *Registry) alsoRegisters() registration.Also {
	if a := alsoOf(r.Options()); a != nil { // a nil *also.Registry would not be a nil interface
		return a
	}
	return nil
}

// others returns the registry of Also for reading, nil if there is none or if addresses of instances cannot be dialed.
func (r *Registry) others() discovery.Others {
	if a := alsoOf(r.Options()); a != nil && r.pathToInstances() == nil {
		return a
	}
	return nil
}
