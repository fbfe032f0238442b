package pod

import (
	"time"

	"github.com/micro/go-micro/v2/registry"
)

// State says whether an instance can receive calls, and if not, why.
type State string

// The states of an instance. GetService, Watch and clients find only Ready instances, and also NodeUnreachable instances while these
// outnumber the Ready ones of the service.
const (
	Ready           State = "ready"
	NotReady        State = "not ready"        // the pod is not running, or its readiness probe fails
	Terminating     State = "terminating"      // the pod is being deleted, or the instance has deregistered
	NodeUnreachable State = "node unreachable" // the pod was ready when its Kubernetes node stopped reporting
)

// Instance is one instance of a service, as Observe returns it.
type Instance struct {
	Service, Version string
	Endpoints        []*registry.Endpoint // shared with other observers: do not modify
	Address          string               // host:port
	Pod, Zone        string               // Zone is that of the pod's Kubernetes node; "" if it is not known
	Created          time.Time            // creation of the pod, to the second
	State            State
	Reason           string // why the instance cannot receive calls, from the status of the pod; "" if it is Ready
}
