package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/micro/go-micro/v2/debug/trace"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// importedTracer is go-micro's tracer before a test has used this package.
var importedTracer trace.Tracer

func TestMain(m *testing.M) {
	importedTracer = trace.DefaultTracer
	os.Exit(kubetest.Main(m))
}

// testNamespace is a Kubernetes namespace in which tests open registries.
type testNamespace struct {
	*kubetest.Namespace
	t *testing.T
}

func newNamespace(t *testing.T, verbs ...string) *testNamespace {
	t.Helper()
	return &testNamespace{kubetest.NewNamespace(t, verbs...), t}
}

// openRegistry returns the registry of a process in the pod. It is closed when the test
// ends.
func (ns *testNamespace) openRegistry(pod string, opts ...registry.Option) *Registry {
	ns.t.Helper()
	return ns.openRegistryIn(ns.Environment(pod), opts...)
}

func (ns *testNamespace) openRegistryIn(env apiserver.Environment, opts ...registry.Option) *Registry {
	r := newRegistry(env, kubernetes.NewRegistry, opts...)
	ns.t.Cleanup(func() {
		if err := r.Close(); err != nil {
			ns.t.Error(err)
		}
	})
	return r
}

// register writes a service with one instance onto a pod, as the plugin would.
func (ns *testNamespace) register(pod, service, version, address string) {
	ns.t.Helper()
	ns.Register(pod, service, string(annotation(ns.t, pod, service, version, address)))
}

// annotation returns the annotation that the plugin writes for a service with one instance.
func annotation(t testing.TB, pod, service, version, address string) []byte {
	t.Helper()
	b, err := json.Marshal(&registry.Service{Name: service, Version: version, Endpoints: []*registry.Endpoint{},
		Nodes: []*registry.Node{{Id: service + "-" + pod + "-" + address, Address: address, Metadata: map[string]string{"protocol": "grpc"}}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// service returns a service as a server passes it to Register.
func service(name, version, id, address string) *registry.Service {
	return &registry.Service{Name: name, Version: version, Metadata: map[string]string{"a": "b"},
		Endpoints: []*registry.Endpoint{{Name: "Greeter.Hello", Request: &registry.Value{Name: "HelloRequest", Type: "HelloRequest",
			Values: []*registry.Value{{Name: "name", Type: "string"}}}, Metadata: map[string]string{}}},
		Nodes: []*registry.Node{{Id: id, Address: address, Metadata: map[string]string{"protocol": "grpc"}}}}
}

// addresses returns the addresses that GetService returns.
func addresses(r registry.Registry, service string) ([]string, error) {
	all, err := r.GetService(service)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return nil, err
	}
	var a []string
	for _, s := range all {
		for _, n := range s.Nodes {
			a = append(a, n.Address)
		}
	}
	return a, nil
}

// has returns a condition for Eventually: the service has exactly these addresses.
func has(r registry.Registry, service string, want ...string) func() error {
	return func() error {
		got, err := addresses(r, service)
		if err != nil {
			return err
		}
		found := map[string]bool{}
		for _, a := range got {
			found[a] = true
		}
		for _, a := range want {
			if !found[a] {
				return fmt.Errorf("service %q has %q, want %q", service, got, want)
			}
		}
		if len(got) != len(want) {
			return fmt.Errorf("service %q has %q, want %q", service, got, want)
		}
		return nil
	}
}
