package apiserver

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestExplainNamesVerbObjectCauseAndRemedy(t *testing.T) {
	c := &Connection{Host: "https://10.96.0.1:443", Namespace: "go-micro", PodName: "web-0"}
	pods := schema.GroupResource{Resource: "pods"}
	cause := errors.New("no rule allows it")
	for _, tt := range []struct {
		err                    error
		verb, resource, object string
		want                   []string
	}{
		{apierrors.NewForbidden(pods, "web-0", cause), "patch", "pods", `pod "web-0"`,
			[]string{`patch pod "web-0" in namespace "go-micro"`, "forbidden", "no rule allows it", `verb "patch" on pods`, "k8s/pod-rbac.yaml grants it"}},
		{apierrors.NewForbidden(pods, "", cause), "get", "configmaps", "configmaps", []string{"get configmaps", "k8s/configmap-rbac.yaml grants it"}},
		{apierrors.NewForbidden(pods, "web-0", errors.New(`User "system:serviceaccount:go-micro:default" cannot patch resource "pods" in API group "" in the namespace "go-micro"`)), "patch", "pods", `pod "web-0"`,
			[]string{"forbidden", `runs as the service account "default"`, "set serviceAccountName: micro-services", `"patch" on pods`, "k8s/pod-rbac.yaml grants"}},
		{apierrors.NewUnauthorized("expired"), "list", "pods", "pods", []string{"list pods", "expired", "does not accept the token"}},
		{apierrors.NewNotFound(pods, "web-0"), "patch", "pods", `pod "web-0"`, []string{"not found", "set POD_NAME from metadata.name"}},
		{apierrors.NewNotFound(pods, "x"), "get", "configmaps", "configmaps", []string{"not found", "create it"}},
		{context.DeadlineExceeded, "list", "pods", "pods", []string{"the API server at https://10.96.0.1:443 does not answer"}},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, "list", "pods", "pods", []string{"connection refused", "is the API server at https://10.96.0.1:443 up?"}},
	} {
		got := c.Explain(tt.err, tt.verb, tt.resource, tt.object)
		for _, want := range tt.want {
			if !strings.Contains(got.Error(), want) {
				t.Errorf("%v does not say %q", got, want)
			}
		}
		if !errors.Is(got, tt.err) {
			t.Errorf("%v does not wrap %v", got, tt.err)
		}
	}
	c.Host = "http://consul:8500"
	if err := c.Explain(apierrors.NewUnauthorized("no credentials"), "list", "pods", "pods"); !strings.Contains(err.Error(), "over https only, and the address is http://consul:8500") {
		t.Errorf("without TLS: %v", err)
	}
	if err := c.Explain(nil, "list", "pods", "pods"); err != nil {
		t.Errorf("without an error: %v", err)
	}
}
