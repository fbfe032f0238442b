package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/metrics"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// measured are the prefixes of the metrics that k8s/components/monitoring-operator/rules.yaml reads.
var measured = []string{"micro_registry_", "micro_api_patches_total", "micro_client_ejected", "micro_client_ejections_refused_total", "micro_lifecycle_", "rpc_client_call_duration_seconds"}

// ownMetrics are those of the client with package pod of this process.
var ownMetrics = prometheus.NewRegistry()

// serveMetrics serves the metrics of a registry at POD_METRICS_ADDRESS until the process ends.
func serveMetrics(r *pod.Registry) {
	ownMetrics.MustRegister(metrics.New(r))
	go func() {
		server := &http.Server{Addr: os.Getenv(metrics.Variable), Handler: promhttp.HandlerFor(ownMetrics, promhttp.HandlerOpts{}), ReadHeaderTimeout: time.Second}
		fmt.Fprintln(os.Stderr, "serving metrics:", server.ListenAndServe())
	}()
}

// printSamples prints, once a second, the metrics of this process and of the instances of go-micro-srv that it calls, as test/alerts
// reads them.
func printSamples(instances func() []pod.InstanceCalls) {
	own := promhttp.HandlerFor(ownMetrics, promhttp.HandlerOpts{})
	web := &http.Client{Timeout: 900 * time.Millisecond}
	go func() {
		for range time.Tick(time.Second) {
			rsp := httptest.NewRecorder()
			own.ServeHTTP(rsp, httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/metrics", http.NoBody))
			printScrape(rsp.Body, os.Getenv("POD_NAME"))
			var scrapes sync.WaitGroup
			for _, i := range instances() {
				scrapes.Go(func() {
					host, _, _ := net.SplitHostPort(i.Address)
					if rsp, err := web.Get("http://" + net.JoinHostPort(host, "9464") + "/metrics"); err == nil {
						defer rsp.Body.Close()
						printScrape(rsp.Body, i.Pod)
					}
				})
			}
			scrapes.Wait()
		}
	}()
}

var printing sync.Mutex

// printScrape prints the samples of one pod, with the labels that a scraper adds.
func printScrape(text io.Reader, pod string) {
	at := time.Now().UnixMilli()
	var out strings.Builder
	for lines := bufio.NewScanner(text); lines.Scan(); {
		line := lines.Text()
		space := strings.LastIndexByte(line, ' ')
		if space < 0 || !slices.ContainsFunc(measured, func(prefix string) bool { return strings.HasPrefix(line, prefix) }) {
			continue
		}
		name, labels, _ := strings.Cut(strings.TrimSuffix(line[:space], "}"), "{")
		if labels != "" {
			labels += ","
		}
		fmt.Fprintf(&out, "sample %d %s %s{%snamespace=%q,pod=%q}\n", at, line[space+1:], name, labels, "go-micro-faults", pod)
	}
	printing.Lock()
	defer printing.Unlock()
	_, _ = io.WriteString(os.Stdout, out.String())
}
