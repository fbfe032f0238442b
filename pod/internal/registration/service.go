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
//	Registered, LastError, Changed  readiness: has the API server confirmed everything, why not, since when
//	DeregisterAll, DeregistrationPending, GracePeriod, TerminatingSince  the stop of a process
//	Detach                          the connection to the API server has ended
//
// What crosses the wall: services and registries of go-micro; the Pod, which is the process's own
// pod and three calls to its API server (API); no client, no selector, and no informer.
package registration

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/broadcast"
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
}

// Service registers the services of this process on its own pod. Make it with New. It is safe for
// concurrent use.
type Service struct {
	options   Options
	registrar atomic.Pointer[registrar] // Detach replaces it
	changed   broadcast.Broadcast

	registering sync.RWMutex // Register holds it for reading, so that DeregisterAll waits for calls that began before it

	mu         sync.Mutex
	served     map[string]bool   // names of services and handlers that were ever registered
	background bool              // Register and Deregister do not wait for the API server
	stopping   bool              // Register does nothing
	other      registry.Registry // receives the calls of Register and Deregister instead; may be nil
}

// New returns a Service. It makes no call and starts no goroutine before Register or Deregister.
func New(o Options) *Service {
	s := &Service{options: o, served: map[string]bool{}}
	s.registrar.Store(s.newRegistrar())
	return s
}

func (s *Service) newRegistrar() *registrar {
	return newRegistrar(s.options.Plugin, s.changed.Notify, s.options.APIError)
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
	stopping := s.stopping // go-micro may register once more after it has deregistered
	s.served[service.Name] = true
	for _, e := range service.Endpoints {
		handler, _, _ := strings.Cut(e.Name, ".")
		s.served[handler] = true
	}
	s.mu.Unlock()
	if stopping {
		return nil
	}
	r, err := s.writableRegistrar()
	if err == nil {
		var reachable *registry.Service
		if reachable, err = advertised(service, s.options.Getenv("POD_IP"), isInterfaceAddress); err == nil {
			err = r.register(reachable, s.confirmationWait())
		}
	}
	if err != nil {
		return fmt.Errorf("registering service %q: %w", service.Name, err)
	}
	return nil
}

// Deregister makes the service's absence desired and waits as Register does.
func (s *Service) Deregister(service *registry.Service, opts ...registry.DeregisterOption) error {
	if other := s.otherRegistry(); other != nil {
		return other.Deregister(service, opts...)
	}
	if service == nil || len(service.Nodes) == 0 {
		return errors.New("deregistering a service: the service has no node")
	}
	r, err := s.writableRegistrar()
	if err == nil {
		err = r.deregister(service, s.confirmationWait())
	}
	if err != nil {
		return fmt.Errorf("deregistering service %q: %w", service.Name, err)
	}
	return nil
}

// writableRegistrar returns the registrar, with a connection to the API server, or why this
// process cannot register services.
func (s *Service) writableRegistrar() (*registrar, error) {
	if s.options.Getenv("KUBERNETES_SERVICE_HOST") == "" { // setting KUBECONFIG would not help
		return nil, errors.New("not in a pod (KUBERNETES_SERVICE_HOST is not set): a service is registered on the pod that serves it; through a kubeconfig the registry can be read, not written: run the service in a cluster, or choose another registry with --registry=mdns")
	}
	r := s.registrar.Load() // before Connect: a registrar that Detach replaces in between stays without the new connection
	pod, err := s.options.Connect()
	if err != nil {
		return nil, err
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

// InBackground makes Register and Deregister return without waiting. Its error says that this
// process can never register the service.
func (s *Service) InBackground(service string) error {
	if _, err := s.writableRegistrar(); err != nil {
		return fmt.Errorf("registering service %q: %w", service, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.background = true
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

// Serves reports whether a service or a handler of that name was ever registered.
func (s *Service) Serves(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served[name]
}

// Registered reports whether the API server has confirmed everything that was
// registered, and nothing has removed it since.
func (s *Service) Registered() bool { return s.registrar.Load().registered() }

// LastError returns why the last attempt to register failed, nil if it did not.
func (s *Service) LastError() error { return s.registrar.Load().lastError() }

// Changed returns a channel that is closed when the results of Registered, LastError and
// DeregistrationPending may have changed.
func (s *Service) Changed() <-chan struct{} { return s.changed.Wait() }

// GracePeriod returns how long the process's own pod may take to stop.
func (s *Service) GracePeriod() time.Duration { return s.registrar.Load().podGracePeriod() }

// TerminatingSince returns when the registrar saw that the process's own pod is being
// deleted, and the zero time if it is not.
func (s *Service) TerminatingSince() time.Time { return s.registrar.Load().podTerminatingSince() }

// DeregisterAll deregisters every service, and makes Register do nothing from now on. go-micro's
// periodic call of Register may be running at the same time.
func (s *Service) DeregisterAll() {
	s.registering.Lock()
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.registering.Unlock()
	for _, service := range s.registrar.Load().services() {
		if err := s.Deregister(service); err != nil {
			logger.Errorf("Registry [kubernetes] %v", err)
		}
	}
}

// DeregistrationPending reports whether DeregisterAll was called and the API server
// has not yet confirmed every deregistration.
func (s *Service) DeregistrationPending() bool {
	s.mu.Lock()
	stopping := s.stopping
	s.mu.Unlock()
	return stopping && s.registrar.Load().pending()
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
