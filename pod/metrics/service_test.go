package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/pod"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/apiserver"
	"github.com/jiangjiancc/go_micro_k8s/pod/internal/kubetest"
	"github.com/jiangjiancc/go_micro_k8s/test/orders"
	"github.com/micro/go-micro/v2"
	"github.com/micro/go-micro/v2/auth"
	grpcc "github.com/micro/go-micro/v2/client/grpc"
	microerrors "github.com/micro/go-micro/v2/errors"
	"github.com/micro/go-micro/v2/server"
	grpcs "github.com/micro/go-micro/v2/server/grpc"
	"github.com/micro/go-micro/v2/web"
	"github.com/micro/go-plugins/registry/kubernetes/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// shop is a service with 40 methods, of which the test calls three.
type shop struct{ orders.OrdersHandler }

func (shop) GetOrder(context.Context, *orders.OrderRequest, *orders.OrderResponse) error { return nil }
func (shop) AddItem(context.Context, *orders.OrderRequest, *orders.OrderResponse) error {
	return microerrors.NotFound("shop", "no such item")
}

func (shop) TrackOrder(_ context.Context, _ *orders.OrderRequest, s orders.Orders_TrackOrderStream) error {
	return s.Send(&orders.OrderResponse{})
}

func freeAddress(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// inPod makes registries of this process those of a pod, and returns the address of its metrics.
func inPod(t *testing.T, n *kubetest.Namespace, name string) string {
	before := apiserver.ProcessEnvironment
	apiserver.ProcessEnvironment = n.Environment(name)
	t.Cleanup(func() { apiserver.ProcessEnvironment = before })
	address := freeAddress(t)
	t.Setenv(Variable, address)
	return address
}

// scrape returns the samples of /metrics by their name and labels.
func scrape(t *testing.T, address, accept string) (samples map[string]string, text string, err error) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Accept", accept)
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	rsp, err := c.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer rsp.Body.Close()
	body, err := io.ReadAll(rsp.Body)
	samples = map[string]string{}
	for line := range strings.Lines(string(body)) {
		if sample, value, ok := cutLast(strings.TrimSpace(line)); ok && !strings.HasPrefix(line, "#") {
			samples[sample] = value
		}
	}
	return samples, string(body), err
}

func cutLast(line string) (sample, value string, ok bool) {
	i := strings.LastIndexByte(line, ' ')
	if i < 0 {
		return "", "", false
	}
	return line[:i], line[i+1:], true
}

func countOf(samples map[string]string, prefix string) (n int) {
	for s := range samples {
		if strings.HasPrefix(s, prefix) {
			n++
		}
	}
	return n
}

// run runs a service until the returned function, which waits for its end.
func run(t testing.TB, cancel context.CancelFunc, service interface{ Run() error }) (stop func()) {
	ended := make(chan error, 1)
	go func() { ended <- service.Run() }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func TestRunningService(t *testing.T) {
	n := kubetest.NewNamespace(t)
	n.CreateReadyPod("shop-1")
	n.CreateReadyPod("orders-1")
	n.CreateReadyPod("orders-2")
	address, metricsAddress := freeAddress(t), inPod(t, n, "shop-1")
	for i, pod := range []string{"orders-1", "orders-2"} { // this process and one where nobody listens
		n.Register(pod, "orders", fmt.Sprintf(`{"name":"orders","version":"1","nodes":[{"id":"%s","address":%q}]}`, pod, []string{address, "127.0.0.1:1"}[i]))
	}
	ctx, cancel := context.WithCancel(t.Context())
	registry := pod.NewRegistry(kubernetes.NewRegistry, pod.AnyAddress())
	service := micro.NewService(micro.Server(grpcs.NewServer(server.Address(address), server.Name("shop"))), micro.Client(pod.NewClient(registry, grpcc.NewClient())),
		micro.Registry(registry), micro.Context(ctx), micro.HandleSignal(false), pod.Lifecycle(registry, pod.DrainWait(0)), Serve(registry))
	if err := orders.RegisterOrdersHandler(service.Server(), shop{}); err != nil {
		t.Fatal(err)
	}
	stop := run(t, cancel, service)
	expect := func(what string, samples ...string) {
		t.Helper()
		kubetest.Eventually(t, 20*time.Second, what, func() error {
			found, text, err := scrape(t, metricsAddress, "text/plain")
			for _, s := range samples {
				if name, value, _ := cutLast(s); found[name] != value {
					err = errors.Join(err, fmt.Errorf("%s is %q in\n%s", name, found[name], regexp.MustCompile("(?m)^(go_|process_|#).*\n").ReplaceAllString(text, "")))
				}
			}
			return err
		})
	}
	expect("the service is registered", `micro_registry_registered{service_name="shop"} 1`, `micro_lifecycle_state{service_name="shop",state="ready"} 1`, `micro_api_patches_total 1`)

	caller := orders.NewOrdersService("orders", service.Client())
	for range 50 { // of which some begin at the pod where nobody listens
		if _, err := caller.GetOrder(t.Context(), &orders.OrderRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := caller.AddItem(t.Context(), &orders.OrderRequest{}); err == nil {
		t.Fatal("AddItem returns no error")
	}
	stream, err := caller.TrackOrder(t.Context(), &orders.OrderRequest{})
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	expect("the calls are counted",
		`rpc_server_call_duration_seconds_count{rpc_method="Orders/TrackOrder",rpc_response_status_code="OK"} 1`,
		`rpc_client_call_duration_seconds_count{rpc_method="Orders.TrackOrder",rpc_response_status_code="OK",server_address="orders"} 1`,
		`rpc_server_call_duration_seconds_count{rpc_method="Orders/GetOrder",rpc_response_status_code="OK"} 50`,
		`rpc_server_call_duration_seconds_count{rpc_method="Orders/AddItem",rpc_response_status_code="NOT_FOUND"} 1`,
		`rpc_client_call_duration_seconds_count{rpc_method="Orders.GetOrder",rpc_response_status_code="OK",server_address="orders"} 50`,
		`rpc_client_call_duration_seconds_count{rpc_method="Orders.AddItem",rpc_response_status_code="NOT_FOUND",server_address="orders"} 1`,
		`micro_client_attempts_total{outcome="answered",server_address="orders",server_pod="orders-1"} 52`,
		`micro_client_attempts_total{outcome="lost_connection",server_address="orders",server_pod="orders-2"} 1`,
		`micro_client_retries_total{server_address="orders"} 1`,
		`micro_client_ejections_total{cause="no_answer",server_address="orders"} 1`,
		`micro_client_connections{server_address="orders"} 1`,
		`micro_registry_instances{server_address="orders",state="ready"} 2`,
		`micro_lifecycle_in_flight{service_name="shop"} 0`)

	before, _, _ := scrape(t, metricsAddress, "")
	invent(t, address, 10_000)
	after, _, err := scrape(t, metricsAddress, "")
	if count := `rpc_server_call_duration_seconds_count{rpc_method="_OTHER",rpc_response_status_code="UNIMPLEMENTED"}`; err != nil || after[count] != "10000" {
		t.Errorf("%s is %q, error %v", count, after[count], err)
	}
	if more := countOf(after, "rpc_server_call_duration_seconds_count") - countOf(before, "rpc_server_call_duration_seconds_count"); more != 1 {
		t.Errorf("10,000 invented methods add %d series, want 1", more)
	}
	checkDocumented(t, after)
	if _, text, err := scrape(t, metricsAddress, "application/openmetrics-text; version=1.0.0"); err != nil || !strings.Contains(text, `# {trace_id="`) || !strings.HasSuffix(text, "# EOF\n") {
		t.Errorf("OpenMetrics: error %v, no exemplar in\n%s", err, text)
	}
	stop()
	if _, _, err := scrape(t, metricsAddress, ""); err == nil {
		t.Error("the port of metrics is open after the end of the service")
	}
}

// invent calls methods that the service does not have, some of them with the names of others in another package.
func invent(t *testing.T, address string, calls int) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var callers sync.WaitGroup
	const parallel = 50
	for c := range parallel {
		callers.Go(func() {
			for i := range calls / parallel {
				_ = conn.Invoke(t.Context(), fmt.Sprintf("/p%d.Orders%d/GetOrder", c, i), &orders.OrderRequest{}, &orders.OrderResponse{}) // UNIMPLEMENTED
			}
		})
	}
	callers.Wait()
}

// checkDocumented reports samples that docs/observability.md does not list.
func checkDocumented(t *testing.T, samples map[string]string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range rowOfTable.FindAllStringSubmatch(string(text), -1) {
		documented[row[1]] = row[3]
	}
	for s := range samples {
		name, labels, _ := strings.Cut(s, "{")
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") || strings.HasPrefix(name, "promhttp_") {
			continue
		}
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			if _, ok := documented[name]; !ok {
				name = strings.TrimSuffix(name, suffix)
			}
		}
		row, ok := documented[name]
		if !ok {
			t.Errorf("%s is not documented", name)
		}
		for _, l := range regexp.MustCompile(`([a-z_]+)="`).FindAllStringSubmatch(labels, -1) {
			if l[1] != "le" && !strings.Contains(row, "`"+l[1]+"`") {
				t.Errorf("the label %s of %s is not documented", l[1], name)
			}
		}
	}
}

func TestRunningWebService(t *testing.T) {
	n := kubetest.NewNamespace(t)
	n.CreateReadyPod("page-1")
	address, metricsAddress := freeAddress(t), inPod(t, n, "page-1")
	ctx, cancel := context.WithCancel(t.Context())
	registry := pod.NewRegistry(kubernetes.NewRegistry)
	service := web.NewService(web.Name("page"), web.HandleSignal(false), web.Context(ctx), web.Address(address),
		web.MicroService(micro.NewService(micro.Auth(auth.NewAuth()))), web.Registry(registry), pod.WebLifecycle(registry, pod.DrainWait(0)), ServeWeb(registry))
	service.HandleFunc("/orders/", func(w http.ResponseWriter, _ *http.Request) {
		_, canFlush := w.(http.Flusher)
		_, canHijack := w.(http.Hijacker)
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)); err != nil || !canFlush || !canHijack {
			t.Errorf("a handler cannot flush (%v), hijack (%v) or set a deadline (%v)", canFlush, canHijack, err)
		}
		w.WriteHeader(http.StatusTeapot)
	})
	run(t, cancel, service)
	get := func(path string) error {
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
		rsp, err := c.Get("http://" + address + path)
		if err == nil {
			rsp.Body.Close()
		}
		return err
	}
	kubetest.Eventually(t, 20*time.Second, "the service answers", func() error { return get("/orders/0") })
	for i := range 20 {
		if err := errors.Join(get(fmt.Sprint("/orders/", i)), get(fmt.Sprint("/invented/", i)), get("/readyz")); err != nil {
			t.Fatal(err)
		}
	}
	kubetest.Eventually(t, 20*time.Second, "the requests are counted by route", func() error {
		samples, text, err := scrape(t, metricsAddress, "")
		if err == nil && (countOf(samples, "http_server_request_duration_seconds_count") != 2 ||
			samples[`http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="418",http_route="/orders/"}`] != "21" ||
			samples[`http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="404",http_route="_OTHER"}`] != "20" ||
			samples[`micro_registry_registered{service_name="page"}`] != "1") {
			err = errors.New(text)
		}
		return err
	})
}

func TestMetricsPort(t *testing.T) {
	t.Setenv(Variable, "")
	if s := newServer(os.Getenv(Variable), nil, nil); s != nil {
		t.Error("without an address there is a server")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := newServer(l.Addr().String(), pod.NewRegistry(kubernetes.NewRegistry), nil)
	if err := s.start(); err == nil || !strings.Contains(err.Error(), Variable) {
		t.Errorf("an address that is in use gives the error %v", err)
	}
	if err := s.stop(); err != nil {
		t.Errorf("stopping a server that has not started: %v", err)
	}
}
