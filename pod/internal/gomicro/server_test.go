package gomicro

import (
	"context"
	"sync"
	"testing"

	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
)

func TestGRPCServer(t *testing.T) {
	s := grpcs.NewServer()
	first, err := GRPCServer(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Init(server.Name("orders")); err != nil {
		t.Fatal(err)
	}
	second, err := GRPCServer(s)
	if err != nil || first == second {
		t.Errorf("after Init the server is %p, before it was %p; error %v", second, first, err)
	}
	second.Stop() // it is a server
	for _, other := range []server.Server{nil, struct{ server.Server }{s}} {
		if got, err := GRPCServer(other); err == nil {
			t.Errorf("a %T has the server %p", other, got)
		}
	}
}

func TestTakeWaitGroup(t *testing.T) {
	var group sync.WaitGroup
	s := grpcs.NewServer(server.Wait(&group))
	if got, err := TakeWaitGroup(s); err != nil || got != &group {
		t.Errorf("the group is %p and the error %v, want %p", got, err, &group)
	}
	if got, err := TakeWaitGroup(s); err != nil || got != nil {
		t.Errorf("the server still has the group %p, error %v", got, err)
	}
	if _, err := TakeWaitGroup(struct{ server.Server }{s}); err == nil {
		t.Error("another server has a group")
	}
}

// Orders is a handler.
type Orders struct{}

func (*Orders) Place(context.Context, *struct{}, *struct{}) error { return nil }

// Internal is another one.
type Internal struct{ Orders }

func TestHandlerNames(t *testing.T) {
	s := grpcs.NewServer()
	for _, h := range []server.Handler{s.NewHandler(new(Orders)), s.NewHandler(new(Internal), server.InternalHandler(true))} {
		if err := s.Handle(h); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := HandlerNames(s); err != nil || len(got) != 1 || !got["Orders"] {
		t.Errorf("the handlers are %v and the error %v, want Orders", got, err)
	}
	if _, err := HandlerNames(struct{ server.Server }{s}); err == nil {
		t.Error("another server has handlers")
	}
}
