package pod

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// healthStatus asks grpc.health.v1 for the status of a name, and returns the status or
// the gRPC code of the error.
func (svc *testService) healthStatus(c *grpc.ClientConn, name string) string {
	rsp, err := healthv1.NewHealthClient(c).Check(contextWithTimeout(svc.t, 5*time.Second), &healthv1.HealthCheckRequest{Service: name})
	if err != nil {
		return status.Code(err).String()
	}
	return rsp.Status.String()
}

func TestHealthIsServingWhileRegistered(t *testing.T) {
	n := kubetest.NewNamespace(t, "list", "watch") // without the verb patch
	n.CreateReadyPod("a")
	svc := startGreeter(t, n.Environment("a"), 0)
	c := svc.dial()
	kubetest.Eventually(t, 10*time.Second, "the refusal is the reason", func() error {
		if err := svc.registry.registration.LastError("greeter"); err == nil || !strings.Contains(err.Error(), `verb "patch" on pods (k8s/pod-rbac.yaml grants it)`) {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
	for name, want := range map[string]string{"": "NOT_SERVING", "greeter": "NOT_SERVING", "Greeter": "NOT_SERVING", "liveness": "SERVING", "other": "NotFound"} {
		if got := svc.healthStatus(c, name); got != want {
			t.Errorf("before the registration: %q is %s, want %s", name, got, want)
		}
	}
	watch := func(name string) <-chan string {
		stream, err := healthv1.NewHealthClient(c).Watch(contextWithTimeout(t, time.Minute), &healthv1.HealthCheckRequest{Service: name})
		if err != nil {
			t.Fatal(err)
		}
		statuses := make(chan string, 10)
		go func() {
			defer close(statuses)
			for {
				rsp, err := stream.Recv()
				if err != nil {
					statuses <- status.Code(err).String()
					return
				}
				statuses <- rsp.Status.String()
			}
		}()
		return statuses
	}
	watches := map[string]<-chan string{"greeter": watch("greeter"), "other": watch("other")}
	next := func(name, want string) {
		t.Helper()
		select {
		case got := <-watches[name]:
			if got != want {
				t.Fatalf("Watch of %q sends %s, want %s", name, got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("Watch of %q sends nothing, want %s", name, want)
		}
	}
	next("greeter", "NOT_SERVING")
	next("other", "SERVICE_UNKNOWN")
	n.GrantVerb("patch")
	next("greeter", "SERVING")
	for name, want := range map[string]string{"": "SERVING", "greeter": "SERVING", "Greeter": "SERVING", "liveness": "SERVING", "other": "NotFound"} {
		if got := svc.healthStatus(c, name); got != want {
			t.Errorf("after the registration: %q is %s, want %s", name, got, want)
		}
	}
	if a := n.GetPod("a").Annotations[podmeta.AnnotationPrefix+"greeter"]; !strings.Contains(a, "Greeter.Hello") || strings.Contains(a, "Health") || strings.Contains(a, "Reflection") {
		t.Errorf("the annotation advertises %s", a)
	}
	svc.stop()
	next("greeter", "NOT_SERVING")
	next("greeter", "Unavailable")
	next("other", "Unavailable")
	if err, _ := svc.waitForRun(10 * time.Second); err != nil {
		t.Error(err)
	}
}

// The kubelet's grpc probes do not use TLS, so a server with grpcs.AuthTLS does not answer them. An exec probe with
// grpc_health_probe -tls is answered.
func TestProbesOfServerWithTLS(t *testing.T) {
	n := kubetest.NewNamespace(t)
	n.CreateReadyPod("a")
	unstarted := httptest.NewUnstartedServer(nil)
	unstarted.StartTLS() // for its certificate
	unstarted.Close()
	svc := startGreeter(t, n.Environment("a"), 0, micro.Server(grpcs.NewServer(server.Address("127.0.0.1:0"), server.Name("greeter"), grpcs.AuthTLS(unstarted.TLS))))
	overTLS, err := grpc.NewClient("passthrough:"+svc.address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}))) // as -tls-no-verify
	if err != nil {
		t.Fatal(err)
	}
	defer overTLS.Close()
	kubetest.Eventually(t, 10*time.Second, "a probe with TLS is answered", func() error {
		if got := svc.healthStatus(overTLS, ""); got != "SERVING" {
			return errors.New(got)
		}
		return nil
	})
	if got := svc.healthStatus(overTLS, "liveness"); got != "SERVING" {
		t.Errorf("liveness with TLS is %s", got)
	}
	if got := svc.healthStatus(svc.dial(), ""); got != "Unavailable" {
		t.Errorf("a probe without TLS gets %s", got)
	}
}
