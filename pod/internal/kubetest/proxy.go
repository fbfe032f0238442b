package kubetest

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"k8s.io/client-go/rest"
)

// Proxy is an unencrypted HTTP proxy to the API server that counts requests. It
// serves the namespace "default", the only one that the registry plugin uses when
// it is given an address, as the test's namespace.
type Proxy struct {
	*httptest.Server
	counts      sync.Map    // kind of request -> *atomic.Int64
	expireWatch atomic.Bool // the next watch asks for a version that is long gone
}

// StartProxy starts a proxy that adds the administrator's credentials to each
// request. It runs until the test ends.
func (n *Namespace) StartProxy() *Proxy {
	n.t.Helper()
	tlsConfig, err := rest.TLSConfigFor(n.Config)
	if err != nil {
		n.t.Fatal(err)
	}
	return n.startProxy(&http.Transport{TLSClientConfig: tlsConfig})
}

// StartProxyWithoutCredentials starts a proxy that passes requests on with the
// credentials that they carry.
func (n *Namespace) StartProxyWithoutCredentials() *Proxy {
	n.t.Helper()
	tlsConfig, err := rest.TLSConfigFor(n.Config)
	if err != nil {
		n.t.Fatal(err)
	}
	tlsConfig.GetClientCertificate, tlsConfig.Certificates = nil, nil
	return n.startProxy(&http.Transport{TLSClientConfig: tlsConfig})
}

func (n *Namespace) startProxy(transport *http.Transport) *Proxy {
	target, err := url.Parse(n.Config.Host)
	if err != nil {
		n.t.Fatal(err)
	}
	p := &Proxy{}
	reverse := &httputil.ReverseProxy{Transport: transport, FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.URL.Path = strings.Replace(r.Out.URL.Path, "/namespaces/default/", "/namespaces/"+n.Name+"/", 1)
		r.Out.URL.Path = strings.TrimSuffix(r.Out.URL.Path, "/")
	}}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind := r.Method
		if q := r.URL.Query(); q.Get("watch") != "" {
			kind = "WATCH"
			if p.expireWatch.CompareAndSwap(true, false) {
				q.Set("resourceVersion", "1")
				r.URL.RawQuery = q.Encode()
				kind = "EXPIRED"
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

// ExpireNextWatch makes the next watch ask for a version that etcd has compacted.
// Count knows that watch as EXPIRED.
func (p *Proxy) ExpireNextWatch() { p.expireWatch.Store(true) }

// Count returns the number of requests of a kind: GET, PATCH, WATCH, EXPIRED.
func (p *Proxy) Count(kind string) int64 {
	if n, ok := p.counts.Load(kind); ok {
		return n.(*atomic.Int64).Load()
	}
	return 0
}
