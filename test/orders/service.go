// Package orders is a service as people have them: some 40 methods with nested messages, a slow one among fast ones, streams in every
// direction, token authentication and a rate limit as wrappers, a subscriber of two topics, and two versions with different methods. In
// everything else it has go-micro's defaults. The tests of this repository and `make faults` serve and call it with the program test/e2e/probe.
package orders

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/identity"
	"github.com/micro/go-micro/v2"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/metadata"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
)

const (
	// Name is the name under which the service registers.
	Name = "orders"

	port          = ":9100"
	authorization = "Bearer the-token-of-the-tests"
	topicCreated  = "orders.created"
	topicShipped  = "orders.shipped"

	callsPerSecond  = 500 // that one instance accepts
	usualTime       = 2 * time.Millisecond
	exportTime      = 2 * time.Second
	trackedChanges  = 5
	timeOfOneChange = 20 * time.Millisecond
)

// Serve serves a version of the service until a signal ends it. Version 2 also serves Returns.
func Serve(version string) error {
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	service := micro.NewService(
		micro.Server(grpcs.NewServer(server.Name(Name), server.Version(version), server.Address(port))),
		micro.Client(pod.NewClient(registry, grpcc.NewClient())),
		micro.Registry(registry),
		micro.WrapHandler(authenticate, limitRate(callsPerSecond)),
		pod.Lifecycle(registry),
		pod.Reflection(registry),
		identity.Serve(registry),
	)
	service.Init()
	h := &handler{address: os.Getenv("POD_IP") + port, created: micro.NewEvent(topicCreated, service.Client()), shipped: micro.NewEvent(topicShipped, service.Client())}
	go h.obey()
	if err := RegisterOrdersHandler(service.Server(), h); err != nil {
		return err
	}
	if version == "2" {
		if err := RegisterReturnsHandler(service.Server(), h); err != nil {
			return err
		}
	}
	for _, topic := range Topics {
		first := sync.OnceFunc(func() { logger.Infof("Received the first event of topic %s", topic) })
		err := micro.RegisterSubscriber(topic, service.Server(), func(context.Context, *OrderEvent) error { first(); return nil })
		if err != nil {
			return err
		}
	}
	return service.Run()
}

// authenticate refuses calls without the token, as wrappers of services do: every call that reaches it.
func authenticate(h server.HandlerFunc) server.HandlerFunc {
	return func(ctx context.Context, req server.Request, rsp any) error {
		if token, _ := metadata.Get(ctx, "Authorization"); token != authorization {
			return microerrors.Unauthorized(Name, "%s: the token is missing or wrong", req.Method())
		}
		return h(ctx, req, rsp)
	}
}

// limitRate refuses calls beyond a number in one second.
func limitRate(perSecond int) server.HandlerWrapper {
	var mu sync.Mutex
	var second time.Time
	var calls int
	allowed := func() bool {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.Sub(second) > time.Second {
			second, calls = now, 0
		}
		calls++
		return calls <= perSecond
	}
	return func(h server.HandlerFunc) server.HandlerFunc {
		return func(ctx context.Context, req server.Request, rsp any) error {
			if !allowed() {
				return microerrors.New(Name, "too many calls", 429)
			}
			return h(ctx, req, rsp)
		}
	}
}

// Topics are the topics whose first event each instance logs.
var Topics = []string{topicCreated, topicShipped}

// Deployments are the Deployments of Manifest, one for each version.
var Deployments = []string{"orders-1", "orders-2"}

// Manifest returns the Deployments of both versions, with two replicas each, and the Kubernetes Service of both. The image is that of
// test/e2e/probe.
func Manifest(namespace, image string) string {
	manifests := []string{fmt.Sprintf(`{apiVersion: v1, kind: Service, metadata: {name: orders, namespace: %q}, spec: {selector: {app: orders}, ports: [{port: 9100}]}}`, namespace)}
	for i, name := range Deployments {
		manifests = append(manifests, fmt.Sprintf(deployment, name, namespace, image, i+1))
	}
	return strings.Join(manifests, "\n---\n")
}

// deployment is go-micro-srv/k8s/deployment.yaml for this service.
const deployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]q, namespace: %[2]q}
spec:
  selector: {matchLabels: {app: orders, version: "%[4]d"}}
  replicas: 2
  minReadySeconds: 3
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata:
      labels: {app: orders, version: "%[4]d"}
      annotations: {micro.mu/services: micro.http.broker} # k8s/pod-admission.yaml: go-micro's broker registers its topics
    spec:
      serviceAccountName: micro-services
      terminationGracePeriodSeconds: 30
      containers:
        - name: orders
          image: %[3]q
          imagePullPolicy: Always
          args: [orders, "%[4]d"]
          env:
            - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
            - {name: MICRO_BROKER_ADDRESS, value: ":9300"}
          readinessProbe: {grpc: {port: 9100}, initialDelaySeconds: 1, periodSeconds: 2, failureThreshold: 2}
          livenessProbe: {grpc: {port: 9100, service: liveness}, periodSeconds: 10, timeoutSeconds: 3, failureThreshold: 3, terminationGracePeriodSeconds: 5}
          resources: {requests: {cpu: 10m, memory: 40Mi}, limits: {memory: 128Mi}}
          securityContext:
            runAsNonRoot: true
            readOnlyRootFilesystem: true
            allowPrivilegeEscalation: false
            capabilities: {drop: [ALL]}
            seccompProfile: {type: RuntimeDefault}
`

// handler serves Orders and Returns. All methods do the same, at different speeds. As with the Greeter of test/e2e/probe, SIGUSR1 makes
// them slow, SIGUSR2 makes them fail, and SIGHUP makes them normal again.
type handler struct {
	address          string
	created, shipped micro.Event
	behaviour        atomic.Value // os.Signal
}

// obey changes the behaviour on every signal.
func (h *handler) obey() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGHUP)
	for s := range signals {
		h.behaviour.Store(s)
	}
}

// work takes the usual time.
func (h *handler) work() error {
	switch h.behaviour.Load() {
	case syscall.SIGUSR1:
		time.Sleep(100 * time.Millisecond)
	case syscall.SIGUSR2:
		return microerrors.InternalServerError(Name, "this replica was told to fail")
	}
	time.Sleep(usualTime)
	return nil
}

var (
	_ OrdersHandler  = (*handler)(nil)
	_ ReturnsHandler = (*handler)(nil)
)

func (h *handler) order(req *OrderRequest, rsp *OrderResponse) error {
	rsp.Order, rsp.ServedBy = req.Order, h.address
	return h.work()
}

func (h *handler) list(req *ListRequest, rsp *ListResponse) error {
	for range req.PageSize {
		rsp.Orders = append(rsp.Orders, &Order{Customer: req.Customer, Payment: req.Payment, Shipment: req.Shipment})
	}
	rsp.Count, rsp.ServedBy = int64(req.PageSize), h.address
	return h.work()
}

func (h *handler) CreateOrder(ctx context.Context, req *OrderRequest, rsp *OrderResponse) error {
	return errors.Join(h.order(req, rsp), h.created.Publish(ctx, &OrderEvent{Id: req.Id, Status: "created"}))
}

func (h *handler) ShipOrder(ctx context.Context, req *OrderRequest, rsp *OrderResponse) error {
	return errors.Join(h.order(req, rsp), h.shipped.Publish(ctx, &OrderEvent{Id: req.Id, Status: "shipped"}))
}

func (h *handler) ExportOrders(_ context.Context, req *ListRequest, rsp *ListResponse) error {
	time.Sleep(exportTime)
	return h.list(req, rsp)
}

func (h *handler) TrackOrder(_ context.Context, req *OrderRequest, stream Orders_TrackOrderStream) error {
	for i := range trackedChanges {
		time.Sleep(timeOfOneChange)
		order := &Order{Id: req.Id, Status: fmt.Sprint("step ", i)}
		if err := stream.Send(&OrderResponse{Order: order, ServedBy: h.address}); err != nil {
			return err
		}
	}
	return nil
}

// ImportOrders receives orders until one has the reason "last", because go-micro's clients cannot close one side of a stream.
func (h *handler) ImportOrders(_ context.Context, stream Orders_ImportOrdersStream) error {
	var last *OrderRequest
	for last.GetReason() != "last" {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		last = req
	}
	return stream.SendMsg(&OrderResponse{Order: last.GetOrder(), ServedBy: h.address})
}

func (h *handler) SyncOrders(_ context.Context, stream Orders_SyncOrdersStream) error {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.Send(&OrderResponse{Order: req.Order, ServedBy: h.address}); err != nil || req.Reason == "last" {
			return err
		}
	}
}
