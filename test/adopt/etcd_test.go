package adopt

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-micro/v2/registry/etcd"
)

// TestEtcdRegistryWithoutClient calls every method of go-micro's etcd registry, which this
// module builds without an etcd client.
func TestEtcdRegistryWithoutClient(t *testing.T) {
	for _, c := range []struct {
		name    string
		options []registry.Option
		address string
	}{
		{"no address", nil, "127.0.0.1:2379"},
		{"an address", []registry.Option{registry.Addrs("etcd.example:2379")}, "etcd.example:2379"},
		{"addresses, TLS and a user", []registry.Option{registry.Addrs("10.0.0.1", "10.0.0.2:4001"), registry.Secure(true), etcd.Auth("me", "secret")}, "10.0.0.1:2379,10.0.0.2:4001"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // a call that waits for something reports a deadlock
				begin := time.Now()
				r := etcd.NewRegistry()
				if err := r.Init(c.options...); err != nil { // as go-micro passes MICRO_REGISTRY_ADDRESS
					t.Fatal(err)
				}
				service := &registry.Service{Name: "greeter", Nodes: []*registry.Node{{Id: "greeter-1", Address: "10.0.0.3:9100"}}}
				_, get := r.GetService("greeter")
				_, list := r.ListServices()
				watcher, err := r.Watch()
				if err != nil {
					t.Fatal(err)
				}
				_, next := watcher.Next()
				for call, err := range map[string]error{
					"Register":          r.Register(service),
					"Register, ttl":     r.Register(service, registry.RegisterTTL(time.Minute)),
					"Deregister":        r.Deregister(service),
					"GetService":        get,
					"ListServices":      list,
					"Watch, first Next": next,
				} {
					if err == nil {
						t.Errorf("%s: no error", call)
						continue
					}
					for _, want := range []string{c.address, "no etcd client", "MICRO_REGISTRY", "third_party/etcd-client"} {
						if !strings.Contains(err.Error(), want) {
							t.Errorf("%s: the error does not contain %q: %v", call, want, err)
						}
					}
					if strings.Contains(err.Error(), "secret") {
						t.Errorf("%s: the error contains the password: %v", call, err)
					}
				}
				if _, err := watcher.Next(); err == nil { // the watch has ended
					t.Error("the second Next: no error")
				}
				watcher.Stop()
				if took := time.Since(begin); took > 0 {
					t.Errorf("the calls waited %s, want no wait", took)
				}
			})
		})
	}
}
