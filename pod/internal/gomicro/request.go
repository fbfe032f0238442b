package gomicro

import (
	"strings"

	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/codec"
)

// request is a request as go-micro's client makes it. It computes the path of the method
// once.
type request struct {
	service, method, contentType string
	path                         string // /package.Service/Method
	body                         any
	options                      client.RequestOptions
	codec                        codec.Writer // of the stream, once it is open
}

// NewRequest returns a request for a method such as Greeter.Hello, or with gRPC's path of a
// method. An option may replace the content type.
func NewRequest(service, method, contentType string, body any, opts ...client.RequestOption) client.Request {
	r := &request{service: service, method: method, contentType: contentType, path: methodPath(service, method), body: body}
	for _, o := range opts {
		o(&r.options)
	}
	if r.options.ContentType != "" {
		r.contentType = r.options.ContentType
	}
	return r
}

func (r *request) Service() string     { return r.service }
func (r *request) Method() string      { return r.method }
func (r *request) Endpoint() string    { return r.method }
func (r *request) ContentType() string { return r.contentType }
func (r *request) Body() any           { return r.body }
func (r *request) Codec() codec.Writer { return r.codec }
func (r *request) Stream() bool        { return r.options.Stream }

// SetCodec gives a request of NewRequest the codec of its stream.
func SetCodec(req client.Request, c codec.Writer) {
	if r, ok := req.(*request); ok {
		r.codec = c
	}
}

// MethodPath returns gRPC's path of a request's method, as go-micro's client does: the method
// Greeter.Hello of the service x has the path /x.Greeter/Hello.
func MethodPath(req client.Request) string {
	if r, ok := req.(*request); ok {
		return r.path
	}
	return methodPath(req.Service(), req.Endpoint())
}

func methodPath(service, method string) string {
	if method == "" || method[0] == '/' {
		return method
	}
	handler, name, ok := strings.Cut(method, ".")
	if !ok || strings.Contains(name, ".") {
		return method
	}
	if service == "" {
		return "/" + handler + "/" + name
	}
	return "/" + service + "." + handler + "/" + name
}
