package orders

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/metadata"
	"google.golang.org/grpc"
	grpcmetadata "google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Caller calls the service in the way of one kind of client.
type Caller struct {
	Call func(ctx context.Context, service, method string, req, rsp proto.Message) error
	Open func(ctx context.Context, service, method string) (Stream, error)
}

// Stream is what a caller needs of a stream.
type Stream interface {
	SendMsg(any) error
	RecvMsg(any) error
	Close() error
}

const timeout = 5 * time.Second // go-micro's for calls

// ByClient returns a caller with a client of go-micro or of pod/.
func ByClient(c client.Client, opts ...client.CallOption) *Caller {
	withToken := func(ctx context.Context) context.Context {
		return metadata.NewContext(ctx, metadata.Metadata{"Authorization": authorization})
	}
	return &Caller{
		Call: func(ctx context.Context, service, method string, req, rsp proto.Message) error {
			return c.Call(withToken(ctx), c.NewRequest(Name, service+"."+method, req), rsp, opts...)
		},
		Open: func(ctx context.Context, service, method string) (Stream, error) {
			s, err := c.Stream(withToken(ctx), c.NewRequest(Name, service+"."+method, nil), opts...)
			return microStream{s}, err
		},
	}
}

type microStream struct{ client.Stream }

func (s microStream) SendMsg(m any) error { return s.Send(m) }
func (s microStream) RecvMsg(m any) error { return s.Recv(m) }

// ByConnection returns a caller that knows nothing of go-micro.
func ByConnection(conn *grpc.ClientConn) *Caller {
	withToken := func(ctx context.Context) context.Context {
		return grpcmetadata.AppendToOutgoingContext(ctx, "authorization", authorization)
	}
	path := func(service, method string) string { return fmt.Sprintf("/orders.%s/%s", service, method) }
	return &Caller{
		Call: func(ctx context.Context, service, method string, req, rsp proto.Message) error {
			return conn.Invoke(withToken(ctx), path(service, method), req, rsp)
		},
		Open: func(ctx context.Context, service, method string) (Stream, error) {
			s, err := conn.NewStream(withToken(ctx), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, path(service, method))
			return plainStream{s}, err
		},
	}
}

type plainStream struct{ grpc.ClientStream }

func (s plainStream) Close() error { return s.CloseSend() }

// MakeCall makes the call with a number of a mix of all methods of a service of orders.proto: of 100 calls of Orders, one takes 2 s, 15 are
// streams, and half of the others call one method. It returns the address of the instance that has answered.
func (c *Caller) MakeCall(service string, number int) (servedBy string, err error) {
	method := mixed(service, number)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if method.IsStreamingClient() || method.IsStreamingServer() {
		servedBy, err = c.stream(ctx, service, method)
	} else {
		servedBy, err = c.unary(ctx, service, method)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", method.Name(), err)
	}
	return servedBy, nil
}

func mixed(service string, number int) protoreflect.MethodDescriptor {
	methods := File_test_orders_orders_proto.Services().ByName(protoreflect.Name(service)).Methods()
	method := methods.Get(number / 2 % methods.Len())
	if service == "Returns" {
		return method
	}
	switch streams := method.IsStreamingClient() || method.IsStreamingServer(); {
	case number%100 == 98:
		return methods.ByName("ExportOrders")
	case number%20 == 4:
		return methods.ByName("TrackOrder")
	case number%20 == 10:
		return methods.ByName("ImportOrders")
	case number%20 == 16:
		return methods.ByName("SyncOrders")
	case number%2 == 0 || streams || method.Name() == "ExportOrders":
		return methods.ByName("GetOrder")
	}
	return method
}

func (c *Caller) unary(ctx context.Context, service string, method protoreflect.MethodDescriptor) (string, error) {
	if method.Input().Name() == "ListRequest" {
		var rsp ListResponse
		err := c.Call(ctx, service, string(method.Name()), &ListRequest{Customer: example.Customer, PageSize: 3}, &rsp)
		return rsp.ServedBy, err
	}
	var rsp OrderResponse
	err := c.Call(ctx, service, string(method.Name()), &OrderRequest{Id: "1", Order: example}, &rsp)
	return rsp.ServedBy, err
}

// stream sends three orders, or one if the server alone streams, and receives until the end.
func (c *Caller) stream(ctx context.Context, service string, method protoreflect.MethodDescriptor) (servedBy string, err error) {
	s, err := c.Open(ctx, service, string(method.Name()))
	if err != nil {
		return "", err
	}
	defer s.Close()
	reasons, want := []string{"last"}, trackedChanges
	if method.IsStreamingClient() {
		reasons, want = []string{"", "", "last"}, 1
		if method.IsStreamingServer() {
			want = len(reasons)
		}
	}
	for _, reason := range reasons {
		if err := s.SendMsg(&OrderRequest{Id: "1", Order: example, Reason: reason}); err != nil {
			return "", fmt.Errorf("sending: %w", err)
		}
	}
	for received := 0; ; received++ {
		var rsp OrderResponse
		switch err := s.RecvMsg(&rsp); {
		case err == io.EOF && received == want:
			return servedBy, nil
		case err == io.EOF:
			return "", fmt.Errorf("%d messages, want %d", received, want)
		case err != nil:
			return "", fmt.Errorf("after %d messages: %w", received, err)
		}
		servedBy = rsp.ServedBy
	}
}

// example is an order as shops have them.
var example = &Order{
	Id: "1", Number: "2026-1", Status: "confirmed",
	Customer: &Customer{Id: "7", Name: "Li Lei", Email: "li.lei@example.com", Language: "zh", Address: home},
	Items: []*Item{
		{Sku: "A-100", Title: "Teapot", Quantity: 1, Price: &Money{Currency: "CNY", Units: 128}},
		{Sku: "B-200", Title: "Cup", Quantity: 6, Price: &Money{Currency: "CNY", Units: 18}, Discount: &Money{Currency: "CNY", Units: 3}},
	},
	BillingAddress: home, ShippingAddress: home,
	Payment:  &Payment{Id: "p-1", Method: "card", Status: "captured", Amount: &Money{Currency: "CNY", Units: 218}},
	Shipment: &Shipment{Id: "s-1", Carrier: "SF Express", Status: "packed", Origin: home, Destination: home},
	Subtotal: &Money{Currency: "CNY", Units: 218}, Total: &Money{Currency: "CNY", Units: 218},
	Labels: map[string]string{"channel": "web", "priority": "normal"},
}

var home = &Address{Recipient: "Li Lei", Street: "1 Example Road", City: "Shanghai", PostalCode: "200000", Country: "CN"}
