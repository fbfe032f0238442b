package pod

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/micro/go-micro/v2/logger"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/flowcontrol"
)

const (
	serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

	// callTimeout bounds every call to the API server but a running watch.
	callTimeout = 5 * time.Second

	// A connection that brings nothing for idle is asked for a sign of life
	// (an HTTP/2 ping) and given up when none comes within alive: so a watch cut
	// without a word, by a firewall or a lost node, is noticed after their sum.
	idle, alive = 10 * time.Second, 5 * time.Second

	pageSize = 500 // pods in one LIST response
)

// environment is where the process learns what pod it is; tests have their own.
type environment struct {
	getenv         func(string) string
	serviceAccount string // directory with token, ca.crt and namespace
}

var thisPod = environment{os.Getenv, serviceAccount}

// api is the API server as this pod's service account may use it: objects of one
// namespace. Every call is bounded in time. Safe for concurrent use.
type api struct {
	host      string
	namespace string // the own one, or that of a ConfigMap
	pod       string // the own one's name, "" when unknown
	outside   bool   // reached with a kubeconfig, from outside the cluster
	rest      rest.Interface
	close     func()
	lastRead  func() time.Time // when the API server last sent something; zero if never
}

var (
	scheme         = runtime.NewScheme()
	codecs         = serializer.NewCodecFactory(scheme)
	parameterCodec = runtime.NewParameterCodec(scheme)
)

func init() { // of a scheme with one group: client-go's own holds them all
	_ = corev1.AddToScheme(scheme)
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
}

// connect finds the API server: the pod's own, else a kubeconfig's. It makes no
// call yet. A non-empty address stands in for the server's.
func connect(env environment, address string) (*api, error) {
	host, port := env.getenv("KUBERNETES_SERVICE_HOST"), env.getenv("KUBERNETES_SERVICE_PORT")
	dialer := &dialer{open: map[net.Conn]bool{}}
	a := &api{close: dialer.close, lastRead: dialer.lastContact}
	var config *rest.Config
	if host == "" || port == "" {
		loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), &clientcmd.ConfigOverrides{})
		c, err := loader.ClientConfig()
		if err == nil {
			a.namespace, _, err = loader.Namespace()
		}
		if err != nil {
			return nil, fmt.Errorf("connecting to Kubernetes: not in a pod (KUBERNETES_SERVICE_HOST is not set) and no kubeconfig (%w): run it in a cluster or set KUBECONFIG", err)
		}
		config, a.outside = c, true
		config.Dial = dialer.DialContext
	} else {
		for _, f := range []string{"token", "ca.crt", "namespace"} {
			if _, err := os.Stat(filepath.Join(env.serviceAccount, f)); err != nil {
				return nil, fmt.Errorf("connecting to Kubernetes: no service account in this pod: %w: set serviceAccountName and leave automountServiceAccountToken on", err)
			}
		}
		namespace, err := os.ReadFile(filepath.Join(env.serviceAccount, "namespace"))
		if err != nil {
			return nil, fmt.Errorf("connecting to Kubernetes: %w", err)
		}
		a.namespace = strings.TrimSpace(string(namespace))
		if a.pod = env.getenv("POD_NAME"); a.pod == "" {
			a.pod = env.getenv("HOSTNAME")
		}
		config = &rest.Config{Host: "https://" + net.JoinHostPort(host, port), Transport: newTransport(env.serviceAccount, host, dialer)}
	}
	if address != "" {
		if !strings.Contains(address, "://") {
			address = "http://" + address
		}
		config.Host = address
	}
	config.APIPath = "/api"
	config.ContentConfig = rest.ContentConfig{
		GroupVersion: &corev1.SchemeGroupVersion, NegotiatedSerializer: codecs.WithoutConversion(),
		ContentType: "application/vnd.kubernetes.protobuf", AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
	}
	config.UserAgent = "k8s-micro"
	// What we ask is bounded by backoff; the default of 5 requests a second would
	// make a process that follows many services wait at its start.
	config.RateLimiter = flowcontrol.NewFakeAlwaysRateLimiter()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("connecting to Kubernetes: %w", err)
	}
	a.host, a.rest = config.Host, client
	return a, nil
}

// list gets one page of a resource's objects.
func (a *api) list(ctx context.Context, resource string, o metav1.ListOptions, into runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := a.rest.Get().Namespace(a.namespace).Resource(resource).VersionedParams(&o, parameterCodec).Context(ctx).Do().Into(into)
	return a.explain(err, "list", resource, resource)
}

// watch ends with ctx; its start is bounded by the transport.
func (a *api) watch(ctx context.Context, resource string, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	w, err := a.rest.Get().Namespace(a.namespace).Resource(resource).VersionedParams(&o, parameterCodec).Context(ctx).Watch()
	if err != nil {
		return nil, a.explain(err, "watch", resource, resource)
	}
	return drained{w}, nil
}

// drained reads what is left when a watch is stopped: client-go of this line
// leaves a goroutine behind that wants to deliver one event more.
type drained struct{ watch.Interface }

func (d drained) Stop() {
	d.Interface.Stop()
	for range d.ResultChan() {
	}
}

// patch applies a strategic merge patch to the own pod and returns what it is then.
func (a *api) patch(ctx context.Context, patch []byte) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var p corev1.Pod
	err := a.rest.Patch(types.StrategicMergePatchType).Namespace(a.namespace).Resource("pods").Name(a.pod).Body(patch).Context(ctx).Do().Into(&p)
	return &p, a.explain(err, "patch", "pods", fmt.Sprintf("pod %q", a.pod))
}

// configMap gets one ConfigMap.
func (a *api) configMap(ctx context.Context, name string) (*corev1.ConfigMap, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var m corev1.ConfigMap
	err := a.rest.Get().Namespace(a.namespace).Resource("configmaps").Name(name).Context(ctx).Do().Into(&m)
	return &m, a.explain(err, "get", "configmaps", "configmaps")
}

// follow keeps a store current, as an informer does, until ctx ends: LIST once,
// then WATCH; when that ends, for whatever reason, once more from where it was or
// from the start. What is followed are the objects of a resource that of selects;
// one is an example of them, list gets a page. tried hears of each error, and of
// nil once a watch has begun: a LIST alone is not yet following.
//
// Tries that fail are 100 ms apart at first and 1 s at most, less a random part,
// so that a thousand clients do not come back in step and none of them is late by
// more than a second.
func (a *api) follow(ctx context.Context, resource string, of metav1.ListOptions, one runtime.Object, store cache.Store,
	list func(metav1.ListOptions) (runtime.Object, error), tried func(error)) {
	const first, most = 100 * time.Millisecond, time.Second
	delay := first
	lw := &cache.ListWatch{
		ListFunc: func(o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector, o.FieldSelector, o.ResourceVersion = of.LabelSelector, of.FieldSelector, ""
			all, err := list(o)
			if err != nil {
				tried(err)
			}
			return all, err
		},
		WatchFunc: func(o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector, o.FieldSelector = of.LabelSelector, of.FieldSelector
			w, err := a.watch(ctx, resource, o)
			tried(err)
			if err != nil {
				return nil, io.EOF // the reflector's word for "start over" without a log line of its own
			}
			delay = first
			return w, nil
		},
	}
	for ctx.Err() == nil {
		r := cache.NewReflector(lw, one, store, 0)
		r.WatchListPageSize = pageSize
		_ = r.ListAndWatch(ctx.Done()) // tried has its errors
		select {
		case <-ctx.Done():
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
		delay = min(2*delay, most)
	}
}

// sink is the part of a store that a reflector never uses.
type sink struct{}

func (sink) Resync() error                      { return nil }
func (sink) List() []any                        { return nil }
func (sink) ListKeys() []string                 { return nil }
func (sink) Get(any) (any, bool, error)         { return nil, false, nil }
func (sink) GetByKey(string) (any, bool, error) { return nil, false, nil }

// news logs how a try to follow ended, when the one before it ended otherwise,
// and says whether it did.
func news(who, what string, before, err error) bool {
	switch {
	case err == nil && before != nil:
		logger.Infof("%s Following %s again", who, what)
	case err != nil && (before == nil || before.Error() != err.Error()):
		logger.Warnf("%s Following %s: %v; trying on", who, what, err)
	default:
		return false
	}
	return true
}

// explain says what was refused and what to do about it.
func (a *api) explain(err error, verb, resource, object string) error {
	if err == nil {
		return nil
	}
	remedy := ""
	var network net.Error
	var dial *net.OpError
	switch {
	case apierrors.IsForbidden(err):
		remedy = fmt.Sprintf(": its service account lacks the verb %q on %s (%s grants it)", verb, resource, grants[resource])
	case apierrors.IsUnauthorized(err):
		remedy = ": the API server does not accept the token of its service account; it is read anew for each try"
	case apierrors.IsNotFound(err) && verb == "patch":
		remedy = ": this is not the pod's name; set POD_NAME from metadata.name in its manifest"
	case apierrors.IsNotFound(err) && verb == "get":
		remedy = ": create it, or look at the name and the namespace"
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout():
		remedy = fmt.Sprintf(": the API server at %s does not answer", a.host)
	case errors.As(err, &dial) && dial.Op == "dial":
		remedy = fmt.Sprintf(": is the API server at %s up?", a.host)
	}
	return fmt.Errorf("%s %s in namespace %q: %w%s", verb, object, a.namespace, err, remedy)
}

// grants names this project's manifest for the verbs on each resource.
var grants = map[string]string{"pods": "k8s/pod-rbac.yaml", "configmaps": "k8s/configmap-rbac.yaml"}

// ---- credentials that rotate ----

// transport adds the service account's token to each request and trusts the
// authority that its volume holds at the time of each handshake. The kubelet
// replaces both files while the pod runs (projected service account tokens,
// KEP-1205); client-go of this line rereads the token only.
type transport struct {
	dir  string
	base *http.Transport
}

func newTransport(dir, host string, d *dialer) *transport {
	t := &transport{dir: dir, base: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           d.DialContext,
		TLSHandshakeTimeout:   callTimeout,
		ResponseHeaderTimeout: callTimeout,
		IdleConnTimeout:       time.Minute,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: idle, PingTimeout: alive},
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies, with today's authority
		},
	}}
	t.base.TLSClientConfig.VerifyConnection = func(s tls.ConnectionState) error {
		pem, err := os.ReadFile(filepath.Join(dir, "ca.crt")) //nolint:gosec // the service account's directory
		if err != nil {
			return err
		}
		roots, others := x509.NewCertPool(), x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return fmt.Errorf("reading %q: no certificate in it", filepath.Join(dir, "ca.crt"))
		}
		for _, c := range s.PeerCertificates[1:] {
			others.AddCert(c)
		}
		_, err = s.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: others})
		return err
	}
	return t
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := os.ReadFile(filepath.Join(t.dir, "token")) // requests are rare: no cache
	if err != nil {
		return nil, fmt.Errorf("reading the service account's token: %w", err)
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	return t.base.RoundTrip(r)
}

// dialer remembers its connections, so that closing the registry closes them:
// an HTTP transport only closes those that are idle at that moment.
type dialer struct {
	lastRead atomic.Int64 // Unix time in nanoseconds

	mu     sync.Mutex
	closed bool
	open   map[net.Conn]bool
}

// lastContact returns when a connection last brought data; zero if none ever did.
func (d *dialer) lastContact() time.Time {
	if n := d.lastRead.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: callTimeout, KeepAlive: idle}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		c.Close()
		return nil, net.ErrClosed
	}
	d.open[c] = true
	return &dialled{c, d}, nil
}

func (d *dialer) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for c := range d.open {
		c.Close()
	}
	d.open = nil
}

type dialled struct {
	net.Conn
	d *dialer
}

// Read records the time of the data. The answer to an HTTP/2 ping is data too.
func (c *dialled) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.d.lastRead.Store(time.Now().UnixNano())
	}
	return n, err
}

func (c *dialled) Close() error {
	c.d.mu.Lock()
	delete(c.d.open, c.Conn)
	c.d.mu.Unlock()
	return c.Conn.Close()
}
