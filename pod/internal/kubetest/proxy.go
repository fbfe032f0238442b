package kubetest

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"k8s.io/client-go/rest"
)

// Proxy is an HTTP proxy to the API server that counts requests. It maps the namespace
// "default" to the test's namespace, because the registry plugin always uses "default"
// when it is given an address.
type Proxy struct {
	*httptest.Server
	t           testing.TB
	counts      sync.Map     // kind of request -> *atomic.Int64
	expireWatch atomic.Bool  // the proxy makes the next watch ask for a compacted version
	refused     atomic.Value // the protocol that no connection is upgraded to, a string
}

// StartProxy starts a proxy without TLS that adds the administrator's credentials to
// each request. It runs until the test ends.
func (n *Namespace) StartProxy() *Proxy {
	n.t.Helper()
	p := n.newProxy(n.tlsConfig())
	p.Start()
	return p
}

// StartProxyWithoutCredentials starts a proxy with TLS that passes requests on with
// the credentials that they carry. Trust and Through make environments that use it.
func (n *Namespace) StartProxyWithoutCredentials() *Proxy {
	n.t.Helper()
	config := n.tlsConfig()
	config.GetClientCertificate, config.Certificates = nil, nil
	p := n.newProxy(config)
	p.EnableHTTP2 = true
	p.StartTLS()
	return p
}

// tlsConfig returns the configuration of the administrator's client.
func (n *Namespace) tlsConfig() *tls.Config {
	n.t.Helper()
	config, err := rest.TLSConfigFor(n.Config)
	if err != nil {
		n.t.Fatal(err)
	}
	return config
}

func (n *Namespace) newProxy(config *tls.Config) *Proxy {
	n.t.Helper()
	transport := &http.Transport{TLSClientConfig: config}
	target, err := url.Parse(n.Config.Host)
	if err != nil {
		n.t.Fatal(err)
	}
	p := &Proxy{t: n.t}
	reverse := &httputil.ReverseProxy{Transport: transport, FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.URL.Path = strings.Replace(r.Out.URL.Path, "/namespaces/default/", "/namespaces/"+n.Name+"/", 1)
		r.Out.URL.Path = strings.TrimSuffix(r.Out.URL.Path, "/")
	}}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind := r.Method
		if q := r.URL.Query(); q.Get("watch") != "" {
			kind = "WATCH"
			if p.expireWatch.CompareAndSwap(true, false) {
				q.Set("resourceVersion", "1")
				r.URL.RawQuery = q.Encode()
				kind = "EXPIRED"
			}
		}
		if protocol := r.Header.Get("Upgrade"); protocol != "" {
			if kind = protocol; kind == p.refused.Load() {
				http.Error(w, kind+" is refused here", http.StatusForbidden)
				return
			}
		}
		count, _ := p.counts.LoadOrStore(kind, new(atomic.Int64))
		count.(*atomic.Int64).Add(1)
		reverse.ServeHTTP(w, r)
	}))
	n.t.Cleanup(func() {
		p.CloseClientConnections()
		p.Close()
		transport.CloseIdleConnections()
	})
	return p
}

// Trust adds the proxy's certificate to the certificates that env trusts.
func (p *Proxy) Trust(env apiserver.Environment) apiserver.Environment {
	p.t.Helper()
	ca, err := os.ReadFile(filepath.Join(env.ServiceAccountDir, "ca.crt"))
	if err != nil {
		p.t.Fatal(err)
	}
	WriteVolumeFile(p.t, env.ServiceAccountDir, "ca.crt", append(ca, Certificate(p.Server)...))
	return env
}

// Through returns an environment whose API server is the proxy.
func (p *Proxy) Through(env apiserver.Environment) apiserver.Environment {
	p.t.Helper()
	_, port, _ := net.SplitHostPort(p.Listener.Addr().String())
	return With(p.Trust(env), "KUBERNETES_SERVICE_PORT", port)
}

// ExpireNextWatch makes the next watch ask for a version that etcd has compacted. Count
// counts that watch under EXPIRED, not under WATCH.
func (p *Proxy) ExpireNextWatch() { p.expireWatch.Store(true) }

// RefuseUpgrade makes the proxy refuse to upgrade connections to a protocol, such as "websocket". They are not counted.
func (p *Proxy) RefuseUpgrade(protocol string) { p.refused.Store(protocol) }

// Count returns the number of requests of a kind: GET, PATCH, WATCH, EXPIRED, or the protocol of an upgrade.
func (p *Proxy) Count(kind string) int64 {
	if n, ok := p.counts.Load(kind); ok {
		return n.(*atomic.Int64).Load()
	}
	return 0
}
