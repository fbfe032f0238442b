package rpc

import (
	"testing"

	"github.com/micro/go-micro/v2/client"
)

func TestMethodPath(t *testing.T) {
	for _, test := range []struct{ service, method, path string }{
		{"greeter", "Greeter.Hello", "/greeter.Greeter/Hello"},
		{"", "Greeter.Hello", "/Greeter/Hello"},
		{"greeter", "/greeter.Greeter/Hello", "/greeter.Greeter/Hello"},
		{"greeter", "Hello", "Hello"},
		{"greeter", "a.b.c", "a.b.c"},
		{"greeter", "", ""},
	} {
		if got := methodPath(test.service, test.method); got != test.path {
			t.Errorf("methodPath(%q, %q) = %q, want %q", test.service, test.method, got, test.path)
		}
	}
}

// A wrapper may pass on a request of its own.
func TestMethodOfRequestsOfOtherPackages(t *testing.T) {
	c, _ := newTestClient(t, nil)
	r := c.NewRequest("greeter", "Greeter.Hello", nil)
	if got := methodOf(struct{ client.Request }{r}); got != "/greeter.Greeter/Hello" {
		t.Errorf("%q", got)
	}
}

func TestNewRequest(t *testing.T) {
	c, _ := newTestClient(t, nil)
	for _, test := range []struct {
		opts        []client.RequestOption
		contentType string
		stream      bool
	}{
		{nil, "application/grpc+proto", false},
		{[]client.RequestOption{client.WithContentType("application/json"), client.StreamingRequest()}, "application/json", true},
	} {
		r := c.NewRequest("greeter", "Greeter.Hello", 5, test.opts...)
		if r.Service() != "greeter" || r.Method() != "Greeter.Hello" || r.Endpoint() != "Greeter.Hello" || r.Body() != 5 || r.ContentType() != test.contentType || r.Stream() != test.stream || r.Codec() != nil {
			t.Errorf("%+v", r)
		}
	}
}
