package pod

import "time"

// Status is what a collector of metrics reads at each scrape, beside the Events that it counts.
type Status struct {
	LastContact time.Time       // as Registry.LastContact
	Zone        string          // of this process: that of its own pod, or POD_ZONE; "" if it is not known
	Services    []ServiceStatus // of this process, in the order in which they started
	Called      []CalledService // that this process has looked up or called, in no particular order
	AlsoError   error           // why the registry of Also fails now; nil if it does not
}

// ServiceStatus is the status of a service of this process that has a Lifecycle or a WebLifecycle.
type ServiceStatus struct {
	Name       string
	State      LifecycleState
	Registered bool // the API server has confirmed the registration
	InFlight   int  // calls, streams, messages of subscribers, or requests

	OtherRegistry  bool // the service registers in another registry than its pod, so that Registered is false
	AlsoRegistered bool // the registry of Also has confirmed the registration too

	StopBegan time.Time // when the signal to stop came; zero before
	DrainEnds time.Time // when what is in flight is cut off; zero before
}

// LifecycleState is the state of a service of this process.
type LifecycleState string

// The states of a service, in their usual order.
const (
	LifecycleNotReady LifecycleState = "not ready"
	LifecycleReady    LifecycleState = "ready"
	LifecycleDraining LifecycleState = "draining"
	LifecycleStopped  LifecycleState = "stopped"
)

// CalledService is a service that this process calls.
type CalledService struct {
	Name      string
	Instances map[State]int   // number of instances in each state
	Calls     []InstanceCalls // to the routable instances; nil before the first call
	AlsoOnly  int             // number of instances that only the registry of Also knows: they have not moved to pods
}

// Status returns the current state of the registry, of the services of this process that use it, and of the services that they call. Its
// time grows with the number of instances. It makes no call.
func (r *Registry) Status() Status {
	s := Status{LastContact: r.LastContact(), Zone: r.registration.Zone()}
	r.mu.Lock()
	running := r.running
	r.mu.Unlock()
	old := alsoOf(r.Options())
	if old != nil {
		s.AlsoError = old.Failing()
	}
	for _, status := range running {
		now := status()
		s.Services = append(s.Services, ServiceStatus{Name: now.Service, State: LifecycleState(now.State), Registered: now.Registered, OtherRegistry: now.OtherRegistry, InFlight: now.InFlight,
			AlsoRegistered: old != nil && old.Registered(now.Service),
			StopBegan:      now.StopBegan, DrainEnds: now.DrainEnds})
	}
	others := r.services.OtherCounts()
	for name, counts := range r.services.Counts() {
		c := CalledService{Name: name, Instances: map[State]int{}, AlsoOnly: others[name]}
		for state, n := range counts {
			c.Instances[State(state)] = n
		}
		for _, i := range r.choosers.Instances(name) {
			c.Calls = append(c.Calls, instanceCalls(i))
		}
		s.Called = append(s.Called, c)
	}
	return s
}
