package dashboard

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
)

const (
	serviceName   = "go-micro-web" // of the Kubernetes Service
	namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
)

// checkHost answers 421 Misdirected Request unless the Host header is an IP
// address, localhost, a name of the Service in this namespace, or a name listed in
// DASHBOARD_HOSTS. A web site whose name resolves to the address of the dashboard
// (DNS rebinding) is same-origin to the browser. Only the Host header
// distinguishes its requests from those of the page.
//
// The check covers all paths of the dashboard and no others. The probes and GET /
// disclose nothing but the name of the pod, and a load balancer or an Ingress may
// send them with any Host header. `kubectl get --raw …/proxy/registry/` passes on
// the host of the API server, which is an IP address in most clusters. If it is a
// name, list it in DASHBOARD_HOSTS.
func checkHost(namespace string, next http.Handler) http.Handler {
	allowed := map[string]bool{"localhost": true, serviceName: true}
	if namespace != "" {
		name := serviceName + "." + namespace
		allowed[name], allowed[name+".svc"], allowed[name+".svc.cluster.local"] = true, true, true
	}
	for name := range strings.SplitSeq(os.Getenv("DASHBOARD_HOSTS"), ",") {
		if name = hostname(strings.TrimSpace(name)); name != "" {
			allowed[name] = true
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := hostname(r.Host)
		if _, err := netip.ParseAddr(name); err != nil && !allowed[name] {
			http.Error(w, fmt.Sprintf("the dashboard is not served at host %q; to allow the host, list it in DASHBOARD_HOSTS", r.Host), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hostname returns a Host header without its port, in lower case.
func hostname(hostport string) string {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil { // there is no port
		host = strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// ownNamespace returns the namespace of the pod, or "" outside a pod.
func ownNamespace() string {
	b, _ := os.ReadFile(namespaceFile) // without it only the short name of the Service is allowed
	return strings.TrimSpace(string(b))
}
