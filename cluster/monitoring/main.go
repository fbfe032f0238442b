// Monitoring shows the metrics of the demo in a browser until Ctrl-C: `make monitoring`. It builds VictoriaMetrics, once, and runs it on
// this machine. VictoriaMetrics finds the pods of the namespaces go-micro and go-micro-faults through the API server, by the annotations of
// k8s/components/monitoring, scrapes them through the API server too, and shows the panels of
// k8s/components/monitoring-operator/dashboard.json. Its data are in a temporary directory, which is removed at the end.
//
// It listens on the loopback interface, where every user of the machine can read the metrics.
//
//	go run -C cluster ./monitoring -name demo
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/cluster/programs"
)

const defaultAddress = "127.0.0.1:8428" // VictoriaMetrics' port

func main() {
	name := flag.String("name", "demo", "name of the cluster")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	if err := run(ctx, "..", *name, defaultAddress); err != nil && ctx.Err() == nil {
		fmt.Fprintf(os.Stderr, "monitoring: %v\n", err)
		os.Exit(1)
	}
}

var start = time.Now()

func progress(format string, args ...any) {
	fmt.Printf("[%5.1fs] %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
}

// run shows the metrics of a cluster of the checkout root at an address, or at another one if that is in use, until ctx ends.
func run(ctx context.Context, root, name, address string) error {
	k := kubectl{filepath.Join(root, ".cluster", name)}
	if !k.runs() {
		return fmt.Errorf("looking for cluster %q: it does not run; start it with `make demo%s`", name, option(name))
	}
	api, err := k.apiServer(ctx)
	if err != nil {
		return err
	}
	pods, err := k.scraped(ctx)
	if err != nil {
		return err
	}
	if pods == 0 {
		dir := ".cluster/" + name
		return fmt.Errorf("looking for metrics in cluster %q: no pod of namespace %q has the annotation prometheus.io/scrape; deploy the component with\n\n"+
			"  KUBECONFIG=%[3]s/kubeconfig PATH=$PATH:%[3]s/bin make deploy COMPONENTS=\"monitoring traces\"", name, namespace, dir)
	}
	program, err := programs.VictoriaMetrics(ctx, root, progress)
	if err != nil {
		return err
	}
	dashboard, err := dashboardOf(filepath.Join(root, "k8s", "components", "monitoring-operator", "dashboard.json"))
	if err != nil {
		return err
	}
	return serve(ctx, program, address, scrapeConfig(api), dashboard, func(s *server) error {
		if err := s.scraping(ctx); err != nil {
			return err
		}
		progress("the metrics of %d pods: http://%s/vmui/#/dashboards", pods, s.address)
		progress("Ctrl-C ends it")
		return s.until(ctx, k.runs)
	})
}

func option(name string) string {
	if name == "demo" {
		return ""
	}
	return " CLUSTER=" + name
}

// kubectl runs the kubectl of a cluster. It reads neither ~/.kube nor the kubectl in PATH.
type kubectl struct{ dir string }

func (k kubectl) output(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(k.dir, "bin", "kubectl"), append([]string{"--kubeconfig", filepath.Join(k.dir, "kubeconfig"), "--request-timeout=10s"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECACHEDIR="+filepath.Join(k.dir, "kubectl-cache"))
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = errors.New(strings.TrimSpace(string(exit.Stderr)))
	}
	return out, err
}

// runs reports whether the cluster runs.
func (k kubectl) runs() bool {
	_, err := os.Stat(filepath.Join(k.dir, "ready"))
	return err == nil
}

// scraped returns the number of pods whose metrics can be scraped.
func (k kubectl) scraped(ctx context.Context) (int, error) {
	out, err := k.output(ctx, "get", "pods", "-n", namespace, "-o", `jsonpath={range .items[?(@.metadata.annotations.prometheus\.io/scrape=="true")]}{.metadata.name}{"\n"}{end}`)
	if err != nil {
		return 0, fmt.Errorf("listing the pods of namespace %q: %w", namespace, err)
	}
	return len(strings.Fields(string(out))), nil
}

// listenAddress returns an address, or one with another port if that is in use.
func listenAddress(address string) (string, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return "", fmt.Errorf("looking for a free port: %w", err)
		}
	}
	defer l.Close()
	return l.Addr().String(), nil
}
