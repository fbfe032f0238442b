// Command run injects the faults of package faults one after the other while two clients call four replicas of
// go-micro-srv, one with go-micro's plugin and selector, one with package pod, and shows
// what happens to their calls. With -service orders the replicas are those of test/orders, and a third client calls them with
// grpc-go through the Kubernetes Service. It prints one line per second and client, and at the end a table.
// `make faults` runs it.
//
//	go run ./test/faults/run -fault list    lists the faults
//	go run ./test/faults/run -fault NAME    injects one fault, or several, separated by spaces
//	go run ./test/faults/run                injects all of them
//
// The cluster must run; `make faults` starts it. Everything that the command creates is in the
// namespace go-micro-faults, which it deletes at the end, also after Ctrl-C. It undoes every fault
// and waits until the pods of all namespaces are ready again.
//
// The files of a run are in .cluster/NAME/faults: calls.csv has the calls of each second, and
// faults.svg shows them. A complete run also renews RESULTS.md and calls.csv in test/faults, or RESULTS.md in test/orders, from
// which `go test ./test/docs -update` renews the documents and media/faults.svg.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
	"github.com/jiangjiancc/go_micro_k8s/test/launch"
)

const (
	image     = "k8s-micro/probe:faults"
	undisturb = 5 * time.Second  // calls before each fault, with which the calls during the fault are compared
	settle    = 75 * time.Second // how long a client may need after a fault: the plugin's cache lasts 60 s
)

func main() {
	cluster := flag.String("cluster", "demo", "name of the running cluster")
	name := flag.String("fault", "", "names of the faults to inject, separated by spaces, or list; by default all")
	service := flag.String("service", "go-micro-srv", "what to call and break: go-micro-srv or orders")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, *cluster, *service, *name); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cluster, service, name string) (err error) {
	if service != "go-micro-srv" && service != "orders" {
		return fmt.Errorf("looking for service %q: the services are go-micro-srv and orders", service)
	}
	selected := faults.All
	switch name {
	case "":
	case "list":
		for _, f := range faults.All {
			fmt.Printf("%-16s  %s\n", f.Name, f.Description)
		}
		return nil
	default:
		selected = nil
		for _, n := range strings.Fields(name) {
			f, err := faults.Find(n)
			if err != nil {
				return err
			}
			selected = append(selected, f)
		}
	}
	root, err := launch.Root()
	if err != nil {
		return err
	}
	r := &recorder{begin: time.Now()}
	target := &faults.Target{Cluster: faults.Cluster{Root: root, Name: cluster}, Image: image, Orders: service == "orders"}
	dir := filepath.Join(root, ".cluster", cluster, "faults")
	if _, err := os.Stat(filepath.Join(root, ".cluster", cluster, "ready")); err != nil {
		return fmt.Errorf("looking for cluster %q: it does not run; start it with make demo", cluster)
	}
	nodes, err := target.Nodes(ctx)
	if err != nil {
		return err
	}
	if len(nodes) < 3 {
		for _, f := range selected {
			if f.NeedsNodes && name != "" {
				return fmt.Errorf("injecting fault %q: cluster %q has one node, and this fault needs three; start another with make demo CLUSTER=zones NODES=3", f.Name, cluster)
			} else if f.NeedsNodes {
				fmt.Printf("Leaving out fault %s, because cluster %q has one node: make demo NODES=3 starts three\n", f.Name, cluster)
			}
		}
		selected = slices.DeleteFunc(slices.Clone(selected), func(f faults.Fault) bool { return f.NeedsNodes })
	}
	fmt.Printf("Deploying four replicas and %d clients in the namespace %s\n", len(target.Clients()), faults.Namespace)
	defer func() {
		fmt.Println("\nUndoing: resuming every process, deleting the namespace", faults.Namespace)
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
		defer cancel()
		undoErr := target.Remove(undo)
		if undoErr == nil {
			undoErr = target.AwaitPods(undo)
		}
		if undoErr == nil {
			fmt.Println("Undone: every pod of the cluster is ready, nothing of this run is left in it.")
		} else {
			undoErr = fmt.Errorf("undoing the faults: %w; run the command again, or remove the cluster with make cluster-down", undoErr)
		}
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		err = errors.Join(err, undoErr)
	}()
	if err := prepare(ctx, target, dir); err != nil {
		return err
	}
	for _, c := range target.Clients() {
		load, err := target.Start(ctx, c, "calls", r.recorder(c.Name))
		if err != nil {
			return err
		}
		r.clients, r.loads = append(r.clients, c.Name), append(r.loads, load)
	}
	for _, f := range selected {
		if err := inject(ctx, target, r, f); err != nil {
			return err
		}
	}
	return r.write(ctx, root, dir, service, len(selected) == len(faults.All))
}

// prepare removes what an earlier run that was killed may have left, loads the image and starts the replicas.
func prepare(ctx context.Context, target *faults.Target, dir string) error {
	if err := target.Remove(ctx); err != nil {
		return err
	}
	probe, err := target.ProbeImage(ctx, image, filepath.Join(dir, "image"))
	if err != nil {
		return err
	}
	if err := target.LoadImages(ctx, probe); err != nil {
		return err
	}
	return target.Deploy(ctx)
}

// inject injects one fault and records when.
func inject(ctx context.Context, target *faults.Target, r *recorder, f faults.Fault) error {
	if err := target.AwaitReplicas(ctx, faults.Replicas); err != nil {
		return err
	}
	// The failures of one fault must not be counted with the next, so wait for all clients, but not for ever.
	_ = faults.Eventually(ctx, settle, "calls without failures", r.settled)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e := event{fault: f, start: time.Now()}
	time.Sleep(undisturb)
	fmt.Printf("\n== %s. %s\n", f.Name, f.Description)
	r.phase(f.Name)
	span, err := f.Run(ctx, target)
	if err != nil {
		return err
	}
	if f.Hold > 0 { // the end of any other fault is the return of all replicas
		r.phase("")
	}
	fmt.Printf("-- %s: repaired after %.0f s; waiting until all replicas are back\n", f.Name, span.Repaired.Sub(span.Injected).Seconds())
	if err := target.AwaitReplicas(ctx, faults.Replicas); err != nil {
		return err
	}
	fmt.Printf("-- %s: over, all replicas are back\n", f.Name)
	r.phase("")
	e.span, e.back = span, time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	return nil
}

// event is a fault that has taken place.
type event struct {
	fault faults.Fault
	span  faults.Span
	start time.Time // of the undisturbed calls before it
	back  time.Time // all replicas are back
}

// recorder receives the seconds of all clients.
type recorder struct {
	begin   time.Time
	clients []string
	loads   []*faults.Load // by client

	mu     sync.Mutex
	fault  string
	rows   []row
	events []event
}

// row is one line of calls.csv.
type row struct {
	client string
	fault  string // while it happened
	faults.Second
}

func (r *recorder) phase(fault string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = fault
}

// recorder returns a function that records and prints the seconds of one client.
func (r *recorder) recorder(client string) func(faults.Second) {
	return func(s faults.Second) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.rows = append(r.rows, row{client, r.fault, s})
		fmt.Printf("%4.0f s  %-16s  %-8s  %4d calls  %3d failed  p50 %-8s  p99 %s\n", s.End.Sub(r.begin).Seconds(), orDash(r.fault), client,
			s.Succeeded+s.Failed, s.Failed, latency(s, 0.5), latency(s, 0.99))
	}
}

// settled returns an error unless no call of the last three seconds has failed.
func (r *recorder) settled() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(r.rows) - 1; i >= max(0, len(r.rows)-3*len(r.clients)); i-- {
		if s := r.rows[i]; s.Failed > 0 || s.Succeeded == 0 {
			return fmt.Errorf("%s: %d calls failed, %d succeeded", s.client, s.Failed, s.Succeeded)
		}
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// latency formats a quantile of the calls that ended in a second.
func latency(s faults.Second, q float64) string {
	d := s.Latencies.Quantile(q)
	switch {
	case d == 0:
		return "-"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
