// Package shutdown is the life of a service in its pod, from the start to the end of
// the process: health checks, readiness, and a stop that loses nothing.
//
// GRPC and Web return the options that add it to a service of go-micro. Package pod
// has the documentation for users: pod.Lifecycle and pod.WebLifecycle.
//
// A service stops in this order:
//
//	not ready      health checks say so, and Draining tells the handlers   (leave)
//	deregister     clients with package pod stop calling within milliseconds (leave)
//	announce       other clients notice; calls are still accepted           (leave)
//	drain          clients leave the connections, which GOAWAY tells those of gRPC; calls,
//	               streams, requests and messages in flight end             (drain; shutDown of a web service)
//	late messages  messages that arrived since end; gRPC services only      (drainLateMessages)
//	close          the last service of a registry closes it                 (Config.Release)
//
// go-micro runs the steps in two parts, BeforeStop and AfterStop, and stops its server in
// between. The user's functions of BeforeStop run after the drain, wherever their options are.
//
// What crosses the wall: a Config in, with the Registration that the service has in
// the registry, and options of go-micro out. grpc.go and web.go are the two kinds of
// service, lifecycle.go and stop.go are what they share, health.go and reflection.go are
// the services that a gRPC server gets besides the user's, and answer.go answers their calls
// above go-micro's server. plaintext.go tells clients of TLS from others. overload.go refuses calls and requests that are too many. listener.go
// lets a web service drain before go-micro stops it.
package shutdown

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/events"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/weblimit"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
	"google.golang.org/grpc"
)

// Registration is the registration of this process's services, as registration.Service
// keeps it on the pod. Each service has a lifecycle of its own.
type Registration interface {
	InBackground(service string) error         // Register and Deregister no longer wait; the error says why the service can never register
	UseOther(registry.Registry)                // Register and Deregister use this registry instead
	RegisteredAs(service string) bool          // the API server has confirmed the registration of the service
	LastError(service string) error            // why the last attempt to register the service failed; nil if it did not
	Leave(service string)                      // deregisters the service for good, and everything if no other lifecycle uses the registration
	DeregistrationPending(service string) bool // the API server has not yet confirmed Leave
	Changed() <-chan struct{}                  // closed when one of the answers above may differ
	TerminatingSince() time.Time               // when the deletion of the pod was seen; zero if it was not
	GracePeriod() time.Duration                // how long the pod may take to stop
}

// Config is what a lifecycle needs to know.
type Config struct {
	Registry     registry.Registry // that registers on the pod
	Registration Registration      // of this process in Registry
	Retain       func()            // called when the service starts
	Release      func() error      // called once for each Retain, at the end of the stop
	DrainWait    time.Duration     // how long new calls are accepted after the signal to stop
	Getenv       func(string) string
	Limits       weblimit.Limits // of a web service without the option web.Server

	AdaptiveLimit bool // refuse calls that are too many

	ServerOptions func() []grpc.ServerOption // that come before all others of a gRPC server; may be nil

	Events  *events.Hub                       // may be nil
	Started func(status func() ServiceStatus) // called when the service starts; may be nil
}

// DefaultDrainWait is how long a pod still accepts new calls after the signal to stop.
// Clients with package pod stop calling it within milliseconds; kube-proxy and other
// readers of a Service's endpoints need a second or two.
const DefaultDrainWait = 3 * time.Second

// DefaultLimits are the limits of a web service.
var DefaultLimits = weblimit.Default

// lifecycle is what the lives of gRPC and web services have in common.
type lifecycle struct {
	Config
	name              string        // of the service
	usesOtherRegistry bool          // the service uses another registry than Config.Registry
	stopping          chan struct{} // closed when the stop begins
	ending                          // state of the stop
}

// ServiceStatus is the status of a service with a lifecycle.
type ServiceStatus struct {
	Service       string
	Registered    bool
	OtherRegistry bool      // so that it is not registered on its pod
	State         string    // one of the states below
	InFlight      int       // calls, streams, messages or requests
	StopBegan     time.Time // zero before
	DrainEnds     time.Time // when calls in flight are cut off; zero before the stop
}

// The states of a service.
const (
	StateNotReady = "not ready"
	StateReady    = "ready"
	StateDraining = "draining"
	StateStopped  = "stopped"
)

// reportTo gives the status of the service to whoever wants to know it.
func (l *lifecycle) reportTo(inFlight func() int) {
	if l.Started == nil {
		return
	}
	l.Started(func() ServiceStatus {
		s := ServiceStatus{Service: l.name, State: StateNotReady, InFlight: inFlight(), OtherRegistry: l.usesOtherRegistry, Registered: !l.usesOtherRegistry && l.Registration.RegisteredAs(l.name)}
		if l.draining() {
			s.StopBegan, s.DrainEnds = l.began, *l.drainEnds.Load()
		}
		switch {
		case l.interrupted.Err() != nil && l.draining():
			s.State = StateStopped
		case l.draining():
			s.State = StateDraining
		case l.notReadyReason() == "":
			s.State = StateReady
		}
		return s
	})
}

func newLifecycle(c Config) *lifecycle {
	return &lifecycle{Config: c, stopping: make(chan struct{}), ending: newEnding()}
}

// useRegistry records which registry the service uses. The error says why the service can
// never register there.
func (l *lifecycle) useRegistry(service string, used registry.Registry) error {
	l.name, l.usesOtherRegistry = service, used != l.Registry
	if l.usesOtherRegistry {
		log := logger.Infof
		if l.Getenv("KUBERNETES_SERVICE_HOST") != "" { // in a pod this is rarely wanted
			log = logger.Warnf
		}
		log("Service %q registers in registry %q, not on its pod: callers on Kubernetes do not find it, and it is ready whether or not it is registered. %s",
			service, used, causeOfOtherRegistry(used, l.Getenv, os.Args[1:]))
		return nil
	}
	return l.Registration.InBackground(service)
}

// causeOfOtherRegistry returns why a service uses another registry than that of its lifecycle.
func causeOfOtherRegistry(used registry.Registry, getenv func(string) string, args []string) string {
	const variable, flag = "MICRO_REGISTRY", "-registry"
	isFlag := func(arg string) bool {
		name, _, _ := strings.Cut(arg, "=")
		return strings.TrimPrefix(name, "-") == flag || name == flag
	}
	switch {
	case slices.ContainsFunc(args, isFlag):
		return "The flag --registry chooses it"
	case getenv(variable) == used.String():
		return fmt.Sprintf("The environment variable %s=%s chooses it", variable, used)
	case used == registry.DefaultRegistry:
		return "It is go-micro's default: the option micro.Registry, or web.Registry, is missing"
	default:
		return "An option chooses it, such as micro.Registry or server.Registry"
	}
}

// draining reports whether the stop has begun.
func (l *lifecycle) draining() bool {
	select {
	case <-l.stopping:
		return true
	default:
		return false
	}
}

// notReadyReason returns why the service should get no calls, "" if it is ready.
func (l *lifecycle) notReadyReason() string {
	switch {
	case l.draining():
		return "shutting down"
	case l.usesOtherRegistry || l.Registration.RegisteredAs(l.name):
		return ""
	}
	if err := l.Registration.LastError(l.name); err != nil {
		return fmt.Sprintf("not registered: %v", err)
	}
	return "not registered yet"
}

// drainingKey is the context key of the channel that Draining returns.
type drainingKey struct{}

// withDraining returns a context from which Draining gets the channel.
func (l *lifecycle) withDraining(ctx context.Context) context.Context {
	return context.WithValue(ctx, drainingKey{}, l.stopping)
}

// Draining returns the channel that is closed when the stop of the service begins, nil if
// the context is not that of a handler or subscriber of a service with a lifecycle.
func Draining(ctx context.Context) <-chan struct{} {
	stopping, _ := ctx.Value(drainingKey{}).(chan struct{})
	return stopping
}
