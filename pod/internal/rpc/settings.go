package rpc

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/balancer"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/codec"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/retry"
	"github.com/micro/go-micro/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	grpcmetadata "google.golang.org/grpc/metadata"
)

// settings holds the evaluated options of a client. It is immutable.
type settings struct {
	options     client.Options
	selector    *balancer.Selector       // nil if the client uses a selector of another package
	codecs      map[string]*contentCodec // by content type
	timeout     string                   // the header of client.RequestTimeout
	tls         *tls.Config              // nil if not set
	dialOptions []grpc.DialOption
	err         error // why the client cannot be used; nil if it can
}

// defaultMaxReceived is the limit of grpc-go, and of go-micro, without grpc.MaxCallRecvMsgSize.
const defaultMaxReceived = 4 << 20

// contentCodec is the codec of a content type, and what each call with it has in common.
type contentCodec struct {
	encoding.CodecV2
	contentType []string // value of the header x-content-type
	callOptions []grpc.CallOption
}

func newSettings(o client.Options) *settings {
	// Calls append to these slices, and must not write to one that they share.
	o.CallOptions.CallWrappers = slices.Clip(o.CallOptions.CallWrappers)
	o.CallOptions.SelectOptions = slices.Clip(o.CallOptions.SelectOptions)
	s := &settings{options: o, codecs: map[string]*contentCodec{}, timeout: timeoutHeader(o.CallOptions.RequestTimeout)}
	s.selector, _ = o.Selector.(*balancer.Selector)
	if s.err = gomicro.Check(); s.err != nil {
		return s
	}
	s.tls, s.dialOptions = gomicro.TLS(o), gomicro.DialOptions(o.CallOptions)
	sizes := []grpc.CallOption{grpc.MaxCallSendMsgSize(gomicro.MaxSent(o))}
	if size := gomicro.MaxReceived(o); size != defaultMaxReceived { // the option costs each call an allocation
		sizes = append(sizes, grpc.MaxCallRecvMsgSize(size))
	}
	if len(s.dialOptions) > 0 { // which may contain other sizes
		s.dialOptions = append([]grpc.DialOption{grpc.WithDefaultCallOptions(sizes...)}, s.dialOptions...)
		sizes = nil
	}
	for contentType, c := range codec.ByContentType(gomicro.Codecs(o)) {
		s.codecs[contentType] = &contentCodec{c, []string{contentType},
			append([]grpc.CallOption{grpc.ForceCodecV2(c), grpc.CallContentSubtype(c.Name())}, sizes...)}
	}
	return s
}

func (s *settings) codec(contentType string) (*contentCodec, error) {
	if c := s.codecs[contentType]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("Unsupported Content-Type: %s", contentType)
}

// outgoing returns a context with the headers that go-micro's client sends: go-micro's metadata
// with lower-case keys, the timeout in nanoseconds unless it is 0, and the content type. For a retry
// it adds the number of attempts before.
func (k *call) outgoing(ctx context.Context, codec *contentCodec, timeout time.Duration) context.Context {
	md := gomicro.Metadata(ctx)
	headers := make(grpcmetadata.MD, len(md)+2)
	values := k.values[:0]
	if k.called > 0 || len(md) >= len(k.values) { // an attempt before may still use k.values
		values = make([]string, 0, len(md)+1)
	}
	add := func(key, value string) {
		values = append(values, value)
		headers[key] = values[len(values)-1 : len(values) : len(values)]
	}
	for key, value := range md {
		add(gomicro.LowerCase(key), value)
	}
	switch timeout {
	case 0:
	case k.settings.options.CallOptions.RequestTimeout:
		add("timeout", k.settings.timeout)
	default:
		add("timeout", timeoutHeader(timeout))
	}
	if k.called > 0 {
		headers[retry.AttemptsHeader] = []string{strconv.Itoa(k.called)}
	}
	headers["x-content-type"] = codec.contentType
	return grpcmetadata.NewOutgoingContext(ctx, headers)
}

// timeoutHeader returns a timeout in the format of the header timeout: in nanoseconds.
func timeoutHeader(d time.Duration) string { return strconv.FormatInt(int64(d), 10) }
