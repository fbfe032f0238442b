//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jiangjiancc/go_micro_k8s/test/faults"
)

// TestLaptop runs the four programs and load generators on this machine, as a developer does, against services in the
// cluster. Their kubeconfig has only the rights of k8s/components/laptop. Two services are called: go-micro-srv in the
// namespace of the demo, and the one that package faults breaks, so that two faults can happen at once.
func TestLaptop(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	target := &faults.Target{Cluster: faults.Cluster{Root: root, Name: clusterName}, Image: probeImage}
	t.Cleanup(func() {
		cancel() // ends the load generators
		if err := target.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	fatal(t, command(time.Minute, nil, "kubectl", "apply", "-f", "k8s/namespace.yaml", "-f", "k8s/pod-rbac.yaml", "-f", "k8s/configmap-rbac.yaml", "-f", "k8s/pod-admission.yaml",
		"-f", "go-micro-srv/k8s/deployment.yaml", "-f", "go-micro-config/k8s/configmap.yaml"))
	t.Cleanup(func() { scale(t, 2) })
	l := &laptop{probe: filepath.Join(t.TempDir(), "probe"), token: laptopToken(t)}
	programs := l.startPrograms(t) // before the services are ready
	together(t,
		func() error { return target.Deploy(ctx) },
		func() error { return command(5*time.Minute, nil, "go", "build", "-o", l.probe, "./test/e2e/probe") },
		func() error {
			return command(3*time.Minute, nil, "kubectl", "rollout", "status", "-n", namespace, "deployment/go-micro-srv", "--timeout=2m")
		})

	t.Run("calls are fast", func(t *testing.T) { laptopSpeed(t, ctx, l) })

	services := &laptopLoad{t: t, name: "go-micro-srv"}
	services.start(ctx, l.command(t, l.kubeconfig(t, namespace), l.probe, "call", "8", "20ms"))
	broken := &laptopLoad{t: t, name: "the service of package faults"}
	broken.start(ctx, l.command(t, l.kubeconfig(t, faults.Namespace), l.probe, "call", "8", "20ms"))
	target.Load = broken.Load
	proxies := map[string]*apiProxy{"websocket": l.proxy(t, false), "SPDY/3.1": l.proxy(t, true)}
	var throughProxies []*laptopLoad
	for protocol, p := range proxies {
		through := &laptopLoad{t: t, name: "go-micro-srv, over " + protocol}
		through.start(ctx, l.command(t, p.kubeconfig(t), l.probe, "call", "2", "20ms"))
		throughProxies = append(throughProxies, through)
	}
	(&load{Load: services.Load}).waitForReplicas(t, "go-micro-srv", 2)
	t.Run("the API server gets no requests while calls are made", func(t *testing.T) { atRest(t, proxies) })
	t.Run("the programs", func(t *testing.T) { checkPrograms(t, programs) })

	t.Run("faults", func(t *testing.T) {
		t.Run("of go-micro-srv", func(t *testing.T) {
			t.Parallel()
			l := &load{Load: services.Load}
			step := func(what string, replicas int, args ...string) {
				begin := time.Now()
				kubectl(t, args...)
				kubectl(t, "rollout", "status", "-n", namespace, "deployment/go-micro-srv", "--timeout=2m")
				l.waitForReplicas(t, "go-micro-srv", replicas)
				for _, s := range append(throughProxies, services) {
					s.check(t, what, begin, 0)
				}
			}
			step("rolling restart", 2, "rollout", "restart", "-n", namespace, "deployment/go-micro-srv")
			step("pod deleted", 2, "delete", "-n", namespace, podNames(t, "go-micro-srv")[0], "--force", "--grace-period=0")
			for _, n := range []int{8, 1} {
				step(fmt.Sprintf("scaled to %d", n), n, "scale", "-n", namespace, "deployment/go-micro-srv", fmt.Sprintf("--replicas=%d", n))
			}
			for protocol, p := range proxies {
				p.usedOnly(t, protocol)
			}
		})
		t.Run("of a replica", func(t *testing.T) {
			t.Parallel()
			for _, b := range []struct {
				fault     string
				maxFailed int // as in the table budgets
			}{{"container-killed", 0}, {"replica-frozen", 4}} {
				fatal(t, target.AwaitReplicas(ctx, faults.Replicas))
				begin := time.Now()
				_, err := must(faults.Find(b.fault)).Run(ctx, target)
				fatal(t, err)
				broken.check(t, b.fault, begin, b.maxFailed)
			}
		})
	})
	for _, s := range throughProxies {
		fatal(t, s.Load.Stop(ctx))
	}
	t.Run("the API server restarts", func(t *testing.T) { laptopWithoutAPIServer(t, []*laptopLoad{services, broken}) })
}

// together runs functions at the same time and ends the test if one of them fails.
func together(t *testing.T, all ...func() error) {
	t.Helper()
	ended := make(chan error, len(all))
	for _, f := range all {
		go func() { ended <- f() }()
	}
	var errs []error
	for range all {
		errs = append(errs, <-ended)
	}
	fatal(t, errors.Join(errs...))
}

// laptopToken applies the Role of k8s/components/laptop in both namespaces, and returns a token of an account that has only these rights.
func laptopToken(t *testing.T) string {
	t.Helper()
	rights := string(must(os.ReadFile(filepath.Join(root, "k8s/components/laptop/laptop-rbac.yaml"))))
	role, binding, ok := strings.Cut(rights, "\n---\n")
	own, group := regexp.MustCompile(`(?m)^(  namespace: )go-micro$`), regexp.MustCompile(`(?s)subjects:.*`)
	if !ok || !own.MatchString(binding) || !group.MatchString(binding) {
		t.Fatalf("k8s/components/laptop/laptop-rbac.yaml is not a Role and its binding:\n%s", rights)
	}
	apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: "+faults.Namespace+"}}")
	for _, ns := range []string{namespace, faults.Namespace} {
		bound := group.ReplaceAllString(binding, "subjects: [{kind: ServiceAccount, name: laptop, namespace: "+namespace+"}]")
		apply(t, own.ReplaceAllString(role+"\n---\n"+bound, "${1}"+ns))
	}
	apply(t, `{apiVersion: v1, kind: ServiceAccount, metadata: {name: laptop, namespace: `+namespace+`}}`)
	return strings.TrimSpace(kubectl(t, "create", "token", "laptop", "-n", namespace, "--duration=1h"))
}

// laptopLoad is a load generator on this machine.
type laptopLoad struct {
	*faults.Load
	t       *testing.T
	name    string
	started time.Time
}

// check checks how many calls have failed since a time, which may be in the middle of a second.
func (s *laptopLoad) check(t *testing.T, what string, since time.Time, maxFailed int) {
	t.Helper()
	log, err := s.SecondsUntil(context.Background(), time.Now())
	fatal(t, err)
	sum := faults.Sum(log, since.Add(-time.Second), time.Now())
	_, messages, _ := s.Seconds()
	t.Logf("%s, %s: %.1f s, %d calls succeeded, %d failed, p99 %s", s.name, what, time.Since(since).Seconds(), sum.Succeeded, sum.Failed, sum.Latencies.Quantile(0.99))
	if sum.Succeeded == 0 || sum.Failed > maxFailed {
		t.Errorf("%s, %s: %d calls succeeded and %d failed, want at most %d\n%s\n%s", s.name, what, sum.Succeeded, sum.Failed, maxFailed, failures(log, since), messages)
	}
}

// failures lists the seconds in which tries failed.
func failures(log []faults.Second, since time.Time) string {
	var b strings.Builder
	for _, s := range log {
		if s.End.After(since) && (s.Failed > 0 || len(s.FailedTries) > 0) {
			s.Latencies = nil
			fmt.Fprintf(&b, "%+6.1f s: %s\n", s.End.Sub(since).Seconds(), must(json.Marshal(s)))
		}
	}
	return b.String()
}

// start starts the load generator.
func (s *laptopLoad) start(ctx context.Context, l *laptopProcess) {
	s.t.Helper()
	s.started = time.Now()
	var err error
	s.Load, err = faults.StartProcess(ctx, s.name, l.Cmd)
	fatal(s.t, err)
}

// laptopSpeed measures calls of one caller and of 50. An idle machine with two cores reaches 300 ms for the first call, 2 ms and 10 ms for a
// call and 3,000 calls a second. The limits find what is wrong in kind, such as a port-forward for each call, on busy machines too.
func laptopSpeed(t *testing.T, ctx context.Context, l *laptop) {
	first := time.Hour // the shorter of two
	measure := func(callers string) faults.Second {
		s := &laptopLoad{t: t, name: callers + " callers"}
		s.start(ctx, l.command(t, l.kubeconfig(t, namespace), l.probe, "call", callers, "0s"))
		var log []faults.Second
		eventually(t, time.Minute, "4 seconds of calls", func() (err error) {
			if log, _, err = s.Seconds(); err == nil && len(log) < 4 {
				err = fmt.Errorf("%d seconds", len(log))
			}
			return err
		})
		s.check(t, "speed", s.started, 0)
		fatal(t, s.Stop(ctx))
		first = min(first, log[0].Begin.Sub(s.started)+log[0].Latencies.Quantile(1))
		return faults.Sum(log[1:], s.started, time.Now())
	}
	one, many := measure("1"), measure("50")
	p50, p99 := one.Latencies.Quantile(0.5), one.Latencies.Quantile(0.99)
	t.Logf("first call after %s; one caller: p50 %s, p99 %s; 50 callers: %.0f calls/s; both replicas: %v", first.Round(time.Millisecond), p50, p99, many.PerSecond(), many.Answered)
	if first > 6*time.Second || p50 > 40*time.Millisecond || p99 > 400*time.Millisecond || many.PerSecond() < 150 || len(many.Answered) != 2 {
		t.Errorf("first call after %s, p50 %s, p99 %s, %.0f calls/s of %d replicas; want at most 6 s, 40 ms, 400 ms, and at least 150 calls/s of 2",
			first, p50, p99, many.PerSecond(), len(many.Answered))
	}
}

// atRest counts the requests that the API server gets while calls are made and no instance changes.
func atRest(t *testing.T, proxies map[string]*apiProxy) {
	before := map[string][]string{}
	for protocol, p := range proxies {
		before[protocol] = p.requests()
	}
	time.Sleep(3 * time.Second) // asserts that nothing happens
	for protocol, p := range proxies {
		if now := p.requests(); len(now) > len(before[protocol]) {
			t.Errorf("over %s the API server got the requests %q, want none", protocol, now[len(before[protocol]):])
		}
		t.Logf("over %s the start made the requests %q", protocol, before[protocol])
	}
}

// laptopWithoutAPIServer kills the API server. Only the calls made until it is ready again may fail.
func laptopWithoutAPIServer(t *testing.T, loads []*laptopLoad) {
	ejections := func(s *laptopLoad) int {
		_, messages, err := s.Seconds()
		fatal(t, err)
		return strings.Count(messages, "ejected ")
	}
	before := map[*laptopLoad]int{}
	for _, s := range loads {
		before[s] = ejections(s)
	}
	killed := time.Now()
	killAPIServer(t)
	ready := time.Now()
	t.Logf("the API server was ready again after %.1f s", ready.Sub(killed).Seconds())
	for i, s := range loads {
		var log []faults.Second
		eventually(t, 30*time.Second, "a second without failed calls of "+s.name, func() (err error) {
			if log, _, err = s.Seconds(); err != nil {
				return err
			}
			last := log[len(log)-1]
			if want := []int{1, faults.Replicas}[i]; last.Begin.Before(ready) || last.Failed > 0 || len(last.Answered) != want {
				return fmt.Errorf("the last second is %+v, want answers of %d replicas", last, want)
			}
			return nil
		})
		away := faults.Sum(log, killed.Add(-time.Second), time.Now())
		t.Logf("%s: %d calls succeeded, %d failed, all calls succeed %.1f s after the API server is ready", s.name, away.Succeeded, away.Failed, log[len(log)-1].Begin.Sub(ready).Seconds())
		for _, second := range log {
			if second.Begin.After(ready.Add(2*time.Second)) && second.Failed > 0 {
				t.Errorf("%s: %d calls failed %.1f s after the API server was ready: %s", s.name, second.Failed, second.Begin.Sub(ready).Seconds(), second.Error)
			}
			if second.End.After(killed) && second.Failed > 0 && !strings.Contains(second.Error, "through the API server") {
				t.Errorf("%s: the error of a failed call does not name the API server: %s", s.name, second.Error)
			}
		}
		if n := ejections(s) - before[s]; n > 0 {
			_, messages, _ := s.Seconds()
			t.Errorf("%s: %d instances were ejected, want none: %s", s.name, n, messages)
		}
	}
}
