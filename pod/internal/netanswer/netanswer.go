// Package netanswer tells what a server has answered to a unary call, whatever the client's interceptors
// make of it: they may answer calls themselves, refuse them, or replace their errors.
//
// Interceptor must be the last interceptor of a connection. Of makes a call through it.
package netanswer

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// answer is an option of a call that keeps the result below the interceptors.
type answer struct {
	grpc.EmptyCallOption
	result atomic.Pointer[error] // nil if no interceptor has passed the call on
}

// Conn is the part of grpc.ClientConn that Of uses.
type Conn interface {
	GetState() connectivity.State
	WaitForStateChange(ctx context.Context, last connectivity.State) bool
	Connect()
}

// Of makes a call with an option, and returns the error with which the call has ended below the
// interceptors. If no interceptor has passed it on, Of waits until the connection is ready, and returns an
// error with the status of the context if it ends before. A server must have sent its SETTINGS then
// (RFC 9113, 3.4): it is no process that is frozen, to which the kernel also accepts connections.
func Of(ctx context.Context, conn Conn, call func(grpc.CallOption) error) error {
	var a answer
	_ = call(&a)
	if result := a.result.Load(); result != nil {
		return *result
	}
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if state == connectivity.Idle {
			conn.Connect()
		}
		if !conn.WaitForStateChange(ctx, state) {
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	return nil
}

// Interceptor tells Of how a call has ended.
func Interceptor(ctx context.Context, method string, req, rsp any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, rsp, conn, opts...)
	for _, o := range opts {
		if a, ok := o.(*answer); ok {
			result := err // err itself would be allocated for every call
			a.result.Store(&result)
		}
	}
	return err
}
