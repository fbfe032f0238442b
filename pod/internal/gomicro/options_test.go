package gomicro

import (
	"context"
	"crypto/tls"
	"testing"

	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/metadata"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
)

func TestKeyOfReportsUnknownContexts(t *testing.T) {
	if err := Check(); err != nil {
		t.Fatal(err)
	}
	type key struct{ n int }
	for _, ctx := range []context.Context{context.Background(), context.WithValue(context.Background(), key{1}, 2)} {
		if k, err := keyOf(ctx); err == nil {
			t.Errorf("keyOf(%v) = %v", ctx, k)
		}
	}
}

func TestOptions(t *testing.T) {
	config, codec := &tls.Config{ServerName: "x"}, struct{ encoding.Codec }{}
	o := client.Options{Context: context.Background()}
	for _, set := range []client.Option{grpcc.AuthTLS(config), grpcc.Codec("text/x", codec), grpcc.MaxRecvMsgSize(7), grpcc.MaxSendMsgSize(8)} {
		set(&o)
	}
	if TLS(o) != config || len(Codecs(o)) != 1 || Codecs(o)["text/x"] != codec || MaxReceived(o) != 7 || MaxSent(o) != 8 {
		t.Errorf("TLS %v, codecs %v, sizes %d and %d", TLS(o), Codecs(o), MaxReceived(o), MaxSent(o))
	}
	var call client.CallOptions
	grpcc.DialOptions(grpc.WithUserAgent("x"))(&call)
	grpcc.CallOptions(grpc.WaitForReady(true), grpc.WaitForReady(true))(&call)
	if len(DialOptions(call)) != 1 || len(CallOptions(call)) != 2 {
		t.Errorf("%d dial options, %d call options", len(DialOptions(call)), len(CallOptions(call)))
	}
	s := server.Options{Context: context.Background()}
	grpcs.Options(grpc.NumStreamWorkers(1))(&s)
	grpcs.AuthTLS(config)(&s)
	if len(ServerOptions(s)) != 1 || ServerTLS(s) != config {
		t.Errorf("%d server options, TLS %v", len(ServerOptions(s)), ServerTLS(s))
	}
	md := metadata.Metadata{"a": "b"}
	got := Metadata(metadata.NewContext(context.Background(), md))
	if got["c"] = "d"; md["c"] != "d" {
		t.Errorf("the metadata is a copy: %v", got)
	}
}

func TestOptionsThatAreNotSet(t *testing.T) {
	for what, ctx := range map[string]context.Context{"no context": nil, "an empty context": context.Background()} {
		o, call := client.Options{Context: ctx}, client.CallOptions{Context: ctx}
		if TLS(o) != nil || Codecs(o) != nil || MaxReceived(o) != grpcc.DefaultMaxRecvMsgSize || MaxSent(o) != grpcc.DefaultMaxSendMsgSize {
			t.Errorf("%s: TLS %v, codecs %v, sizes %d and %d", what, TLS(o), Codecs(o), MaxReceived(o), MaxSent(o))
		}
		if DialOptions(call) != nil || CallOptions(call) != nil || ServerOptions(server.Options{Context: ctx}) != nil || ServerTLS(server.Options{Context: ctx}) != nil || Metadata(ctx) != nil {
			t.Errorf("%s: an option is set", what)
		}
	}
}
