package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// grants names this project's manifest that grants the verbs on each resource, and the
// service account to which it grants them.
var grants = map[string]struct{ manifest, serviceAccount string }{
	"pods":       {"k8s/pod-rbac.yaml", "micro-services"},
	"configmaps": {"k8s/configmap-rbac.yaml", "micro-config"},
}

// explain adds to an error the verb, the object and the remedy. errors.Unwrap of the
// result returns the API server's error.
func (c *Connection) explain(err error, verb, resource, object string) error {
	if err == nil {
		return nil
	}
	remedy := ""
	var network net.Error
	var dial *net.OpError
	switch {
	case (apierrors.IsUnauthorized(err) || strings.Contains(err.Error(), `"system:anonymous"`)) && strings.HasPrefix(c.Host, "http://"):
		remedy = fmt.Sprintf(": credentials are sent over https only, and the address is %s", c.Host)
	case apierrors.IsForbidden(err) && !c.OutsideCluster && strings.Contains(err.Error(), `:default" cannot `): // User "system:serviceaccount:NAMESPACE:default"
		remedy = fmt.Sprintf(": the pod runs as the service account \"default\": set serviceAccountName: %s in its manifest, to which %s grants the verb %q on %s", grants[resource].serviceAccount, grants[resource].manifest, verb, resource)
	case apierrors.IsForbidden(err):
		remedy = fmt.Sprintf(": its service account lacks the verb %q on %s (%s grants it)", verb, resource, grants[resource].manifest)
	case apierrors.IsUnauthorized(err):
		remedy = ": the API server does not accept the token of the service account; each attempt reads the token again"
	case apierrors.IsNotFound(err) && verb == "patch":
		remedy = ": this is not the pod's name; set POD_NAME from metadata.name in the pod's manifest"
	case apierrors.IsNotFound(err) && verb == "get":
		remedy = ": create it, or check the name and the namespace"
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout():
		remedy = fmt.Sprintf(": the API server at %s does not answer", c.Host)
	case errors.As(err, &dial) && dial.Op == "dial":
		remedy = fmt.Sprintf(": is the API server at %s up?", c.Host)
	}
	return fmt.Errorf("%s %s in namespace %q: %w%s", verb, object, c.Namespace, err, remedy)
}
