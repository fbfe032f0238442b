package pod

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/portforward"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/registration"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/shutdown"
	"github.com/micro/go-micro/v2/registry"
)

// Plugin is the constructor of a registry plugin, such as kubernetes.NewRegistry. The registry calls it for each new registration, with
// the address of a local listener that receives what the plugin writes.
type Plugin = func(...registry.Option) registry.Registry

// Registry finds services by watching pods, and registers a service by patching the process's own pod. Make it with NewRegistry. It is
// safe for concurrent use.
type Registry struct {
	env          apiserver.Environment
	registration *registration.Service // writes
	services     *discovery.Services   // reads
	choosers     *balancer.Choosers

	mu         sync.Mutex
	options    registry.Options
	closed     bool
	conn       *apiserver.Connection           // nil before the first use
	path       *portforward.Path               // leads calls through the API server; nil if they are direct
	clients    []*Client                       // that Close closes
	lifecycles int                             // number of lifecycles that have started and not ended
	running    []func() shutdown.ServiceStatus // of the lifecycles that have started

	events events.Hub
	secure atomic.Pointer[secured] // nil without WithCredentials
}

var _ registry.Registry = (*Registry)(nil)

// NewRegistry returns a registry that writes what the plugin would write, and reads pods without the plugin. It makes no call and starts
// no goroutine before it is used.
//
// The first call replaces go-micro's trace.DefaultTracer by a tracer that records the same spans and allocates less memory, unless the
// program has set another one. A program may set another one later, too, before micro.NewService. go-micro reads the variable without a
// lock: make the first registry before you start services that do not use it.
func NewRegistry(plugin Plugin, opts ...registry.Option) *Registry {
	return newRegistry(apiserver.ProcessEnvironment, plugin, opts...)
}

func newRegistry(env apiserver.Environment, plugin Plugin, opts ...registry.Option) *Registry {
	gomicro.UseTracer() // before any service or client that uses the registry is made
	r := &Registry{env: env}
	r.registration = registration.New(registration.Options{Plugin: plugin, Getenv: env.Getenv, Connect: r.ownPod, Timeout: r.timeout, APIError: r.reportAPIError, Events: &r.events, Also: r.alsoRegisters})
	r.setServices(discovery.New(r.readable, r.readSettings))
	r.apply(opts)
	return r
}

// apply applies options. The caller holds r.mu, if the registry is in use.
func (r *Registry) apply(opts []registry.Option) {
	for _, o := range opts {
		o(&r.options)
	}
	r.events.Set(observersOf(r.options).callbacks())
	if c, ok := optionOf[Credentials](r.options, credentialsKey); ok {
		r.secure.Store(newSecured(c))
	}
}

func (r *Registry) setServices(s *discovery.Services) {
	r.services = s
	r.choosers = balancer.NewChoosers(s, func() balancer.Options {
		o := r.Options()
		subset, _ := optionOf[int](o, subsetKey)
		_, ignoreZones := optionOf[bool](o, ignoreZonesKey)
		return balancer.Options{Events: observersOf(o).ofBalancer(), Subset: subset, Zone: r.registration.Zone, IgnoreZones: ignoreZones}
	})
}

// AnyAddress returns an option that makes a registry accept addresses that are not IPs of the pod that registers them. By default it skips
// such registrations, because a compromised pod could use them to redirect calls. Services need the option if the services that they call
// run with --server_advertise, or in a pod with hostNetwork on a Kubernetes node with several addresses.
func AnyAddress() registry.Option { return setOption(anyAddressKey, true) }

func anyAddress(o registry.Options) bool {
	_, ok := optionOf[bool](o, anyAddressKey)
	return ok
}

// Init applies options: Timeout, and Addrs, whose first address replaces the API server's. A changed address closes the connection to the
// old API server; go-micro's next call of Register registers with the new one.
func (r *Registry) Init(opts ...registry.Option) error {
	r.mu.Lock()
	before := slices.Clone(r.options.Addrs)
	r.apply(opts)
	disconnect := func() {}
	if !slices.Equal(r.options.Addrs, before) {
		disconnect = r.detach()
	}
	r.mu.Unlock()
	disconnect()
	return nil
}

// Options returns the options that NewRegistry and Init have applied.
func (r *Registry) Options() registry.Options {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.options
}

// String returns "kubernetes", as the plugin does, so that logs and metadata are the same as without this package.
func (r *Registry) String() string { return "kubernetes" }

// Close stops every goroutine of the registry and waits for them. It closes the clients that NewClient has made, whose calls in flight
// fail. It does not deregister: the pod keeps its registrations. Closing twice is no error.
func (r *Registry) Close() error {
	r.mu.Lock()
	r.closed = true
	disconnect, clients, old := r.detach(), slices.Clone(r.clients), alsoOf(r.options)
	r.mu.Unlock()
	if old != nil {
		old.Close()
	}
	disconnect()
	for _, c := range clients {
		_ = c.Close()
	}
	return nil
}

// detach removes the connection and everything that uses it from the registry, and returns a function that stops their goroutines. The
// caller holds r.mu.
func (r *Registry) detach() (disconnect func()) {
	conn, path, stopRegistrar := r.conn, r.path, r.registration.Detach()
	r.conn, r.path = nil, nil
	return func() {
		stopRegistrar()
		r.services.Stop()
		if path != nil {
			path.Close()
		}
		if conn != nil {
			conn.Close()
		}
	}
}

// connect returns the connection, which the first call makes. The caller holds r.mu.
func (r *Registry) connect() (*apiserver.Connection, error) {
	if r.closed {
		return nil, errors.New("using the registry: it is closed")
	}
	if r.conn == nil {
		var o apiserver.Options
		if len(r.options.Addrs) > 0 {
			o.Address = r.options.Addrs[0]
		}
		conn, err := apiserver.Connect(r.env, o)
		if err != nil {
			return nil, fmt.Errorf("%w; or choose another registry with --registry=mdns", err)
		}
		if r.path, err = newPath(conn, r.options); err != nil {
			conn.Close()
			return nil, err
		}
		r.conn = conn
	}
	return r.conn, nil
}

// timeout returns how long a call may wait for the API server.
func (r *Registry) timeout() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.options.Timeout > 0 {
		return r.options.Timeout
	}
	return apiserver.CallTimeout
}

// ---- Registering ----

// Register registers the service on the process's own pod and waits until the API server has confirmed it, for at most registry.Timeout, 5
// s by default. With a Lifecycle it does not wait, since readiness reports the outcome.
//
// After an error the registry keeps trying in the background, unless the API server calls the registration invalid. Register makes no
// request when the pod already has the registration, so go-micro's periodic calls of Register cost nothing.
//
// Register replaces an address of the pod's network interfaces by the pod's IP, which POD_IP contains. Without POD_IP it refuses an
// address that no other pod can reach, such as a loopback address. It refuses a service whose label key equals that of another registered
// service, as with the names a/b and a:b. Services with the same name and version but different nodes, such as the topics of go-micro's
// HTTP broker, become one service with all nodes.
//
// It needs the verb patch on pods, and the verbs list and watch to notice that something else removed the registration. Outside of the
// cluster, with a kubeconfig, it registers nothing and returns nil.
func (r *Registry) Register(s *registry.Service, opts ...registry.RegisterOption) error {
	return r.registration.Register(s, opts...)
}

// Deregister removes the service from the process's own pod and waits as Register does. It needs the verb patch on pods.
func (r *Registry) Deregister(s *registry.Service, opts ...registry.DeregisterOption) error {
	return r.registration.Deregister(s, opts...)
}

// Registered reports whether the API server has confirmed everything that was registered, and nothing has removed it since.
func (r *Registry) Registered() bool { return r.registration.Registered() }

// ownPod returns the process's own pod, to which the first call connects.
func (r *Registry) ownPod() (registration.Pod, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	conn, err := r.connect()
	if err != nil {
		return registration.Pod{}, err
	}
	return registration.Pod{API: conn, Host: conn.Host, Namespace: conn.Namespace, Name: conn.PodName, OutsideCluster: conn.OutsideCluster}, nil
}

// reportAPIError calls the callbacks of WithEvents.
func (r *Registry) reportAPIError(operation string, err error) {
	observersOf(r.Options()).apiError(operation, err)
}

// retain records that a lifecycle uses the registry, until release.
func (r *Registry) retain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lifecycles++
}

// started records the status of a lifecycle's service.
func (r *Registry) started(status func() shutdown.ServiceStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = append(slices.Clip(r.running), status)
}

// release closes the registry if no other lifecycle uses it.
func (r *Registry) release() error {
	r.mu.Lock()
	r.lifecycles--
	last := r.lifecycles == 0
	r.mu.Unlock()
	if last {
		return r.Close()
	}
	return nil
}

// ---- Reading ----

// GetService returns the service's versions with their routable instances: those whose pod is running, ready and not terminating. It reads
// from memory. Only the first call for a name waits for the API server, for at most registry.Timeout, 5 s by default. The caller may
// modify the result.
//
// GetService returns registry.ErrNotFound when no such pod has registered the service, and refuses an empty name. It needs the verbs list
// and watch on pods.
func (r *Registry) GetService(name string, _ ...registry.GetOption) ([]*registry.Service, error) {
	all, err := r.services.Get(name)
	if err != nil {
		return nil, fmt.Errorf("getting service %q: %w", name, err)
	}
	if len(all) == 0 {
		return nil, registry.ErrNotFound
	}
	return all, nil
}

// ListServices returns the names of all services that have a routable instance. The first call waits as GetService does. It needs the
// verbs list and watch on pods.
func (r *Registry) ListServices(...registry.ListOption) ([]*registry.Service, error) {
	all, err := r.services.List()
	if err != nil {
		return nil, fmt.Errorf("listing services: %w", err)
	}
	return all, nil
}

// Watch returns a watcher of the changes from now on: the changes of one service with registry.WatchService, otherwise the changes of all
// services. Each result holds one instance and its action is create, update or delete. A slow reader delays nothing: it receives the
// difference between what it saw last and the current state. Watch needs the verbs list and watch on pods.
func (r *Registry) Watch(opts ...registry.WatchOption) (registry.Watcher, error) {
	var o registry.WatchOptions
	for _, opt := range opts {
		opt(&o)
	}
	w, err := r.services.Watch(o.Service)
	if err != nil {
		return nil, fmt.Errorf("watching services: %w", err)
	}
	return w, nil
}

// instanceOf returns the instance to which a node that the selector returned belongs, nil when this registry does not know the node or no
// longer does.
func (r *Registry) instanceOf(n *registry.Node) *discovery.Instance { return r.services.InstanceOf(n) }

// readable returns the API server for reading.
func (r *Registry) readable() (discovery.API, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	conn, err := r.connect()
	if err != nil {
		return discovery.API{}, err
	}
	return discovery.API{API: conn, Namespace: conn.Namespace, Host: conn.Host}, nil
}

// readSettings returns what the options say about reading.
func (r *Registry) readSettings() discovery.Settings {
	o := r.Options()
	return discovery.Settings{Timeout: r.timeout(), AnyAddress: anyAddress(o), APIError: observersOf(o).apiError, Events: &r.events, Others: r.others()}
}

// ---- Observing ----

// LastContact returns when the API server last sent anything. The registry's data is at most as old as that, plus the 15 s after which it
// gives up a silent connection. LastContact is zero before the first contact, and after Close.
func (r *Registry) LastContact() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		return time.Time{}
	}
	return r.conn.LastContact()
}

// Observe yields all instances of all services in every state, at once and after each change, by service and oldest pod first. It is for
// displays; callers use a Client or GetService. A slow reader misses intermediate states and receives the latest.
//
// An instance that has deregistered is shown as Terminating until its pod is gone. Observe knows only instances that were registered at
// some time since it began, because a deregistration leaves no trace on the pod.
//
// A yielded error means that the API server cannot be watched now. It comes with the instances as they were last known; there are none
// before the first LIST. The sequence continues, and yields again when watching works again. It ends with ctx, or with a last error when
// the registry cannot connect or is closed.
//
// One LIST and one WATCH of pods serve all observers, ListServices and Watch of all services. They begin with the first use and end with
// the last observer, but after ListServices or Watch only with Close. Observe needs the verbs list and watch on pods.
func (r *Registry) Observe(ctx context.Context) iter.Seq2[[]Instance, error] {
	return func(yield func([]Instance, error) bool) {
		for observed, err := range r.services.Observe(ctx) {
			if err != nil {
				err = fmt.Errorf("observing services: %w", err)
			}
			instances := make([]Instance, len(observed))
			for i, o := range observed {
				instances[i] = Instance{Service: o.Service.Name, Version: o.Service.Version, Endpoints: o.Endpoints(),
					Address: o.Address, Pod: o.Pod, Zone: o.Zone, Created: o.Created, State: State(o.State), Reason: o.Reason}
			}
			if !yield(instances, err) {
				return
			}
		}
	}
}
