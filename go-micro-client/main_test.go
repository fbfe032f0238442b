package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2/client"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
)

// scripted is a client whose nth call ends with the nth of errs; after the last it ends the calling
// goroutine, since registryRPCHandler goes on for ever.
type scripted struct {
	client.Client // makes the requests
	errs          []error
	requests      []client.Request
	times         []time.Time
}

func (s *scripted) Call(_ context.Context, req client.Request, rsp any, _ ...client.CallOption) error {
	if len(s.requests) == len(s.errs) {
		runtime.Goexit()
	}
	err := s.errs[len(s.requests)]
	s.requests = append(s.requests, req)
	s.times = append(s.times, time.Now())
	if err == nil {
		rsp.(*proto.HelloResponse).Greeting = "Hello " + req.Body().(*proto.HelloRequest).Name + "!"
	}
	return err
}

func TestCallsAndPrintsEveryTenSeconds(t *testing.T) {
	c := &scripted{
		Client: grpcc.NewClient(),
		errs:   []error{nil, errors.New("service go-micro-srv: not found"), nil},
	}
	printed := captureStdout(t, func() {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				registryRPCHandler(c)
			}()
			<-ended
			for i, at := range c.times {
				if got, want := at.Sub(start), time.Duration(i+1)*10*time.Second; got != want {
					t.Errorf("call %d comes after %v, want %v", i+1, got, want)
				}
			}
		})
	})

	want := "Server Hello XXX!\nservice go-micro-srv: not found\nServer Hello XXX!\n"
	if printed != want {
		t.Errorf("printed\n%swant\n%s", printed, want)
	}
	for _, req := range c.requests {
		if req.Service() != "go-micro-srv" || req.Endpoint() != "Greeter.Hello" {
			t.Errorf("called %s of %s, want Greeter.Hello of go-micro-srv", req.Endpoint(), req.Service())
		}
	}
}

// captureStdout returns what f prints.
func captureStdout(t *testing.T, f func()) string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stdout := os.Stdout
	os.Stdout = file
	defer func() { os.Stdout = stdout }()
	f()
	printed, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(printed)
}
