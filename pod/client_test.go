package pod

import (
	"testing"
	"time"

	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
)

// newTestClient returns a Client that knows greeters at addresses, and its informer.
func newTestClient(t testing.TB, addresses []string, opts ...client.Option) (*Client, *informer) {
	t.Helper()
	r, inf := newStaticRegistry(t, 0)
	inf.Replace(readyPodsAt(t, addresses...))
	c := NewClient(r, grpcc.NewClient(opts...))
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, inf
}

func TestClientCalls(t *testing.T) {
	a, _ := startServer(t, answer)
	c, _ := newTestClient(t, []string{a})
	rsp, err := proto.NewGreeterService("greeter", c).Hello(t.Context(), &proto.HelloRequest{Name: "x"})
	if err != nil || rsp.Greeting != "Hello" {
		t.Fatal(rsp, err)
	}
	time.Sleep(10 * time.Millisecond)
}
