// Package gomicro reaches what go-micro v2 needs for its own client and server and does not
// export.
//
// Options: go-micro stores many options, and the metadata of a call, in contexts under keys of
// unexported types. Codecs, TLS, MaxReceived, MaxSent, DialOptions, CallOptions, ServerOptions,
// ServerTLS and Metadata return the stored values. If a version of Go stores the values of a context in
// another way than today's, Check returns an error and the functions return what they return
// for options that are not set.
//
// Server: GRPCServer, TakeWaitGroup and HandlerNames read private fields of go-micro's gRPC server.
//
// Headers: gRPC transmits the keys of metadata in lower case and go-micro's functions expect
// them with capitals. LowerCase and CapitalizeHeaders convert them without making strings for
// the usual keys.
//
// Requests: NewRequest returns a request as go-micro's client makes it, and MethodPath gRPC's path of its
// method.
//
// Addresses: Target returns gRPC's target and the credentials for an address as go-micro's client does.
//
// Tracer: UseTracer replaces go-micro's default tracer by one that costs less.
//
// What crosses the wall is types of go-micro and grpc-go. The package knows no Kubernetes.
package gomicro

import (
	"context"
	"crypto/tls"
	"fmt"
	"reflect"
	"sync"

	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/metadata"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
)

// ClientID is the id of errors that go-micro's client makes itself.
const ClientID = "go.micro.client"

// FlowControlWindow is how many bytes of a stream, and of a connection, may be on the way or unread. 1 MiB is
// grpc-java's default (NettyChannelBuilder) and enough for 1 GB/s between pods 1 ms apart. grpc-go
// adapts its windows to the bandwidth instead, up to 16 MiB. To measure the bandwidth, it sends a
// PING and a WINDOW_UPDATE for almost every message of a connection that is not busy.
const FlowControlWindow = 1 << 20

// Check returns an error if this package cannot read the options.
func Check() error {
	_, err := keysOfOptions()
	return err
}

// Codecs returns the codecs that grpcc.Codec has set, by content type.
func Codecs(o client.Options) map[string]encoding.Codec {
	return value[map[string]encoding.Codec](o.Context, keys().codecs)
}

// TLS returns the configuration that grpcc.AuthTLS has set, nil if there is none.
func TLS(o client.Options) *tls.Config { return value[*tls.Config](o.Context, keys().tls) }

// MaxReceived returns the size in bytes of the largest message that a client may receive.
func MaxReceived(o client.Options) int {
	return size(o.Context, keys().maxReceived, grpcc.DefaultMaxRecvMsgSize)
}

// MaxSent returns the size in bytes of the largest message that a client may send.
func MaxSent(o client.Options) int {
	return size(o.Context, keys().maxSent, grpcc.DefaultMaxSendMsgSize)
}

func size(ctx context.Context, key any, otherwise int) int {
	if ctx != nil {
		if n, ok := ctx.Value(key).(int); ok {
			return n
		}
	}
	return otherwise
}

// DialOptions returns the options that grpcc.DialOptions has set.
func DialOptions(o client.CallOptions) []grpc.DialOption {
	return value[[]grpc.DialOption](o.Context, keys().dialOptions)
}

// CallOptions returns the options that grpcc.CallOptions has set.
func CallOptions(o client.CallOptions) []grpc.CallOption {
	return value[[]grpc.CallOption](o.Context, keys().callOptions)
}

// ServerOptions returns the options that grpcs.Options has set.
func ServerOptions(o server.Options) []grpc.ServerOption {
	return value[[]grpc.ServerOption](o.Context, keys().serverOptions)
}

// ServerTLS returns the configuration that grpcs.AuthTLS has set, nil if there is none.
func ServerTLS(o server.Options) *tls.Config { return value[*tls.Config](o.Context, keys().serverTLS) }

// Metadata returns the metadata of a call itself, of which metadata.FromContext makes a copy.
func Metadata(ctx context.Context) metadata.Metadata {
	return value[metadata.Metadata](ctx, keys().metadata)
}

// value returns the value that a context has for a key, and the zero value if it has none.
func value[T any](ctx context.Context, key any) T {
	var v T
	if ctx != nil {
		v, _ = ctx.Value(key).(T)
	}
	return v
}

// optionKeys are the keys under which go-micro stores options and metadata in contexts.
type optionKeys struct {
	codecs, tls, maxReceived, maxSent, dialOptions, callOptions, serverOptions, serverTLS, metadata any
}

func keys() *optionKeys {
	k, _ := keysOfOptions()
	return k
}

// keysOfOptions finds the keys, whose types are not exported: it stores a value of each option
// and looks which key the context has then. All of the types are empty structs, so that each has
// one value. A key that it does not find is nil, and no context has a value for it.
var keysOfOptions = sync.OnceValues(func() (keys *optionKeys, err error) {
	find := func(store func(context.Context) context.Context) any {
		key, keyErr := keyOf(store(context.Background()))
		if keyErr != nil {
			err = keyErr
		}
		return key
	}
	option := func(set client.Option) any {
		return find(func(ctx context.Context) context.Context {
			o := client.Options{Context: ctx}
			set(&o)
			return o.Context
		})
	}
	callOption := func(set client.CallOption) any {
		return find(func(ctx context.Context) context.Context {
			o := client.CallOptions{Context: ctx}
			set(&o)
			return o.Context
		})
	}
	serverOption := func(set server.Option) any {
		return find(func(ctx context.Context) context.Context {
			o := server.Options{Context: ctx}
			set(&o)
			return o.Context
		})
	}
	keys = &optionKeys{
		codecs:        option(grpcc.Codec("", nil)),
		tls:           option(grpcc.AuthTLS(nil)),
		maxReceived:   option(grpcc.MaxRecvMsgSize(0)),
		maxSent:       option(grpcc.MaxSendMsgSize(0)),
		dialOptions:   callOption(grpcc.DialOptions()),
		callOptions:   callOption(grpcc.CallOptions()),
		serverOptions: serverOption(grpcs.Options()),
		serverTLS:     serverOption(grpcs.AuthTLS(nil)),
		metadata:      find(func(ctx context.Context) context.Context { return metadata.NewContext(ctx, nil) }),
	}
	return keys, err
})

// keyOf returns the key of the value that context.WithValue has added to a context. The key's type
// must be an empty struct.
func keyOf(ctx context.Context) (any, error) {
	v := reflect.ValueOf(ctx)
	if v.Kind() == reflect.Pointer && v.Elem().Kind() == reflect.Struct {
		if key := v.Elem().FieldByName("key"); key.IsValid() && key.Kind() == reflect.Interface && !key.IsNil() {
			if t := key.Elem().Type(); t.Kind() == reflect.Struct && t.NumField() == 0 {
				return reflect.Zero(t).Interface(), nil
			}
		}
	}
	return nil, fmt.Errorf("reading go-micro's options: this version of Go stores the values of a context in another way (%T): build with an older version of Go, or leave out pod.NewClient and pod.Lifecycle", ctx)
}
