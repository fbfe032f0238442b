//go:build linux

package main

import (
	"fmt"

	"github.com/jiangjiancc/go_micro_k8s/test/bench/load"
)

// retryCosts measures what retries cost when a whole service fails, and what they rescue when one instance does.
func retryCosts(sizes) (string, error) {
	columns := []string{grpcGo, kratos, goZero, goMicro, podClient}
	t := newTable(columns...)
	if _, err := peersProgram(); err != nil {
		return "", err
	}
	progress("retries (30 s)")
	attempts := func(r load.Result) string { return fmt.Sprintf("%.2f", r.Attempts) }
	for _, m := range []struct {
		what string
		job  load.Job
		cell func(load.Result) string
	}{
		{"one tier, down: attempts for each call", load.Job{Measure: "tiers", Count: 1}, attempts},
		{"two tiers, the last one down: attempts there for each call", load.Job{Measure: "tiers", Count: 2}, attempts},
		{"three tiers, the last one down: attempts there for each call", load.Job{Measure: "tiers", Count: 3}, attempts},
		{"one of 4 instances killed under 100 callers: calls that failed", load.Job{Measure: "killed"}, func(r load.Result) string { return fmt.Sprint(r.FailedCalls) }},
	} {
		m.job.Retry = true
		if err := t.measure(m.what, columns, m.job, m.cell); err != nil {
			return "", err
		}
	}
	return t.String() + fmt.Sprintf(`
In the first three rows 10 callers make 10 calls each, 200 ms apart. Each tier calls the next one with the context of its handler, and the last tier
answers UNAVAILABLE. grpc-go, kratos and go-zero do not retry by default, and go-zero's circuit breaker refuses calls; go-micro's
client and pod/ retry once. In the last row the calls take 20 ms, and the killed instance closes its connections and refuses new ones. %s
`, setUp), nil
}
