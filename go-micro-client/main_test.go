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

// fakeClient is a client whose nth call returns the nth of errs. The call after the last one ends the
// calling goroutine, because registryRPCHandler never returns.
type fakeClient struct {
	client.Client // creates the requests
	errs          []error
	requests      []client.Request
	times         []time.Time
}

func (c *fakeClient) Call(_ context.Context, req client.Request, rsp any, _ ...client.CallOption) error {
	if len(c.requests) == len(c.errs) {
		runtime.Goexit()
	}
	err := c.errs[len(c.requests)]
	c.requests = append(c.requests, req)
	c.times = append(c.times, time.Now())
	if err == nil {
		rsp.(*proto.HelloResponse).Greeting = "Hello " + req.Body().(*proto.HelloRequest).Name + "!"
	}
	return err
}

func TestRegistryRPCHandler(t *testing.T) {
	c := &fakeClient{
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
					t.Errorf("call %d starts after %v, want %v", i+1, got, want)
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

// captureStdout returns the output of f.
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
