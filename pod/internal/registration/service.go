// Package registration keeps the labels and annotations of the process's own pod as the services
// of the process register them.
//
// Registrations are a desired state. Register captures what the plugin writes for a service
// (capture.go), makes it desired (registration.go), and waits until the API server has confirmed
// it, unless InBackground was called. One goroutine, the registrar's, patches the pod whenever the
// observed labels and annotations differ from the desired ones, with a growing delay after errors
// and while something else keeps changing them. After the first patch a watch of the pod, of this
// one pod only, reports such changes, and the pod's deletion and grace period.
//
// A Service belongs to one registry. Its methods ask the registrar, which exists from the
// beginning and does nothing before the first Register:
//
//	Register, Deregister            what go-micro calls
//	Registered                      has the API server confirmed everything
//	RegisteredAs, LastError, Changed  readiness: has it confirmed one service, why not, since when
//	InBackground                    the start of a lifecycle, one for each service of the process
//	Zone                            of the own pod, for the choice of instances
//	Leave, DeregistrationPending, GracePeriod, TerminatingSince  the stop of a lifecycle
//	Detach                          the connection to the API server has ended
//
// What crosses the wall: services and registries of go-micro; the Pod, which is the process's own
// pod and three calls to its API server (API); no client, no selector, and no informer.
package registration

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
)

// Plugin is the constructor of a registry plugin, such as kubernetes.NewRegistry.
type Plugin = func(...registry.Option) registry.Registry

// Options are what a Service needs of its process and of its registry.
type Options struct {
	Plugin   Plugin
	Getenv   func(string) string
	Connect  func() (Pod, error)               // the first call connects; called again for each Register and Deregister
	Timeout  func() time.Duration              // how long Register and Deregister wait for the API server
	APIError func(operation string, err error) // called when requests to the API server begin to fail, and with nil when they work again
	Events   *events.Hub                       // may be nil
	Also     func() Also                       // another registry that registers the same; returns nil if there is none
}

// Also is another registry that registers what the pod does, while services move from it to pods.
// Package also implements it. Its calls do not wait, except Wait.
type Also interface {
	Register(*registry.Service, ...registry.RegisterOption)
	Deregister(*registry.Service)
	Leave(leaves func(service string) bool)
	Wait(limit time.Duration) // for deregistrations
}

// Service registers the services of this process on its own pod. Make it with New. It is safe for
// concurrent use.
type Service struct {
	options   Options
	zone      string                    // POD_ZONE
	registrar atomic.Pointer[registrar] // Detach replaces it
	changed   broadcast.Broadcast
	outside   atomic.Bool // this process is not in the cluster, and registers nothing

	registering sync.RWMutex // Register holds it for reading, so that Leave waits for calls that began before it

	mu         sync.Mutex
	results    map[string]result // of the last calls of Register, by service
	background bool              // Register and Deregister do not wait for the API server
	running    map[string]int    // number of lifecycles that have not left, by service
	left       map[string]string // the lifecycle that has left, by service; Register ignores the service
	stopping   bool              // the last lifecycle has left: Register ignores every service
	other      registry.Registry // receives the calls of Register and Deregister instead; may be nil
}

// result is the result of a call of Register.
type result struct {
	err   error
	topic bool // it was called by a broker
}

// New returns a Service. It makes no call and starts no goroutine before Register or Deregister.
func New(o Options) *Service {
	s := &Service{options: o, zone: o.Getenv("POD_ZONE"), results: map[string]result{}, running: map[string]int{}, left: map[string]string{}}
	s.registrar.Store(s.newRegistrar())
	return s
}

func (s *Service) newRegistrar() *registrar {
	r := newRegistrar(s.options.Plugin, s.changed.Notify, s.options.APIError)
	r.events = s.options.Events
	return r
}

// Register makes the service's registration desired and waits until the API server has
// confirmed it, for Options.Timeout at most.
func (s *Service) Register(service *registry.Service, opts ...registry.RegisterOption) error {
	if other := s.otherRegistry(); other != nil {
		return other.Register(service, opts...)
	}
	if service == nil || len(service.Nodes) == 0 {
		return errors.New("registering a service: the service has no node")
	}
	s.registering.RLock()
	defer s.registering.RUnlock()
	s.mu.Lock()
	stopping := s.stopping || s.left[service.Name] != "" // go-micro may register once more after it has deregistered
	s.mu.Unlock()
	if stopping {
		return nil
	}
	err := s.register(service, opts)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.results[service.Name] = (result{err, service.Nodes[0].Metadata["topic"] != ""}); err != nil {
		return fmt.Errorf("registering service %q: %w", service.Name, err)
	}
	return nil
}

func (s *Service) register(service *registry.Service, opts []registry.RegisterOption) error {
	r, err := s.writableRegistrar()
	if err != nil || r == nil {
		return err
	}
	reachable, err := advertised(service, s.options.Getenv("POD_IP"), isInterfaceAddress, isListening)
	if err != nil {
		return err
	}
	if also := s.also(); also != nil { // also if the pod refuses the registration: callers that have not moved find the service
		also.Register(onPod(reachable, r.pod.Namespace), opts...)
	}
	return r.register(reachable, s.confirmationWait())
}

// onPod returns a service as the registry of Also gets it: its nodes say that a pod of the namespace has them too.
func onPod(s *registry.Service, namespace string) *registry.Service {
	marked := *s
	marked.Nodes = nil
	for _, n := range s.Nodes {
		node := *n
		node.Metadata = maps.Clone(n.Metadata)
		if node.Metadata == nil {
			node.Metadata = map[string]string{}
		}
		node.Metadata[podmeta.NamespaceKey] = namespace
		marked.Nodes = append(marked.Nodes, &node)
	}
	return &marked
}

// also returns the other registry that registers the same, nil if there is none.
func (s *Service) also() Also {
	if s.options.Also == nil {
		return nil
	}
	return s.options.Also()
}

// Deregister makes the service's absence desired and waits as Register does.
func (s *Service) Deregister(service *registry.Service, opts ...registry.DeregisterOption) error {
	if other := s.otherRegistry(); other != nil {
		return other.Deregister(service, opts...)
	}
	if service == nil || len(service.Nodes) == 0 {
		return errors.New("deregistering a service: the service has no node")
	}
	also := s.also()
	if also != nil {
		also.Deregister(service)
	}
	begin := time.Now()
	r, err := s.writableRegistrar()
	if err == nil && r != nil {
		err = r.deregister(service, s.confirmationWait())
	}
	if wait := s.confirmationWait(); also != nil && wait > 0 {
		also.Wait(wait - time.Since(begin))
	}
	if err != nil {
		return fmt.Errorf("deregistering service %q: %w", service.Name, err)
	}
	return nil
}

// writableRegistrar returns the registrar, with a connection to the API server, or why this
// process cannot register services. Outside of the cluster, where there is no pod to register on, it
// returns nil and no error.
func (s *Service) writableRegistrar() (*registrar, error) {
	r := s.registrar.Load() // before Connect: a registrar that Detach replaces in between stays without the new connection
	pod, err := s.options.Connect()
	switch {
	case s.options.Getenv("KUBERNETES_SERVICE_HOST") == "" && apiserver.NoKubeconfig(err):
		return nil, errors.New("not in a pod (KUBERNETES_SERVICE_HOST is not set): a service is registered on the pod that serves it; through a kubeconfig the registry can be read, not written: run the service in a cluster, or choose another registry with --registry=mdns")
	case err != nil:
		return nil, err
	case pod.OutsideCluster:
		if !s.outside.Swap(true) {
			logger.Infof("Registry [kubernetes] Reading the services of namespace %q through %s. This process registers nothing, because outside of the cluster there is no pod to register on: other services cannot find it", pod.Namespace, pod.Host)
		}
		return nil, nil
	}
	if pod.Name == "" {
		return nil, errors.New("the pod's name is unknown: neither POD_NAME nor HOSTNAME is set; set POD_NAME from metadata.name in the pod's manifest")
	}
	r.connected(pod)
	return r, nil
}

// confirmationWait returns how long Register and Deregister wait for the API server, 0 if
// they do not wait.
func (s *Service) confirmationWait() time.Duration {
	s.mu.Lock()
	background := s.background
	s.mu.Unlock()
	if background {
		return 0
	}
	return s.options.Timeout()
}

// InBackground begins the lifecycle of a service: Register and Deregister return without waiting.
// Its error says that this process can never register the service.
func (s *Service) InBackground(service string) error {
	if _, err := s.writableRegistrar(); err != nil {
		return fmt.Errorf("registering service %q: %w", service, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.background, s.stopping = true, false
	s.running[service]++
	maps.DeleteFunc(s.left, func(_, lifecycle string) bool { return lifecycle == service })
	return nil
}

// UseOther makes Register and Deregister call another registry.
func (s *Service) UseOther(other registry.Registry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.other = other
}

func (s *Service) otherRegistry() registry.Registry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.other
}

// Registered reports whether the API server has confirmed everything that was
// registered, and nothing has removed it since.
func (s *Service) Registered() bool { return s.registrar.Load().registered() }

// RegisteredAs reports whether the API server has confirmed the registration of a lifecycle's
// service, and nothing has removed it since. Other services of the process, such as the topics of a
// broker, do not matter. Outside of the cluster it is always true.
func (s *Service) RegisteredAs(service string) bool {
	if s.outside.Load() {
		return true
	}
	r := s.registrar.Load()
	for _, name := range s.registeredNames(service) {
		if !r.registeredAs(name) {
			return false
		}
	}
	return true
}

// LastError returns why the last attempt to register a lifecycle's service failed, nil if it did not.
func (s *Service) LastError(service string) error {
	r := s.registrar.Load()
	for _, name := range s.registeredNames(service) {
		if r.desiredRegistration(name) != nil {
			if err := r.lastError(name); err != nil {
				return err
			}
			continue
		}
		s.mu.Lock()
		err := s.results[name].err
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// registeredNames returns the names under which a lifecycle's service was registered: its name, as far
// as the lifecycle knows it. go-micro does not tell the lifecycle of a web service when Init changes the
// name, as with MICRO_SERVER_NAME. Then it returns all names but those of other lifecycles and of a broker.
func (s *Service) registeredNames(service string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var others []string
	for name, result := range s.results {
		if name == service {
			return []string{service}
		}
		if s.running[name] == 0 && !result.topic {
			others = append(others, name)
		}
	}
	if len(others) == 0 {
		return []string{service} // which is not registered yet
	}
	slices.Sort(others)
	return others
}

// Changed returns a channel that is closed when the results of Registered, LastError and
// DeregistrationPending may have changed.
func (s *Service) Changed() <-chan struct{} { return s.changed.Wait() }

// GracePeriod returns how long the process's own pod may take to stop.
func (s *Service) GracePeriod() time.Duration { return s.registrar.Load().podGracePeriod() }

// TerminatingSince returns when the registrar saw that the process's own pod is being
// deleted, and the zero time if it is not.
func (s *Service) TerminatingSince() time.Time { return s.registrar.Load().podTerminatingSince() }

// Zone returns the zone of the process's own pod: that of its label, which a process that registers
// watches, or else POD_ZONE; "" if neither is known.
func (s *Service) Zone() string {
	if z := s.registrar.Load().zone.Load(); z != nil && *z != "" {
		return *z
	}
	return s.zone
}

// Leave ends the lifecycle of a service: it deregisters the service and makes Register ignore it.
// The last lifecycle that leaves deregisters every service of the process, such as the topics of
// a broker, which several services may share. go-micro's periodic call of Register may be running
// at the same time.
func (s *Service) Leave(service string) {
	s.registering.Lock()
	names := s.registeredNames(service)
	s.mu.Lock()
	if s.running[service]--; s.running[service] <= 0 {
		delete(s.running, service)
		for _, name := range names {
			if s.left[name] == "" {
				s.left[name] = service
			}
		}
	}
	s.stopping = len(s.running) == 0
	leaves := func(name string) bool { return s.stopping || s.left[name] != "" }
	var leaving []*registry.Service
	for _, registered := range s.registrar.Load().services() {
		if leaves(registered.Name) {
			leaving = append(leaving, registered)
		}
	}
	s.mu.Unlock()
	s.registering.Unlock()
	if also := s.also(); also != nil {
		also.Leave(func(name string) bool { s.mu.Lock(); defer s.mu.Unlock(); return leaves(name) })
	}
	for _, registered := range leaving {
		if err := s.Deregister(registered); err != nil {
			logger.Errorf("Registry [kubernetes] %v", err)
		}
	}
}

// DeregistrationPending reports whether the API server has not yet confirmed what Leave of a
// service has deregistered.
func (s *Service) DeregistrationPending(service string) bool {
	s.mu.Lock()
	stopping, left := s.stopping, maps.Clone(s.left)
	s.mu.Unlock()
	return s.registrar.Load().pending(func(name string) bool { return stopping || left[name] == service })
}

// Detach forgets what is desired and observed, because the connection to the API server has
// ended. It returns a function that stops the goroutines and waits for them. The pod keeps its
// registrations. The next Register connects again.
func (s *Service) Detach() (stop func()) {
	r := s.registrar.Swap(s.newRegistrar())
	return func() {
		r.stop()
		s.changed.Notify()
	}
}
