package netanswer

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

func TestOf(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer() // without services
	t.Cleanup(s.Stop)
	go s.Serve(l) //nolint:errcheck // ends with the test
	frozen, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { frozen.Close() })
	of := func(address string, limit time.Duration, intercept func(invoke func() error) error) error {
		conn, err := grpc.NewClient("passthrough:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, rsp any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				return intercept(func() error { return invoke(ctx, method, req, rsp, cc, opts...) })
			}), grpc.WithChainUnaryInterceptor(Interceptor))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		return Of(ctx, conn, func(o grpc.CallOption) error {
			return conn.Invoke(ctx, "/x/Y", &emptypb.Empty{}, &emptypb.Empty{}, grpc.WaitForReady(true), o)
		})
	}
	refused := status.Error(codes.PermissionDenied, "by policy")
	pass := func(invoke func() error) error { return invoke() }
	replace := func(invoke func() error) error { _ = invoke(); return refused }
	refuse := func(func() error) error { return refused }
	for _, test := range []struct {
		what, address string
		limit         time.Duration
		intercept     func(func() error) error
		want          codes.Code
	}{
		{"the server", l.Addr().String(), time.Minute, pass, codes.Unimplemented},
		{"the server, below an interceptor that replaces its error", l.Addr().String(), time.Minute, replace, codes.Unimplemented},
		{"the server, below an interceptor that refuses", l.Addr().String(), time.Minute, refuse, codes.OK},
		{"a frozen process", frozen.Addr().String(), 100 * time.Millisecond, pass, codes.DeadlineExceeded},
		{"a frozen process, below an interceptor that refuses", frozen.Addr().String(), 100 * time.Millisecond, refuse, codes.DeadlineExceeded},
	} {
		if err := of(test.address, test.limit, test.intercept); status.Code(err) != test.want {
			t.Errorf("%s answers %v, want %s", test.what, err, test.want)
		}
	}
}

func TestInterceptorAllocatesNothing(t *testing.T) {
	invoke := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }
	options := []grpc.CallOption{grpc.WaitForReady(true)}
	if n := testing.AllocsPerRun(100, func() { _ = Interceptor(t.Context(), "/x/Y", nil, nil, nil, invoke, options...) }); n != 0 {
		t.Errorf("a call that is not one of Of allocates %v times", n)
	}
}
