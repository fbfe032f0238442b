package registration

import (
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/podmeta"
	"github.com/micro/go-micro/v2/registry"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

func TestLabelNameEqualsThatOfPlugin(t *testing.T) {
	for _, name := range []string{"greeter", "go.micro.srv.greeter", "a/b", "a:b", "grüße", "\u65e5\u672c", "a b", "\xff", "😀-1"} {
		captured, err := capture(kubernetes.NewRegistry, func(plugin registry.Registry) error { return plugin.Register(service(name, "a", "10.0.0.1:1")) })
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := captured[0].Labels[podmeta.SelectorPrefix+podmeta.LabelName(name)]; !ok {
			t.Errorf("the plugin's labels of %q are %v, and labelName returns %q", name, slices.Collect(maps.Keys(captured[0].Labels)), podmeta.LabelName(name))
		}
	}
}

// pluginThat is a plugin whose Register calls f with the address that the plugin got.
type pluginThat struct {
	registry.Registry
	address string
	f       func(address string) error
}

func (p pluginThat) Register(*registry.Service, ...registry.RegisterOption) error {
	return p.f(p.address)
}

// send sends a request to an address and returns the status.
func send(method, address, body string) (int, error) {
	req, err := http.NewRequest(method, address, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	rsp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	return rsp.StatusCode, rsp.Body.Close()
}

func TestCapture(t *testing.T) {
	const labels = `{"metadata":{"labels":{"a":"b"}}}`
	patch := func(path, body string) func(string) error {
		return func(address string) error { _, err := send("PATCH", address+path, body); return err }
	}
	failure := errors.New("the plugin has failed")
	for _, c := range []struct {
		what string
		f    func(address string) error
		want string // the error; "" for none
	}{
		{"a patch", patch("/api/v1/pods/a", labels), ""},
		{"two patches, of which the first counts", func(address string) error {
			return errors.Join(patch("/api/v1/pods/a", labels)(address), patch("/api/v1/pods/a", "{")(address))
		}, ""},
		{"nothing", func(string) error { return nil }, "has written nothing: use the plugin"},
		{"another method", func(address string) error {
			if code, err := send("PUT", address+"/api/v1/pods/a", labels); code != 404 || err != nil {
				t.Errorf("PUT returns %d, %v", code, err)
			}
			return nil
		}, "has written nothing"},
		{"a process that does not know the path", func(address string) error {
			u, _ := url.Parse(address)
			return patch("/api/v1/pods/a", labels)("http://" + u.Host)
		}, "has written nothing"},
		{"no JSON", patch("/api/v1/pods/a", "{"), "reading what the registry plugin writes"},
		{"16 MiB and more", patch("/api/v1/pods/a", `{"metadata":{"labels":{"a":"`+strings.Repeat("x", 16<<20)+`"}}}`), "reading what the registry plugin writes"},
		{"an error", func(string) error { return failure }, failure.Error()},
	} {
		plugin := func(opts ...registry.Option) registry.Registry {
			var o registry.Options
			for _, opt := range opts {
				opt(&o)
			}
			return pluginThat{address: o.Addrs[0], f: c.f}
		}
		register := func(r registry.Registry) error { return r.Register(nil) }
		captured, err := capture(plugin, register, register)
		switch {
		case c.want != "":
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", c.what, err, c.want)
			}
		case err != nil || len(captured) != 2 || *captured[0].Labels["a"] != "b" || *captured[1].Labels["a"] != "b":
			t.Errorf("%s: %v, %v", c.what, captured, err)
		}
	}
}
