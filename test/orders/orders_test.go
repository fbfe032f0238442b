package orders

import (
	"context"
	"strings"
	"testing"

	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/client/selector"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/registry/memory"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
)

// published is a topic of a broker that the test does not have.
type published int

func (p *published) Publish(context.Context, any, ...client.PublishOption) error { *p++; return nil }

func TestMixOfCalls(t *testing.T) {
	registry, events := memory.NewRegistry(), new(published)
	h := &handler{address: "here", created: events, shipped: events}
	s := grpcs.NewServer(server.Name(Name), server.Address("127.0.0.1:0"), server.Registry(registry), server.WrapHandler(authenticate), server.WrapHandler(limitRate(1000)))
	for _, err := range []error{RegisterOrdersHandler(s, h), RegisterReturnsHandler(s, h), s.Start()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	defer func() { _ = s.Stop() }()
	conn, err := grpc.NewClient(s.Options().Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	micro := grpcc.NewClient(client.Registry(registry), client.Selector(selector.NewSelector(selector.Registry(registry))))
	for name, caller := range map[string]*Caller{"go-micro": ByClient(micro), "grpc-go": ByConnection(conn)} {
		called, slow, streams := map[string]bool{}, 0, 0
		for service, calls := range map[string]int{"Orders": 100, "Returns": 4} {
			for i := range calls {
				m := mixed(service, i)
				if called[string(m.Name())] = true; m.IsStreamingClient() || m.IsStreamingServer() {
					streams++
				}
				if m.Name() == "ExportOrders" {
					slow++
					continue
				}
				if by, err := caller.MakeCall(service, i); err != nil || by != "here" {
					t.Errorf("%s: call %d is answered by %q, error %v", name, i, by, err)
				}
			}
		}
		if len(called) != 42 || slow != 1 || streams != 15 {
			t.Errorf("%s: 104 calls call %d methods, one of 2 s %d times, streams %d times; want 42, 1, 15", name, len(called), slow, streams)
		}
	}
	if *events != 6 {
		t.Errorf("%d events are published, want 6: each client creates 2 orders and ships one", *events)
	}
	err = micro.Call(t.Context(), micro.NewRequest(Name, "Orders.GetOrder", &OrderRequest{}), new(OrderResponse))
	if e, ok := err.(*microerrors.Error); !ok || e.Code != 401 {
		t.Errorf("a call without the token: %v, want the code 401", err)
	}
}

func TestRateIsLimited(t *testing.T) {
	served := 0
	h := limitRate(3)(func(context.Context, server.Request, any) error { served++; return nil })
	for range 5 {
		if err := h(t.Context(), nil, proto.Message(nil)); err != nil && !strings.Contains(err.Error(), "too many calls") {
			t.Error(err)
		}
	}
	if served != 3 {
		t.Errorf("%d of 5 calls are served, want 3", served)
	}
}
