package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/programs"
)

const (
	metrics = "# TYPE micro_registry_registered gauge\nmicro_registry_registered{service_name=\"greeter\"} 1\n"
	pods    = `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[%s]}`
	pod     = `{"metadata":{"name":"%[1]s","namespace":"%[4]s","uid":"%[1]s","labels":{"app":"go-micro-srv"},"annotations":{%[2]s}},
		"spec":{"containers":[{"name":"c","ports":[{"containerPort":9100,"name":"grpc","protocol":"TCP"},{"containerPort":9464,"name":"metrics","protocol":"TCP"}]}]},
		"status":{"phase":"%[3]s","podIP":"192.0.2.1"}}`
	annotations = `"prometheus.io/scrape":"true","prometheus.io/port":"9464","prometheus.io/path":"/metrics"`
)

// newAPIServer returns an API server with three pods, of which one is running and has metrics, with a client of the faults, which has them
// too, and the client certificate that it wants.
func newAPIServer(t *testing.T) apiServer {
	t.Helper()
	cert, key := clientCertificate(t)
	mux := http.NewServeMux()
	for namespace, items := range map[string][]string{
		"go-micro":        {fmt.Sprintf(pod, "srv-1", annotations, "Running", "go-micro"), fmt.Sprintf(pod, "other", "", "Running", "go-micro"), fmt.Sprintf(pod, "over", annotations, "Failed", "go-micro")},
		"go-micro-faults": {fmt.Sprintf(pod, "faults-pod", annotations, "Running", "go-micro-faults")},
	} {
		mux.HandleFunc("GET /api/v1/namespaces/"+namespace+"/pods", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("watch") != "" {
				w.WriteHeader(http.StatusOK)
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
				return
			}
			fmt.Fprintf(w, pods, strings.Join(items, ","))
		})
	}
	for _, path := range []string{"go-micro/pods/srv-1", "go-micro-faults/pods/faults-pod"} {
		mux.HandleFunc("GET /api/v1/namespaces/"+path+":9464/proxy/metrics", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(metrics)) })
	}
	srv := httptest.NewUnstartedServer(mux)
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(cert)
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients, MinVersion: tls.VersionTLS13}
	srv.StartTLS()
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	return apiServer{srv.URL, string(ca), string(cert), string(key)}
}

func clientCertificate(t *testing.T) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
}

// checkout returns a checkout with a cluster whose kubectl knows an API server and names pods. Its temporary directory is
// checked to be empty at the end of the test.
func checkout(t *testing.T, a apiServer, scraped string) (root string) {
	t.Helper()
	root, tmp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Cleanup(func() {
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	config, err := json.Marshal(object{"clusters": []object{{"cluster": object{"server": a.url, "certificate-authority-data": []byte(a.ca)}}},
		"users": []object{{"user": object{"client-certificate-data": []byte(a.cert), "client-key-data": []byte(a.key)}}}})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, ".cluster", "demo")
	script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in\n*\" config view \"*) cat %[1]s/config.json ;;\n*\" get pods \"*) printf '%[2]s' ;;\nesac\n", dir, scraped)
	real, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "bin"), 0o755), os.WriteFile(filepath.Join(dir, "ready"), nil, 0o600), os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600),
		os.WriteFile(filepath.Join(dir, "bin", "kubectl"), []byte(script), 0o755),
		os.Symlink(filepath.Join(real, "cluster"), filepath.Join(root, "cluster")), os.Symlink(filepath.Join(real, "k8s"), filepath.Join(root, "k8s"))); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestNotRunningAndNotDeployed(t *testing.T) {
	root := checkout(t, apiServer{url: "https://192.0.2.1:6443"}, "")
	err := run(t.Context(), root, "demo", defaultAddress)
	if err == nil || !strings.Contains(err.Error(), "no pod of namespace") || !strings.Contains(err.Error(), `KUBECONFIG=.cluster/demo/kubeconfig PATH=$PATH:.cluster/demo/bin make deploy COMPONENTS="monitoring traces"`) {
		t.Errorf("without the component: %v", err)
	}
	for name, start := range map[string]string{"other": "`make demo CLUSTER=other`", "demo": "`make demo`"} {
		_ = os.Remove(filepath.Join(root, ".cluster", "demo", "ready"))
		if err := run(t.Context(), root, name, defaultAddress); err == nil || !strings.Contains(err.Error(), "it does not run; start it with "+start) {
			t.Errorf("without cluster %s: %v", name, err)
		}
	}
}

// victoriaMetrics returns the program, which it builds if the cache does not have it.
func victoriaMetrics(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds VictoriaMetrics, once")
	}
	program, err := programs.VictoriaMetrics(t.Context(), "../..", t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

func TestScrapesThroughTheAPIServer(t *testing.T) {
	program, tmp := victoriaMetrics(t), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	dashboard, err := dashboardOf("../../k8s/components/monitoring-operator/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	err = serve(t.Context(), program, "127.0.0.1:0", scrapeConfig(newAPIServer(t)), dashboard, func(s *server) error {
		if err := s.scraping(t.Context()); err != nil {
			return err
		}
		var series []struct{ Metric map[string]string }
		if err := s.wait(t.Context(), time.Minute, func() bool {
			series = query(t, s, `micro_registry_registered{namespace="go-micro"}`)
			return len(series) > 0
		}); err != nil {
			t.Errorf("waiting for the metrics of the pod: %v", err)
		}
		for label, want := range map[string]string{"pod": "srv-1", "namespace": "go-micro", "job": "go-micro-srv", "instance": "srv-1", "service_name": "greeter"} {
			if len(series) != 1 || series[0].Metric[label] != want {
				t.Errorf("label %q of %v, want %q", label, series, want)
			}
		}
		b, err := s.get("/api/v1/targets?state=active")
		if err != nil || strings.Count(string(b), `"scrapeUrl"`) != 2 {
			t.Errorf("the targets are %s, %v; want the two pods that run and have metrics", b, err)
		}
		if err := s.wait(t.Context(), time.Minute, func() bool { return len(query(t, s, `micro_registry_registered{pod="faults-pod"}`)) == 1 }); err != nil {
			t.Errorf("waiting for the metrics of the client of the faults: %v", err)
		}
		checkDashboard(t, s)
		if page, err := s.get("/vmui/"); err != nil || !strings.Contains(string(page), "<html") {
			t.Errorf("the UI answers %.100q, %v", page, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func query(t *testing.T, s *server, expr string) (series []struct{ Metric map[string]string }) {
	t.Helper()
	b, err := s.get("/api/v1/query?query=" + url.QueryEscape(expr))
	var answer struct {
		Status string
		Data   struct {
			Result []struct{ Metric map[string]string }
		}
	}
	if err == nil {
		err = json.Unmarshal(b, &answer)
	}
	if err != nil || answer.Status != "success" {
		t.Errorf("query %s: %s, %v", expr, b, err)
	}
	return answer.Data.Result
}

// checkDashboard reads the dashboard as the UI does, and evaluates all of its queries.
func checkDashboard(t *testing.T, s *server) {
	t.Helper()
	b, err := s.get("/vmui/custom-dashboards")
	var answer struct {
		DashboardsSettings []struct {
			Title string
			Rows  []struct {
				Panels []struct {
					Title       string
					Expr, Alias []string
				}
			}
		}
	}
	if err == nil {
		err = json.Unmarshal(b, &answer)
	}
	if err != nil || len(answer.DashboardsSettings) != 1 {
		t.Fatalf("the dashboards are %s, %v", b, err)
	}
	panels, shown := 0, 0
	for _, row := range answer.DashboardsSettings[0].Rows {
		for _, p := range row.Panels {
			panels++
			if len(p.Expr) == 0 || len(p.Alias) != len(p.Expr) {
				t.Errorf("panel %q has %d queries and %d legends", p.Title, len(p.Expr), len(p.Alias))
			}
			for _, expr := range p.Expr {
				if strings.Contains(expr, "$") {
					t.Errorf("panel %q: the query %s has a variable", p.Title, expr)
				}
				shown += len(query(t, s, expr))
			}
		}
	}
	if panels != 9 || shown != 1 {
		t.Errorf("%d panels show %d series, want 9 panels, and the one series that is scraped", panels, shown)
	}
}

func TestRunUntilTheClusterStops(t *testing.T) {
	victoriaMetrics(t)
	root := checkout(t, newAPIServer(t), "srv-1")
	address, err := listenAddress("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, root, "demo", address) }()
	await(t, address)
	cancel() // Ctrl-C
	if err := <-ended; err != nil && !errors.Is(err, errInterrupted) {
		t.Errorf("after Ctrl-C: %v", err)
	}
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("after Ctrl-C something listens")
	}
	go func() { ended <- run(t.Context(), root, "demo", address) }()
	await(t, address)
	if err := os.Remove(filepath.Join(root, ".cluster", "demo", "ready")); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "it has stopped") {
		t.Errorf("after the end of the cluster: %v", err)
	}
}

// await waits until something listens at an address.
func await(t *testing.T, address string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waiting for %s: %v", address, err)
		}
	}
}

// A program that ends, and an address in use.
func TestServeFails(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho first\necho 'cannot open the storage' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := serve(t.Context(), program, "127.0.0.1:0", nil, nil, func(*server) error { return errors.New("it runs") })
	if err == nil || err.Error() != "starting VictoriaMetrics: it has ended: cannot open the storage" {
		t.Errorf("a program that ends: %v", err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if other, err := listenAddress(l.Addr().String()); err != nil || other == l.Addr().String() {
		t.Errorf("while %s is in use: %s, %v", l.Addr(), other, err)
	}
}
