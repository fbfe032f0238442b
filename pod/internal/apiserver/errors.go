package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/clientcmd"
)

// grants names this project's manifest that grants the verbs on each resource, and the
// service account to which it grants them.
var grants = map[string]struct{ manifest, serviceAccount string }{
	"pods":       {"k8s/pod-rbac.yaml", "micro-services"},
	"configmaps": {"k8s/configmap-rbac.yaml", "micro-config"},
}

// laptopManifest grants a group of people what their programs need outside of the cluster.
const laptopManifest = "k8s/components/laptop/laptop-rbac.yaml"

// NoKubeconfig reports whether an error of Connect means that this process is not in a pod and has no kubeconfig.
func NoKubeconfig(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		if clientcmd.IsEmptyConfig(err) {
			return true
		}
	}
	return false
}

// Explain adds to an error the verb, the object and the remedy. errors.Unwrap of the
// result returns the API server's error.
func (c *Connection) Explain(err error, verb, resource, object string) error {
	if err == nil {
		return nil
	}
	remedy := ""
	var network net.Error
	var dial *net.OpError
	var proxy proxied
	switch {
	case (apierrors.IsUnauthorized(err) || strings.Contains(err.Error(), `"system:anonymous"`)) && strings.HasPrefix(c.Host, "http://"):
		remedy = fmt.Sprintf(": credentials are sent over https only, and the address is %s", c.Host)
	case apierrors.IsForbidden(err) && resource == "secrets": // no manifest of this project grants it
		remedy = fmt.Sprintf(": the account lacks the verb %q on secrets; grant it in a Role that names the Secret in resourceNames, as k8s/configmap-rbac.yaml does for a ConfigMap", verb)
	case apierrors.IsForbidden(err) && !c.OutsideCluster && strings.Contains(err.Error(), `:default" cannot `): // User "system:serviceaccount:NAMESPACE:default"
		remedy = fmt.Sprintf(": the pod runs as the service account \"default\": set serviceAccountName: %s in its manifest, to which %s grants the verb %q on %s", grants[resource].serviceAccount, grants[resource].manifest, verb, resource)
	case apierrors.IsForbidden(err) && c.OutsideCluster && resource != "configmaps":
		remedy = fmt.Sprintf(": the user of the kubeconfig lacks the verb %q on %s (%s grants it)", verb, resource, laptopManifest)
	case apierrors.IsForbidden(err):
		remedy = fmt.Sprintf(": its service account lacks the verb %q on %s (%s grants it)", verb, resource, grants[resource].manifest)
	case apierrors.IsUnauthorized(err) && c.OutsideCluster:
		remedy = ": the API server does not accept the credentials of the kubeconfig; log in again"
	case apierrors.IsUnauthorized(err):
		remedy = ": the API server does not accept the token of the service account; each attempt reads the token again"
	case apierrors.IsNotFound(err) && verb == "patch":
		remedy = ": this is not the pod's name; set POD_NAME from metadata.name in the pod's manifest"
	case apierrors.IsNotFound(err) && verb == "get":
		remedy = ": create it, or check the name and the namespace; if kustomize generates it, set generatorOptions: {disableNameSuffixHash: true}"
	case errors.As(err, new(pluginPending)): // it says enough
	case errors.As(err, &proxy):
		remedy = fmt.Sprintf(": the request to the API server went through the proxy %s of the environment: add %s to NO_PROXY", proxy.proxy, proxy.host)
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout():
		remedy = fmt.Sprintf(": the API server at %s does not answer", c.Host)
	case errors.As(err, &dial) && dial.Op == "dial":
		remedy = fmt.Sprintf(": is the API server at %s up?", c.Host)
	}
	return fmt.Errorf("%s %s in namespace %q: %w%s", verb, object, c.Namespace, err, remedy)
}
