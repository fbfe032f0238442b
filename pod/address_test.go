package pod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
)

func TestAdvertisedAddress(t *testing.T) {
	local := func(a netip.Addr) bool { // the addresses of this pod's interfaces
		switch a.WithZone("").String() {
		case "203.0.113.7", "2001:db8::7", "127.0.0.1", "::1", "fe80::7", "10.244.0.7":
			return true
		}
		return false
	}
	const refused = "refused"
	for _, c := range []struct{ what, address, podIP, want string }{
		{"IPv4", "10.244.0.7:9100", "10.244.0.7", "10.244.0.7:9100"},
		{"IPv4, public pod range: go-micro took the loopback", "127.0.0.1:9100", "203.0.113.7", "203.0.113.7:9100"},
		{"IPv6: go-micro took the loopback", "[::1]:9100", "2001:db8::7", "[2001:db8::7]:9100"},
		{"IPv6: go-micro took a link-local address", "[fe80::7%eth0]:9100", "2001:db8::7", "[2001:db8::7]:9100"},
		{"dual stack: go-micro took the IPv6 address, the primary is IPv4", "[2001:db8::7]:9100", "10.244.0.7", "10.244.0.7:9100"},
		{"dual stack: go-micro took the IPv4 address, the primary is IPv6", "10.244.0.7:9100", "2001:db8::7", "[2001:db8::7]:9100"},
		{"an address that the user advertises", "198.51.100.1:9100", "10.244.0.7", "198.51.100.1:9100"},
		{"a name that the user advertises", "greeter.example.com:9100", "10.244.0.7", "greeter.example.com:9100"},
		{"unspecified", "0.0.0.0:9100", "10.244.0.7", "10.244.0.7:9100"},
		{"without POD_IP", "10.244.0.7:9100", "", "10.244.0.7:9100"},
		{"without POD_IP, IPv4 loopback", "127.0.0.1:9100", "", refused},
		{"without POD_IP, IPv6 loopback", "[::1]:9100", "", refused},
		{"without POD_IP, loopback by name", "localhost:9100", "", refused},
		{"without POD_IP, unspecified", "[::]:9100", "", refused},
		{"without POD_IP, link-local", "[fe80::7%eth0]:9100", "", refused},
		{"POD_IP is no address", "10.244.0.7:9100", "pod-1", refused},
		{"POD_IP is a loopback", "10.244.0.7:9100", "127.0.0.1", refused},
	} {
		original := service("greeter", "v1", "a", c.address)
		got, err := advertised(original, c.podIP, local)
		switch {
		case c.want == refused:
			if err == nil || !strings.Contains(err.Error(), "POD_IP") || !strings.Contains(err.Error(), "status.podIP") {
				t.Errorf("%s: %v, %v, want it refused with the remedy", c.what, got, err)
			}
		case err != nil || got.Nodes[0].Address != c.want:
			t.Errorf("%s: %v, %v, want %s", c.what, got.Nodes[0].Address, err, c.want)
		case got.Nodes[0].Id != "a" || got.Name != "greeter" || got.Nodes[0].Metadata["protocol"] != "grpc":
			t.Errorf("%s: another field was changed: %+v", c.what, got)
		}
		if original.Nodes[0].Address != c.address {
			t.Errorf("%s: the caller's own service was changed", c.what)
		}
	}
}

func TestRegisterAdvertisesThePodsIP(t *testing.T) {
	api := newPodServer(func(*corev1.Pod) {})
	_, env := kubetest.StartFake(t, api)
	r := newRegistry(kubetest.With(env, "POD_IP", "2001:db8::7"), kubernetes.NewRegistry)
	defer r.Close()
	for range 2 {
		if err := r.Register(service("greeter", "v1", "a", "[::1]:9100")); err != nil || !r.Registered() {
			t.Fatal(err)
		}
	}
	if a := api.edit(func(*corev1.Pod) {}).Annotations[podmeta.AnnotationPrefix+"greeter"]; api.count() != 1 || !strings.Contains(a, `"address":"[2001:db8::7]:9100"`) {
		t.Errorf("after %d PATCH the annotation is %s", api.count(), a)
	}
	unset := newRegistry(kubetest.With(env, "POD_IP", ""), kubernetes.NewRegistry)
	defer unset.Close()
	if err := unset.Register(service("greeter", "v1", "a", "127.0.0.1:9100")); err == nil || !strings.Contains(err.Error(), "status.podIP") {
		t.Errorf("a loopback address: %v", err)
	}
	if err := unset.Deregister(service("greeter", "v1", "a", "127.0.0.1:9100")); err != nil {
		t.Errorf("deregistering: %v", err)
	}
}

// A server in a pod with an IPv6 address registers that address, answers its probe there,
// and receives the calls of a client that finds it. The machine's only IPv6 address is the
// loopback, so the client's dialer connects to the loopback instead of the pod's address.
func TestIPv6(t *testing.T) {
	const podIP = "2001:db8::7"
	ns := newNamespace(t)
	for _, name := range []string{"greeter-0", "client-0"} {
		ns.CreateReadyPod(name)
	}
	ns.PatchPod("greeter-0", `{"status": {"podIP": "`+podIP+`", "podIPs": [{"ip": "`+podIP+`"}, {"ip": "10.244.0.7"}]}}`, "status")
	env := kubetest.With(ns.Environment("greeter-0"), "POD_IP", podIP)
	svc := startGreeter(t, env, 0, micro.Address(":0")) // on all addresses, as with the ":9100" of go-micro-srv
	_, port, err := net.SplitHostPort(svc.address)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(podIP, port)
	kubetest.Eventually(t, 10*time.Second, "the pod carries its IPv6 address", func() error {
		if a := ns.GetPod("greeter-0").Annotations[podmeta.AnnotationPrefix+"greeter"]; !strings.Contains(a, `"address":"`+address+`"`) {
			return fmt.Errorf("the annotation is %q", a)
		}
		return nil
	})
	r := ns.openRegistry("client-0")
	kubetest.Eventually(t, 10*time.Second, "the client finds the server", has(r, "greeter", address))

	var dialed atomic.Int32
	dialer := grpc.WithContextDialer(func(ctx context.Context, got string) (net.Conn, error) {
		if got != address {
			return nil, fmt.Errorf("dialing %q, want %q", got, address)
		}
		dialed.Add(1)
		return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("::1", port))
	})
	c := NewClient(r, grpcc.NewClient(dialOptions(dialer)))
	rsp, err := proto.NewGreeterService("greeter", c).Hello(contextWithTimeout(t, 10*time.Second), &proto.HelloRequest{Name: "IPv6"})
	if err != nil || rsp.Greeting != "Hello IPv6!" || dialed.Load() == 0 {
		t.Errorf("the call returned %v, %v after %d dials", rsp, err, dialed.Load())
	}

	svc.address = net.JoinHostPort("::1", port)
	for _, service := range []string{"", "liveness"} { // as the manifests' probes ask
		status, err := healthv1.NewHealthClient(svc.dial()).Check(contextWithTimeout(t, 5*time.Second), &healthv1.HealthCheckRequest{Service: service})
		if err != nil || status.Status != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("probe of %q: %v, %v", service, status, err)
		}
	}
	svc.stop()
	if err, _ := svc.waitForRun(10 * time.Second); err != nil {
		t.Error(err)
	}
	kubetest.Eventually(t, 10*time.Second, "the pod is deregistered", func() error {
		if ns.Registered("greeter-0", "greeter") {
			return errors.New("it still carries the label")
		}
		return nil
	})
	kubetest.Eventually(t, 10*time.Second, "the client forgets the server", has(r, "greeter"))
}
