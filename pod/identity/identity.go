// Package identity gives a service an identity of its own: mutual TLS with the certificate of its pod, so that every call knows who
// is calling, and every client knows that it calls the service that it asked for.
//
// One line adds it to a service. It does nothing unless POD_IDENTITY is set:
//
//	micro.NewService(···, pod.Lifecycle(registry), identity.Serve(registry))
//	web.NewService(···, pod.WebLifecycle(registry), identity.ServeWeb(registry))
//
// A web service is secured as a caller: its own port stays HTTP, for browsers.
//
// # Files
//
// POD_IDENTITY is a directory, usually a projected volume. The files are read again once a second; no restart is needed, and no call fails. If new
// files are broken, the credentials of before stay in use, and the log has one line.
//
//	credentialbundle.pem  the private key and the certificate chain, as the kubelet writes a podCertificate (KEP-4317);
//	                      or tls.key and tls.crt, as in Secrets and from cert-manager's csi-driver-spiffe
//	trustbundle.pem       the authorities, as the kubelet writes a clusterTrustBundle (KEP-3257); or ca.crt. It may have several, such
//	                      as the old and the new one while they are replaced
//	callers               who may call this service, one a line: ACCOUNT (of the own namespace), NAMESPACE/ACCOUNT, or a whole SPIFFE ID;
//	                      # begins a comment. Without the file every account of the own namespace may, with an empty one nobody
//
// The certificate must have one SPIFFE ID of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT, the usages clientAuth and serverAuth,
// and an authority of the trust bundle. Names of hosts do not matter.
//
// # What is verified
//
// A client verifies that the callee is of its own trust domain and namespace and has the account that is named as the service, or that of the
// option Account. If the certificate names the pod, as the subject's common name with the pod's uid in the attribute 1.3.6.1.4.1.57683.2
// (X509UID of k8s.io/apimachinery), both must be those of the pod that has registered. So a pod that registers under the name of another
// service gets no calls. It is ejected, as if it did not answer.
//
// A server verifies that the caller is of its own trust domain and in the list of callers, at each call, and that its certificate has
// not expired. A handler reads who it is with Caller. It refuses calls with the status PERMISSION_DENIED or UNAUTHENTICATED (go-micro's codes
// 403 and 401, which clients do not retry), and certificates in the handshake. The log has one line a minute for each refused caller, and one for the first
// connection of each permitted one. When a caller is no longer permitted, or its certificate has expired, its connections are closed within
// two seconds, with its open streams. A stream that must live longer than the certificate of its caller has to be opened again.
//
// A client opens new connections when its files have changed; calls in flight end on the old ones. For other clients, the server
// ends connections after a quarter of the lifetime of its certificate. Everything is TLS 1.3, without resumption.
//
// # Modes
//
// POD_IDENTITY_MODE is strict or permissive. In the mode strict, which is the default, a server answers plaintext with an error that
// says so, and a client speaks TLS only, whatever a registration says. The mode permissive is for the time of a change: a server accepts TLS and
// plaintext on one port, and a client speaks TLS with instances whose registration has the metadata tls=mutual, and plaintext with others. Roll out
// permissive everywhere first, then strict; go back in the same steps. While the server logs a line "calls in plaintext", strict is too early.
//
// # Health
//
// The kubelet's gRPC probes cannot speak TLS. Set POD_HEALTH_ADDRESS, such as :9101, and probe that port: a service with pod.Lifecycle answers
// grpc.health.v1 there, in plaintext, and nothing else.
//
// # Environment
//
//	POD_IDENTITY        directory of the files; without it, everything is plaintext
//	POD_IDENTITY_MODE   strict or permissive
//	POD_HEALTH_ADDRESS  address of health without TLS; see pod.Lifecycle
//
// docs/identity.md shows where certificates come from.
package identity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"sync/atomic"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/mtls"
	"github.com/micro/go-micro/v2"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/server"
	"github.com/micro/go-micro/v2/web"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// The environment variables, and the values of ModeVariable.
const (
	Variable     = "POD_IDENTITY"      // directory of the files
	ModeVariable = "POD_IDENTITY_MODE" // Strict or Permissive; Strict if it is empty

	Strict     = "strict"
	Permissive = "permissive"
)

// The metadata of an instance that accepts TLS, as the mode permissive reads it.
const (
	metadataKey   = "tls"
	metadataValue = "mutual"
)

// Option configures Serve and ServeWeb.
type Option func(*mtls.Config)

// Account says that the instances of a service have another service account than one with the name of the service.
func Account(service, account string) Option {
	return func(c *mtls.Config) { c.Account[service] = account }
}

// ID is the identity of a service account.
type ID struct {
	URI         string // the SPIFFE ID, such as spiffe://cluster.local/ns/go-micro/sa/go-micro-client
	TrustDomain string
	Namespace   string // "" if the path of the ID is not /ns/NAMESPACE/sa/ACCOUNT
	Account     string // as Namespace
}

// Caller returns who has made the call that a handler serves. ok is false if the call came in plaintext.
func Caller(ctx context.Context) (id ID, ok bool) {
	caller, ok := mtls.CallerOf(ctx)
	return ID(caller), ok
}

// Serve returns the option that secures a gRPC service and the clients of a registry. Give it after pod.Lifecycle. Run returns an error if a file is
// missing or broken. Without POD_IDENTITY the option does nothing.
func Serve(r *pod.Registry, opts ...Option) micro.Option {
	return serve(os.Getenv, r, opts)
}

func serve(getenv func(string) string, r *pod.Registry, opts []Option) micro.Option {
	s := newService(getenv, r, opts)
	if s == nil {
		return func(*micro.Options) {}
	}
	return func(o *micro.Options) {
		o.BeforeStart = append(o.BeforeStart, func() error { return s.startServer(o) })
		o.AfterStop = append(o.AfterStop, s.stop)
	}
}

// ServeWeb is Serve for a web service: it secures only the calls that the service makes.
func ServeWeb(r *pod.Registry, opts ...Option) web.Option {
	s := newService(os.Getenv, r, opts)
	if s == nil {
		return func(*web.Options) {}
	}
	return func(o *web.Options) {
		o.BeforeStart = append(o.BeforeStart, s.start)
		o.AfterStop = append(o.AfterStop, s.stop)
	}
}

// service is the identity of a service. It implements pod.Credentials.
type service struct {
	source     *mtls.Source // nil if it cannot be used
	err        error        // why
	permissive bool
	secures    atomic.Bool // whether a server has asked for its options
}

// newService reads the files and gives the credentials to a registry. It returns nil without POD_IDENTITY. An error is that of Run, and until then of
// calls.
func newService(getenv func(string) string, r *pod.Registry, opts []Option) *service {
	dir, mode := getenv(Variable), getenv(ModeVariable)
	if dir == "" {
		return nil
	}
	s := &service{permissive: mode == Permissive}
	c := mtls.Config{Dir: dir, Permissive: s.permissive, Account: map[string]string{}, Changed: r.Reconnect, Refusal: refusal,
		Logf: func(format string, args ...any) { logger.Infof("Identity [pod] "+format, args...) }}
	for _, o := range opts {
		o(&c)
	}
	switch source, err := mtls.Open(c); {
	case mode != "" && mode != Strict && mode != Permissive:
		s.err = fmt.Errorf("%s=%s: it must be %s or %s", ModeVariable, mode, Strict, Permissive)
	case err != nil:
		s.err = fmt.Errorf("reading the identity of this process from %s=%s: %w; mount the certificate of the pod there, or unset %s", Variable, dir, err, Variable)
	default:
		s.source = source
	}
	_ = r.Init(pod.WithCredentials(s))
	return s
}

// refusal returns the error of a refused call: a gRPC status for all clients, and an error of go-micro for those of go-micro.
func refusal(code codes.Code, text string) error {
	micro := &microerrors.Error{Id: "pod.identity", Code: http.StatusUnauthorized, Detail: text, Status: http.StatusText(http.StatusUnauthorized)}
	if code == codes.PermissionDenied {
		micro.Code, micro.Status = http.StatusForbidden, http.StatusText(http.StatusForbidden)
	}
	s := status.New(code, text)
	if detailed, err := s.WithDetails(micro); err == nil {
		s = detailed
	}
	return s.Err()
}

func (s *service) start() error {
	if s.err != nil {
		return s.err
	}
	logger.Infof("Identity [pod] This process is %s", s.source.ID().URI)
	s.source.Start()
	return nil
}

func (s *service) startServer(o *micro.Options) error {
	switch {
	case s.err != nil:
		return s.err
	case !s.secures.Load():
		return errors.New("securing the service: give identity.Serve to micro.NewService after pod.Lifecycle, and with the same registry")
	case o.Server.Options().TLSConfig != nil:
		return fmt.Errorf("securing the service: leave out server.TLSConfig, or unset %s", Variable)
	}
	err := o.Server.Init(func(o *server.Options) {
		marked := maps.Clone(o.Metadata)
		if marked == nil {
			marked = map[string]string{}
		}
		marked[metadataKey] = metadataValue
		o.Metadata = marked
	})
	if err != nil {
		return err
	}
	return s.start()
}

// stop ends the goroutines. It runs after the drain.
func (s *service) stop() error {
	if s.source != nil {
		s.source.Stop()
	}
	return nil
}

// Client returns the credentials of a connection.
func (s *service) Client(to pod.Callee) credentials.TransportCredentials {
	switch {
	case s.err != nil:
		return broken{err: s.err}
	case s.permissive && to.Metadata[metadataKey] != metadataValue:
		return nil
	}
	return s.source.Client(mtls.Callee{Service: to.Service, Address: to.Address, Pod: to.Pod, PodUID: to.PodUID})
}

// Server returns the options of the server.
func (s *service) Server() []grpc.ServerOption {
	if s.err != nil {
		return nil // Run fails
	}
	s.secures.Store(true)
	return s.source.Server()
}
