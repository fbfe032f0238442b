package pod

import (
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/discovery"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/rpc"
	"github.com/micro/go-micro/v2/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// Credentials secure the connections between services. Package pod/identity has an implementation. Its methods are called for each
// connection, not for each call, and must be safe for concurrent use.
type Credentials interface {
	// Client returns the credentials of a connection of a Client, nil for plaintext. An error of their handshake that is a
	// *tls.CertificateVerificationError says that the callee is somebody else; an instance is ejected for it.
	Client(Callee) credentials.TransportCredentials

	// Server returns options for the server of a service with Lifecycle. They come before all others, so that their
	// interceptors are the outermost. Lifecycle calls it when the service starts.
	Server() []grpc.ServerOption
}

// Callee is what a Client connects to.
type Callee struct {
	Service, Address string
	Pod, PodUID      string            // "" with client.WithAddress
	Metadata         map[string]string // of the registration, which must not be modified; nil with client.WithAddress
}

// WithCredentials is an option of NewRegistry and of Registry.Init. Connections to addresses that are reached over TLS anyway, and all
// those of a client with grpcc.AuthTLS, do not use the credentials.
func WithCredentials(c Credentials) registry.Option { return setOption(credentialsKey, c) }

// Credentials returns those of a connection to a callee for clients of other packages, such as a plain gRPC client; nil for plaintext.
func (r *Registry) Credentials(to Callee) credentials.TransportCredentials {
	if s := r.secure.Load(); s != nil {
		return s.Client(to)
	}
	return nil
}

// Reconnect makes the clients of the registry open new connections for the calls that begin later, as after a change of
// their credentials. Calls in flight end on the connections of before.
func (r *Registry) Reconnect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.clients {
		c.rpc.Reconnect()
	}
}

// clientCredentials returns the credentials of connections, nil for plaintext.
func (r *Registry) clientCredentials() rpc.Credentials { return r.secure.Load().of() }

// secured are the Credentials of a registry; nil without.
type secured struct {
	Credentials
	client rpc.Credentials
}

func newSecured(c Credentials) *secured {
	return &secured{c, func(service, address string, i *discovery.Instance) credentials.TransportCredentials {
		to := Callee{Service: service, Address: address}
		if i != nil {
			to.Pod, to.PodUID, to.Metadata = i.Pod, i.PodUID(), i.Metadata
		}
		return c.Client(to)
	}}
}

func (s *secured) of() rpc.Credentials {
	if s == nil {
		return nil
	}
	return s.client
}

// serverOptions returns the options of the server of a service with a lifecycle.
func (r *Registry) serverOptions() []grpc.ServerOption {
	if s := r.secure.Load(); s != nil {
		return s.Server()
	}
	return nil
}
