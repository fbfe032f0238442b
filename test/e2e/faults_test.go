//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
)

const (
	baseline      = 5 * time.Second // how long the throughput is measured before each fault
	detectionTime = 3 * time.Second // throughput and latency count from this long after the start of a fault

	// noise is what a call may take because the machine is busy. A call to the slow replica takes
	// 100 ms, one to a replica that does not answer 5 s.
	noise = 90 * time.Millisecond
)

// budget is what calls with package pod must achieve during a fault.
type budget struct {
	fault         string
	maxFailed     int           // calls
	minThroughput float64       // from detectionTime to the end of the fault, as a share of the baseline; 0 accepts any. See runFault
	hold          time.Duration // instead of the fault's own, to save time; 0 keeps it
	newCallers    bool          // callers that have seen no earlier fault
	check         func(*testing.T, faults.Span, []faults.Second, faults.Second)

	// The alerts of k8s/components/monitoring-operator that must fire with durations divided by alertDivisor, and those that may. No
	// other alert may fire.
	alerts, mayFire []string
}

// alertDivisor makes the durations of the alerts those of the faults: 15 s of an ejection instead of 5 minutes.
const alertDivisor = 20

// orderBudgets are those of test/orders while go-micro-srv is broken, and of one fault of its own: how many calls may fail. For go-micro's
// client nothing is demanded.
var orderBudgets = map[string]map[string]int{
	"api-frozen": {faults.Pod: 0, faults.Service: 0},
	"api-killed": {faults.Pod: 0, faults.Service: 0},
	// No client can repeat the streams that the killed instance served, one of each caller at most. Without go-micro nobody repeats calls.
	"container-killed": {faults.Pod: 4},
}

var failedStream = regexp.MustCompile("^(TrackOrder|ImportOrders|SyncOrders): ")

var budgets = []budget{
	// These six faults share their callers, so that the watch that survived one fault must also survive the next.
	{"api-frozen", 0, 0.8, 0, true, nil, []string{"MicroRegistryStale"}, nil},
	{"api-killed", 0, 0, 0, false, nil, nil, nil},
	{"container-killed", 0, 0, 0, false, nil, nil, nil},
	{"pod-deleted", 0, 0, 0, false, nil, nil, nil},
	{"drain", 0, 0, 0, false, nil, nil, nil},
	{"scaling", 0, 0, 0, false, nil, nil, nil}, // also distributes the replicas, all on one node after drain, on two
	// An instance that failed before is ejected for longer, which would hide the detection.
	// The calls that fail are those in flight when the replica stops, and those that are sent until it counts as stalled,
	// which are rarely more than one because the other replicas then have fewer calls in flight.
	{"replica-frozen", 4, 0.75, 15 * time.Second, true, nil, nil, []string{"MicroInstanceEjected"}},
	{"packets-dropped", 4, 0.75, 15 * time.Second, true, nil, nil, []string{"MicroInstanceEjected"}},
	{"replica-slow", 0, 0.75, 10 * time.Second, true, latencyRecovers, nil, nil},
	{"replica-failing", 8, 0.75, 10 * time.Second, false, failingReplicaAvoided, nil, []string{"MicroInstanceEjected"}},
	// The first seconds decide. Pods that Kubernetes reports as not ready, which happens after 50 s, are a part of api-frozen.
	// One call of each of the 8 callers may fail: with half of the replicas gone, a choice between two lost ones can hit every
	// caller until they count as stalled, and a caller whose call waits makes no other.
	{"node-lost", 8, 0.5, 30 * time.Second, true, oneFailsPerCaller, []string{"MicroHalfEjected"}, []string{"MicroInstanceEjected", "MicroErrorBudgetBurnsFast"}},
	// The same on both sides of the cut: outside of the zone, and inside, where the API server is out of reach too.
	{"zone-cut", 8, 0.5, 20 * time.Second, true, noneFailsInCut, nil, []string{"MicroHalfEjected", "MicroInstanceEjected", "MicroErrorBudgetBurnsFast"}},
}

// TestFaults breaks parts of the cluster one after the other while 8 callers with package pod and
// 8 with go-micro's plugin call 4 replicas. It asserts the budgets of package pod, and logs
// what the plugin achieves. During the first faults three clients also call test/orders.
func TestFaults(t *testing.T) {
	needsNodes(t)
	ctx, cancel := context.WithCancel(context.Background())
	// The other tests run beside this one. With the load of `make faults`, a machine with two slow cores would be busy all
	// the time, and calls would fail for that reason.
	target := &faults.Target{Cluster: faults.Cluster{Root: root, Name: clusterName}, Image: probeImage, Pause: 60 * time.Millisecond, Samples: true}
	t.Cleanup(func() {
		if err := target.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(cancel)
	fatal(t, target.Deploy(ctx))
	orders := &faults.Target{Cluster: target.Cluster, Image: probeImage, Orders: true, Pause: target.Pause}
	fatal(t, orders.Deploy(ctx))

	var loads, orderLoads map[string]*faults.Load // by client
	var samples bytes.Buffer
	var begins []time.Time // of the faults
	for i, b := range budgets {
		if b.newCallers {
			if loads != nil {
				samples.Write(loads[faults.Pod].Samples())
			}
			for _, l := range loads {
				fatal(t, l.Stop(ctx))
			}
			loads = startClients(t, ctx, target, fmt.Sprint("calls-", i))
		}
		if i == 0 {
			orderLoads = startClients(t, ctx, orders, "calls")
		}
		var inside *faults.Load // in the zone that is cut off
		if b.fault == "zone-cut" {
			clients := target.Clients()
			var err error
			inside, err = target.StartOn(ctx, faults.CutNode, clients[len(clients)-1], "inside", nil)
			fatal(t, err)
		}
		sharesCallers := i+1 < len(budgets) && !budgets[i+1].newCallers
		begins = append(begins, time.Now())
		t.Run(b.fault, func(t *testing.T) {
			start := time.Now()
			span := runFault(t, ctx, target, loads[faults.Plugin], b, sharesCallers)
			if inside != nil {
				checkInside(t, ctx, inside, b, span)
				fatal(t, inside.Stop(ctx))
			}
			if orderLoads != nil && b.fault != "container-killed" {
				checkOrders(t, ctx, orderLoads, orderBudgets[b.fault], start)
			}
		})
		if b.fault == "container-killed" {
			t.Run("container-killed of test/orders", func(t *testing.T) {
				fatal(t, orders.AwaitReplicas(ctx, faults.Replicas))
				start := time.Now()
				_, err := must(faults.Find(b.fault)).Run(ctx, orders)
				fatal(t, err)
				fatal(t, orders.AwaitReplicas(ctx, faults.Replicas))
				checkOrders(t, ctx, orderLoads, orderBudgets[b.fault], start)
			})
			for _, l := range orderLoads {
				fatal(t, l.Stop(ctx))
			}
			orderLoads = nil
			fatal(t, orders.Scale(ctx, 0))
		}
	}
	samples.Write(loads[faults.Pod].Samples())
	t.Run("alerts", func(t *testing.T) { checkAlerts(t, &samples, begins) })
}

// checkAlerts replays the metrics of all faults and compares the alerts that have begun to fire during each fault with its budget.
func checkAlerts(t *testing.T, samples *bytes.Buffer, begins []time.Time) {
	t.Logf("%d bytes of samples", samples.Len())
	replay := exec.Command("go", "run", "./live", filepath.Join(root, "k8s/components/monitoring-operator"), fmt.Sprint(alertDivisor))
	var messages bytes.Buffer
	replay.Dir, replay.Stdin, replay.Stderr = filepath.Join(root, "test/alerts"), samples, &messages
	out, err := replay.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &messages)
	}
	var all []struct {
		Alert, Summary string
		From, Until    time.Time
	}
	fatal(t, json.Unmarshal(out, &all))
	fired := make([]map[string]bool, len(budgets))
	for _, a := range all {
		i := len(begins) - 1
		for i > 0 && a.From.Before(begins[i]) {
			i--
		}
		if a.Until.IsZero() {
			a.Until = time.Now() // it fires at the end of the samples
		}
		t.Logf("%s: %s after %.1f s, for %.1f s: %s", budgets[i].fault, a.Alert, a.From.Sub(begins[i]).Seconds(), a.Until.Sub(a.From).Seconds(), a.Summary)
		if fired[i] == nil {
			fired[i] = map[string]bool{}
		}
		fired[i][a.Alert] = true
	}
	for i, b := range budgets {
		for _, alert := range b.alerts {
			if !fired[i][alert] {
				t.Errorf("%s: %s did not fire", b.fault, alert)
			}
		}
		for alert := range fired[i] {
			if !slices.Contains(b.alerts, alert) && !slices.Contains(b.mayFire, alert) {
				t.Errorf("%s: %s has fired", b.fault, alert)
			}
		}
	}
}

// startClients starts all clients of a target, in pods whose names begin with a prefix.
func startClients(t *testing.T, ctx context.Context, target *faults.Target, prefix string) map[string]*faults.Load {
	t.Helper()
	loads := map[string]*faults.Load{}
	for _, c := range target.Clients() {
		l, err := target.Start(ctx, c, prefix, nil)
		fatal(t, err)
		loads[c.Name] = l
	}
	return loads
}

// checkOrders checks how many calls of each client of test/orders have failed since a time.
func checkOrders(t *testing.T, ctx context.Context, loads map[string]*faults.Load, budget map[string]int, since time.Time) {
	t.Helper()
	end := time.Now()
	for name, l := range loads {
		log, err := l.SecondsUntil(ctx, end)
		fatal(t, err)
		sum := faults.Sum(log, since, time.Now())
		t.Logf("test/orders, %s: %d calls succeeded, %d failed, p99 %s", name, sum.Succeeded, sum.Failed, sum.Latencies.Quantile(0.99))
		for _, s := range log {
			if s.Failed > 0 && s.End.After(since) {
				t.Logf("%+6.1f s: %d failed: %s", s.End.Sub(since).Seconds(), s.Failed, s.Error)
				if name == faults.Pod && !failedStream.MatchString(s.Error) {
					t.Errorf("test/orders, %s: the failed call is no stream: %s", name, s.Error)
				}
			}
		}
		if maxFailed, ok := budget[name]; sum.Succeeded == 0 || ok && sum.Failed > maxFailed {
			t.Errorf("test/orders, %s: %d calls succeeded, %d failed, want at most %d", name, sum.Succeeded, sum.Failed, maxFailed)
		}
	}
}

func runFault(t *testing.T, ctx context.Context, target *faults.Target, plugin *faults.Load, b budget, sharesCallers bool) faults.Span {
	fault, err := faults.Find(b.fault)
	fatal(t, err)
	if b.hold > 0 {
		fault.Hold = b.hold
	}
	fatal(t, target.AwaitReplicas(ctx, faults.Replicas))
	start := time.Now()
	time.Sleep(baseline)
	span, err := fault.Run(ctx, target)
	if err != nil {
		if restoreErr := target.Restore(ctx); restoreErr != nil {
			t.Error(restoreErr)
		}
		t.Fatal(err)
	}
	if sharesCallers { // otherwise nobody waits until the ejections are over
		fatal(t, target.AwaitReplicas(ctx, faults.Replicas))
	}
	restored := time.Now()
	log, err := target.Load.SecondsUntil(ctx, restored)
	fatal(t, err)

	report := func(name string, log []faults.Second) (failed int, before, during faults.Second) {
		before, during = faults.Sum(log, start, span.Begin), faults.Sum(log, span.Injected.Add(detectionTime), span.End) // during is empty for a short fault
		failed = faults.Sum(log, start, time.Now()).Failed
		t.Logf("%s, %s: lasted %.0f s, next after %.1f s, %d calls failed; before: %.0f calls/s, p99 %s", fault.Title, name,
			span.Repaired.Sub(span.Injected).Seconds(), restored.Sub(span.Injected).Seconds(), failed, before.PerSecond(), before.Latencies.Quantile(0.99))
		if during.Started > 0 {
			t.Logf("from %s on: %.0f calls/s (%.0f %%), p99 %s", detectionTime, during.PerSecond(), 100*during.PerSecond()/before.PerSecond(), during.Latencies.Quantile(0.99))
		}
		return failed, before, during
	}
	pluginLog, _, err := plugin.Seconds()
	fatal(t, err)
	report("go-micro's plugin", pluginLog)
	failed, before, during := report("pod/", log)

	if failed > b.maxFailed {
		t.Errorf("%d calls failed, want at most %d", failed, b.maxFailed)
	}
	// If the throughput falls although no caller waits for long, the machine is busy with other work.
	waited := during.Latencies.Longer(noise).Seconds() / (faults.Callers * max(1, during.End.Sub(during.Begin).Seconds()))
	if before.Succeeded == 0 || during.PerSecond() < b.minThroughput*before.PerSecond() && waited > 1-b.minThroughput {
		t.Errorf("throughput fell from %.0f to %.0f calls/s, want at least %.0f %% of it; the callers spent %.0f %% of their time in calls of more than %s",
			before.PerSecond(), during.PerSecond(), 100*b.minThroughput, 100*waited, noise)
	}
	if b.check != nil {
		b.check(t, span, log, before)
	}
	var notable []string
	for _, s := range log {
		if s.End.After(start) && (s.Failed > 0 || len(s.FailedTries) > 0 || t.Failed()) {
			s.Latencies = nil
			notable = append(notable, fmt.Sprintf("%+6.1f s: %s", s.End.Sub(span.Injected).Seconds(), must(json.Marshal(s))))
		}
	}
	_, messages, _ := target.Load.Seconds()
	t.Logf("seconds of pod/ in which a try failed, from the injection:\n%s\n%s", strings.Join(notable, "\n"), messages)
	return span
}

// noneFailsInCut demands that no call fails that begins 3 s after the cut, however long it takes to fail.
func noneFailsInCut(t *testing.T, span faults.Span, log []faults.Second, _ faults.Second) {
	t.Helper()
	for _, f := range faults.Failures(log, span.Injected.Add(detectionTime)) {
		t.Errorf("a call of caller %d failed that began %.1f s after the cut, want none from %s on", f.Caller, f.Began.Sub(span.Injected).Seconds(), detectionTime)
	}
}

// checkInside checks the callers in the zone that was cut off.
func checkInside(t *testing.T, ctx context.Context, inside *faults.Load, b budget, span faults.Span) {
	t.Helper()
	log, err := inside.SecondsUntil(ctx, time.Now())
	fatal(t, err)
	before, during := faults.Sum(log, time.Time{}, span.Begin), faults.Sum(log, span.Injected.Add(detectionTime), span.End)
	failed := faults.Sum(log, span.Begin, time.Now()).Failed
	t.Logf("inside: %d calls failed; from %s on: %.0f calls/s (%.0f %%)", failed, detectionTime, during.PerSecond(), 100*during.PerSecond()/before.PerSecond())
	for _, s := range log {
		if s.Failed > 0 {
			t.Logf("%+6.1f s: %d failed: %s", s.End.Sub(span.Injected).Seconds(), s.Failed, s.Error)
		}
	}
	if failed > b.maxFailed || during.Succeeded == 0 {
		t.Errorf("inside, %d calls failed and %d succeeded, want at most %d failed", failed, during.Succeeded, b.maxFailed)
	}
	noneFailsInCut(t, span, log, before)
}

// latencyRecovers demands that 99 % of the calls are as fast as before once the slow replica
// is detected. A p99 below noise is accepted. If the slow replica answered less than 1 % of the calls, any p99 is
// accepted, because then the machine was slow. If the other replicas sometimes needed half of the slow one's
// 100 ms, latency does not tell them apart (latencyTolerance in pod/internal/callstats), and the slow replica may answer
// half of its fair share: its calls stay in flight longer, which limits it to that.
func latencyRecovers(t *testing.T, span faults.Span, log []faults.Second, before faults.Second) {
	during := faults.Sum(log, span.Injected.Add(detectionTime), span.End)
	share := float64(during.Answered[span.Victims[0]]) / float64(max(1, during.Succeeded))
	t.Logf("the slow replica answered %.1f %% of the calls from %s on", 100*share, detectionTime)
	maxShare := 0.01
	latencies := faults.Sum(log, span.Begin.Add(-10*time.Second), span.End).Latencies // an estimate decays in 10 s
	if others := latencies.Longer(45*time.Millisecond) - latencies.Longer(noise); others > 0 {
		t.Logf("the other replicas' calls of more than 45 ms took %s together", others)
		maxShare = 0.5 / faults.Replicas
	}
	if got, limit := during.Latencies.Quantile(0.99), max(2*before.Latencies.Quantile(0.99), noise); during.Succeeded == 0 || got > limit && share >= maxShare {
		t.Errorf("p99 is %s from %s on, want at most %s; the slow replica answered %.1f %% of the calls", got, detectionTime, limit, 100*share)
	}
}

// oneFailsPerCaller demands that at most one call of each caller fails, and none once the lost replicas are ejected: the client
// probes them without calls. The calls before the ejection time out 5 s after the loss, and one that was sent just before the
// ejection 10 s after it.
func oneFailsPerCaller(t *testing.T, span faults.Span, log []faults.Second, _ faults.Second) {
	failures := map[int]int{}
	for _, f := range faults.Failures(log, span.Begin.Add(-baseline)) {
		if failures[f.Caller]++; failures[f.Caller] > 1 {
			t.Errorf("%d calls of caller %d failed, the last began %.1f s after the loss, want at most one", failures[f.Caller], f.Caller, f.Began.Sub(span.Injected).Seconds())
		}
	}
	if failed := faults.Sum(log, span.Injected.Add(12*time.Second), time.Now()).Failed; failed > 0 {
		t.Errorf("%d calls failed after the lost replicas were ejected, want none", failed)
	}
}

// failingReplicaAvoided demands that the failing replica gets at most its fair share of the tries for
// one second, and then less than 1 %. A replica that answers faster than the others, because
// it fails, must not attract calls.
func failingReplicaAvoided(t *testing.T, span faults.Span, log []faults.Second, _ faults.Second) {
	share := func(from, to time.Time) float64 {
		sum := faults.Sum(log, from, to)
		return float64(sum.FailedTries[span.Victims[0]]) / float64(max(1, sum.Started))
	}
	detected := span.Injected.Add(time.Second)
	for _, s := range log {
		const fair = 1.0 / faults.Replicas
		limit := fair + 3*math.Sqrt(fair*(1-fair)/float64(max(1, s.Started))) // three standard deviations of a fair choice
		if got := share(s.Begin, s.End); s.End.After(span.Begin) && s.Begin.Before(detected) && got > limit {
			t.Errorf("the failing replica got %.1f %% of the %d calls of one second, want at most its share, %.1f %%", 100*got, s.Started, 100*limit)
		}
	}
	if got := share(detected, span.End); got >= 0.01 {
		t.Errorf("the failing replica got %.1f %% of the calls after its first second, want less than 1 %%", 100*got)
	}
}

// TestFaultsInterrupted interrupts `make faults` in the middle of its worst fault, as Ctrl-C does, and
// expects that no trace of it is left: the lost node is back, and only its pods have restarted.
func TestFaultsInterrupted(t *testing.T) {
	needsNodes(t)
	kubectl(t, "apply", "-k", "k8s")
	rolledOut(t)
	state := func() string {
		var b strings.Builder
		for _, s := range services {
			for _, p := range pods(t, s.name) {
				restarts := faults.Restarts(p)
				if p.Spec.NodeName == faults.LostNode {
					restarts = 0
				}
				fmt.Fprintln(&b, p.Name, restarts, faults.IsReady(p))
			}
		}
		return b.String()
	}
	before := state()

	program := filepath.Join(t.TempDir(), "faults")
	fatal(t, command(2*time.Minute, nil, "go", "build", "-o", program, "./test/faults/run"))
	cmd := exec.Command(program, "-cluster", clusterName, "-fault", "node-lost")
	cmd.Dir = root
	out, err := cmd.StdoutPipe()
	fatal(t, err)
	var output, messages strings.Builder
	cmd.Stderr = &messages
	fatal(t, cmd.Start())
	failed := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(&output, lines.Text())
		if strings.Contains(lines.Text(), " node-lost ") { // the first second of the fault
			if failed++; failed == 6 {
				onNode(t, "pkill", "-STOP", "-f", "kubelet --config") // as api-frozen does
				fatal(t, cmd.Process.Signal(os.Interrupt))
			}
		}
	}
	err = cmd.Wait()
	t.Logf("the output:\n%s%s", output.String(), messages.String())
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(messages.String(), "interrupted") || !strings.Contains(output.String(), "\nUndone") {
		t.Errorf("the interrupted program ended with %v, want exit status 1, the word interrupted and a line that everything is undone", err)
	}
	if stopped := onNode(t, "sh", "-c", `grep -l "^State:.T" /proc/[0-9]*/status || true`); stopped != "" {
		t.Errorf("these processes are still stopped: %s", stopped)
	}
	if tables := onNode(t, "nft", "list", "tables"); strings.Contains(tables, "k8s_micro") {
		t.Errorf("the firewall still has the table that drops packets: %s", tables)
	}
	if _, err := os.Stat(filepath.Join(root, ".cluster", clusterName, faults.LostNode+".pid")); err != nil {
		t.Errorf("the lost node has not started again: %v", err)
	}
	if left := kubectl(t, "get", "namespace", faults.Namespace, "--ignore-not-found"); left != "" {
		t.Errorf("the namespace is left: %s", left)
	}
	eventually(t, time.Minute, "the pods of the demo as before", func() error { // those of the lost node were ready all the time, as the API server sees it
		if after := state(); after != before {
			return fmt.Errorf("before:\n%safter:\n%s", before, after)
		}
		return nil
	})
}
