// Package apiserver connects to the Kubernetes API server as a pod does.
//
// Connect finds the API server: in a pod through the environment variables and
// the service account volume that Kubernetes gives every pod, elsewhere through
// a kubeconfig. A Connection then reads and patches objects of one namespace:
//
//   - Every call has a time limit, CallTimeout; only a running watch has none.
//   - The token and the certificate authority are read again for each use, so
//     their rotation needs no restart. The token is sent only to the API server's
//     own address, and only over TLS that is verified for that address.
//   - A kubeconfig may use what kubectl reads: proxy-url, tls-server-name, and credential plugins (exec), for which
//     this version of client-go is too old. A field that is neither used nor without effect is refused by its name.
//   - ListWatchPods and ListWatchConfigMap keep a Handler up to date. They list
//     once, then watch, and retry a watch that ends for any reason.
//   - Errors name the verb, the object, the cause and the remedy.
//
// The package writes no log and depends neither on go-micro nor on etcd, so that
// a program that only reads a ConfigMap stays small.
package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
)

// CallTimeout bounds every call to the API server except a running watch.
const CallTimeout = 5 * time.Second

// Environment holds what Kubernetes gives a process in a pod: environment variables and
// a service account volume. Tests make their own Environment.
type Environment struct {
	Getenv            func(string) string
	ServiceAccountDir string // holds the files token, ca.crt and namespace
}

// ProcessEnvironment is the environment of this process.
var ProcessEnvironment = Environment{os.Getenv, "/var/run/secrets/kubernetes.io/serviceaccount"}

// Options change what Connect finds in the environment.
type Options struct {
	Address   string // address of the API server, a URL or host:port, which means https; if empty, Connect finds it in the environment
	Namespace string // namespace of the objects; if empty, the pod's own or the kubeconfig's
}

// Connection calls the API server with the rights of the pod's service account, for
// the objects of one namespace. It is safe for concurrent use.
type Connection struct {
	Host           string // URL of the API server
	Namespace      string // namespace of all objects that the connection reads and writes
	PodName        string // name of the process's own pod; empty when unknown
	OutsideCluster bool   // connected through a kubeconfig

	client    rest.Interface
	transport *serverTransport
	headers   rest.Config // User-Agent and impersonation, which all requests carry
	dialer    dialer
	plugin    *plugin      // of the kubeconfig; nil without one
	retryAt   atomic.Int64 // the API server asks for no request before this Unix time, in nanoseconds
}

var (
	scheme         = runtime.NewScheme()
	codecs         = serializer.NewCodecFactory(scheme)
	parameterCodec = runtime.NewParameterCodec(scheme)
)

func init() { // client-go's own scheme holds every API group; this one holds the core group only
	_ = corev1.AddToScheme(scheme)
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
}

// Connect finds the API server. It makes no call.
func Connect(env Environment, options Options) (*Connection, error) {
	c := &Connection{}
	config, err := c.config(env, options.Address)
	if err != nil {
		return nil, err
	}
	if options.Namespace != "" {
		c.Namespace = options.Namespace
	}
	config.WrapTransport = func(base http.RoundTripper) http.RoundTripper { return &clientGoTransport{base, &c.retryAt} }
	config.APIPath = "/api"
	config.ContentConfig = rest.ContentConfig{
		GroupVersion: &corev1.SchemeGroupVersion, NegotiatedSerializer: codecs.WithoutConversion(),
		ContentType: "application/vnd.kubernetes.protobuf", AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
	}
	config.UserAgent = "k8s-micro"
	// Backoff limits the rate of requests. client-go's default limit of 5 requests
	// a second would delay the start of a process that calls many services.
	config.RateLimiter = flowcontrol.NewFakeAlwaysRateLimiter()
	if c.client, err = rest.RESTClientFor(config); err != nil {
		return nil, fmt.Errorf("connecting to Kubernetes: %w", err)
	}
	c.Host = config.Host
	c.transport, _ = config.Transport.(*serverTransport)
	c.headers = rest.Config{UserAgent: config.UserAgent, Impersonate: config.Impersonate}
	return c, nil
}

// Upgrading returns a transport for requests that turn their connection into one of another protocol, which HTTP/2 cannot. It
// has the credentials, the proxy and the trust of the connection, and network connections of its own, which closeAll closes.
// They are no sign of life for LastContact, and survive a new certificate of the user.
func (c *Connection) Upgrading() (upgrading http.RoundTripper, closeAll func(), err error) {
	d := &dialer{}
	t := &serverTransport{c.transport.server, c.transport.credentials, c.transport.base.Clone(), c.transport.ownProxy}
	t.base.DialContext, t.base.ForceAttemptHTTP2, t.base.Protocols = d.DialContext, false, new(http.Protocols)
	t.base.Protocols.SetHTTP1(true)
	t.base.TLSClientConfig.NextProtos = nil
	upgrading, err = rest.HTTPWrappersForConfig(&c.headers, t)
	return upgrading, d.close, err
}

// config reads the environment, or outside a pod a kubeconfig, and sets the
// connection's namespace and pod name. A non-empty address replaces the address that it
// finds.
func (c *Connection) config(env Environment, address string) (*rest.Config, error) {
	if address != "" && !strings.Contains(address, "://") {
		address = "https://" + address
	}
	host, port := env.Getenv("KUBERNETES_SERVICE_HOST"), env.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return c.kubeconfig(address)
	}
	for _, f := range []string{"token", "ca.crt", "namespace"} {
		if _, err := os.Stat(filepath.Join(env.ServiceAccountDir, f)); err != nil {
			return nil, fmt.Errorf("connecting to Kubernetes: no service account in this pod: %w: set serviceAccountName and leave automountServiceAccountToken on", err)
		}
	}
	namespace, err := os.ReadFile(filepath.Join(env.ServiceAccountDir, "namespace"))
	if err != nil {
		return nil, fmt.Errorf("connecting to Kubernetes: %w", err)
	}
	c.Namespace = strings.TrimSpace(string(namespace))
	if c.PodName = env.Getenv("POD_NAME"); c.PodName == "" {
		c.PodName = env.Getenv("HOSTNAME")
	}
	if address == "" {
		address = "https://" + net.JoinHostPort(host, port)
	}
	server, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("connecting to Kubernetes: parsing the address of the API server: %w", err)
	}
	account := serviceAccount{env.ServiceAccountDir}
	return &rest.Config{Host: address, Transport: newServerTransport(server, serverTLS{name: server.Hostname(), roots: account.roots}, account, &c.dialer)}, nil
}

// Close closes all network connections, including those in use. Calls in flight fail.
func (c *Connection) Close() {
	c.dialer.close()
	if c.plugin != nil {
		c.plugin.close()
	}
}

// LastContact returns when the API server last sent anything, such as an event or
// the response to the ping that an idle connection sends every 10 s. It is zero
// before the first contact.
func (c *Connection) LastContact() time.Time {
	if n := c.dialer.lastRead.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

// RetryAfter returns how long the API server still asks for no further request, by the
// last header Retry-After that it sent; 0 if there is no such time left.
func (c *Connection) RetryAfter() time.Duration {
	return max(0, time.Until(time.Unix(0, c.retryAt.Load())))
}

// PatchPod applies a strategic merge patch to the process's own pod and returns
// the patched pod. It needs the verb patch on pods.
func (c *Connection) PatchPod(ctx context.Context, patch []byte) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	var p corev1.Pod
	err := c.client.Patch(types.StrategicMergePatchType).Namespace(c.Namespace).Resource("pods").Name(c.PodName).Body(patch).Context(ctx).Do().Into(&p)
	return &p, c.Explain(err, "patch", "pods", fmt.Sprintf("pod %q", c.PodName))
}

// GetConfigMap gets one ConfigMap. It needs the verb get on configmaps.
func (c *Connection) GetConfigMap(ctx context.Context, name string) (*corev1.ConfigMap, error) {
	var m corev1.ConfigMap
	return &m, c.get(ctx, "configmaps", name, &m)
}

// GetSecret gets one Secret. It needs the verb get on secrets.
func (c *Connection) GetSecret(ctx context.Context, name string) (*corev1.Secret, error) {
	var s corev1.Secret
	return &s, c.get(ctx, "secrets", name, &s)
}

func (c *Connection) get(ctx context.Context, resource, name string, into runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	err := c.client.Get().Namespace(c.Namespace).Resource(resource).Name(name).Context(ctx).Do().Into(into)
	return c.Explain(err, "get", resource, resource)
}

// list gets one page of a resource's objects.
func (c *Connection) list(ctx context.Context, resource string, options metav1.ListOptions, into runtime.Object) error {
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, requestFailure{}, new(error)), CallTimeout)
	defer cancel()
	err := c.client.Get().Namespace(c.Namespace).Resource(resource).VersionedParams(&options, parameterCodec).Context(ctx).Do().Into(into)
	return c.Explain(err, "list", resource, resource)
}

// watch starts a watch, which ends with ctx. CallTimeout bounds its start.
func (c *Connection) watch(ctx context.Context, resource string, options metav1.ListOptions) (watch.Interface, error) {
	options.Watch = true
	var failure error
	ctx, cancel := context.WithCancel(context.WithValue(ctx, requestFailure{}, &failure))
	late := time.AfterFunc(CallTimeout, cancel)
	w, err := c.client.Get().Namespace(c.Namespace).Resource(resource).VersionedParams(&options, parameterCodec).Context(ctx).Watch()
	if onTime := late.Stop(); !onTime {
		err = context.DeadlineExceeded
	} else if err == nil {
		err = failure
	}
	if err != nil {
		if cancel(); w != nil {
			drainingWatch{w, cancel}.Stop()
		}
		return nil, c.Explain(err, "watch", resource, resource)
	}
	return drainingWatch{w, cancel}, nil
}

// drainingWatch reads the remaining events when the watch is stopped. Otherwise this
// version of client-go leaves a goroutine behind that blocks on delivering one more
// event.
type drainingWatch struct {
	watch.Interface
	cancel context.CancelFunc
}

func (d drainingWatch) Stop() {
	d.cancel()
	d.Interface.Stop()
	for range d.ResultChan() {
	}
}
