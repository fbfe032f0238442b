package metrics

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/weblimit"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/logger"
	"github.com/micro/go-micro/v2/web"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Variable is the environment variable with the address of /metrics, such as :9464. Without it nothing is measured or served.
const Variable = "POD_METRICS_ADDRESS"

const (
	readTimeout   = 5 * time.Second
	scrapeTimeout = 10 * time.Second // Prometheus' default for a scrape
	maxScrapes    = 4                // at the same time; further ones get 503
)

// limits are the connections of a few scrapers.
var limits = weblimit.Limits{Connections: 32, ClientConnections: 16}

// Serve returns the option that serves the metrics of a gRPC service at POD_METRICS_ADDRESS, with those of the Go
// runtime, of the process and of more collectors, such as ConfigMap. Give it after pod.Lifecycle, so that the metrics can be read
// during the drain. Run returns an error if the address cannot be used. Without the variable the option does nothing.
func Serve(r *pod.Registry, more ...prometheus.Collector) micro.Option {
	s := newServer(os.Getenv(Variable), r, more)
	if s == nil {
		return func(*micro.Options) {}
	}
	return func(o *micro.Options) {
		o.BeforeStart = append(o.BeforeStart, s.start)
		o.AfterStop = append(o.AfterStop, s.stop)
	}
}

// ServeWeb is Serve for a web service. Give it after pod.WebLifecycle.
func ServeWeb(r *pod.Registry, more ...prometheus.Collector) web.Option {
	s := newServer(os.Getenv(Variable), r, more)
	if s == nil {
		return func(*web.Options) {}
	}
	return func(o *web.Options) {
		o.BeforeStart = append(o.BeforeStart, s.start)
		o.AfterStop = append(o.AfterStop, s.stop)
	}
}

// metricsServer serves /metrics on a port of its own.
type metricsServer struct {
	address string
	http    *http.Server
	served  chan struct{} // closed when serving has ended; nil before start
}

// newServer returns the server of an address, nil if there is none.
func newServer(address string, r *pod.Registry, more []prometheus.Collector) *metricsServer {
	if address == "" {
		return nil
	}
	all := prometheus.NewRegistry()
	all.MustRegister(New(r), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	all.MustRegister(more...)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(all, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout}))
	s := &metricsServer{address: address, http: &http.Server{Handler: mux, ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout, WriteTimeout: 2 * scrapeTimeout, MaxHeaderBytes: 16 << 10}}
	limits.LimitConnections(s.http)
	return s
}

func (s *metricsServer) start() error {
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		return fmt.Errorf("serving metrics: %w; set %s to a free address such as :9464, or unset it", err, Variable)
	}
	logger.Infof("Serving metrics on http://%s/metrics", l.Addr())
	s.address, s.served = l.Addr().String(), make(chan struct{})
	go func() { // ends with stop
		defer close(s.served)
		_ = s.http.Serve(l)
	}()
	return nil
}

// stop lets scrapes finish for a second.
func (s *metricsServer) stop() error {
	if s.served == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	<-s.served
	return nil
}
