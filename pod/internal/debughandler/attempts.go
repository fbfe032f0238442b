package debughandler

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/debug/trace"
	"github.com/micro/go-micro/v2/registry"
)

// address is the key of the called address in the metadata of the span of an attempt. The other spans of go-micro do not have it.
const address = "address"

// Attempts returns a wrapper of the attempts of a client's calls. It keeps a span of each attempt that fails,
// within that of its call. An attempt that succeeds has none: the span of the handler shows the same, and go-micro
// keeps only 256.
func Attempts(tracer trace.Tracer) client.CallWrapper {
	return func(next client.CallFunc) client.CallFunc {
		return func(ctx context.Context, node *registry.Node, req client.Request, rsp any, opts client.CallOptions) error {
			started := time.Now()
			err := next(ctx, node, req, rsp, opts)
			if err == nil {
				return nil
			}
			if id, call, ok := trace.FromContext(ctx); ok {
				_ = tracer.Finish(&trace.Span{Trace: id, Id: uuid.NewString(), Parent: call, Name: req.Service() + "." + req.Endpoint(), Started: started,
					Type: trace.SpanTypeRequestOutbound, Metadata: map[string]string{"error": err.Error(), address: node.Address}})
			}
			return err
		}
	}
}
