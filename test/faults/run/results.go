package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
	"github.com/jiangjiancc/go_micro_k8s/test/launch"
)

// write prints the table, writes the recorded calls and, for go-micro-srv, draws the picture.
func (r *recorder) write(ctx context.Context, root, dir, service string, complete bool) error {
	end := time.Now()
	logs := map[string][]faults.Second{}
	for i, client := range r.clients {
		log, err := r.loads[i].SecondsUntil(ctx, end)
		if err != nil {
			return err
		}
		logs[client] = log
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	table := r.table(logs, end)
	fmt.Print("\n", table)
	if service == "orders" {
		dir = filepath.Join(dir, service)
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "calls.csv"), r.csv(), 0o644)); err != nil {
			return err
		}
		fmt.Println("\nThe calls of each second:", filepath.Join(dir, "calls.csv"))
		if !complete {
			return nil
		}
		return os.WriteFile(filepath.Join(root, "test", "orders", "RESULTS.md"), []byte(table+ordersExplanation), 0o644)
	}
	if err := os.WriteFile(filepath.Join(dir, "calls.csv"), r.csv(), 0o644); err != nil {
		return err
	}
	picture, err := faults.Draw(root, r.csv())
	if err != nil {
		return fmt.Errorf("drawing the picture: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "faults.svg"), picture, 0o644); err != nil {
		return err
	}
	fmt.Printf("\nThe calls of each second: %s\nThe picture: %s\n", filepath.Join(dir, "calls.csv"), filepath.Join(dir, "faults.svg"))
	if complete {
		results := filepath.Join(root, "test", "faults")
		if err := os.WriteFile(filepath.Join(results, "calls.csv"), r.csv(), 0o644); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(results, "RESULTS.md"), []byte(table+explanation), 0o644); err != nil {
			return err
		}
		fmt.Println("The documents show this run after: go test ./test/docs -update")
	}
	return nil
}

// table returns the results as Markdown.
func (r *recorder) table(logs map[string][]faults.Second, end time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, load average %s at the end, %s\n\n", r.begin.Format(time.DateOnly), launch.Machine(), launch.LoadAverage(), runtime.Version())
	columns := map[string]string{faults.Plugin: "go-micro's plugin and selector", faults.Service: "grpc-go through the Service", faults.Pod: "pod/"}
	b.WriteString("| fault |")
	for _, client := range r.clients {
		fmt.Fprintf(&b, " %s |", columns[client])
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(r.clients)) + "\n")
	for i, e := range r.events {
		next := end // the failures until the next fault begins belong to this one
		if i+1 < len(r.events) {
			next = r.events[i+1].start
		}
		fmt.Fprintf(&b, "| %s |", e.fault.Title)
		for _, client := range r.clients {
			fmt.Fprintf(&b, " %s |", e.cell(logs[client], next))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// cell returns what a fault did to the calls of one client.
func (e event) cell(log []faults.Second, next time.Time) string {
	before := faults.Sum(log, e.start, e.span.Begin)
	over := e.back // a fault without repair is over when all replicas are back
	if e.fault.Hold > 0 {
		over = e.span.End
	}
	during := faults.Sum(log, e.span.Begin, over)
	all := faults.Sum(log, e.start, next)
	share := 0.0
	if before.Succeeded > 0 {
		share = 100 * during.PerSecond() / before.PerSecond()
	}
	return fmt.Sprintf("%d failed, %.0f %% of the calls per second, p99 %s, longest %s", all.Failed, min(share, 100), latency(during, 0.99), latency(all, 1))
}

const explanation = `
How it is measured: ` + "`make faults`" + ` runs both clients at the same time, on the same cores and against the same four replicas of go-micro-srv, which use pod/. Each
client has 8 callers that pause 20 ms after each call; go-micro tries a failed call once more. *Failed* counts the calls that returned an error from 5 s before the fault until 5 s before
the next one. *Calls per second* compares the successful calls during the fault with those of the 5 s before it; *p99* is that of all calls that ended during the
fault, and the *longest* call is counted as the failures are. A fault without an end of its own lasts until all four replicas are back. calls.csv has the calls of each second. ` + "`make faults FAULT=list`" + ` describes the faults.
`

const ordersExplanation = `
How it is measured: as in [test/faults/RESULTS.md](../faults/RESULTS.md), with ` + "`make faults OF=orders`" + `, which calls and breaks the order service: two replicas of each of two versions. go-micro's
client and pod.NewClient have 4 callers each that pause 20 ms after each call. 8 callers of grpc-go pause 1 ms and share one connection, which is therefore never idle, to the Kubernetes
Service. Of 100 calls one takes 2 s and 15 are streams, which nobody can repeat.
`

// csv returns the calls of each second.
func (r *recorder) csv() []byte {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	_ = w.Write(faults.Columns) // a write to a buffer returns no error
	ms := func(s faults.Second, q float64) string {
		return strconv.FormatFloat(float64(s.Latencies.Quantile(q).Microseconds())/1000, 'f', 1, 64)
	}
	for _, s := range r.rows {
		_ = w.Write([]string{strconv.FormatFloat(s.End.Sub(r.begin).Seconds(), 'f', 1, 64), s.fault, s.client,
			strconv.Itoa(s.Succeeded), strconv.Itoa(s.Failed), ms(s.Second, 0.5), ms(s.Second, 0.99)})
	}
	w.Flush()
	return b.Bytes()
}
