package shutdown

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// TestHealthPort asks the second port from before the registration to the end of the drain.
func TestHealthPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	c, f, _, _ := newConfig()
	c.DrainWait = 300 * time.Millisecond
	c.Getenv = func(name string) string { return map[string]string{healthVariable: address}[name] }
	f.registered = false
	used := newGRPCService(c)
	if err := used.port.serve(address, used.health); err == nil || !strings.Contains(err.Error(), healthVariable) {
		t.Errorf("an address that is in use gives the error %v", err)
	}
	if err := used.port.close(); err != nil {
		t.Error(err)
	}
	_ = l.Close()

	orders := &Orders{}
	_, stop := startServer(t, c, withOrders(orders))
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	check := func(name string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		rsp, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: name})
		return rsp.GetStatus().String(), err
	}
	expect := func(when, name, want string) {
		t.Helper()
		if got, err := check(name); err != nil || got != want {
			t.Errorf("%s, %q is %s, %v; want %s", when, name, got, err, want)
		}
	}
	expect("before the registration", "", "NOT_SERVING")
	expect("before the registration", livenessName, "SERVING")
	f.set(func() { f.registered = true })
	expect("after the registration", "", "SERVING")
	expect("after the registration", "Orders", "SERVING")
	for _, method := range []string{"/shop.Orders/Place", "/Debug/Health", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"} {
		if err := conn.Invoke(t.Context(), method, &durationpb.Duration{}, &durationpb.Duration{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s returns %v", method, err)
		}
	}
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	kubetest.Eventually(t, 10*time.Second, "the drain begins", func() error {
		if got, err := check(""); err != nil || got != "NOT_SERVING" {
			return status.Error(codes.Unknown, got)
		}
		return nil
	})
	expect("during the drain", livenessName, "SERVING")
	if err := <-stopped; !errors.Is(err, errRelease) {
		t.Errorf("the service ended with %v, want the error of closing the registry", err)
	}
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("the port is open after the end of the service")
	}
}
