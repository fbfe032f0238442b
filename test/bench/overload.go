//go:build linux

package main

import (
	"fmt"
	"runtime"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/bench/load"
	"golang.org/x/sys/unix"
)

// onCPU runs a function that starts a process, which may use only this CPU, counted from 1 on, or all if it is 0.
func onCPU(cpu int, start func() error) error {
	if cpu == 0 {
		return start()
	}
	runtime.LockOSThread() // a process inherits the CPUs of the thread that starts it
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	for i, left := 0, cpu; left > 0 && i < 1024; i++ {
		if all.IsSet(i) {
			if left--; left == 0 {
				one.Set(i)
			}
		}
	}
	if one.Count() == 0 {
		return fmt.Errorf("measuring overload: it needs %d CPUs", cpu)
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &all) }()
	return start()
}

// overloaded measures services that get three times the calls that they can handle.
func overloaded(n sizes) (string, error) {
	columns := []string{kratos, goZero, goMicro, podClient}
	t := newTable(columns...)
	if _, err := peersProgram(); err != nil {
		return "", err
	}
	progress("three times the load (%s)", 2*time.Duration(len(columns))*(n.Overload+12*time.Second))
	for _, w := range []struct {
		work, text string
		count      int
	}{{load.Workers, "8 workers", 4}, {load.CPU, "CPU", 1}} {
		rows := make([][]string, 6)
		for _, l := range columns {
			r, err := overloadOf(load.Job{Library: l, Work: w.work, Count: w.count, Duration: n.Overload, Retry: true})
			if err != nil {
				return "", err
			}
			for i, cell := range []string{
				fmt.Sprintf("%.0f", r.Peak),
				fmt.Sprintf("%.0f %% (%.0f a second)", 100*r.Rate/r.Peak, r.Rate),
				fmt.Sprintf("%s, %.1fx (%s)", format(r.Disturbed), float64(r.Disturbed)/float64(r.Calm), format(r.Calm)),
				fmt.Sprintf("%s, %.1fx (%s)", format(r.DisturbedAtServers), float64(r.DisturbedAtServers)/float64(max(1, r.CalmAtServers)), format(r.CalmAtServers)),
				format(r.Refused),
				fmt.Sprintf("%.2f", r.Attempts),
			} {
				rows[i] = append(rows[i], cell)
			}
		}
		for i, what := range []string{"peak, calls a second", "goodput, of the peak", "p99 of answered calls, of that without load", "the same, measured in the servers", "p99 of a refusal", "attempts of a call"} {
			t.row(w.text+": "+what, rows[i]...)
		}
	}
	return t.String() + fmt.Sprintf(`
A service gets three times the calls of its peak, for %s, at random times. *8 workers*: each of 4 instances has 8 workers; a call waits for one, which
works for 10 ms without a CPU. *CPU*: a call of one instance uses the CPU for 5 ms. Servers and client are two processes with a CPU each, so that they do not compete; all
instances have one CPU together. The *peak* is that of as many callers as there are workers, or of 2 for *CPU*. *Goodput* is the
calls that are answered in that time. The p99 of answered calls includes the beginning of the overload; *without load* is 30 %% of the
capacity. A *refusal* is measured in the server, from the beginning of the call to its status; without refusals it is the time of calls that time out. What is *measured in the servers* is without
the wait of the client for its own CPU, and without that of a call for a goroutine in the server.
kratos has the middleware ratelimit.Server(), which refuses calls when the CPU is used to 80 %%, go-zero its default, 90 %%, go-micro nothing,
and pod/ pod.AdaptiveLimit. %s
`, n.Overload, setUp), nil
}

// overloadOf measures one library: the servers on the second CPU, the client on the first one.
func overloadOf(j load.Job) (r load.Result, err error) {
	servers := j
	servers.Measure, servers.CPU = "limited servers", 2
	result, stop, err := startJob(servers)
	if err != nil {
		return r, err
	}
	defer stop()
	s, err := result()
	if err != nil {
		return r, err
	}
	j.Measure, j.CPU, j.Servers = "overload", 1, s.Addresses
	result, end, err := startJob(j)
	if err != nil {
		return r, err
	}
	defer end()
	return result()
}
