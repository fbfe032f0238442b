package pod

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
)

// Plugin is the constructor of a registry plugin, such as kubernetes.NewRegistry. The
// registry calls it for each new registration, with the address of a local listener
// that receives what the plugin writes.
type Plugin = func(...registry.Option) registry.Registry

// Registry finds services by watching pods, and registers a service by patching
// the process's own pod. Make it with NewRegistry. It is safe for concurrent use.
type Registry struct {
	plugin   Plugin
	env      apiserver.Environment
	services *discovery.Services // reads
	choosers choosers

	statusChanged broadcast.Broadcast // the result of Registered, deregistrationPending or registrationError may have changed

	registering sync.RWMutex // Register holds it for reading, so that deregisterAll waits for calls that began before it

	mu        sync.Mutex
	options   registry.Options
	closed    bool
	conn      *apiserver.Connection // nil before the first use
	registrar *registrar            // nil before the first use
	clients   []*Client             // that Close closes
	served    map[string]bool       // names of services and handlers that were ever registered

	// Set by a lifecycle:
	background bool              // Register and Deregister do not wait for the API server
	stopping   bool              // Register does nothing
	lifecycles int               // number of lifecycles that have started and not ended
	other      registry.Registry // receives the calls of Register and Deregister instead; may be nil
}

var _ registry.Registry = (*Registry)(nil)

// NewRegistry returns a registry that writes what the plugin would write, and reads
// pods without the plugin. It makes no call and starts no goroutine before it is used.
//
// The first call replaces go-micro's trace.DefaultTracer by a tracer that records the same spans
// and allocates less memory, unless the program has set another one. A program may set another
// one later, too, before micro.NewService. go-micro reads the variable without a lock: make the
// first registry before you start services that do not use it.
func NewRegistry(plugin Plugin, opts ...registry.Option) *Registry {
	return newRegistry(apiserver.ProcessEnvironment, plugin, opts...)
}

func newRegistry(env apiserver.Environment, plugin Plugin, opts ...registry.Option) *Registry {
	gomicro.UseTracer() // before any service or client that uses the registry is made
	r := &Registry{plugin: plugin, env: env, served: map[string]bool{}}
	r.services = discovery.New(r.readable, r.readSettings)
	r.choosers.registry = r
	for _, o := range opts {
		o(&r.options)
	}
	return r
}

type anyAddressKey struct{}

// AnyAddress returns an option that makes a registry accept addresses that are not
// IPs of the pod that registers them. By default it skips such registrations,
// because a compromised pod could use them to redirect calls. Services need the
// option if the services that they call run with --server_advertise, or in a pod with
// hostNetwork on a Kubernetes node with several addresses.
func AnyAddress() registry.Option {
	return func(o *registry.Options) {
		if o.Context == nil {
			o.Context = context.Background()
		}
		o.Context = context.WithValue(o.Context, anyAddressKey{}, true)
	}
}

func anyAddress(o registry.Options) bool {
	return o.Context != nil && o.Context.Value(anyAddressKey{}) != nil
}

// Init applies options: Timeout, and Addrs, whose first address replaces the API
// server's. A changed address closes the connection to the old API server; go-micro's
// next call of Register registers with the new one.
func (r *Registry) Init(opts ...registry.Option) error {
	r.mu.Lock()
	before := slices.Clone(r.options.Addrs)
	for _, o := range opts {
		o(&r.options)
	}
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

// String returns "kubernetes", as the plugin does, so that logs and metadata are
// the same as without this package.
func (r *Registry) String() string { return "kubernetes" }

// Close stops every goroutine of the registry and waits for them. It closes the clients
// that NewClient has made, whose calls in flight fail. It does not
// deregister: the pod keeps its registrations. Closing twice is no error.
func (r *Registry) Close() error {
	r.mu.Lock()
	r.closed = true
	disconnect, clients := r.detach(), slices.Clone(r.clients)
	r.mu.Unlock()
	disconnect()
	for _, c := range clients {
		_ = c.Close()
	}
	return nil
}

// detach removes the connection and everything that uses it from the registry, and
// returns a function that stops their goroutines. The caller holds r.mu.
func (r *Registry) detach() (disconnect func()) {
	conn, registrar := r.conn, r.registrar
	r.conn, r.registrar = nil, nil
	return func() {
		if registrar != nil {
			registrar.stop()
		}
		r.services.Stop()
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

// Register registers the service on the process's own pod and waits until the API
// server has confirmed it, for at most registry.Timeout, 5 s by default. With a
// Lifecycle it does not wait, since readiness reports the outcome.
//
// After an error the registry keeps trying in the background, unless the API server
// calls the registration invalid. Register makes no request when the pod already
// carries the registration, so go-micro's periodic calls of Register cost nothing.
//
// Register replaces an address of the pod's network interfaces by the pod's IP, which
// POD_IP holds. Without POD_IP it refuses an address that no other pod can reach, such
// as a loopback address. It refuses a service whose label key equals that of another
// registered service, as with the names a/b and a:b.
//
// It needs the verb patch on pods, and the verbs list and watch to notice that
// something else removed the registration.
func (r *Registry) Register(s *registry.Service, opts ...registry.RegisterOption) error {
	if other := r.otherRegistry(); other != nil {
		return other.Register(s, opts...)
	}
	if s == nil || len(s.Nodes) == 0 {
		return errors.New("registering a service: the service has no node")
	}
	r.registering.RLock()
	defer r.registering.RUnlock()
	r.mu.Lock()
	stopping := r.stopping // go-micro may register once more after it has deregistered
	r.served[s.Name] = true
	for _, e := range s.Endpoints {
		handler, _, _ := strings.Cut(e.Name, ".")
		r.served[handler] = true
	}
	r.mu.Unlock()
	if stopping {
		return nil
	}
	registrar, err := r.writableRegistrar()
	if err == nil {
		var reachable *registry.Service
		if reachable, err = advertised(s, r.env.Getenv("POD_IP"), isInterfaceAddress); err == nil {
			err = registrar.register(reachable, r.confirmationWait())
		}
	}
	if err != nil {
		return fmt.Errorf("registering service %q: %w", s.Name, err)
	}
	return nil
}

// Deregister removes the service from the process's own pod and waits as Register
// does. It needs the verb patch on pods.
func (r *Registry) Deregister(s *registry.Service, opts ...registry.DeregisterOption) error {
	if other := r.otherRegistry(); other != nil {
		return other.Deregister(s, opts...)
	}
	if s == nil || len(s.Nodes) == 0 {
		return errors.New("deregistering a service: the service has no node")
	}
	registrar, err := r.writableRegistrar()
	if err == nil {
		err = registrar.deregister(s, r.confirmationWait())
	}
	if err != nil {
		return fmt.Errorf("deregistering service %q: %w", s.Name, err)
	}
	return nil
}

// Registered reports whether the API server has confirmed everything that was
// registered, and nothing has removed it since.
func (r *Registry) Registered() bool {
	registrar := r.currentRegistrar()
	return registrar != nil && registrar.registered()
}

// writableRegistrar returns the registrar, or why this process cannot register services.
func (r *Registry) writableRegistrar() (*registrar, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.env.Getenv("KUBERNETES_SERVICE_HOST") == "" { // setting KUBECONFIG would not help
		return nil, errors.New("not in a pod (KUBERNETES_SERVICE_HOST is not set): a service is registered on the pod that serves it; through a kubeconfig the registry can be read, not written: run the service in a cluster, or choose another registry with --registry=mdns")
	}
	conn, err := r.connect()
	if err != nil {
		return nil, err
	}
	if conn.PodName == "" {
		return nil, errors.New("the pod's name is unknown: neither POD_NAME nor HOSTNAME is set; set POD_NAME from metadata.name in the pod's manifest")
	}
	if r.registrar == nil {
		r.registrar = newRegistrar(conn, r.plugin, r.statusChanged.Notify)
		r.registrar.watch.APIError = observersOf(r.options).apiError
	}
	return r.registrar, nil
}

// currentRegistrar returns nil while nothing has been registered.
func (r *Registry) currentRegistrar() *registrar {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.registrar
}

// confirmationWait returns how long Register and Deregister wait for the API server, 0 if
// they do not wait.
func (r *Registry) confirmationWait() time.Duration {
	r.mu.Lock()
	background := r.background
	r.mu.Unlock()
	if background {
		return 0
	}
	return r.timeout()
}

// ---- For lifecycles ----

// registerInBackground makes Register and Deregister return without waiting. Its
// error says that this process can never register the service.
func (r *Registry) registerInBackground(service string) error {
	if _, err := r.writableRegistrar(); err != nil {
		return fmt.Errorf("registering service %q: %w", service, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.background = true
	return nil
}

// deregisterAll deregisters every service, and makes Register do nothing from now on. go-micro's
// periodic call of Register may be running at the same time.
func (r *Registry) deregisterAll() {
	r.registering.Lock()
	r.mu.Lock()
	r.stopping = true
	registrar := r.registrar
	r.mu.Unlock()
	r.registering.Unlock()
	if registrar == nil {
		return
	}
	for _, s := range registrar.services() {
		if err := r.Deregister(s); err != nil {
			logger.Errorf("Registry [kubernetes] %v", err)
		}
	}
}

// deregistrationPending reports whether deregisterAll was called and the API server
// has not yet confirmed every deregistration.
func (r *Registry) deregistrationPending() bool {
	r.mu.Lock()
	stopping, registrar := r.stopping, r.registrar
	r.mu.Unlock()
	return stopping && registrar != nil && registrar.pending()
}

// registrationError returns why the last attempt to register failed, nil if it did not.
func (r *Registry) registrationError() error {
	if registrar := r.currentRegistrar(); registrar != nil {
		return registrar.lastError()
	}
	return nil
}

// gracePeriod returns how long the process's own pod may take to stop.
func (r *Registry) gracePeriod() time.Duration {
	if registrar := r.currentRegistrar(); registrar != nil {
		return registrar.podGracePeriod()
	}
	return defaultGracePeriod
}

// terminatingSince returns when the registry saw that the process's own pod is being
// deleted, and the zero time if it is not.
func (r *Registry) terminatingSince() time.Time {
	if registrar := r.currentRegistrar(); registrar != nil {
		return registrar.podTerminatingSince()
	}
	return time.Time{}
}

// registerWith makes Register and Deregister use another registry.
func (r *Registry) registerWith(other registry.Registry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.other = other
}

func (r *Registry) otherRegistry() registry.Registry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.other
}

// retain records that a lifecycle uses the registry, until release.
func (r *Registry) retain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lifecycles++
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

// serves reports whether a service or a handler of that name was ever registered.
func (r *Registry) serves(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.served[name]
}

// ---- Reading ----

// GetService returns the service's versions with their routable instances: those
// whose pod is running, ready and not terminating. It reads from memory. Only the
// first call for a name waits for the API server, for at most registry.Timeout, 5 s by
// default. The caller may modify the result.
//
// GetService returns registry.ErrNotFound when no such pod carries the service. It
// needs the verbs list and watch on pods.
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

// ListServices returns the names of all services that have a routable instance. The
// first call waits as GetService does. It needs the verbs list and watch on pods.
func (r *Registry) ListServices(...registry.ListOption) ([]*registry.Service, error) {
	all, err := r.services.List()
	if err != nil {
		return nil, fmt.Errorf("listing services: %w", err)
	}
	return all, nil
}

// Watch returns a watcher of the changes from now on: the changes of one service with
// registry.WatchService, otherwise the changes of all services. Each result holds one
// instance and its action is create, update or delete. A slow reader delays nothing: it
// receives the difference between what it saw last and the current state. Watch
// needs the verbs list and watch on pods.
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

// instanceOf returns the instance to which a node that the selector returned
// belongs, nil when this registry does not know the node or no longer does.
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
	return discovery.Settings{Timeout: r.timeout(), AnyAddress: anyAddress(o), APIError: observersOf(o).apiError}
}

// ---- Observing ----

// LastContact returns when the API server last sent anything. The registry's data is
// at most as old as that, plus the 15 s after which it gives up a silent connection.
// LastContact is zero before the first contact, and after Close.
func (r *Registry) LastContact() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		return time.Time{}
	}
	return r.conn.LastContact()
}

// Observe yields all instances of all services in every state, at once and after
// each change, by service and oldest pod first. It is for displays; callers use
// a Client or GetService. A slow reader misses intermediate states and receives the
// latest.
//
// An instance that has deregistered is shown as Terminating until its pod is gone.
// Observe knows only instances that were registered at some time since it began,
// because a deregistration leaves no trace on the pod.
//
// A yielded error means that the API server cannot be watched now. It comes with the
// instances as they were last known; there are none before the first LIST. The
// sequence continues, and yields again when watching works again. It ends with ctx, or
// with a last error when the registry cannot connect or is closed.
//
// One LIST and one WATCH of pods serve all observers, ListServices and Watch of all services.
// They begin with the first use and end with the last observer, or, after ListServices or Watch, with Close. Observe needs the verbs list and watch on pods.
func (r *Registry) Observe(ctx context.Context) iter.Seq2[[]Instance, error] {
	return func(yield func([]Instance, error) bool) {
		for observed, err := range r.services.Observe(ctx) {
			if err != nil {
				err = fmt.Errorf("observing services: %w", err)
			}
			instances := make([]Instance, len(observed))
			for i, o := range observed {
				instances[i] = Instance{Service: o.Service.Name, Version: o.Service.Version, Endpoints: o.Service.Endpoints,
					Address: o.Address, Pod: o.Pod, Created: o.Created, State: State(o.State), Reason: o.Reason}
			}
			if !yield(instances, err) {
				return
			}
		}
	}
}
