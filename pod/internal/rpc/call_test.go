package rpc

import (
	"testing"

	proto "github.com/jiangjiancc/go_micro_k8s/proto"
)

// A call to an instance over loopback, with the server of grpc-go in the same process.
func BenchmarkCall(b *testing.B) {
	c, _ := newTestClient(b, []string{startCounted(b, nil).address()})
	greeter := proto.NewGreeterService("greeter", c)
	req := &proto.HelloRequest{Name: "x"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := greeter.Hello(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}
