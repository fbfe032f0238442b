// Package tracing exports the traces of services: OpenTelemetry's spans over OTLP, with the W3C headers traceparent and
// tracestate, so that programs with otelgrpc, Envoy and Linkerd join the same traces.
//
// A program that does not import it pays nothing, and one that does exports nothing unless an endpoint is set:
//
//	OTEL_EXPORTER_OTLP_ENDPOINT         where to export, such as http://collector:4317, or
//	OTEL_EXPORTER_OTLP_TRACES_ENDPOINT  the same for traces only
//	OTEL_SERVICE_NAME                   the name in the traces; default: the name of the service
//	OTEL_TRACES_SAMPLER, _ARG           which traces are kept, such as parentbased_traceidratio and 0.01; default: all
//	OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER=none   nothing is exported
//
// and the other variables of OpenTelemetry's specification. The protocol is OTLP over gRPC, because gRPC is linked
// already; another one in OTEL_EXPORTER_OTLP_PROTOCOL is an error of Run.
//
// A call of a client with the wrapper of this package has a span, and within it one for each attempt, with the address and the pod of the
// instance and the error: the attempt of a retry goes elsewhere. If the instance of a failed attempt is ejected, the span of the call has an
// event. A stream has one span from its opening to its end. A
// call or stream that a service serves has one span; health, reflection and Debug have none. A request of a web service has one
// with Handler. go-micro's own ids of traces stay as they are. Messages of brokers have no spans.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/client"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/server"
	"github.com/micro/go-micro/v2/web"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// flushTimeout is how long a service that has stopped waits for the export of its last spans.
const flushTimeout = 2 * time.Second

// Export returns the option that exports the traces of a gRPC service and of its client. Give it after micro.Server,
// micro.Client and pod.Lifecycle. The last spans are exported at the end of the stop, for which it takes 2 s at
// most. Without an endpoint in the environment the option does nothing. Run returns an error if the
// environment asks for what this package does not have.
//
// It also sets OpenTelemetry's global provider and propagator, so that spans of the program's own, and the libraries that it
// uses, belong to the same traces, and OpenTelemetry's global error handler, which writes to go-micro's log.
func Export() micro.Option {
	if !configured(os.Getenv) {
		return func(*micro.Options) {}
	}
	return func(o *micro.Options) {
		if err := export(o); err != nil {
			o.BeforeStart = append(o.BeforeStart, func() error { return fmt.Errorf("exporting traces: %w", err) })
		}
	}
}

func export(o *micro.Options) error {
	provider, stop, err := start(o.Server.Options().Name)
	if err != nil {
		return err
	}
	t := &tracer{provider.Tracer(scope)}
	o.Client = t.wrap(o.Client)
	o.AfterStop = append(o.AfterStop, stop)
	return o.Server.Init(server.WrapHandler(t.handler))
}

// ExportWeb is Export for a web service. Handler gives spans to its requests, and Client to the calls of its client. Give it after
// web.Name and pod.WebLifecycle.
func ExportWeb() web.Option {
	if !configured(os.Getenv) {
		return func(*web.Options) {}
	}
	return func(o *web.Options) {
		_, stop, err := start(o.Name)
		if err != nil {
			o.BeforeStart = append(o.BeforeStart, func() error { return fmt.Errorf("exporting traces: %w", err) })
			return
		}
		o.AfterStop = append(o.AfterStop, stop)
	}
}

// start makes a provider of the environment OpenTelemetry's global one. stop exports the last spans.
func start(service string) (provider *sdktrace.TracerProvider, stop func() error, err error) {
	if protocol := protocolOf(os.Getenv); protocol != "grpc" {
		return nil, nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q: only grpc is supported; set grpc and the collector's port for it, usually 4317", protocol)
	}
	provider, exporter, err := newProvider(service)
	if err != nil {
		return nil, nil, err
	}
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagator)
	otel.SetErrorHandler(&errorLog{})
	return provider, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			_ = exporter.Shutdown(ctx) // ends the request in flight, and with it the goroutines of the provider
			logger.Warnf("Exporting traces: the last spans are lost: %v", err)
		}
		return nil
	}, nil
}

// Client returns a client whose calls and streams have spans of a provider, such as OpenTelemetry's global one,
// otel.GetTracerProvider(). It is for clients that do not belong to a service with Export, such as those of web services.
func Client(c client.Client, provider trace.TracerProvider) client.Client {
	return (&tracer{provider.Tracer(scope)}).wrap(c)
}

const scope = "github.com/jiangjiancc/go_micro_k8s/pod/tracing"

// propagator reads and writes the headers of W3C Trace Context.
var propagator = propagation.TraceContext{}

// configured reports whether the environment asks for an export.
func configured(getenv func(string) string) bool {
	if strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") || getenv("OTEL_TRACES_EXPORTER") == "none" {
		return false
	}
	return getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

func protocolOf(getenv func(string) string) string {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if protocol := getenv(name); protocol != "" {
			return protocol
		}
	}
	return "grpc"
}

// newProvider returns a provider that exports as the environment says. It connects in the background, and drops spans
// if the collector is away: at most 2,048 wait (OTEL_BSP_MAX_QUEUE_SIZE).
func newProvider(service string) (*sdktrace.TracerProvider, *otlptrace.Exporter, error) {
	ctx := context.Background()
	exporter, err := otlptracegrpc.New(ctx)
	if err != nil {
		return nil, nil, err
	}
	of, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", service), attribute.String("k8s.pod.name", os.Getenv("POD_NAME"))),
		resource.WithTelemetrySDK(), resource.WithFromEnv()) // the last one wins
	if err != nil {
		return nil, nil, errors.Join(err, exporter.Shutdown(ctx))
	}
	return sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(of)), exporter, nil
}

// errorLog writes OpenTelemetry's errors to go-micro's log, the same error once a minute. It is safe for concurrent use.
type errorLog struct {
	mu     sync.Mutex
	last   string
	logged time.Time
}

func (l *errorLog) Handle(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err.Error() == l.last && time.Since(l.logged) < time.Minute {
		return
	}
	l.last, l.logged = err.Error(), time.Now()
	logger.Warnf("Exporting traces: %v", err)
}
