package gomicro

import (
	"testing"

	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/codec"
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
		r := NewRequest(test.service, test.method, "application/json", nil)
		if got := MethodPath(r); got != test.path {
			t.Errorf("the path of %q of %q is %q, want %q", test.method, test.service, got, test.path)
		}
		if got := MethodPath(struct{ client.Request }{r}); got != test.path { // a wrapper may pass on a request of its own
			t.Errorf("the path of %q of %q in a request of another package is %q, want %q", test.method, test.service, got, test.path)
		}
	}
}

func TestNewRequest(t *testing.T) {
	for _, test := range []struct {
		opts        []client.RequestOption
		contentType string
		stream      bool
	}{
		{nil, "application/grpc+proto", false},
		{[]client.RequestOption{client.WithContentType("application/json"), client.StreamingRequest()}, "application/json", true},
	} {
		r := NewRequest("greeter", "Greeter.Hello", "application/grpc+proto", 5, test.opts...)
		if r.Service() != "greeter" || r.Method() != "Greeter.Hello" || r.Endpoint() != "Greeter.Hello" || r.Body() != 5 || r.ContentType() != test.contentType || r.Stream() != test.stream || r.Codec() != nil {
			t.Errorf("%+v", r)
		}
	}
}

type writer struct{ codec.Writer }

func TestSetCodec(t *testing.T) {
	r, w := NewRequest("greeter", "Greeter.Hello", "", nil), &writer{}
	SetCodec(struct{ client.Request }{r}, w)
	if r.Codec() != nil {
		t.Error("a request of another package has a codec")
	}
	if SetCodec(r, w); r.Codec() != w {
		t.Errorf("%v", r.Codec())
	}
}
