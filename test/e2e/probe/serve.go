package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/identity"
	"github.com/jiangjiancc/go_micro_k8s/pod/metrics"
	proto "github.com/jiangjiancc/go_micro_k8s/proto"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	"github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-micro/v2/web"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

// Greeter is the handler of go-micro-srv with two slow names, "slow", whose calls a test can interrupt, and "work", whose calls
// wait for one of four workers and are answered with how long they take, and with behaviours that signals switch on: SIGUSR1
// makes it slow, SIGUSR2 makes it fail, and SIGHUP makes it normal again.
type Greeter struct {
	behaviour atomic.Value // os.Signal
	workers   workers
}

// The time that a worker needs has a lognormal distribution, whose p99 is 1.8 times the median, as in the simulations of
// pod/internal/balancer.
const (
	meanWork   = 100 * time.Millisecond
	workSpread = 0.25
)

// workers are the times at which each of the workers is free. They work by a timetable: a busy machine may delay an answer, but
// the worker takes no longer for it.
type workers struct {
	mu   sync.Mutex
	free [4]time.Time
}

// work waits for a worker and its work, and returns how long both take by the timetable.
func (w *workers) work() time.Duration {
	work := time.Duration(float64(meanWork) * math.Exp(workSpread*rand.NormFloat64()-workSpread*workSpread/2))
	w.mu.Lock()
	begin := time.Now()
	first := &w.free[0]
	for i := range w.free {
		if w.free[i].Before(*first) {
			first = &w.free[i]
		}
	}
	if first.Before(begin) {
		*first = begin
	}
	*first = first.Add(work)
	end := *first
	w.mu.Unlock()
	time.Sleep(time.Until(end))
	return end.Sub(begin)
}

func (g *Greeter) Hello(_ context.Context, request *proto.HelloRequest, response *proto.HelloResponse) error {
	switch g.behaviour.Load() {
	case syscall.SIGUSR1:
		time.Sleep(100 * time.Millisecond)
	case syscall.SIGUSR2:
		return errors.InternalServerError("go-micro-srv", "this replica was told to fail")
	}
	switch request.Name {
	case "slow":
		time.Sleep(2 * time.Second)
	case "work":
		response.Greeting = g.workers.work().String()
		return nil
	}
	response.Greeting = "Hello " + request.Name + "!"
	return nil
}

// obey changes the behaviour on every signal.
func (g *Greeter) obey() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGHUP)
	for s := range signals {
		g.behaviour.Store(s)
	}
}

func greeter() error {
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	service := micro.NewService(
		micro.Name("go-micro-srv"),
		micro.Server(grpcs.NewServer(server.Address(":9100"), server.Name("go-micro-srv"))),
		micro.Client(grpcc.NewClient()),
		micro.Registry(registry),
		pod.Lifecycle(registry),
		metrics.Serve(registry),
		identity.Serve(registry),
	)
	handler := new(Greeter)
	go handler.obey()
	if err := proto.RegisterGreeterHandler(service.Server(), handler); err != nil {
		return err
	}
	return service.Run()
}

func page() error {
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	service := web.NewService(
		web.Name("go-micro-web"),
		web.Registry(registry),
		web.Address(":9200"),
		pod.WebLifecycle(registry))
	service.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, os.Getenv("HOSTNAME")) })
	service.HandleFunc("/download", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, os.Getenv("HOSTNAME"))
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			if _, err := io.WriteString(w, strings.Repeat("x", 1<<10)); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
	})
	return service.Run()
}
