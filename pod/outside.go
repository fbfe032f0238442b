package pod

import (
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/portforward"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/rpc"
	"github.com/micro/go-micro/v2/registry"
)

// Direct is an option of NewRegistry: its clients dial the addresses of instances also outside of
// the cluster, as from a laptop in a VPN that reaches them.
func Direct() registry.Option { return setOption(throughAPIServerKey, false) }

// ThroughAPIServer is an option of NewRegistry: its clients call instances through the API server
// also in a pod. Its service account then needs the verbs get and create on pods/portforward, which
// reach every port of every pod of the namespace.
func ThroughAPIServer() registry.Option { return setOption(throughAPIServerKey, true) }

// newPath returns the path to instances through an API server, nil if they are dialed directly.
func newPath(conn *apiserver.Connection, o registry.Options) (*portforward.Path, error) {
	through, ok := optionOf[bool](o, throughAPIServerKey)
	if !ok {
		through = conn.OutsideCluster
	}
	if !through {
		return nil, nil //nolint:nilnil // no path is no error
	}
	return portforward.New(conn)
}

// pathToInstances returns the path to instances, nil for the network.
func (r *Registry) pathToInstances() rpc.Path {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.path == nil { // a nil *portforward.Path would not be a nil rpc.Path
		return nil
	}
	return r.path
}
