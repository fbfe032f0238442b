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
//	drain          calls, streams, requests and messages in flight end      (drain, Web: shutDown)
//	late messages  messages that arrived since end; gRPC services only      (drain)
//	close          the last service of a registry closes it                 (Config.Release)
//
// go-micro runs the steps in two parts, BeforeStop and AfterStop, and stops its server in
// between: that of a gRPC service after the drain, that of a web service before it.
//
// What crosses the wall: a Config in, with the Registration that the service has in
// the registry, and options of go-micro out. grpc.go and web.go are the two kinds of
// service, lifecycle.go and stop.go are what they share, health.go and reflection.go are
// the services that a gRPC server gets besides the user's.
package shutdown

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/registry"
)

// Registration is the registration of this process's services, as registration.Service
// keeps it on the pod.
type Registration interface {
	InBackground(service string) error // Register and Deregister no longer wait; the error says why the service can never register
	UseOther(registry.Registry)        // Register and Deregister use this registry instead
	Serves(name string) bool           // a service or handler of that name was ever registered
	Registered() bool                  // the API server has confirmed all that was registered
	LastError() error                  // why the last attempt to register failed; nil if it did not
	DeregisterAll()                    // deregisters every service, now and for good
	DeregistrationPending() bool       // the API server has not yet confirmed DeregisterAll
	Changed() <-chan struct{}          // closed when one of the answers above may differ
	TerminatingSince() time.Time       // when the deletion of the pod was seen; zero if it was not
	GracePeriod() time.Duration        // how long the pod may take to stop
}

// Config is what a lifecycle needs to know.
type Config struct {
	Registry     registry.Registry // that registers on the pod
	Registration Registration      // of this process in Registry
	Retain       func()            // called when the service starts
	Release      func() error      // called once for each Retain, at the end of the stop
	DrainWait    time.Duration     // how long new calls are accepted after the signal to stop
}

// DefaultDrainWait is how long a pod still accepts new calls after the signal to stop.
// Clients with package pod stop calling it within milliseconds; kube-proxy and other
// readers of a Service's endpoints need a second or two.
const DefaultDrainWait = 3 * time.Second

// lifecycle is what the lives of gRPC and web services have in common.
type lifecycle struct {
	Config
	name              string        // of the service
	usesOtherRegistry bool          // the service uses another registry than Config.Registry
	stopping          chan struct{} // closed when the stop begins
	ending                          // state of the stop
}

func newLifecycle(c Config) *lifecycle {
	return &lifecycle{Config: c, stopping: make(chan struct{}), ending: ending{signals: make(chan os.Signal, 1)}}
}

// useRegistry records which registry the service uses. The error says why the service can
// never register there.
func (l *lifecycle) useRegistry(service string, used registry.Registry) error {
	l.name, l.usesOtherRegistry = service, used != l.Registry
	if l.usesOtherRegistry {
		logger.Infof("Service %q uses registry %q: it is ready whether or not it is registered", service, used)
		return nil
	}
	return l.Registration.InBackground(service)
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
	case l.usesOtherRegistry || l.Registration.Registered():
		return ""
	}
	if err := l.Registration.LastError(); err != nil {
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
