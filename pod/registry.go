package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
)

// Plugin is the constructor of a registry plugin as a value, such as
// kubernetes.NewRegistry: it is called when there is something to register, not
// before, and told where to write.
type Plugin = func(...registry.Option) registry.Registry

// Registry finds services by watching pods and registers by patching its own.
// Make it with NewRegistry. Safe for concurrent use.
type Registry struct {
	plugin Plugin
	env    apiserver.Environment

	mu        sync.Mutex
	options   registry.Options
	closed    bool
	api       *apiserver.Connection
	writer    *writer
	informers map[string]*informer // by service, "" for all
	said      map[string]string    // what each service declared, as JSON
	names     map[string]bool      // of services and handlers ever declared
	observed  *informer            // of all services, while somebody observes
	observers int
	instances sync.Map // *registry.Node as callers know it -> *instance

	// With a lifecycle:
	background    bool      // nobody waits for the API server's word: readiness tells
	withdrawn     bool      // the process stops: nothing is registered any more
	statusChanged broadcast // Registered may say something else now
}

var _ registry.Registry = (*Registry)(nil)

// NewRegistry returns a registry that writes what the plugin writes, and reads
// by itself. It makes no call and no goroutine before it is used.
func NewRegistry(plugin Plugin, opts ...registry.Option) *Registry {
	return newRegistry(apiserver.ProcessEnvironment, plugin, opts...)
}

func newRegistry(env apiserver.Environment, plugin Plugin, opts ...registry.Option) *Registry {
	r := &Registry{plugin: plugin, env: env, informers: map[string]*informer{}, said: map[string]string{}, names: map[string]bool{}}
	for _, o := range opts {
		o(&r.options)
	}
	return r
}

// patience is how long a declaration waits for the API server's word.
func (r *Registry) patience() time.Duration {
	r.mu.Lock()
	background := r.background
	r.mu.Unlock()
	if background {
		return 0
	}
	return r.limit()
}

// limit is how long a call may wait for the API server: registry.Timeout, 5 s by default.
func (r *Registry) limit() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.options.Timeout > 0 {
		return r.options.Timeout
	}
	return apiserver.CallTimeout
}

// connected returns the connection, made when first needed. r.mu is held.
func (r *Registry) connected() (*apiserver.Connection, error) {
	if r.closed {
		return nil, errors.New("using the registry: it is closed")
	}
	if r.api == nil {
		address := ""
		if len(r.options.Addrs) > 0 {
			address = r.options.Addrs[0]
		}
		a, err := apiserver.Connect(r.env, apiserver.Options{Address: address})
		if err != nil {
			return nil, fmt.Errorf("%w; or choose another registry with --registry=mdns", err)
		}
		r.api = a
	}
	return r.api, nil
}

// Init takes options: Addrs, whose first stands for the API server's address,
// and Timeout. Another address ends what runs towards the old one; what is
// registered is declared to the new one by go-micro's next Register.
func (r *Registry) Init(opts ...registry.Option) error {
	r.mu.Lock()
	before := fmt.Sprint(r.options.Addrs)
	for _, o := range opts {
		o(&r.options)
	}
	var release func()
	if fmt.Sprint(r.options.Addrs) != before {
		release = r.detach()
	}
	r.mu.Unlock()
	if release != nil {
		release()
	}
	return nil
}

// Options returns what NewRegistry and Init were told.
func (r *Registry) Options() registry.Options {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.options
}

// String is "kubernetes", the plugin's name, so that logs and node metadata read as without pod/.
func (r *Registry) String() string { return "kubernetes" }

// Close stops every goroutine of the registry and waits for them. It leaves the
// registration on the pod: Deregister takes it away. Closing twice is no error.
func (r *Registry) Close() error {
	r.mu.Lock()
	r.closed = true
	release := r.detach()
	r.mu.Unlock()
	release()
	return nil
}

// detach forgets the connection and returns what ends its goroutines. r.mu is held.
func (r *Registry) detach() (release func()) {
	a, w, informers := r.api, r.writer, slices.Collect(maps.Values(r.informers))
	if r.observed != nil {
		informers = append(informers, r.observed)
	}
	r.api, r.writer, r.informers, r.said, r.observed, r.observers = nil, nil, map[string]*informer{}, map[string]string{}, nil, 0
	return func() {
		if w != nil {
			w.stop()
		}
		for _, f := range informers {
			f.stop()
		}
		if a != nil {
			a.Close()
		}
	}
}

// Register declares the service on the own pod and waits until the API server
// has confirmed it, for the registry's timeout at most; with a Lifecycle it does
// not wait, since readiness tells. When it returns an error the declaration stands
// and is tried on in the background, unless the API server calls it invalid; when
// the pod carries it already, as with go-micro's repeated Register, it makes no
// request. Needs the verb patch on pods, and list and watch to notice that
// somebody took it away.
func (r *Registry) Register(s *registry.Service, _ ...registry.RegisterOption) error {
	if s == nil || len(s.Nodes) == 0 {
		return errors.New("registering a service: it has no node")
	}
	said, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("registering service %q: %w", s.Name, err)
	}
	w, err := r.toWrite("registering service", s.Name)
	if err != nil {
		return err
	}
	r.mu.Lock()
	same, withdrawn := r.said[s.Name] == string(said), r.withdrawn
	r.names[s.Name] = true
	for _, e := range s.Endpoints {
		handler, _, _ := strings.Cut(e.Name, ".")
		r.names[handler] = true
	}
	r.mu.Unlock()
	if withdrawn || same && w.registered() {
		return nil
	}
	m, err := dictate(r.plugin, func(plugin registry.Registry) error { return plugin.Register(s) })
	if err == nil {
		r.mu.Lock()
		r.said[s.Name] = string(said)
		r.mu.Unlock()
		err = w.declare(s.Name, m, r.patience())
	}
	if err != nil {
		return fmt.Errorf("registering service %q: %w", s.Name, err)
	}
	return nil
}

// Deregister takes the service off the own pod and waits for the API server's
// word, for the registry's timeout at most; with a Lifecycle it does not wait.
// Needs the verb patch on pods.
func (r *Registry) Deregister(s *registry.Service, _ ...registry.DeregisterOption) error {
	if s == nil || len(s.Nodes) == 0 {
		return errors.New("deregistering a service: it has no node")
	}
	w, err := r.toWrite("deregistering service", s.Name)
	if err != nil {
		return err
	}
	m, err := dictate(r.plugin, func(plugin registry.Registry) error { return plugin.Deregister(s) })
	if err == nil {
		r.mu.Lock()
		delete(r.said, s.Name)
		r.mu.Unlock()
		err = w.declare(s.Name, m, r.patience())
	}
	if err != nil {
		return fmt.Errorf("deregistering service %q: %w", s.Name, err)
	}
	return nil
}

// Registered says whether the API server has confirmed everything that was
// registered, and nobody has taken it away since.
func (r *Registry) Registered() bool {
	r.mu.Lock()
	w := r.writer
	r.mu.Unlock()
	return w != nil && w.registered()
}

// ---- what a lifecycle needs ----

// registerInBackground makes declarations wait for nothing. An error says that this
// process can never register.
func (r *Registry) registerInBackground(service string) error {
	_, err := r.toWrite("registering service", service)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.background = err == nil
	return err
}

// withdraw deregisters whatever is registered, for good.
func (r *Registry) deregisterAll() {
	r.mu.Lock()
	r.withdrawn = true
	said := slices.Collect(maps.Values(r.said))
	r.mu.Unlock()
	for _, s := range said {
		service, err := decode([]byte(s))
		if err == nil {
			err = r.Deregister(service)
		}
		if err != nil {
			logger.Errorf("Registry [kubernetes] %v", err)
		}
	}
}

// deregistrationPending says whether the API server has yet to confirm a Deregister.
func (r *Registry) deregistrationPending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.withdrawn && r.writer != nil && r.writer.lacking()
}

// refused is why the last try to register failed, nil when none did.
func (r *Registry) registrationError() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.writer == nil {
		return nil
	}
	return r.writer.refused()
}

// grace is how long the pod may take to stop.
func (r *Registry) gracePeriod() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.writer == nil {
		return defaultGracePeriod
	}
	return r.writer.grace()
}

// serves says whether a service or handler of this name was ever registered here.
func (r *Registry) serves(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.names[name]
}

func (r *Registry) toWrite(doing, service string) (*writer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, err := r.connected()
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", doing, service, err)
	}
	if a.OutsideCluster {
		return nil, fmt.Errorf("%s %q: not in a pod: a registration stands on the pod that serves it; with this kubeconfig the registry can be read, not written", doing, service)
	}
	if a.PodName == "" {
		return nil, fmt.Errorf("%s %q: the pod's name is unknown: neither POD_NAME nor HOSTNAME is set; set POD_NAME from metadata.name in its manifest", doing, service)
	}
	if r.writer == nil {
		r.writer = newWriter(a, r.statusChanged.notify)
	}
	return r.writer, nil
}

// GetService returns the service's versions with those of its nodes that can
// answer: their pod runs, is Ready and is not being deleted. It reads memory;
// only the first call for a name waits for the API server, for the registry's
// timeout at most. The result is the caller's own. registry.ErrNotFound says
// that no pod carries the name now. Needs the verbs list and watch on pods.
func (r *Registry) GetService(name string, _ ...registry.GetOption) ([]*registry.Service, error) {
	v, err := r.view(name)
	if err != nil {
		return nil, fmt.Errorf("getting service %q: %w", name, err)
	}
	if len(v.instances) == 0 {
		return nil, registry.ErrNotFound
	}
	return v.services(), nil
}

// ListServices returns the names of all services with a node that can answer.
// The first call waits as GetService's does. Needs list and watch on pods.
func (r *Registry) ListServices(...registry.ListOption) ([]*registry.Service, error) {
	v, err := r.view("")
	if err != nil {
		return nil, fmt.Errorf("listing services: %w", err)
	}
	var all []*registry.Service
	seen := map[string]bool{}
	for _, n := range v.instances {
		if !seen[n.service.Name] {
			seen[n.service.Name] = true
			all = append(all, &registry.Service{Name: n.service.Name})
		}
	}
	return all, nil
}

// view is the present state of a service, "" for all of them.
func (r *Registry) view(name string) (*snapshot, error) {
	f, err := r.informer(name)
	if err != nil {
		return nil, err
	}
	return f.wait(r.limit())
}

// instanceOf returns the instance that a caller knows as n, nil if there is none.
func (r *Registry) instanceOf(n *registry.Node) *instance {
	if i, ok := r.instances.Load(n); ok {
		return i.(*instance)
	}
	return nil
}

// informer returns the one that follows a service, started on first use.
func (r *Registry) informer(name string) (*informer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.informers[name]; f != nil {
		return f, nil
	}
	a, err := r.connected()
	if err != nil {
		return nil, err
	}
	o := apiserver.Selector{Labels: typeLabel + "=" + typeValue}
	if name != "" {
		o.Labels = selectorPrefix + labelName(name) + "=" + typeValue
	}
	f := newInformer(a, o, name)
	f.given = &r.instances
	f.start()
	r.informers[name] = f
	return f, nil
}

// Watch returns the changes from now on, of one service with
// registry.WatchService, else of all. Each result holds one node: create,
// update or delete. A reader that is slow, or never reads, costs nobody
// anything: it finds the difference between what it saw last and what is.
// Needs list and watch on pods.
func (r *Registry) Watch(opts ...registry.WatchOption) (registry.Watcher, error) {
	var o registry.WatchOptions
	for _, opt := range opts {
		opt(&o)
	}
	f, err := r.informer(o.Service)
	if err == nil {
		_, err = f.wait(r.limit())
	}
	if err != nil {
		return nil, fmt.Errorf("watching services: %w", err)
	}
	return newWatcher(f), nil
}
